"""The models that a store holds spectra of: what there is of each, and its removal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rankscope.engine.spectrum import Projection

from . import segments
from .folders import is_model_folder, model_folder
from .spectra import SpectraStore


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A folder of the store: `name` is the Hub id or path recorded in it, `size` is in bytes.

    `spectra` counts those of the weights as they are, `weighted` those under weightings, by the name of the weighting
    and, where that is not the raw one, the gauge (`norm`, `imatrix fixed`), `fixed` those in the fixed gauge and under
    none: twins, noise and whatever else is made of them are no spectra of the model.
    `damaged` are files that are not served as they stand, and those that were set aside, with a sentence each; the
    folder itself where it cannot be read.
    """

    folder: str
    name: str
    spectra: int
    size: int
    computed_at: str
    damaged: tuple[tuple[Path, str], ...] = ()
    weighted: Mapping[str, int] = field(default_factory=dict)
    fixed: int = 0

    @property
    def unread(self) -> str:
        """Why nothing of the folder can be read, "" where it can: a line for the user."""
        return next((f"{path}: {sentence}" for path, sentence in self.damaged if path.name == self.folder), "")


@dataclass(frozen=True, slots=True)
class Removed:
    """What was deleted of a model: spectra, and files that are none of theirs."""

    spectra: int
    unread: int
    """Files of a later version, or that could not be read."""
    damaged: int
    """Files that were set aside."""
    temporary: int


def stored_models(root: Path) -> list[StoredModel]:
    """The models that have spectra under `root`, sorted by name; none where there is no such folder."""
    if not Path(root).is_dir():
        return []
    found = (_stored_model(Path(root), path.name) for path in Path(root).iterdir() if _may_be_a_model(path))
    return sorted((model for model in found if model is not None), key=lambda model: model.name)


def find_model(root: Path, names: Set[str]) -> StoredModel | None:
    """The model of one of these names: a Hub id or path, or that of its folder under `root`; None if there is none."""
    folders = {*names, *map(model_folder, names)}
    for name in names:
        with suppress(RuntimeError):  # ~nobody
            folders.add(model_folder(Path(name).expanduser()))
    return next((model for model in stored_models(root) if model.folder in folders or model.name in names), None)


def _may_be_a_model(path: Path) -> bool:
    with suppress(PermissionError):  # of the root: what stands in it is named, with that reason
        return path.is_dir() and is_model_folder(path.name)
    return is_model_folder(path.name)


def _stored_model(root: Path, folder: str) -> StoredModel | None:
    """None where nothing of ours is in the folder."""
    store = SpectraStore(root, folder)
    stored = store.stored()
    damaged = dict(store.set_aside) | dict(store.damaged)
    if not stored and not damaged:
        return None
    newest = max(stored, key=stored.computed_at, default=None)
    under, gauges = stored.weightings(), stored.gauges()
    states = (f"{name} {gauges[key]}" if key in gauges else name for key, (name, _) in under.items())
    return StoredModel(
        folder=folder,
        name=folder if newest is None else stored.projection(newest).source.repo,
        spectra=len(stored) - len(stored.derived()) + len(stored.products()),
        size=segments.size(root / folder),
        computed_at="" if newest is None else stored.computed_at(newest),
        damaged=tuple(damaged.items()),
        weighted=Counter(sorted(states)),
        fixed=len(gauges.keys() - under.keys()),
    )


def remove_model(root: Path, folder: str) -> Removed:
    """Delete the spectra in `root`/`folder`, and the folder if nothing else is in it.

    Raises:
        ValueError: `folder` is not the name of a folder directly under `root`.
        OSError: it is not there, or a file cannot be deleted.
    """
    path = Path(root) / folder
    if folder in ("", ".", "..") or path.name != folder or path.is_symlink():
        raise ValueError(f"{folder!r} is not the name of a stored model")
    store = SpectraStore(root, folder)
    spectra = len(store.stored())
    unread = sum(found.suffix == ".h5" for found, _ in store.damaged)
    names = [file.name for file in path.iterdir() if segments.is_ours(file.name)]
    for name in names:
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):  # it holds files of somebody else
        path.rmdir()
    damaged = sum(name.endswith(".damaged") for name in names)
    return Removed(spectra, unread, damaged, sum(name.startswith(".tmp") for name in names))


def remove_spectra(root: Path, folder: str, is_meant: Callable[[Projection], bool]) -> int:
    """Delete those spectra in `root`/`folder` that are meant; how many there were. The others stay.

    Raises:
        OSError: a file cannot be read, written or deleted.
    """
    store = SpectraStore(root, folder)
    stored = store.stored()
    keys = {key for key in stored if is_meant(stored.projection(key))}
    if keys:
        store.remove(keys)
    return len(keys)

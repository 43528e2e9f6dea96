"""The models in a store: what is stored for each, and its removal."""

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

    `spectra` counts those of the unmodified weights; `weighted` those under weightings, by the name of the weighting
    and, unless it is the raw one, the gauge (`norm`, `imatrix fixed`); `fixed` those in the fixed gauge without a
    weighting. Twins, noise and other derived matrices are not counted. `damaged` lists files that are not served as
    they are and files that were set aside, each with a sentence, or the folder itself if it cannot be read.
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
        """Why nothing in the folder can be read, as a line for the user; "" if it can."""
        return next((f"{path}: {sentence}" for path, sentence in self.damaged if path.name == self.folder), "")


@dataclass(frozen=True, slots=True)
class Removed:
    """What was deleted for a model: spectra and other files."""

    spectra: int
    unread: int
    """Files of a later version, or unreadable ones."""
    damaged: int
    """Files that were set aside."""
    temporary: int


def stored_models(root: Path) -> list[StoredModel]:
    """The models that have spectra under `root`, sorted by name; none if there is no such folder."""
    if not Path(root).is_dir():
        return []
    found = (_stored_model(Path(root), path.name) for path in Path(root).iterdir() if _may_be_a_model(path))
    return sorted((model for model in found if model is not None), key=lambda model: model.name)


def find_model(root: Path, names: Set[str]) -> StoredModel | None:
    """The model with one of these names, a Hub id, a path or a folder name under `root`; None if there is none."""
    folders = {*names, *map(model_folder, names)}
    for name in names:
        with suppress(RuntimeError):  # ~ of an unknown user
            folders.add(model_folder(Path(name).expanduser()))
    return next((model for model in stored_models(root) if model.folder in folders or model.name in names), None)


def _may_be_a_model(path: Path) -> bool:
    with suppress(PermissionError):  # of the root: the models in it are named, with that reason
        return path.is_dir() and is_model_folder(path.name)
    return is_model_folder(path.name)


def _stored_model(root: Path, folder: str) -> StoredModel | None:
    """The model in a folder; None if no file in it is a store's."""
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
        OSError: the folder does not exist, or a file cannot be deleted.
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
    with suppress(OSError):  # it holds other files
        path.rmdir()
    damaged = sum(name.endswith(".damaged") for name in names)
    return Removed(spectra, unread, damaged, sum(name.startswith(".tmp") for name in names))


def remove_spectra(root: Path, folder: str, is_meant: Callable[[Projection], bool]) -> int:
    """Delete the spectra in `root`/`folder` for which `is_meant` is true; return their number.

    Raises:
        OSError: a file cannot be read, written or deleted.
    """
    store = SpectraStore(root, folder)
    stored = store.stored()
    keys = {key for key in stored if is_meant(stored.projection(key))}
    if keys:
        store.remove(keys)
    return len(keys)

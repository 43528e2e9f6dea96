"""The spectra of one model, in a folder that any number of processes may read and write at once."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from rankscope.engine.atomic import sweep
from rankscope.engine.spectrum import Spectrum, Values

from . import segments
from .entry import Entry, entry_of, spectrum_of
from .files import Files
from .index import Place
from .layout import build
from .segments import DamagedFile
from .writer import Writer

__all__ = [
    "DamagedFile",
    "Entry",
    "SpectraStore",
    "StoredModel",
    "entry_of",
    "remove_model",
    "stored_models",
]

_MERGE_AT = 32  # segments that are worth a merge: each costs about 2 ms to open
_VERIFIED = 256  # spectra that are verified together: at 4096 values each 8 MB


class SpectraStore:
    """The spectra in `root`/`model` (a `model_folder`), by content key.

    Creating one reads nothing and makes neither folder nor thread: the first question reads the
    index, the first `put` makes folder and thread. Every method may be called from any thread.

    Where a key was computed more than once, the newest counts: what is put counts against what was read before,
    whatever the clocks say, and against what was not by the time when it was computed. Where a local file
    was changed in place, so that its identity stands but the bytes of a tensor do not, nothing that was
    computed from the old bytes is served.
    """

    def __init__(self, root: Path, model: str) -> None:
        self.folder = Path(root) / model
        self._writer = Writer(self._save)
        self._prepared = False
        self._merging = threading.Lock()
        self._lock = threading.RLock()  # guards what follows
        self._loaded = False
        self._files = Files(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def damaged(self) -> list[tuple[Path, str]]:
        """Files that were found not to be served as they stand, with a sentence for the user.

        Damaged ones have been set aside under the path given, what was intact in them stands in others, and the
        sentence names what is lost; in a folder that can only be read they are served where they stand. Files of a
        later version, and files that cannot be read, stand where they stood.
        """
        with self._lock:
            return self._files.damaged

    @property
    def set_aside(self) -> list[tuple[Path, str]]:
        """Damaged files that stand in the folder, set aside now or before, with a sentence that says what of them is
        not computed again."""
        with self._lock:
            self._load()
            return list(self._files.set_aside())

    def lost(self) -> list[Entry]:
        """The spectra that are damaged and not computed again, as far as their files still tell."""
        with self._lock:
            self._load()
            return self._files.index.all_lost()

    def has(self, key: str) -> bool:
        """Whether a valid spectrum of this key is saved."""
        return self.entry(key) is not None

    def entry(self, key: str) -> Entry | None:
        """The entry of a key, None if it is not saved. Reads no values."""
        with self._lock:
            self._load()
            return self._files.index.entry(key)

    def entries(self) -> list[Entry]:
        """One entry per key, in no particular order. Reads no values."""
        with self._lock:
            self._load()
            return self._files.index.entries()

    def values(self, keys: Iterable[str]) -> dict[str, Values]:
        """Singular values by key: float64, read-only, descending, shape (projection.count,).

        A key that is not saved is not in the result. Nor is one whose values turn out to be damaged: it counts as not
        computed, and is named in `damaged` with its file. The others of that file are served.

        Raises:
            OSError: a file cannot be read.
        """
        return {key: values for key, (_, values) in self._read(keys).items()}

    def get(self, key: str) -> Spectrum:
        """The spectrum of a key.

        Raises:
            KeyError: it is not saved, or turns out to be damaged.
            OSError: its file cannot be read.
        """
        return spectrum_of(*self._read([key])[key])

    def put(self, spectrum: Spectrum) -> Future[None]:
        """Save a spectrum. The future is done when file and folder are synced to the disk.

        It holds an OSError if they could not be (a full disk, say): everything saved before is safe,
        and the store goes on with the next.

        Raises:
            ValueError: the values are not float64 of shape (projection.count,).
            RuntimeError: the store is closed.
        """
        values, wanted = spectrum.values, (spectrum.projection.count,)
        if values.dtype != np.float64 or values.shape != wanted:
            raise ValueError(f"values must be float64 of shape {wanted}, not {values.dtype} {values.shape}")
        return self._writer.put(spectrum)

    def verify(self, keys: Iterable[str] | None = None) -> None:
        """Read the values of these keys, None: every byte of every file. What is damaged is dealt with as in `values`.

        Raises:
            OSError: a file cannot be read.
        """
        if keys is not None:
            wanted = list(keys)
            for start in range(0, len(wanted), _VERIFIED):
                self._read(wanted[start : start + _VERIFIED])
            return
        with self._lock:
            self._load()
            names = [name for names in self._files.index.by_version() for name in names]
        for name in names:
            try:
                segments.load(self.folder / name)
            except DamagedFile as damage:
                self._rescue(damage.path)
            except FileNotFoundError:  # merged by another process: what that wrote it has read back
                self.refresh()
            except OSError:  # a bad sector: which spectra are in it
                self._read(self._keys_in(name))

    def refresh(self) -> None:
        """See what other processes have written since; where nothing changed, a listing and no more."""
        with self._lock:
            self._loaded = True
            self._files.refresh()

    def tidy(self) -> None:
        """What opens a store for writing begins with this: sweep what killed processes left half written, and merge
        what they left in small files.

        Raises:
            OSError: as `merge`.
        """
        sweep(self.folder)
        self.merge()

    def merge(self) -> None:
        """Merge segments into volumes where there are 32 or more of a format version; otherwise a listing and no more.

        Spectra are safe whatever happens: a merge removes nothing before its result is verified.

        Raises:
            OSError: the disk is full or fails; the segments stay, and can be merged another time.
        """
        if not _is_due(segments.names(self.folder)):
            return
        with self._merging:
            with self._lock:
                self.refresh()
                groups = self._files.index.by_version()  # what is served: files of a later version stay as they are
            for names in groups:
                if _is_due(names):  # or another thread or process was faster
                    self._merge(names)

    def close(self) -> None:
        """Finish what is pending, merge if it is due, end the thread. Reading goes on working."""
        self._writer.close()
        with suppress(OSError):  # nothing is lost: the next program that opens the store merges
            self.merge()

    def _save(self, spectra: list[Spectrum]) -> None:
        """One new segment, of spectra of one format version; called by the writer's thread."""
        with self._lock:
            successor = self._files.index.successor
            entries = [replace(entry, generation=successor(entry)) for entry in map(entry_of, spectra)]
        image = build(entries, [spectrum.values for spectrum in spectra])
        if not self._prepared:
            segments.prepare(self.folder)
        self._prepared = False  # after a failure look again: the folder may have been removed
        name = segments.write(self.folder, segments.SEGMENT, image.data)
        self._prepared = True
        with self._lock:
            if self._loaded and name not in self._files.index.parts:
                self._files.index.add(name, image.part)

    def _merge(self, names: list[str]) -> None:
        """Merge files of one format version."""
        sizes = {}
        for name in names:
            with suppress(FileNotFoundError):
                sizes[name] = (self.folder / name).stat().st_size
        for batch in segments.plan(sizes):
            try:
                segments.merge(self.folder, batch)
            except FileNotFoundError:
                break  # another process is merging the same files
            except DamagedFile as damage:
                self._rescue(damage.path)
        self.refresh()

    def _load(self) -> None:
        if not self._loaded:
            self.refresh()

    def _rescue(self, path: Path) -> None:
        with self._lock:
            try:
                self._files.rescue(path)
            except FileNotFoundError:  # another process has merged it, or set it aside
                self._files.index.forget([path.name])
                self.refresh()

    def _read(self, keys: Iterable[str]) -> dict[str, tuple[Entry, Values]]:
        """Entry and values of the keys that are saved, a file at a time."""
        wanted = set(keys)
        found: dict[str, tuple[Entry, Values]] = {}
        while files := self._places(wanted - found.keys()):
            for name, rows in files.items():
                for (entry, _), values in zip(rows, self._values_in(name, rows), strict=False):
                    found[entry.projection.key] = entry, values
        return found

    def _values_in(self, name: str, rows: list[tuple[Entry, Place]]) -> list[Values]:
        """The values of some rows of a file; none where it is damaged or gone: the index then tells where they are."""
        places = [(place.start, entry.projection.count, place.crc32) for entry, place in rows]
        try:
            return segments.load_values(self.folder / name, places)
        except FileNotFoundError:  # merged by another process: a newer file has these spectra
            with self._lock:
                self._files.index.forget([name])
                self.refresh()
        except DamagedFile as damage:
            self._rescue(damage.path)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            with self._lock:
                self._files.give_up(self.folder / name, places, error)
        return []

    def _keys_in(self, name: str) -> list[str]:
        with self._lock:
            part = self._files.index.parts.get(name)
        return [entry.projection.key for entry in part.entries] if part else []

    def _places(self, keys: Iterable[str]) -> dict[str, list[tuple[Entry, Place]]]:
        """The entries of these keys, and where their values are, by file."""
        files: dict[str, list[tuple[Entry, Place]]] = {}
        with self._lock:
            self._load()
            for key in keys:
                entry = self._files.index.entry(key)
                if entry is not None:
                    place = self._files.index.place(key)
                    files.setdefault(place.file, []).append((entry, place))
        return files


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A folder of the store: `name` is the Hub id or path recorded in it, `size` is in bytes.

    `spectra` counts those of the weights as they are: twins and whatever else is derived are no spectra of the model.
    `damaged` are files that are not served as they stand, and those that were set aside, with a sentence each.
    """

    folder: str
    name: str
    spectra: int
    size: int
    computed_at: str
    damaged: tuple[tuple[Path, str], ...] = ()


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
    models = []
    for folder in Path(root).iterdir():
        if folder.is_dir() and (segments.names(folder) or segments.damaged_names(folder)):
            store = SpectraStore(root, folder.name)
            entries = store.entries()
            newest = max(entries, key=lambda entry: entry.computed_at, default=None)
            models.append(
                StoredModel(
                    folder=folder.name,
                    name=newest.projection.source.repo if newest else folder.name,
                    spectra=sum(entry.projection.counts() for entry in entries),
                    size=segments.size(folder),
                    computed_at=newest.computed_at if newest else "",
                    damaged=tuple((dict(store.set_aside) | dict(store.damaged)).items()),
                )
            )
    return sorted(models, key=lambda model: model.name)


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
    spectra = len(store.entries())
    unread = sum(found.suffix == ".h5" for found, _ in store.damaged)
    names = [file.name for file in path.iterdir() if segments.is_ours(file.name)]
    for name in names:
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):  # it holds files of somebody else
        path.rmdir()
    damaged = sum(name.endswith(".damaged") for name in names)
    return Removed(spectra, unread, damaged, sum(name.startswith(".tmp") for name in names))


def _is_due(names: Iterable[str]) -> bool:
    return sum(name.startswith(segments.SEGMENT) for name in names) >= _MERGE_AT

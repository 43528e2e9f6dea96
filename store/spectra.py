"""The spectra of one model, in a folder that any number of processes may read and write at once."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Set
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from rankscope.engine.atomic import sweep
from rankscope.engine.spectrum import Spectrum, Values

from . import room, segments
from .entry import Entry, entry_of, spectrum_of
from .files import Files
from .index import StoredRow
from .layout import build
from .segments import DamagedFile
from .stored import Stored
from .watch import FolderWatch
from .writer import Writer

__all__ = ["DamagedFile", "Entry", "SpectraStore", "entry_of"]

_MERGE_AT = 32  # segments that are worth a merge: each costs about 2 ms to open
_FILE_BYTES, _ROW_BYTES = 13_000, 450  # of a file, and of each spectrum in it beside its values
_VERIFY_BATCH = 256  # spectra that are verified together: at 4096 values each 8 MB


class SpectraStore:
    """The spectra in `root`/`model` (a `model_folder`), by content key.

    The constructor reads nothing and makes neither folder nor thread: the first method that needs the index reads it,
    the first `put` makes folder and thread. Every method may be called from any thread.

    Where a key was computed more than once, the newest result counts: a `put` replaces whatever was read before, even
    if the clocks disagree; results that were not read before are ordered by their time of computation. Where a local
    file was changed in place, so that its identity is the same but the bytes of a tensor are not, nothing that was
    computed from the old bytes is served.
    """

    def __init__(self, root: Path, model: str) -> None:
        self.folder = Path(root) / model
        self.saved = 0  # spectra saved by this object
        self._writer = Writer(self._save, self._wait)
        self._tell: Callable[[str], None] = lambda _: None
        self._prepared = False
        self._is_full = False
        self._segments = 0  # written by this object since the last merge
        self._watch = FolderWatch(self.folder)
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
        """Files that are not served as they are, each with a sentence for the user.

        Damaged files have been set aside under the given path, their intact spectra written to new files, and the
        sentence names what is lost; in a read-only folder they are served where they are. Files of a later version, and
        files that cannot be read, stay where they were.
        """
        with self._lock:
            return self._files.damaged

    @property
    def set_aside(self) -> list[tuple[Path, str]]:
        """Damaged files in the folder that were set aside, now or before, each with a sentence that names those of its
        spectra that have not been computed again."""
        with self._lock:
            self._load()
            return list(self._files.set_aside())

    def lost(self) -> list[Entry]:
        """The entries of spectra that are damaged and not computed again, as far as their files can be read."""
        with self._lock:
            self._load()
            return self._files.index.all_lost()

    def has(self, key: str) -> bool:
        """Whether a valid spectrum with this key is saved."""
        with self._lock:
            self._load()
            return self._files.index.has(key)

    def entry(self, key: str) -> Entry | None:
        """The entry of a key, None if it is not saved. Reads no values."""
        with self._lock:
            self._load()
            return self._files.index.entry(key)

    def stored(self) -> Stored:
        """A snapshot of all that is saved, by key; entries are made on demand. Reads no values."""
        with self._lock:
            self._load()
            return self._files.index.stored()

    def entries(self) -> list[Entry]:
        """One entry per key, in no particular order. Reads no values. 45,000 take a second: see `stored`."""
        return list(self.stored().values())

    def values(self, keys: Iterable[str]) -> dict[str, Values]:
        """Read the stored numbers of these keys, as read-only arrays: singular values, float64, descending, shape
        (projection.count,); for leading directions float32, shape (projection.stored_count,).

        A key that is not saved is not in the result. Nor is one whose values turn out to be damaged: it counts as not
        computed, and `damaged` names it with its file. The other spectra of that file are served.

        Raises:
            OSError: a file cannot be read.
        """
        return {key: values for key, (_, values) in self._read(keys).items()}

    def get(self, key: str) -> Spectrum:
        """Read the spectrum of a key.

        Raises:
            KeyError: it is not saved, or turns out to be damaged.
            OSError: its file cannot be read.
        """
        found, values = self._read([key])[key]
        return spectrum_of(found.entry, values)

    def put(self, spectrum: Spectrum) -> Future[None]:
        """Save a spectrum. The future is done when file and folder are synced to the disk.

        If that failed, the future holds an OSError that names the folder: everything saved before is safe, and the
        store goes on with the next spectrum. If the disk is full, the spectrum waits for room, see `listen`.

        Raises:
            ValueError: the values are not float64 of shape (projection.count,), or for directions float32 of shape
                (projection.stored_count,).
            RuntimeError: the store is closed.
        """
        values, wanted = spectrum.values, (spectrum.projection.stored_count,)
        kind = np.float32 if spectrum.projection.is_directions else np.float64
        if values.dtype != kind or values.shape != wanted:
            named = np.dtype(kind).name
            raise ValueError(f"values must be {named} of shape {wanted}, not {values.dtype} {values.shape}")
        return self._writer.put(spectrum)

    def listen(self, tell: Callable[[str], None]) -> None:
        """Have the writer's thread call `tell` with a line on a full disk, and with "" once saving goes on."""
        self._tell = tell

    def verify(self, keys: Iterable[str] | None = None) -> None:
        """Check the values of these keys or, for None, every byte of every file; for damage see `values`.

        Raises:
            OSError: a file cannot be read.
        """
        if keys is not None:
            wanted = list(keys)
            for start in range(0, len(wanted), _VERIFY_BATCH):
                self._read(wanted[start : start + _VERIFY_BATCH])
            return
        with self._lock:
            self._load()
            names = [name for names in self._files.index.by_version() for name in names]
        for name in names:
            try:
                segments.load(self.folder / name)
            except DamagedFile as damage:
                self._rescue(damage.path)
            except FileNotFoundError:  # merged by another process, which has verified what it wrote
                self.refresh()
            except OSError:  # a bad sector: find the spectra in it
                self._read(self._keys_in(name))

    def refresh(self) -> None:
        """Read what other processes have written since; where nothing changed this costs one listing."""
        with self._lock:
            begun = self._watch.begin()
            self._loaded = True
            self._files.refresh()
            self._watch.end(begun)

    def look(self) -> bool:
        """Refresh if the folder has changed; otherwise this costs only reading its time.

        Returns whether any other process has saved spectra here since the index was first read.
        """
        if self._watch.is_changed():
            self.refresh()
        return self._files.has_company

    def news(self) -> set[str]:
        """Return the keys in other processes' files that came or went since the last call, also by a merge."""
        with self._lock:
            return self._files.take_news()

    def tidy(self) -> None:
        """Sweep and merge what killed processes left; called by whatever opens a store for writing.

        Raises:
            OSError: as `merge`.
        """
        sweep(self.folder)
        self.merge()

    def merge(self) -> None:
        """Merge segments where there are 32 or more of one format version; otherwise this costs one listing.

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

    def remove(self, keys: Set[str]) -> None:
        """Delete all results with these keys, older ones too; nothing else is lost.

        Raises:
            OSError: a file cannot be read, written or deleted.
        """
        with self._merging, self._lock:
            for _ in range(2):  # the second round finds what the first has saved from a damaged file
                self.refresh()
                for name in segments.names(self.folder):
                    part = self._files.index.parts.get(name)
                    if part is not None and not keys.isdisjoint(part.entries.keys):
                        try:
                            segments.remove(self.folder, name, keys)
                        except DamagedFile as damage:
                            self._rescue(damage.path)
            self.refresh()

    def close(self) -> int:
        """Finish what is pending, merge if that is due, end the thread. Reading remains possible.

        Returns the number of spectra that are not saved because the disk is full.
        """
        lost = self._writer.close()
        with suppress(OSError):  # nothing is lost: the next program that opens the store merges
            self.merge()
        return lost

    def _save(self, spectra: list[Spectrum]) -> None:
        """Write one new segment with spectra of one format version; called by the writer's thread."""
        with self._lock:
            successor = self._files.index.successor
            entries = [replace(entry, generation=successor(entry)) for entry in map(entry_of, spectra)]
        image = build(entries, [spectrum.values for spectrum in spectra])
        with self._lock:
            self._files.saving = frozenset(entry.projection.key for entry in entries)
        try:
            name = self._write(image.data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from error
        with self._lock:
            if self._loaded and name not in self._files.index.parts:
                self._files.index.add(name, image.part)
            self._files.saving = frozenset()
            self.saved += len(spectra)
        self._segments += 1
        if self._segments >= _MERGE_AT:
            with suppress(OSError):  # nothing is lost: the next attempt is after as many more
                self.merge()
            self._segments = 0

    def _write(self, data: bytes) -> str:
        """Write a new segment; return its name. The disk counts as full only if merging segments makes no room
        either."""
        if not self._prepared:
            segments.prepare(self.folder)
        self._prepared = False  # after a failure look again: the folder may have been removed
        if not self._is_full and segments.is_tight(self.folder, len(data)):
            self._merge_all()
        try:
            name = segments.write(self.folder, segments.SEGMENT, data)
        except OSError as error:
            if self._is_full or not room.is_full(error):
                raise
            self._is_full = True  # merged once, until there is room again
            self._merge_all()
            name = segments.write(self.folder, segments.SEGMENT, data)
        self._prepared, self._is_full = True, False
        return name

    def _merge_all(self) -> None:
        """Merge all segments, due or not, as far as there is room."""
        with suppress(OSError), self._merging:
            with self._lock:
                self.refresh()
                groups = self._files.index.by_version()
            for names in groups:
                if _segments_in(names) > 1:
                    self._merge(names)

    def _wait(self, pending: list[Spectrum]) -> None:
        """Tell the listener how much room the pending spectra lack; with none pending, that there is room."""
        size = _FILE_BYTES + sum(spectrum.values.nbytes + _ROW_BYTES for spectrum in pending)
        self._tell(room.full_line(self.folder, size) if pending else "")

    def _merge(self, names: list[str]) -> None:
        """Merge files of one format version."""
        sizes = {}
        for name in names:
            with suppress(FileNotFoundError):
                sizes[name] = (self.folder / name).stat().st_size
        try:
            for batch in segments.plan(sizes):
                try:
                    segments.merge_as_fits(self.folder, batch)
                except DamagedFile as damage:
                    self._rescue(damage.path)
        except FileNotFoundError:
            pass  # another process is merging the same files
        finally:
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

    def _read(self, keys: Iterable[str]) -> dict[str, tuple[StoredRow, Values]]:
        """Read row and values for those of the keys that are saved, file by file."""
        wanted = set(keys)
        read: dict[str, tuple[StoredRow, Values]] = {}
        while files := self._places(wanted - read.keys()):
            for name, rows in files.items():
                for found, values in zip(rows, self._values_in(name, rows), strict=False):
                    read[found.key] = found, values
        return read

    def _values_in(self, name: str, rows: list[StoredRow]) -> list[Values]:
        """Read the values of some rows of a file; [] if it is damaged or gone: the index then knows where they are
        now."""
        places = [found.place for found in rows]
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
        return part.entries.keys if part else []

    def _places(self, keys: Iterable[str]) -> dict[str, list[StoredRow]]:
        """The rows that count for these keys, by file."""
        files: dict[str, list[StoredRow]] = {}
        with self._lock:
            self._load()
            for key in keys:
                if (found := self._files.index.find(key)) is not None:
                    files.setdefault(found.file, []).append(found)
        return files


def _is_due(names: Iterable[str]) -> bool:
    return _segments_in(names) >= _MERGE_AT


def _segments_in(names: Iterable[str]) -> int:
    return sum(name.startswith(segments.SEGMENT) for name in names)

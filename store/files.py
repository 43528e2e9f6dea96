"""The files of one folder: which ones count, which are damaged and which cannot be read."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import rescue, segments
from .index import Index
from .layout import UnknownFormatError, ValuesPlace
from .segments import DamagedFile


class Files:
    """The index of a folder's files, and messages about those that are not served as they are.

    A file is read once, when it is first listed. Not thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = Index()
        self._refused: dict[str, tuple[Path, str]] = {}
        self._unread: dict[str, tuple[Path, str]] = {}
        self._aside_names: set[str] = set()
        self._misread: set[str] = set()
        self.saving: frozenset[str] = frozenset()
        """Keys that are being written: their file is not reported as news."""
        self.has_company = False
        """Whether other processes have saved spectra in this folder since it was first listed."""
        self._news: set[str] = set()
        self._gone_keys: set[str] = set()
        self._is_listed = False

    @property
    def damaged(self) -> list[tuple[Path, str]]:
        """Files that are not served as they are, each with a sentence for the user: see SpectraStore.damaged."""
        return [*self._refused.values(), *self._unread.values()]

    def set_aside(self) -> Iterator[tuple[Path, str]]:
        """Damaged files that were set aside in this folder, now or earlier, each with a sentence for the user."""
        for name in sorted(self._aside_names):
            part = self.index.parts.get(name)
            yield self.folder / name, rescue.sentence_aside(part, self.index.lost(name) if part else ())

    def refresh(self) -> None:
        """Read new files; where nothing changed this costs one listing. A folder that cannot be listed is named in
        `damaged`, and what was read from it before stays known."""
        lost: set[str] = set()
        self._gone_keys.clear()
        try:
            while lost := self._list(lost):  # another process merged files during the round
                pass
        except OSError as error:
            self._unread[self.folder.name] = self.folder, f"It cannot be read ({error.strerror})."
        self._is_listed = True

    def take_news(self) -> set[str]:
        """Return the keys in other processes' files that came or went since the last call."""
        news, self._news = self._news, set()
        return news

    def rescue(self, path: Path) -> None:
        """Serve the intact spectra of a damaged file, and keep a message about the others.

        The intact ones are written to a new file and the damaged file is set aside; where that is impossible they are
        served from the damaged file.

        Raises:
            FileNotFoundError: the file is gone: list the folder again.
            OSError: the file cannot be read.
        """
        name = path.name
        known = self.index.parts.get(name)
        try:
            damage = rescue.examine(path)
        except UnknownFormatError as unknown:
            self.index.forget([name])
            self._refused[name] = path, str(unknown)
            return
        self.index.forget([name])
        part = damage.part or known
        if damage.is_whole and part is not None:  # the read before went wrong, not the disk
            self._note_misread(path)
            self.index.add(name, part)
            return
        renewed = rescue.renew(path, damage)
        if renewed is not None and renewed.part is not None:
            self.index.add(renewed.name, renewed.part)
        where = path if renewed is None else renewed.aside
        if part is not None:
            is_served = renewed is None and damage.part is not None
            self.index.add(where.name, part, damage.lost if is_served else frozenset(range(len(part.entries))))
        if where != path:
            self._aside_names.add(where.name)
        self._refused[name] = where, rescue.sentence(part, self.index.lost(where.name) if part else ())

    def give_up(self, path: Path, places: Iterable[ValuesPlace], error: OSError) -> None:
        """Count the values at these places that the disk cannot read as not computed; the file stays.

        Raises:
            FileNotFoundError: the file is gone: list the folder again.
            OSError: nothing in the file can be read.
        """
        starts = segments.unreadable(path, places)
        if not starts:
            self._note_misread(path)
        if path.name in self.index.parts:  # else another thread has seen that it was merged
            self.index.lose(path.name, starts)
            self._refused[path.name] = path, rescue.sentence_unread(self.index.lost(path.name), error)

    def _note_misread(self, path: Path) -> None:
        if path.name in self._misread:
            raise OSError(errno.EIO, "It reads differently each time", str(path))
        self._misread.add(path.name)

    def _list(self, lost: set[str]) -> set[str]:
        """Read the new files. Return the names of those that disappeared meanwhile; `lost` are those of the call
        before."""
        gone = set()
        self._unread.clear()
        self._list_set_aside()
        listed = segments.names(self.folder)
        went = self.index.parts.keys() - set(listed) - self._aside_names
        self._gone_keys.update(key for name in went for key in self.index.parts[name].entries.keys)
        self._news |= self._gone_keys
        self.index.forget(went)
        for name in listed:
            if name in self.index.parts or name in self._refused:
                continue
            path = self.folder / name
            try:
                self._read(path)
            except UnknownFormatError as unknown:
                self._refused[name] = path, str(unknown)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and name not in lost:
                    gone.add(name)
                else:
                    self._unread[name] = path, f"It cannot be read ({error.strerror})."
        return gone

    def _list_set_aside(self) -> None:
        """Take in files set aside earlier: the older results that their lost rows replaced must not count again."""
        listed = set(segments.damaged_names(self.folder))
        for name in listed - self._aside_names - self.index.parts.keys():
            if (part := rescue.load_aside(self.folder / name)) is not None:
                self.index.add(name, part, frozenset(range(len(part.entries))))
        self._aside_names = listed

    def _read(self, path: Path) -> None:
        try:
            part = segments.load_part(path)
        except DamagedFile:
            self.rescue(path)
            return
        if self._is_listed:
            keys = set(part.entries.keys) - self.saving
            self._news |= keys
            unknown = (key for key in keys - self._gone_keys if not self.index.has(key))
            self.has_company = self.has_company or any(unknown)
        self.index.add(path.name, part)

"""The rows of all files joined in memory: which spectrum in which file counts for a key."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import NamedTuple

from .entries import Entries, tensor_name
from .entry import Entry
from .layout import FileContents, ValuesPlace
from .readings import LastRead
from .stored import ROW_BITS, Stored

_NONE: frozenset[int] = frozenset()


class StoredRow(NamedTuple):
    """The row that counts for a key: its file, and the place of its values."""

    key: str
    file: str
    place: ValuesPlace
    entries: Entries
    row: int

    @property
    def entry(self) -> Entry:
        """The row as an object."""
        return self.entries[self.row]


class Index:
    """The rows of all files. The newest row of a key counts, unless its weights have changed since.

    The newest row has the highest generation and, among equal ones, the latest time of computation: see `successor`.

    A tensor's weights have changed if a newer row of the same source identity and tensor has another digest of its
    bytes: a local file was changed in place. A derived row was read from the tensors of its parents, so it counts as
    long as none of these has changed.

    A row whose values are lost to damage still takes part in this order: if it is the newest of its key, no row of the
    key counts, because the result that it replaced must not come back. Not thread-safe.
    """

    def __init__(self) -> None:
        self.parts: dict[str, FileContents] = {}
        self._lost: dict[str, frozenset[int]] = {}  # file -> rows without values
        self._files: list[str] = []  # in the order of their numbers
        self._rows: dict[str, int] = {}  # key -> number of file and row, see stored.ROW_BITS
        self._read = LastRead()

    def add(self, name: str, part: FileContents, lost: frozenset[int] = _NONE) -> None:
        """Add the rows of a new file; the values of the rows in `lost` are damaged."""
        self.parts[name] = part
        if lost:
            self._lost[name] = lost
        first = len(self._files) << ROW_BITS
        self._files.append(name)
        keys = part.entries.keys
        found = dict(zip(keys, range(first, first + len(keys)), strict=True))
        if len(found) == len(keys) and self._rows.keys().isdisjoint(keys):
            self._rows.update(found)
        else:
            for at, key in enumerate(keys, first):
                held = self._rows.get(key)
                if held is None or self._order(held) <= self._order(at):
                    self._rows[key] = at
        self._read.add(part.entries)

    def forget(self, names: Iterable[str]) -> None:
        """Remove the rows of these files; older rows that they replaced count again."""
        gone = self.parts.keys() & set(names)
        if gone:
            left = [(name, part, self._lost.get(name, _NONE)) for name, part in self.parts.items() if name not in gone]
            for held in (self.parts, self._lost, self._files, self._rows):
                held.clear()
            self._read = LastRead()
            for name, part, lost in left:
                self.add(name, part, lost)

    def lose(self, name: str, starts: Set[int]) -> None:
        """Count the values that start at these bytes of a file as lost."""
        part = self.parts[name]
        rows = range(len(part.entries))
        lost = {row for row in rows if part.place(row).start in starts} | self._lost.get(name, _NONE)
        self.forget([name])
        self.add(name, part, frozenset(lost))

    def successor(self, entry: Entry) -> int:
        """The generation that a new result needs to replace what is stored under its key, or was computed from other
        weights.

        If the clock has advanced, this is the generation of the result that it replaces.
        """
        held = self._rows.get(entry.projection.key)
        replaced = [(0, "")] if held is None else [self._order(held)[:2]]
        for parent, digest in zip(entry.projection.parents, entry.weights_digests, strict=True):
            known = self._read.replaced(tensor_name(parent.source.identity, parent.tensor), digest.encode())
            if digest and known is not None:
                replaced.append(known)
        generation, computed_at = max(replaced)
        return generation + (entry.computed_at <= computed_at)

    def has(self, key: str) -> bool:
        """Whether a row counts for this key."""
        held = self._rows.get(key)
        return held is not None and self._is_valid(held)

    def entry(self, key: str) -> Entry | None:
        """The entry that counts for a key, or None."""
        found = self.find(key)
        return None if found is None else found.entry

    def stored(self) -> Stored:
        """All entries that count, by key."""
        rows = self._rows
        if self._lost or not self._read.agree:
            rows = {key: held for key, held in rows.items() if self._is_valid(held)}
        return Stored(rows, [self.parts[name].entries for name in self._files])

    def lost(self, name: str) -> list[Entry]:
        """The entries of a file whose values are damaged and in no other file, and for which there is no newer
        result."""
        return list(self._lost_in(name).values())

    def all_lost(self) -> list[Entry]:
        """`lost` for every file, one entry per key."""
        found: dict[str, Entry] = {}
        for name in self._lost:
            found |= self._lost_in(name)
        return list(found.values())

    def by_version(self) -> list[list[str]]:
        """The names of the files that still have values, sorted and grouped by format version."""
        files: dict[int, list[str]] = {}
        for name in sorted(self.parts):
            if len(self._lost.get(name, _NONE)) < len(self.parts[name].entries):
                files.setdefault(self.parts[name].version, []).append(name)
        return list(files.values())

    def find(self, key: str) -> StoredRow | None:
        """The row that counts for a key, or None."""
        held = self._rows.get(key)
        if held is None or not self._is_valid(held):
            return None
        name, row = self._split(held)
        part = self.parts[name]
        return StoredRow(key, name, part.place(row), part.entries, row)

    def _split(self, held: int) -> tuple[str, int]:
        """The name of the file and the row in it."""
        return self._files[held >> ROW_BITS], held & (1 << ROW_BITS) - 1

    def _lost_in(self, name: str) -> dict[str, Entry]:
        entries = self.parts[name].entries
        rows = {entries.keys[row]: row for row in sorted(self._lost.get(name, _NONE))}
        return {key: entries[row] for key, row in rows.items() if self._is_lost(self._rows[key])}

    def _order(self, held: int) -> tuple[int, str, bool]:
        name, row = self._split(held)
        return *self.parts[name].entries.order(row), not self._is_lost(held)

    def _is_lost(self, held: int) -> bool:
        name, row = self._split(held)
        return row in self._lost.get(name, _NONE)

    def _is_valid(self, held: int) -> bool:
        if self._lost and self._is_lost(held):
            return False
        if self._read.agree:
            return True
        name, row = self._split(held)
        return self._read.is_current(self.parts[name].entries.readings_of(row))

"""Which spectrum of which file counts: the files' indexes, joined in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple

from .entry import Entry
from .layout import Part

_NONE: frozenset[int] = frozenset()


class Place(NamedTuple):
    """Where the values of an entry are: a file, the first byte in it, the checksum of the bytes."""

    file: str
    start: int
    crc32: int


class Index:
    """The rows of all files. The newest row of a key counts, unless its weights have changed since.

    The newest is that of the highest generation, and of these the one that was computed last: see `successor`.

    A tensor's weights have changed where a newer row of the same source identity and tensor has
    another digest of its bytes: a local file that was changed in place. A derived row was read from the
    tensors of its parents, so it counts as long as each of these is what it was.

    A row whose values are lost to damage still says what came after what: where it is the newest of its key nothing
    counts, for what it has replaced must not come back. Not thread-safe.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self._lost: dict[str, frozenset[int]] = {}  # file -> rows without values
        self._rows: dict[str, tuple[str, int]] = {}  # key -> file, row in it
        self._weights: dict[tuple[str, str], tuple[int, str, str]] = {}  # tensor -> of its newest row, and the digest

    def add(self, name: str, part: Part, lost: frozenset[int] = _NONE) -> None:
        """Take in the rows of a file that is not known yet; the values of those in `lost` are damaged."""
        self.parts[name] = part
        if lost:
            self._lost[name] = lost
        for row, entry in enumerate(part.entries):
            key = entry.projection.key
            held = self._rows.get(key)
            if held is None or self._order(held) <= (entry.generation, entry.computed_at, row not in lost):
                self._rows[key] = name, row
            for tensor, digest in _read(entry):
                found = entry.generation, entry.computed_at, digest
                self._weights[tensor] = max(found, self._weights.get(tensor, found))

    def forget(self, names: Iterable[str]) -> None:
        """Drop the rows of these files; what they hid comes into view."""
        gone = self.parts.keys() & set(names)
        if gone:
            left = [(name, part, self._lost.get(name, _NONE)) for name, part in self.parts.items() if name not in gone]
            for held in (self.parts, self._lost, self._rows, self._weights):
                held.clear()
            for name, part, lost in left:
                self.add(name, part, lost)

    def lose(self, name: str, starts: Set[int]) -> None:
        """Count the values that start there in a file as lost."""
        part = self.parts[name]
        lost = {row for row, start in enumerate(part.start) if start in starts} | self._lost.get(name, _NONE)
        self.forget([name])
        self.add(name, part, frozenset(lost))

    def successor(self, entry: Entry) -> int:
        """The generation of a new result, so that it counts and not what is here of its key, or of other weights.

        Where the clock went on that is the generation of what it replaces.
        """
        held = self._rows.get(entry.projection.key)
        replaced = [(0, "")] if held is None else [self._order(held)[:2]]
        for tensor, digest in _read(entry):
            generation, computed_at, known = self._weights.get(tensor, (0, "", digest))
            if known != digest:
                replaced.append((generation, computed_at))
        generation, computed_at = max(replaced)
        return generation + (entry.computed_at <= computed_at)

    def entry(self, key: str) -> Entry | None:
        """The entry that counts, None if there is none."""
        held = self._rows.get(key)
        return None if held is None else self._valid(held)

    def entries(self) -> list[Entry]:
        """All entries that count, one a key."""
        valid = (self._valid(held) for held in self._rows.values())
        return [entry for entry in valid if entry is not None]

    def lost(self, name: str) -> list[Entry]:
        """Of the rows of a file those whose values are damaged and stand in no other file, nor newer ones."""
        entries = [self.parts[name].entries[row] for row in sorted(self._lost.get(name, _NONE))]
        return [entry for entry in entries if self._is_lost(self._rows[entry.projection.key])]

    def all_lost(self) -> list[Entry]:
        """`lost` of every file, one a key."""
        found = {entry.projection.key: entry for name in self._lost for entry in self.lost(name)}
        return list(found.values())

    def by_version(self) -> list[list[str]]:
        """The names of the files that have values, sorted, those of each format version apart."""
        files: dict[int, list[str]] = {}
        for name in sorted(self.parts):
            if len(self._lost.get(name, _NONE)) < len(self.parts[name].entries):
                files.setdefault(self.parts[name].version, []).append(name)
        return list(files.values())

    def place(self, key: str) -> Place:
        """Where the values of `entry(key)` are."""
        name, row = self._rows[key]
        part = self.parts[name]
        return Place(name, part.start[row], part.crc32[row])

    def _order(self, held: tuple[str, int]) -> tuple[int, str, bool]:
        name, row = held
        entry = self.parts[name].entries[row]
        return entry.generation, entry.computed_at, not self._is_lost(held)

    def _is_lost(self, held: tuple[str, int]) -> bool:
        name, row = held
        return row in self._lost.get(name, _NONE)

    def _valid(self, held: tuple[str, int]) -> Entry | None:
        if self._lost and self._is_lost(held):
            return None
        name, row = held
        entry = self.parts[name].entries[row]
        return entry if all(self._weights[tensor][2] == digest for tensor, digest in _read(entry)) else None


def _read(entry: Entry) -> Iterator[tuple[tuple[str, str], str]]:
    """The tensors that an entry was read from and whose file does not vouch for its bytes, with the digest of these."""
    for parent, digest in zip(entry.projection.parents, entry.weights_digests, strict=True):
        if digest:
            yield (parent.source.identity, parent.tensor), digest

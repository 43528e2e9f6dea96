"""Which spectrum of which file counts: the files' indexes, joined in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .entry import Entry
from .layout import Part


class Place(NamedTuple):
    """Where the values of an entry are: a file, the first byte in it, the checksum of the bytes."""

    file: str
    start: int
    crc32: int


class Index:
    """The rows of all files. The newest row of a key counts, unless its weights have changed since.

    A tensor's weights have changed where a newer row of the same source identity and tensor has
    another digest of its bytes: a local file that was changed in place. A derived row was read from the
    tensors of its parents, so it counts as long as each of these is what it was. Not thread-safe.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self._rows: dict[str, tuple[str, int]] = {}  # key -> file, row in it
        self._weights: dict[tuple[str, str], tuple[str, str]] = {}  # tensor -> newest computed_at, digest

    def add(self, name: str, part: Part) -> None:
        """Take in the rows of a file that is not known yet."""
        self.parts[name] = part
        for row, entry in enumerate(part.entries):
            key = entry.projection.key
            held = self._rows.get(key)
            if held is None or self._entry(held).computed_at <= entry.computed_at:
                self._rows[key] = name, row
            for tensor, digest in _read(entry):
                found = entry.computed_at, digest
                self._weights[tensor] = max(found, self._weights.get(tensor, found))

    def forget(self, names: Iterable[str]) -> None:
        """Drop the rows of these files; what they hid comes into view."""
        gone = self.parts.keys() & set(names)
        if gone:
            left = {name: part for name, part in self.parts.items() if name not in gone}
            for held in (self.parts, self._rows, self._weights):
                held.clear()
            for name, part in left.items():
                self.add(name, part)

    def entry(self, key: str) -> Entry | None:
        """The entry that counts, None if there is none."""
        held = self._rows.get(key)
        return None if held is None else self._valid(self._entry(held))

    def entries(self) -> list[Entry]:
        """All entries that count, one a key."""
        valid = (self._valid(self._entry(held)) for held in self._rows.values())
        return [entry for entry in valid if entry is not None]

    def by_version(self) -> list[list[str]]:
        """The names of the files, sorted, those of each format version apart."""
        files: dict[int, list[str]] = {}
        for name in sorted(self.parts):
            files.setdefault(self.parts[name].version, []).append(name)
        return list(files.values())

    def place(self, key: str) -> Place:
        """Where the values of `entry(key)` are."""
        name, row = self._rows[key]
        part = self.parts[name]
        return Place(name, part.start[row], part.crc32[row])

    def _entry(self, held: tuple[str, int]) -> Entry:
        name, row = held
        return self.parts[name].entries[row]

    def _valid(self, entry: Entry) -> Entry | None:
        return entry if all(self._weights[tensor][1] == digest for tensor, digest in _read(entry)) else None


def _read(entry: Entry) -> Iterator[tuple[tuple[str, str], str]]:
    """The tensors that an entry was read from and whose file does not vouch for its bytes, with the digest of these."""
    for parent, digest in zip(entry.projection.parents, entry.weights_digests, strict=True):
        if digest:
            yield (parent.source.identity, parent.tensor), digest

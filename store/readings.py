"""The latest digest of each tensor's bytes, for files whose identity does not guarantee their content."""

from __future__ import annotations

from collections.abc import Iterable
from operator import eq

from .entries import Entries

_Newest = tuple[int, str, bytes]


class LastRead:
    """The newest digest of each tensor (entries.tensor_name) over the rows of all files.

    Usually every row that read a tensor saw the same bytes, and rows need not be compared one by one. Not thread-safe.
    """

    def __init__(self) -> None:
        self._files: list[Entries] = []
        self._digests: dict[bytes, bytes] = {}
        self._newest: dict[bytes, _Newest] | None = None  # with generation and time; None while all agree

    @property
    def agree(self) -> bool:
        """Whether every tensor has been read with only one digest."""
        return self._newest is None

    def add(self, entries: Entries) -> None:
        """Add the rows of a file."""
        self._files.append(entries)
        if self._newest is not None:
            _compare(self._newest, entries)
        elif not self._take(entries):
            self._newest = self._compared()

    def is_current(self, readings: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether these tensors still have these digests. All must be in files that were added."""
        return self._newest is None or all(self._newest[tensor][2] == digest for tensor, digest in readings)

    def replaced(self, tensor: bytes, digest: bytes) -> tuple[int, str] | None:
        """Generation and time of the newest reading of a tensor if its digest is not this one, else None."""
        if self._newest is None:
            if self._digests.get(tensor, digest) == digest:
                return None
            self._newest = self._compared()
        generation, computed_at, known = self._newest.get(tensor, (0, "", digest))
        return None if known == digest else (generation, computed_at)

    def _compared(self) -> dict[bytes, _Newest]:
        newest: dict[bytes, _Newest] = {}
        for entries in self._files:
            _compare(newest, entries)
        return newest

    def _take(self, entries: Entries) -> bool:
        """Add rows that agree with what is known; return False if they do not."""
        read = entries.readings
        found = dict(zip(read.tensors, read.digests, strict=True))
        if not all(map(eq, map(found.__getitem__, read.tensors), read.digests)):
            return False
        again = () if self._digests.keys().isdisjoint(found) else self._digests.keys() & found.keys()
        if any(self._digests[tensor] != found[tensor] for tensor in again):
            return False
        self._digests.update(found)
        return True


def _compare(newest: dict[bytes, _Newest], entries: Entries) -> None:
    read = entries.readings
    for row, tensor, digest in zip(read.rows, read.tensors, read.digests, strict=True):
        found = *entries.order(row), digest
        newest[tensor] = max(found, newest.get(tensor, found))

"""The number of outputs that carry the first direction, for each projection whose directions are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

from rankscope.engine.spectrum import DIRECTIONS, Projection, Values

_BATCH = 256


class Participations:
    """The content keys of stored directions, and the participation of u_1 (of both for a plane) for those that were
    read. A projection is identified by the key of its unmodified matrix.

    `read` returns the values of stored keys, `tell` is called with keys whose numbers have become known.
    """

    def __init__(
        self, read: Callable[[Sequence[str]], dict[str, Values]], tell: Callable[[Iterable[str]], None]
    ) -> None:
        self._read, self._tell = read, tell
        self._matrices: dict[str, str] = {}  # key of directions -> that of the matrix
        self._numbers: dict[str, float] = {}

    def know(self, stored: Projection) -> None:
        """Record a stored projection if it holds the directions of an unmodified matrix."""
        if stored.derived is not None and stored.derived.formula == DIRECTIONS:
            self._matrices[stored.key] = stored.parents[0].key

    def number(self, projection: Projection) -> float | None:
        """The participation for a projection in any state; None if it was not read."""
        return None if projection.is_product else self._numbers.get(projection.parents[0].key)

    def forget(self, key: str) -> None:
        """Drop what is known about a key whose stored spectrum has changed or is gone."""
        self._numbers.pop(self._matrices.get(key, ""), None)

    def matrices(self, keys: Iterable[str]) -> set[str]:
        """The keys of the matrices whose directions are among these."""
        return {self._matrices[key] for key in keys if key in self._matrices}

    def unread(self, stored: Set[str]) -> dict[str, str]:
        """The stored directions that were not read, by the keys of their matrices."""
        known = self._matrices.copy().items()
        return {matrix: key for key, matrix in known if key in stored and matrix not in self._numbers}

    def load(self, projections: Iterable[Projection], stored: Set[str]) -> None:
        """Compute the participations of those projections whose directions are stored. Reads files."""
        from .carriers import outputs_of  # imports numpy

        unread = self.unread(stored)
        wanted = [raw for raw in (p.parents[0] for p in projections) if raw.key in unread]
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            values = self._read([unread[raw.key] for raw in batch])
            for raw in batch:
                if (numbers := values.get(unread[raw.key])) is not None:
                    self._numbers[raw.key] = outputs_of(raw, numbers).participation
            self._tell(raw.key for raw in batch)

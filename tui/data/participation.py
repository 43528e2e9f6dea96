"""The number of outputs that carry the first direction, for each projection whose directions are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from rankscope.engine.spectrum import DIRECTIONS, Projection, Values


class Participations:
    """The content keys of stored directions, and the participation of u_1 (of both for a plane) for those that were
    read. A projection is identified by the key of its unmodified matrix."""

    def __init__(self) -> None:
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

    def take(self, projections: Iterable[Projection], unread: Mapping[str, str], values: Mapping[str, Values]) -> None:
        """Compute the participations of these projections from the values of their directions."""
        from .carriers import outputs_of  # imports numpy

        for raw in (p.parents[0] for p in projections):
            if (numbers := values.get(unread.get(raw.key, ""))) is not None:
                self._numbers[raw.key] = outputs_of(raw, numbers).participation

"""How many outputs carry the first direction of each projection whose directions are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from rankscope.engine.spectrum import DIRECTIONS, Projection, Values


class Participations:
    """Which directions are known to be stored, by their content keys, and the participation of u_1 (of both of a plane)
    of those that were read. A projection goes by the key of its matrix as it is."""

    def __init__(self) -> None:
        self._matrices: dict[str, str] = {}  # key of directions -> that of the matrix
        self._numbers: dict[str, float] = {}

    def know(self, stored: Projection) -> None:
        """Take in what is stored, where it is the directions of a matrix as it is."""
        if stored.derived is not None and stored.derived.formula == DIRECTIONS:
            self._matrices[stored.key] = stored.parents[0].key

    def number(self, projection: Projection) -> float | None:
        """Of a projection in whatever state; None where it was not read."""
        return None if projection.is_product else self._numbers.get(projection.parents[0].key)

    def forget(self, key: str) -> None:
        """Something else is stored of a key than before, or nothing."""
        self._numbers.pop(self._matrices.get(key, ""), None)

    def matrices(self, keys: Iterable[str]) -> set[str]:
        """The keys of the matrices whose directions are among these."""
        return {self._matrices[key] for key in keys if key in self._matrices}

    def unread(self, stored: Set[str]) -> dict[str, str]:
        """Of the directions that are stored those that were not read, by the keys of their matrices."""
        known = self._matrices.copy().items()
        return {matrix: key for key, matrix in known if key in stored and matrix not in self._numbers}

    def take(self, projections: Iterable[Projection], unread: Mapping[str, str], values: Mapping[str, Values]) -> None:
        """Work it out for these projections from the numbers that were read of their directions."""
        from .carriers import outputs_of  # numpy

        for raw in (p.parents[0] for p in projections):
            if (numbers := values.get(unread.get(raw.key, ""))) is not None:
                self._numbers[raw.key] = outputs_of(raw, numbers).participation

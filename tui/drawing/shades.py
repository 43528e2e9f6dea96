"""Where the shade of a number changes: at the unit's limits, or spread over the numbers of a model or a role."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from rankscope.engine.spectrum import Projection

from ..data.contrast import Contrast
from ..data.grid import Column, Grid
from ..data.lens import Lens
from ..data.pair import NumberGroup
from ..data.spread import even_limits, extent

Reach = tuple[float, float]


class Shades:
    """The limits for the projections of a grid. The range of the numbers is computed once, and widened by changes; the
    key None means all roles."""

    def __init__(self) -> None:
        self._grid = Grid((), (), {})
        self._groups: dict[Column | None, NumberGroup] = {}
        self._reach: dict[Column | None, Reach | None] = {}

    def show(self, grid: Grid) -> None:
        """Use another grid, or another pair of models."""
        self._grid = grid
        self._groups.clear()
        self._reach.clear()

    def turn(self) -> None:
        """Forget all numbers, as the lens has changed."""
        self._reach.clear()

    def limits(self, lens: Lens, column: Column | None) -> tuple[float, ...]:
        """The limits for cells of a role, or for None those of the whole model; () without any numbers."""
        if lens.limits is not None:
            return lens.limits
        if not lens.pair.has_spectra:
            return ()
        of = column if lens.contrast is Contrast.ROLE else None
        if of not in self._reach:
            self._reach[of] = extent(lens.tones(self._group(lens, of)))
        return even_limits(self._reach[of])

    def widen(self, lens: Lens, changed: Sequence[tuple[Column, Projection]]) -> bool:
        """Widen the ranges by the numbers of these projections. Return whether a range has become wider."""
        if lens.limits is not None:
            return False
        is_wider = False
        for of, before in self._reach.items():
            there = [p for column, p in changed if of in (None, column)]
            found = extent(lens.tones(lens.pair.group(there))) if there else None
            ends = [end for reach in (before, found) if reach is not None for end in reach]
            now = (min(ends), max(ends)) if ends else None
            is_wider = is_wider or now != before
            self._reach[of] = now
        return is_wider

    def _group(self, lens: Lens, column: Column | None) -> NumberGroup:
        if column not in self._groups:
            every = chain.from_iterable(self._grid.cells.values())
            members = list(every) if column is None else self._grid.column(column)
            self._groups[column] = lens.pair.group(members)
        return self._groups[column]

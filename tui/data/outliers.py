"""Projections that are outliers of their role: farther from its median over the layers, and over the experts or heads
of each, than others are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isnan, nan

from rankscope.engine.spectrum import Projection, Values

from .grid import Column, Grid, Row, Selection, is_of_series, member_of
from .spread import LEAST_SPREAD, known, middle_of

FAR = 3.0
"""Median absolute deviations from the median beyond which a number is an outlier."""
LEAST_DEVIATION = 1.0
"""The least deviation for ranks: with nearly equal numbers every other one would be an outlier."""
LEAST_SHARE = 0.01
"""The same for other numbers, as a share of their median."""

NumbersOf = Callable[[Row, Column], "Values | Sequence[float]"]
"""Returns the numbers of the projections in a place of the grid, in their order; NaN if unknown."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A number within its role: how many median absolute deviations it is above (negative: below) the `middle`. It
    belongs to a place of the grid or, if there are several projections (experts, heads), to the `single` one. `where`
    names it: `layer 4 key`, `layer 4 expert 11 gate`."""

    row: Row
    column: Column
    number: float
    middle: float
    deviations: float
    where: str
    single: Projection | None = None

    @property
    def is_outlier(self) -> bool:
        """Whether it is an outlier."""
        return abs(self.deviations) > FAR

    @property
    def selection(self) -> Selection:
        """The selection that shows it."""
        return Selection(self.row, self.column, single=self.single)

    @property
    def label(self) -> str:
        """Its place in the role: `4`, for an expert `4.e11`."""
        member = self.single and member_of(self.single)
        return f"{self.row.label}.{member.label}" if member else self.row.label


class Role:
    """The numbers of a role over some rows of a grid, and how far each is from their median.

    The median absolute deviation is at least LEAST_DEVIATION for `ranks`, and LEAST_SHARE of the median for other
    numbers. With too few numbers there are no outliers.
    """

    def __init__(self, grid: Grid, rows: Sequence[Row], column: Column, numbers_of: NumbersOf, *, ranks: bool) -> None:
        import numpy as np  # not needed for the first screen

        self._grid, self._rows, self._column = grid, rows, column
        every = [np.asarray(numbers_of(row, column), float) for row in rows]
        self._ends = list(accumulate(map(len, every)))
        self._numbers: Values = np.concatenate(every) if every else np.empty(0)
        there = known(self._numbers)
        self._middle = middle_of(there) or 0.0
        with np.errstate(invalid="ignore"):  # of two that are infinite
            distances = np.abs(self._numbers - self._middle)
        spread = middle_of(known(distances)) or 0.0
        spread = max(spread, LEAST_DEVIATION if ranks else LEAST_SHARE * abs(self._middle))
        self._spread = spread if spread > 0 and len(there) >= LEAST_SPREAD else inf
        self._distances: Values = np.nan_to_num(distances)

    def outliers(self) -> list[Standing]:
        """The outliers, row by row; within one place the farthest first."""
        import numpy as np

        far = np.flatnonzero(self._distances > FAR * self._spread).tolist()
        found = [(self._row_of(at), -float(self._distances[at]), at) for at in far]
        return [self._standing(at) for _, _, at in sorted(found)]

    def ends(self) -> tuple[Standing, Standing] | None:
        """The smallest number (the first of equal ones) and the largest (the last of them); None if there are fewer
        than two."""
        import numpy as np

        if np.count_nonzero(~np.isnan(self._numbers)) < 2:
            return None
        last = len(self._numbers) - 1 - int(np.nanargmax(self._numbers[::-1]))
        return self._standing(int(np.nanargmin(self._numbers))), self._standing(last)

    def _row_of(self, at: int) -> int:
        return bisect_right(self._ends, at)

    def _standing(self, at: int) -> Standing:
        place = self._row_of(at)
        row, number = self._rows[place], float(self._numbers[at])
        members = self._grid.cells.get((row, self._column), ())
        single = members[at - self._ends[place]] if len(members) > 1 else None
        deviations = (number - self._middle) / self._spread
        return Standing(
            row, self._column, number, self._middle, deviations, _where(row, self._column, members, single), single
        )


def _where(row: Row, column: Column, members: Sequence[Projection], single: Projection | None) -> str:
    """`layer 4 key`, `layer 4 expert 11 gate`, in a series `step.1000 key`, `step.1000 layer 11 gate`; the address if
    nothing shorter tells several apart."""
    is_series = any(map(is_of_series, members[:1]))
    line = row.label if is_series else f"layer {row.label}"
    member = None if single is None else member_of(single)
    if single is not None and member is None:
        return single.address
    if member is None:
        return f"{line} {column.heading}"
    return f"{line} {member.words} {column.role}"


def outliers(grid: Grid, numbers_of: NumbersOf, *, ranks: bool) -> list[Standing]:
    """All outliers, layer by layer and role by role; the layers of each tower are separate."""
    towers = {row.tower: [other for other in grid.rows if other.tower == row.tower] for row in grid.rows}
    every = [
        standing
        for rows in towers.values()
        for column in grid.columns
        for standing in Role(grid, rows, column, numbers_of, ranks=ranks).outliers()
    ]
    order = {row: n for n, row in enumerate(grid.rows)}
    return sorted(every, key=lambda standing: (order[standing.row], grid.columns.index(standing.column)))


def by_distance(grid: Grid, column: Column, numbers_of: NumbersOf) -> list[Row]:
    """The rows of a grid of single projections, from the farthest to the nearest to the median of a column; rows
    without a number last."""
    import numpy as np

    numbers = {row: next(iter(numbers_of(row, column)), nan) for row in grid.rows}
    middle = middle_of(known(np.array([*numbers.values()]))) or 0.0
    return sorted(grid.rows, key=lambda row: (isnan(numbers[row]), -abs(numbers[row] - middle)))


def next_of(found: Sequence[Standing], grid: Grid, selection: Selection, step: int) -> int:
    """The index of the outlier after the selection, in the order of the grid, or before it for a negative step; wraps
    around."""
    at = [(*_place(standing.selection, grid), n) for n, standing in enumerate(found)]
    row, column, single = selection.row, selection.column, selection.single
    same = (n for n, other in enumerate(found) if (other.row, other.column, other.single) == (row, column, single))
    here = (*_place(selection, grid), next(same, -1))
    if step > 0:
        return next((n for n, place in enumerate(at) if place > here), 0)
    return next((n for n in reversed(range(len(at))) if at[n] < here), len(at) - 1)


def _place(selection: Selection, grid: Grid) -> tuple[int, int]:
    """The row and column of a selection, -1 for none."""
    row = grid.rows.index(selection.row) if selection.row in grid.rows else -1
    return row, grid.columns.index(selection.column) if row >= 0 and selection.column in grid.columns else -1

"""Which layers stand out of their role: farther from its median over the layers than others are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from .grid import Column, Grid, Row, Selection
from .spread import LEAST_SPREAD

FAR = 3.0
"""Median absolute deviations from the median, beyond which a number is an outlier."""
_SAME = 1e-9
"""Relative to the median: what differs by less is equal but for rounding."""

NumberOf = Callable[[Row, Column], float | None]
"""The number of a cell of the grid, None where none is known."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A layer's number among those of its role: how many median absolute deviations it lies above (below: negative)
    the `middle`."""

    row: Row
    number: float
    middle: float
    deviations: float

    @property
    def is_outlier(self) -> bool:
        """Whether it stands out."""
        return abs(self.deviations) > FAR


def standings(rows: Iterable[Row], column: Column, number_of: NumberOf) -> list[Standing]:
    """Of each row that has a number where it stands among these rows. Of too few to tell nobody stands out."""
    found = [(row, number) for row in rows if (number := number_of(row, column)) is not None]
    if not found:
        return []
    middle = median(number for _, number in found)
    spread = median(abs(number - middle) for _, number in found)
    says = len(found) >= LEAST_SPREAD
    return [Standing(row, n, middle, _deviations(n - middle, spread, middle) if says else 0.0) for row, n in found]


def outliers(grid: Grid, number_of: NumberOf) -> list[tuple[Standing, Column]]:
    """All that stand out, layer by layer; each tower has layers of its own."""
    towers = dict.fromkeys(row.tower for row in grid.rows)
    every = {
        (standing.row, column): standing
        for tower in towers
        for column in grid.columns
        for standing in standings([row for row in grid.rows if row.tower == tower], column, number_of)
        if standing.is_outlier
    }
    places = ((row, column) for row in grid.rows for column in grid.columns)
    return [(every[place], place[1]) for place in places if place in every]


def by_distance(rows: Sequence[Row], column: Column, number_of: NumberOf) -> list[Row]:
    """Rows from the farthest from the median of a column to the nearest; those without a number last."""
    found = sorted(standings(rows, column, number_of), key=lambda s: -abs(s.number - s.middle))
    there = {standing.row for standing in found}
    return [*(standing.row for standing in found), *(row for row in rows if row not in there)]


def next_of(places: Sequence[tuple[Row, Column]], grid: Grid, selection: Selection, step: int) -> int:
    """Which of some places, in the order of the grid, comes after what is selected, or before it for a step below 0;
    round at the ends."""
    rows, columns = grid.rows, grid.columns
    row = rows.index(selection.row) if selection.row in rows else -1
    here = row, columns.index(selection.column) if row >= 0 and selection.column in columns else -1
    at = [(rows.index(row), columns.index(column)) for row, column in places]
    if step > 0:
        return next((n for n, place in enumerate(at) if place > here), 0)
    return next((n for n in reversed(range(len(at))) if at[n] < here), len(at) - 1)


def _deviations(distance: float, spread: float, middle: float) -> float:
    if abs(distance) <= _SAME * abs(middle):
        return 0.0
    return distance / spread if spread > 0 else distance * float("inf")

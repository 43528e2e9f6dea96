"""Numbers as Rich tables: layers x roles, projections x metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from rankscope.engine.spectrum import Projection, Values

from ..data.chosen_weighting import weighted_by
from ..data.grid import Column, Grid
from ..data.lens import Lens
from ..data.pair import Side
from ..data.session import State
from ..data.spread import known, middle_of
from ..data.wording import percent
from .console import add_columns, plain_table


def print_tables(console: Console, lenses: Sequence[Lens], projections: Sequence[Projection], grid: Grid) -> None:
    """Print layers x roles, a table for each lens; then what is in no layer, a column for each lens."""
    for lens in lenses:
        if lens.unread():
            lens.load(projections)
    for lens in lenses if grid.rows else ():
        for table in layer_tables(console, grid, lens):
            console.print(table)
            console.print()
    loose = [p for p in projections if p.layer is None]
    if loose:
        table = plain_table(console)
        add_columns(table, "tensor")
        for lens in lenses:
            table.add_column(lens.title, justify="right")
        for p in loose:
            table.add_row(Text(p.address), *(lens.text(p) or _mark(lens, p) for lens in lenses))
        console.print(table)


def _mark(lens: Lens, p: Projection) -> str:
    """The mark of a missing number: "-" if there is no such projection or number, "!" if computing failed, "." if it is
    not done."""
    session, there = lens.session(p)
    if there is None or not lens.measure.fits(there):
        return "-"
    return "!" if session.state(there) is State.FAILED else "."


def _titled(lens: Lens) -> str:
    if lens.measure.name == "k" and lens.side is not Side.RATIO:
        return f"{lens.title}: components for {percent(lens.threshold)} % of the energy (sum of sigma^2)"
    return f"{lens.title}: {lens.formula}"


def layer_tables(console: Console, grid: Grid, lens: Lens) -> Iterator[Table]:
    """Layers x roles of numbers, with min, median and max over the layers below.

    A cell of several experts shows their median, and if only a part is known, how many: 104 8/256; blank is absent.
    """
    labels = [grid.rows_are, *(row.label for row in grid.rows), *_OVER_LAYERS]
    columns = [[column.heading, *_cells(grid, column, lens)] for column in grid.columns]
    by = weighted_by(p for cell in grid.cells.values() for p in cell)
    title = "; ".join(filter(None, [_titled(lens), by]))
    yield from wide_tables(console, labels, columns, Text(title), rule_after=len(grid.rows))


def wide_tables(
    console: Console,
    labels: Sequence[str],
    columns: Sequence[Sequence[str]],
    title: Text | None = None,
    rule_after: int = 0,
    justify: JustifyMethod = "right",
) -> Iterator[Table]:
    """Tables of columns, each with its heading first, to the right of the labels; several tables if the terminal is too
    narrow for one. No cell is cut off."""
    for chosen in _fitting(columns, console.width - _width(labels)):
        table = plain_table(console)
        table.title, table.title_justify = title, "left"
        table.add_column(Text(labels[0]), justify=justify, no_wrap=True)
        for heading, *_ in chosen:
            table.add_column(Text(heading), justify="right", no_wrap=True)
        for number, row in enumerate(zip(labels[1:], *(cells for _, *cells in chosen), strict=True), 1):
            table.add_row(*map(Text, row), end_section=number == rule_after)
        yield table
        title = None


_OVER_LAYERS = ("min", "median", "max")


def _cells(grid: Grid, column: Column, lens: Lens) -> list[str]:
    """A column's text: layer by layer, then min, median and max."""
    members = [grid.cells.get((row, column), ()) for row in grid.rows]
    numbers = lens.numbers(lens.pair.group(list(chain.from_iterable(members))))
    ends = list(accumulate(map(len, members)))
    shown = [_cell(lens, cell, known(numbers[end - len(cell) : end])) for cell, end in zip(members, ends, strict=True)]
    found = known(numbers)
    over = [found[0], middle_of(found), found[-1]] if len(found) else []
    return [*shown, *(lens.written(number) for number in over)] if over else [*shown, "", "", ""]


def _cell(lens: Lens, members: Sequence[Projection], found: Values) -> str:
    """The median of the known numbers, which are sorted; without any a mark."""
    middle = middle_of(found)
    if middle is None:
        marks = {_mark(lens, p) for p in members}
        return next((mark for mark in "!.-" if mark in marks), "")
    sign = next(filter(None, map(lens.sign, members)), "") if lens.side is Side.RATIO else ""
    return f"{sign}{lens.written(middle)}{f' {len(found)}/{len(members)}' if len(found) < len(members) else ''}"


def _fitting(columns: Sequence[Sequence[str]], width: int) -> Iterator[list[Sequence[str]]]:
    """The columns in order, in groups that are at most `width` wide and not empty."""
    group: list[Sequence[str]] = []
    for column in columns:
        if group and sum(map(_width, [*group, column])) > width:
            yield group
            group = []
        group.append(column)
    yield group


def _width(column: Sequence[str]) -> int:
    """Characters across, with the padding of both sides and a rule."""
    return max(map(len, column)) + 3

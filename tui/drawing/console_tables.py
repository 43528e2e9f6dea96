"""Numbers as Rich tables: layers x roles, projections x metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from statistics import median

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from rankscope.engine.spectrum import Projection

from ..data.grid import Column, Grid, make_grid
from ..data.pair import Lens, Side
from ..data.session import State
from ..data.weighting import weighted_by
from ..data.wording import percent
from .console import add_columns, plain_table


def print_tables(console: Console, lenses: Sequence[Lens], projections: Sequence[Projection]) -> None:
    """Layers x roles, a table a lens; then what stands in no layer, a column a lens."""
    for lens in lenses:
        lens.load(projections)
    grid = make_grid(projections)
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
            found = [(_numbered(lens)(p), lens) for lens in lenses]
            table.add_row(Text(p.address), *(n if isinstance(n, str) else lens.text(p) for n, lens in found))
        console.print(table)


def _numbered(lens: Lens) -> Callable[[Projection], float | str]:
    """The number; else "-" where there is no such projection, "!" where computing failed, "." where it is not done."""

    def number(p: Projection) -> float | str:
        found = lens.number(p)
        if found is not None:
            return found
        session, there = lens.session(p)
        return "-" if there is None else "!" if session.state(there) is State.FAILED else "."

    return number


def _titled(lens: Lens) -> str:
    if lens.measure.name == "k" and lens.side is not Side.RATIO:
        return f"{lens.title}: components for {percent(lens.threshold)} % of the energy (sum of sigma^2)"
    return f"{lens.title}: {lens.formula}"


def layer_tables(console: Console, grid: Grid, lens: Lens) -> Iterator[Table]:
    """Layers x roles of numbers, with min, median and max over the layers below.

    A cell of several experts shows their median, and of a part how many: 104 8/256; blank is absent.
    """
    labels = ["layer", *(row.label for row in grid.rows), *_OVER_LAYERS]
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
    """A table of columns, each with its heading first, right of the labels; on a terminal that is too narrow for
    all of them several tables. No cell is cut off."""
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


_OVER_LAYERS: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "median": median, "max": max}


def _cells(grid: Grid, column: Column, lens: Lens) -> list[str]:
    """A column's text, layer by layer, and over the layers."""
    members = [grid.cells.get((row, column), ()) for row in grid.rows]
    number, written = _numbered(lens), lens.written
    looks = [[number(p) for p in cell] for cell in members]
    signs = [next(filter(None, map(lens.sign, cell)), "") for cell in members]
    known = [[k for k in look if not isinstance(k, str)] for look in looks]
    marks = [next((mark for mark in "!.-" if mark in look), "") for look in looks]
    counts = [f" {len(k)}/{len(look)}" if len(k) < len(look) else "" for k, look in zip(known, looks, strict=True)]
    cells = zip(known, counts, marks, signs, strict=True)
    shown = [f"{sign}{written(median(k))}{count}" if k else mark for k, count, mark, sign in cells]
    found = list(chain.from_iterable(known))
    return [*shown, *(written(reduce(found)) if found else "" for reduce in _OVER_LAYERS.values())]


def _fitting(columns: Sequence[Sequence[str]], width: int) -> Iterator[list[Sequence[str]]]:
    """The columns in order, in groups that are not wider than `width` and not empty."""
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

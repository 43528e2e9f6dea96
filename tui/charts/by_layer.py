"""The chart of a number by layer: a line for each role, a chart for each threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rankscope.engine.derive.weighting import CENTRED_NAME
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import DEFAULT_THRESHOLDS, Projection

from ..data.grid import Column, Grid, Row, Selection
from ..data.lens import Lens
from ..data.pair import Pair, Side
from ..data.reference_lines import STANDS_FOR, ReferenceLine
from ..data.spread import known, median_of, middle_of
from ..data.wording import percent
from .figure import Axis, Chart, Figure, Level, Series, Span, Stroke
from .hues import of_columns
from .spectrum_charts import MAX_SERIES, hint

if TYPE_CHECKING:
    from .request import Request

PANEL = 40
"""Columns of a chart by layer beside others."""
MOST_PANELS = 3
FACET = (18, 6)
"""Columns and lines of a small multiple."""
SCAN_HINT = "s scans the model"
_ABOVE = 1.5
"""How far a reference line may widen the y axis."""


def draw(pair: Pair, request: Request) -> tuple[Figure, None]:
    """The chosen number against layer, a line for each role. Experts are drawn as their median, in a band from the
    smallest to the largest. Reads files."""
    return _figure(pair, request), None


def _figure(pair: Pair, request: Request) -> Figure:
    columns = layer_columns(request.grid, request.selection)
    values = spreads(pair, request, columns)
    numbers = of_columns(columns, request.grid.columns)
    thresholds, across = _panels(request)
    lines, named = lines_of_roles(columns, request)
    selected = selected_column(request.selection)
    charts = []
    for threshold in thresholds:
        lens = Lens(pair, threshold, request.measure, request.side)
        _load(lens, request.grid, columns)
        series = tuple(
            replace(_role(lens, request.grid, c, numbers[c]), value=values.get(c, ""), is_selected=c == selected)
            for c in columns
        )
        charts.append(_by_layer(lens, series, _levels(series, lines, lens), request.grid))
    title = charts[0].title if len(charts) == 1 else ""
    if not any(len(s.x) for chart in charts for s in chart.series):
        wanted = [p for column in columns for p in request.grid.column(column)]
        return Figure(title, empty=hint(pair, request, wanted, SCAN_HINT) if columns else "no layers")
    what = f"{_lens(pair, request).title} min/median/max"
    return Figure(title, tuple(charts), columns=across, notes=tuple(named), at=_selected_position(request), values=what)


def _lens(pair: Pair, request: Request) -> Lens:
    return Lens(pair, request.threshold, request.measure, request.side)


def _selected_position(request: Request) -> tuple[float, str] | None:
    """The place of the selected layer on the x axis, and its name."""
    row = selected_row(request)
    return None if row is None else (_positions(request.grid)[request.grid.rows.index(row)], request.grid.named(row))


def selected_row(request: Request) -> Row | None:
    """The selected layer, or the one that the selected expert belongs to."""
    row = request.selection.row
    return next((r for r in request.grid.rows if row and (r.tower, r.layer) == (row.tower, row.layer)), None)


def selected_column(selection: Selection) -> Column | None:
    """The selected role."""
    single = selection.single
    return Column(single.block, single.role) if single is not None else selection.column


def at_layer(pair: Pair, request: Request, row: Row) -> list[str]:
    """`layer 3: query 224`, `key 115` ..., the selected role first, as parts of a line; none if no number is known.
    Reads files."""
    lens = _lens(pair, request)
    columns = layer_columns(request.grid, request.selection)
    lens.load(p for column in columns for p in request.grid.cells.get((row, column), ()))
    selected = selected_column(request.selection)
    parts = [f"{request.grid.named(row)}{f', {CENTRED_NAME}' * (pair.weighting == CENTRED_NAME)}:"]
    for column in sorted(columns, key=lambda c: c != selected):
        cell = request.grid.cells.get((row, column), ())
        found = [n for p in cell if (n := lens.number(p)) is not None]
        if found:
            parts.append(f"{column.heading} {_without_zero(lens, median_of(found))}{_sink_note(lens, cell)}")
    return [" ".join(parts[:2]), *parts[2:]] if len(parts) > 1 else []


def _sink_note(lens: Lens, cell: Sequence[Projection]) -> str:
    """For a cell with one projection: in brackets, the share of its output energy that position 0 holds, and its ranks
    with and without it; "" if that share is small."""
    session, there = lens.session(cell[0])
    found = session.figures(there) if len(cell) == 1 and there is not None else None
    return f" ({found.sink_words})" if found is not None and found.sink_words else ""


def _without_zero(lens: Lens, number: float) -> str:
    """A number without the 0 before its point."""
    text = lens.written(number)
    return text[1:] if text.startswith("0.") else text


def layer_columns(grid: Grid, selection: Selection) -> list[Column]:
    """The roles to draw: those of the selected block, or all, up to as many as can be told apart."""
    wanted = block_of(selection)
    block = [c for c in grid.columns if c.block == wanted]
    chosen = list(grid.columns) if len(grid.columns) <= MAX_SERIES or not block else block
    return chosen[:MAX_SERIES]


def block_of(selection: Selection) -> str | None:
    """The selected block, or the one that the selection belongs to."""
    if selection.single is not None:
        return selection.single.block
    return selection.block or (selection.column.block if selection.column else None)


def ranges(pair: Pair, request: Request, columns: Sequence[Column]) -> list[str]:
    """Smallest, middle and largest number of each role at the current threshold, the selected role first, as parts of a
    line. Reads files."""
    selected = selected_column(request.selection)
    found = spreads(pair, request, sorted(columns, key=lambda c: c != selected))
    return [f"{_lens(pair, request).title} min/median/max", *(f"{c.heading} {text}" for c, text in found.items())]


def spreads(pair: Pair, request: Request, columns: Sequence[Column]) -> dict[Column, str]:
    """`68/206/246`: the smallest, middle and largest number of each role that has any. Reads files."""
    lens = _lens(pair, request)
    _load(lens, request.grid, columns)
    texts = {}
    for column in columns:
        found = known(lens.numbers(pair.group(request.grid.column(column))))
        if (middle := middle_of(found)) is not None:
            texts[column] = "/".join(_without_zero(lens, n) for n in (float(found[0]), middle, float(found[-1])))
    return texts


def _load(lens: Lens, grid: Grid, columns: Sequence[Column]) -> None:
    """Load what the numbers of these roles need. Mostly nothing is needed, which saves a look at 45,000 projections."""
    if lens.unread():
        lens.load(p for column in columns for p in grid.column(column))


def _panels(request: Request) -> tuple[list[float], int]:
    """The thresholds that there is room for, and how many charts lie side by side: the current threshold, then the
    nearest of the user's, those of the notebook first. Small multiples may be small and in rows."""
    if not request.measure.depends_on_threshold:
        return [request.threshold], 1
    near = [t for t in DEFAULT_THRESHOLDS if t in request.thresholds] or list(request.thresholds)
    near.sort(key=lambda t: (abs(t - request.threshold), t))
    found = list(dict.fromkeys([request.threshold, *near]))[:MOST_PANELS]
    if request.facets:
        across, down = request.width // FACET[0], max(1, request.height // FACET[1])
    else:
        across, down = request.width // PANEL, 1
    across = max(1, min(across, len(found)))
    found = found[: across * down]
    return sorted(found), across


def _role(lens: Lens, grid: Grid, column: Column, number: int) -> Series:
    numbers = lens.numbers(lens.pair.group(grid.column(column)))
    ends = np.cumsum([len(grid.cells.get((row, column), ())) for row in grid.rows])
    points = []
    for at, cell in zip(_positions(grid), np.split(numbers, ends[:-1]), strict=True):
        found = known(cell)
        if (middle := middle_of(found)) is not None:
            points.append((at, found[0], middle, found[-1]))
    x, low, y, high = np.array(points, dtype=np.float64).T if points else np.zeros((4, 0))
    band = (low, high) if (low < high).any() else None
    stroke = Stroke.DASHED if lens.side is Side.B else Stroke.SOLID
    return Series(column.heading, x, y, number, stroke, band=band)


def _positions(grid: Grid) -> list[float]:
    """The x of each layer: its number, or its index if several towers count from 0."""
    has_towers = any(row.tower for row in grid.rows)
    return [float(index if has_towers else row.layer) for index, row in enumerate(grid.rows)]


def _position_names(grid: Grid) -> tuple[str, ...]:
    """The layer's name at each index on the axis; none if the axis has layer numbers. With one tower names are
    numbers."""
    towers = {row.tower for row in grid.rows}
    if not any(towers):
        return ()
    return tuple(str(row.layer) if len(towers) == 1 else row.label for row in grid.rows)


def _by_layer(lens: Lens, series: tuple[Series, ...], levels: tuple[Level, ...], grid: Grid) -> Chart:
    title = lens.measure.titled(lens.threshold)
    if lens.side is Side.RATIO:
        y = Axis(f"{title} of B / {title} of A", span=_around_one(series))
    elif lens.measure.name == "k":
        y = Axis(f"components for {percent(lens.threshold)} % of the energy")
    else:
        y = Axis(title, span=_around_one(series) if lens.measure.diverges else None)
    x = Axis(grid.rows_are, places=_position_names(grid))
    return Chart(f"{lens.title} by {grid.rows_are}", x, y, series, levels)


def _around_one(series: Sequence[Series]) -> Span:
    """The y span of ratios around 1: they differ by percents, so an axis from 0 would show a flat line."""
    values = np.concatenate([[1.0], *(s.y[np.isfinite(s.y)] for s in series)])
    low, high = float(values.min()), float(values.max())
    room = 0.1 * (high - low) or 0.05
    return low - room, high + room


def _levels(series: Sequence[Series], lines: Sequence[ReferenceLine], lens: Lens) -> tuple[Level, ...]:
    """The reference lines that are not too far above the curves; for ratios the line at 1."""
    if lens.side is Side.RATIO or lens.measure.diverges:
        return (Level(1.0, "1"),)
    if lens.measure.name != "k":
        return ()
    top = max((float(s.y.max()) for s in series if len(s.y)), default=0.0)
    kept = (line for line in lines if line.rank <= _ABOVE * top)
    return tuple(Level(line.rank, f"{line.rank:g}", _name(line), Stroke.DASHED) for line in kept)


def _name(line: ReferenceLine) -> str:
    return f"{printable(line.name)} {line.rank:g}"


def lines_of_roles(columns: Sequence[Column], request: Request) -> tuple[list[ReferenceLine], list[str]]:
    """The reference lines of these roles and those of every role; and names of lines of roles that others may
    represent, if none of those is drawn."""
    if request.side is Side.RATIO or request.measure.name != "k":
        return [], []
    roles = {column.role for column in columns}
    drawn = [line for line in request.lines if not line.role or roles & {line.role, *STANDS_FOR.get(line.role, ())}]
    return drawn, [_name(line) for line in request.lines if line.role in STANDS_FOR and line not in drawn]

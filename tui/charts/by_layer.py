"""Components needed by layer, one line a role, a chart a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import DEFAULT_THRESHOLDS

from ..data.grid import Column, Grid, Selection
from ..data.measures import BY_NAME
from ..data.pair import Lens, Pair, Side
from ..data.reference_lines import ReferenceLine
from ..data.wording import percent
from .figure import Axis, Chart, Figure, Level, Series, Span, Stroke
from .hues import of_columns
from .spectra import MAX_SERIES, hint

if TYPE_CHECKING:
    from .request import Request

PANEL = 40
"""Columns that a chart by layer needs beside others."""
MOST_PANELS = 3
FACET = (18, 6)
"""Columns and lines that a small multiple needs."""
SCAN_HINT = "s scans the model"
_TALL = 14
"""Lines from which charts give their legend two."""
_ABOVE = 1.5
"""How far a reference line may widen the y axis."""


def draw(pair: Pair, request: Request) -> tuple[Figure, None]:
    """Components needed against layer, one line a role; experts by their median. Reads files."""
    return _figure(pair, request), None


def _figure(pair: Pair, request: Request) -> Figure:
    columns = layer_columns(request.grid, request.selection)
    charts: list[Chart] = []
    above: dict[str, None] = {}
    labels, has_room = _labels(pair, request, columns)
    numbers = of_columns(columns, request.grid.columns)
    thresholds, across = _panels(request)
    for threshold in thresholds:
        lens = Lens(pair, threshold, BY_NAME["k"], request.side)
        lens.load(p for column in columns for p in request.grid.column(column))
        series = tuple(
            _role(lens, request.grid, c, numbers[c], label) for c, label in zip(columns, labels, strict=True)
        )
        levels, names = _references(series, columns, request)
        above |= dict.fromkeys(names)
        if not has_room:  # a line is drawn with its number still
            levels = tuple(replace(level, name="") for level in levels)
        charts.append(_by_layer(lens, series, levels))
    title = charts[0].title if len(charts) == 1 else ""
    if not any(len(s.x) for chart in charts for s in chart.series):
        wanted = [p for column in columns for p in request.grid.column(column)]
        return Figure(title, empty=hint(pair, request, wanted, SCAN_HINT) if columns else "no layers")
    named = {level.name for chart in charts for level in chart.levels}
    notes = tuple(f"{name} (above)" for name in above if has_room and name not in named)
    return Figure(title, tuple(charts), columns=across, notes=notes)


def layer_columns(grid: Grid, selection: Selection) -> list[Column]:
    """The roles to draw: all of them, up to what can be told apart, or those of the selected block."""
    wanted = block_of(selection)
    block = [c for c in grid.columns if c.block == wanted]
    chosen = list(grid.columns) if len(grid.columns) <= MAX_SERIES or not block else block
    return chosen[:MAX_SERIES]


def block_of(selection: Selection) -> str | None:
    """The block that is selected, or that what is selected belongs to."""
    if selection.single is not None:
        return selection.single.block
    return selection.block or (selection.column.block if selection.column else None)


def ranges(pair: Pair, request: Request, columns: Sequence[Column]) -> tuple[list[str], dict[Column, str]]:
    """Smallest, middle and largest of each role at the current threshold, the selected role first: parts of a line
    as far as they fit, and those that do not, which the legend says. Reads files."""
    lens = Lens(pair, request.threshold, BY_NAME["k"], request.side)
    lens.load(p for column in columns for p in request.grid.column(column))
    form = ".2f" if request.side is Side.RATIO else ".0f"
    single = request.selection.single
    selected = Column(single.block, single.role) if single is not None else request.selection.column
    parts = [f"{lens.title} min/median/max"]
    rest: dict[Column, str] = {}
    for column in sorted(columns, key=lambda c: c != selected):
        found = [k for p in request.grid.column(column) if (k := lens.number(p)) is not None]
        if not found:
            continue
        part = f"{column.heading} {min(found):{form}}/{median(found):{form}}/{max(found):{form}}"
        if rest or len("  ".join([*parts, part])) > request.width:
            rest[column] = part
        else:
            parts.append(part)
    return parts, rest


def _labels(pair: Pair, request: Request, columns: Sequence[Column]) -> tuple[list[str], bool]:
    """The roles in the legend, with the numbers that the line below has no room for; without them where that would
    cost the legend a role. And whether there is room for more, at least for a count of what does not fit."""
    _, rest = ranges(pair, request, columns)
    labels = [rest.get(column, column.heading) for column in columns]
    left, lines = request.width, 1
    for name in labels:
        needed = len(name) + 4  # a thin mark before it, a gap behind it
        if needed - 2 > left:
            left, lines = request.width, lines + 1
        left -= needed
    if request.height >= _TALL and (lines < 2 or (lines == 2 and left >= -2)):  # the last gap need not fit
        return labels, lines < 2 or left >= len("+2")
    return [column.heading for column in columns], True


def _panels(request: Request) -> tuple[list[float], int]:
    """As many thresholds as there is room for, and how many beside each other: the current one, then the nearest of
    the user's, the notebook's where they are among those. As small multiples they may be small and in rows."""
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


def _role(lens: Lens, grid: Grid, column: Column, number: int, label: str) -> Series:
    points = []
    for index, row in enumerate(grid.rows):
        found = [k for p in grid.cells.get((row, column), ()) if (k := lens.number(p)) is not None]
        if found:
            points.append((float(index if row.tower else row.layer), float(median(found))))
    x, y = (np.array(axis) for axis in zip(*points, strict=True)) if points else (np.zeros(0), np.zeros(0))
    return Series(label, x, y, number, Stroke.DASHED if lens.side is Side.B else Stroke.SOLID)


def _by_layer(lens: Lens, series: tuple[Series, ...], levels: tuple[Level, ...]) -> Chart:
    share = percent(lens.threshold)
    if lens.side is Side.RATIO:
        y = Axis(f"k{share} of B / k{share} of A", span=_around_one(series))
    else:
        y = Axis(f"components for {share} % of the energy")
    return Chart(f"{lens.title} by layer", Axis("layer"), y, series, levels)


def _around_one(series: Sequence[Series]) -> Span:
    """Ratios differ by percents: an axis from 0 on would show a line."""
    values = np.concatenate([[1.0], *(s.y for s in series)])
    low, high = float(values.min()), float(values.max())
    room = 0.1 * (high - low) or 0.05
    return low - room, high + room


def _references(
    series: Sequence[Series], columns: Sequence[Column], request: Request
) -> tuple[tuple[Level, ...], list[str]]:
    """The reference lines of what is drawn, and the names of those that lie too far above it."""
    if request.side is Side.RATIO:
        return (Level(1.0, "1"),), []
    top = max((float(s.y.max()) for s in series if len(s.y)), default=0.0)
    levels, above = [], []
    for line in _lines_of(columns, request):
        name = f"{printable(line.name)} {line.rank:g}"
        if line.rank <= _ABOVE * top:
            levels.append(Level(line.rank, f"{line.rank:g}", name, Stroke.DASHED))
        else:
            above.append(name)
    return tuple(levels), above


def _lines_of(columns: Sequence[Column], request: Request) -> list[ReferenceLine]:
    """The reference lines of these roles, and those of every role."""
    roles = {column.role for column in columns}
    return [line for line in request.lines if not line.role or line.role in roles]

"""Small multiples of spectra or of their energy, a chart for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ..data.grid import Column, Row, member_of
from ..data.pair import Pair, Side
from ..data.views import View
from .by_layer import FACET, SCAN_HINT, block_of
from .figure import ONLY_ZEROS, Chart, Figure, Series, drawable, spans
from .hues import of_columns, stroke_of
from .spectrum_charts import (
    MAX_SERIES,
    crossing,
    curves_of,
    energy_axes,
    energy_levels,
    energy_of,
    hint,
    is_stored,
    measured,
    ranks_of,
    spectrum_axes,
)

if TYPE_CHECKING:
    from .request import Request

ENDS = 4
"""Layers drawn from each end of a model."""
_EIGHT = (76, 12)
"""Columns and lines that eight facets need."""


def draw(pair: Pair, request: Request) -> tuple[Figure, None]:
    """Spectra or energy of chosen layers: a chart for each layer, a line for each role of a block. Reads files."""
    return _figure(pair, request), None


def _figure(pair: Pair, request: Request) -> Figure:
    rows = _facet_rows(request)
    columns = facet_columns(request)
    across, down = _arrangement(request, len(rows))
    fitting = _spread(rows, across * down)
    made = [_facet(pair, request, row, columns, request.width // across) for row in fitting]
    charts = [drawn for chart in made if (drawn := drawable(chart)).series]
    title = _title(pair, request, fitting, columns, len(charts))
    if not charts:
        wanted = [p for row in fitting for c in columns for p in request.grid.cells.get((row, c), ())]
        why = hint(pair, request, wanted, SCAN_HINT) if wanted else "no layers"
        return Figure(title, empty=ONLY_ZEROS if any(chart.series for chart in made) else why)
    notes = (f"{len(fitting)} of {len(rows)} fit",) if len(fitting) < len(rows) else ()
    return Figure(title, tuple(_alike(charts)), columns=min(across, len(charts)), shared=True, notes=notes)


def _title(pair: Pair, request: Request, rows: Sequence[Row], columns: Sequence[Column], drawn: int) -> str:
    """`attention, 8 of 30 layers`: the layers that are drawn, and how many of their curves are missing."""
    block = columns[0].block if columns else "layers"
    members = [p for row in rows for c in columns if (p := _member(request, row, c)) is not None]
    curves = [(session, q) for p in members for _, session, q in pair.curves(p, request.side)]
    lacking = sum(not is_stored(session, q) for session, q in curves)
    rest = f", {lacking} of {len(curves)} curves not computed" if lacking else ""
    return f"{printable(block)}, {drawn} of {len(request.grid.rows)} {request.grid.rows_are}s{rest}"


def _facet_rows(request: Request) -> list[Row]:
    """The layers of the marks, if they are in several; else the first and the last ones."""
    rows = request.grid.rows
    marked = {(p.tower or "", p.layer) for p in request.marks}
    chosen = [row for row in rows if (row.tower, row.layer) in marked]
    if len(chosen) > 1:
        return _spread(chosen, 2 * ENDS)
    return list(rows) if len(rows) <= 2 * ENDS else [*rows[:ENDS], *rows[-ENDS:]]


def facet_columns(request: Request) -> list[Column]:
    """The roles of the block that facets show: the selected block, else attention, else the first."""
    columns = request.grid.columns
    blocks = [c.block for c in columns]
    wanted = block_of(request.selection)
    block = next((b for b in (wanted, "attention", *blocks) if b in blocks), None)
    return [c for c in columns if c.block == block][:MAX_SERIES]


def _arrangement(request: Request, count: int) -> tuple[int, int]:
    """How many charts lie side by side, and how many rows there are."""
    if request.width >= _EIGHT[0] and request.height >= _EIGHT[1]:
        across, down = 4, 2
    else:
        across = max(1, min(2, request.width // FACET[0]))
        down = max(1, request.height // FACET[1])
    if count <= across * down:  # no empty rows
        down = -(-count // across) if count else 1
        across = -(-count // down) if count else 1
    return across, down


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / max(1, most - 1))] for i in range(most)]


def _facet(pair: Pair, request: Request, row: Row, columns: Sequence[Column], width: int) -> Chart:
    """The chart of one layer; of its experts or heads, the one with the selected number, else the first."""
    both = pair.second is not None and request.side is Side.RATIO
    members = [p for c in columns if (p := _member(request, row, c)) is not None]
    curves, arrays = curves_of(pair, members[: MAX_SERIES // (1 + both)], request.side)
    numbers = of_columns(columns, request.grid.columns)
    series = []
    for curve, values in zip(curves, arrays, strict=True):
        name, session, p = curve
        look = numbers[Column(p.block, p.role)], stroke_of(session, pair)
        if request.view == View.ENERGY:
            energy = energy_of(values, session, p, request)
            if energy is None:
                continue
            drawn = Series(name, ranks_of(values), energy, *look)
        else:
            one = measured(curve, values, request, width)
            drawn = Series(name, ranks_of(values)[: one.kept], one.values[: one.kept], *look)
        series.append(replace(crossing(drawn, values, request), value=""))  # the value differs between layers
    title = request.grid.named(row)
    if request.view == View.ENERGY:
        return Chart(title, *energy_axes(request), tuple(series), energy_levels(request, (request.threshold,)))
    return Chart(title, *spectrum_axes(request, max(map(len, arrays), default=1)), tuple(series))


def _member(request: Request, row: Row, column: Column) -> Projection | None:
    cell = request.grid.cells.get((row, column), ())
    single = request.selection.single
    same = (p for p in cell if single is not None and member_of(p) == member_of(single))
    return next(same, cell[0] if cell else None)


def _alike(charts: Sequence[Chart]) -> list[Chart]:
    """The charts, all with the same axes."""
    found = [spans(chart) for chart in charts]
    x, y = ((min(s[i][0] for s in found), max(s[i][1] for s in found)) for i in (0, 1))
    return [replace(c, x=replace(c.x, span=x), y=replace(c.y, span=y)) for c in charts]

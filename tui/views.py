"""What each chart shows of a selection: spectra, energy, components by layer."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from rankscope.engine import metrics
from rankscope.engine.spectrum import Projection

from .charts import COLOURS, Chart, Series
from .grid import Column, Grid, Selection
from .session import Session
from .text import percent

MAX_SERIES = 8


class View(IntEnum):
    """The numbered views; 0 is the tree."""

    SPECTRUM = 1
    ENERGY = 2
    HEATMAP = 3
    LAYERS = 4


class Axes(IntEnum):
    """The steps of the axes key."""

    LOG_LOG = 0
    LOG_Y = 1
    LINEAR = 2


def thin(projections: Sequence[Projection], most: int = MAX_SERIES) -> list[Projection]:
    """At most `most` of them, evenly spread, first and last included."""
    if len(projections) <= most:
        return list(projections)
    return [projections[round(i * (len(projections) - 1) / (most - 1))] for i in range(most)]


def spectrum_chart(session: Session, shown: Sequence[Projection], title: str, axes: Axes) -> Chart:
    """Singular values against their index, one curve a projection, as far as they are known."""
    series = [
        Series(label, np.arange(1.0, len(values) + 1), values, colour)
        for label, values, colour in _curves(session, shown, above_noise=axes is not Axes.LINEAR)
    ]
    return Chart(title, tuple(series), x_log=axes is Axes.LOG_LOG, y_log=axes is not Axes.LINEAR)


def energy_chart(
    session: Session, shown: Sequence[Projection], title: str, thresholds: Sequence[float], axes: Axes
) -> Chart:
    """Cumulative energy in % against the number of components, with the thresholds as lines."""
    series = [
        Series(label, np.arange(1.0, len(values) + 1), 100.0 * metrics.energy(values), colour)
        for label, values, colour in _curves(session, shown)
    ]
    levels = tuple((100.0 * t, f"{percent(t)} %") for t in thresholds)
    return Chart(title, tuple(series), x_log=axes is Axes.LOG_LOG, y_range=(0.0, 100.0), y_unit=" %", levels=levels)


def layers_chart(session: Session, grid: Grid, columns: Sequence[Column], threshold: float) -> Chart:
    """Components needed against layer, one line a role; experts by their median."""
    series = []
    for number, column in enumerate(columns):
        points = []
        for index, row in enumerate(grid.rows):
            ranks = [k for p in grid.cells.get((row, column), ()) if (k := session.rank(p, threshold)) is not None]
            if ranks:
                points.append((float(index if row.tower else row.layer), float(np.median(ranks))))
        x, y = (np.array(axis) for axis in zip(*points, strict=True)) if points else (np.zeros(0), np.zeros(0))
        series.append(Series(column.heading, x, y, COLOURS[number % len(COLOURS)]))
    return Chart(f"k{percent(threshold)} by layer", tuple(series))


def layer_columns(grid: Grid, selection: Selection) -> list[Column]:
    """The roles to draw: all of them, up to what can be told apart, or those of the selected block."""
    wanted = selection.block or (selection.column.block if selection.column else None)
    block = [c for c in grid.columns if c.block == wanted]
    chosen = list(grid.columns) if len(grid.columns) <= MAX_SERIES or not block else block
    return chosen[:MAX_SERIES]


def _curves(
    session: Session, shown: Sequence[Projection], above_noise: bool = False
) -> list[tuple[str, np.ndarray, int]]:
    curves = []
    for number, p in enumerate(shown):
        values, entry = session.values(p), session.entry(p)
        if values is not None and entry is not None:
            # Of a value below the solver's floor is known that it is below, and no more.
            known = values[values > entry.noise_floor] if above_noise else values
            curves.append((_label(p, shown), known if len(known) else values, COLOURS[number % len(COLOURS)]))
    return curves


def _label(p: Projection, among: Sequence[Projection]) -> str:
    """What tells a curve from the others: its role, its layer, its expert."""
    parts = []
    if len({(q.tower, q.layer) for q in among}) > 1 and p.layer is not None:
        parts.append(f"{p.tower}.{p.layer}" if p.tower else str(p.layer))
    if len({(q.block, q.role) for q in among}) > 1 or len(among) == 1:
        same_role = sum(1 for q in among if q.role == p.role and q.layer == p.layer and q.expert == p.expert) > 1
        parts.append(f"{p.block}.{p.role}" if same_role else p.role)
    if p.expert is not None:
        parts.append(f"e{p.expert}")
    return " ".join(parts)

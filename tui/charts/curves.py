"""One chart -> plotext -> lines of a terminal: its curves, levels and axes.

plotext 5: every chart needs a new figure object (the module-level one is shared and clamped to the
terminal), and its legend box would cover the leading singular values, so we draw legends ourselves.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from plotext._figure import _figure_class
from rich.text import Text

from ..settings.palette import Depth, Palette
from .canvas import Canvas, Ink, Layer
from .figure import Chart, Frame, Level, Series, Stroke
from .markers import marker_of
from .ticks import axis_ticks

if TYPE_CHECKING:
    from .figure import Points

_POINT = "\u28ff"
"""Characters for a curve of one point, filling a whole cell: one dot of eight would hardly be seen."""

_DOT = "\u25cf"
"""Character for the point of a curve that its value in the legend belongs to."""


def build(
    chart: Chart, palette: Palette, frame: Frame, names: dict[float, str], size: tuple[int, int], under: bool
) -> list[Text]:
    """The lines of a chart of `size`, with `names` on its y axis, and with numbers on the x axis if `under`."""
    figure: Any = _figure_class()  # type: ignore[no-untyped-call]
    figure.monitor.matrix = canvas = Canvas()
    figure._limit_size(False, False)  # otherwise it is clamped to the size of the terminal on stdout
    figure.plotsize(*size)
    figure.theme("clear")
    figure.xaxes(True, False)
    figure.yaxes(True, False)
    figure.xscale("log" if chart.x.log else "linear")
    figure.yscale("log" if chart.y.log else "linear")
    # plotext takes the limits of a log axis as exponents.
    figure.xlim(*(math.log10(v) if chart.x.log else v for v in frame.x))
    figure.ylim(*(math.log10(v) if chart.y.log else v for v in frame.y))
    along = axis_ticks(chart.x, frame.x, max(2, frame.columns // 8), whole=True) if under else {}
    figure.xticks(list(along), [chart.x.at(t, text) for t, text in along.items()])
    figure.yticks(list(names), list(names.values()))
    # Among dim things, later ones cover earlier ones.
    for level in sorted(chart.levels, key=lambda level: level.is_bright):
        _draw_level(figure, canvas, level, palette, frame)
    for series in sorted(chart.series, key=lambda s: s.number is not None):
        _draw_series(figure, canvas, series, chart, palette, frame)
    for series in chart.series:
        if series.dot is not None and _is_inside(series.dot, frame):
            ink = Ink(marker_of(series, palette)[1], Layer.DOT, sign=_DOT)
            figure.scatter([series.dot[0]], [series.dot[1]], marker="braille", color=canvas.colour(ink))
    figure.build()
    return canvas.lines()


def _is_inside(dot: tuple[float, float], frame: Frame) -> bool:
    return all(low <= at <= high for at, (low, high) in zip(dot, (frame.x, frame.y), strict=True))


def _draw_level(figure: Any, canvas: Canvas, level: Level, palette: Palette, frame: Frame) -> None:
    if not frame.y[0] <= level.value <= frame.y[1]:
        return
    is_mono = palette.depth is Depth.MONO
    is_solid = level.is_bright if is_mono else level.stroke is Stroke.SOLID
    ink = Ink("" if is_mono or level.is_bright else f"color({palette.dim})")
    marker = "\u2500" if is_solid else "\u254c"
    figure.plot(list(frame.x), [level.value, level.value], marker=marker, color=canvas.colour(ink))


def _draw_series(figure: Any, canvas: Canvas, series: Series, chart: Chart, palette: Palette, frame: Frame) -> None:
    marker, style = marker_of(series, palette)
    ink = Ink(style) if series.number is None else Ink(style, Layer.CURVE, 2 if series.is_selected else 1)
    colour = canvas.colour(ink)
    for edge in series.band or ():
        x, y = _pieces(replace(series, y=edge, stroke=Stroke.DOTTED), chart, frame)
        figure.scatter(list(x), list(y), marker=marker, color=colour)
    if series.stroke is not Stroke.SOLID and len(series.x) > 1:
        x, y = _pieces(series, chart, frame)
        figure.scatter(list(x), list(y), marker=marker, color=colour)
    elif len(series.x) == 1:
        figure.scatter(list(series.x), list(series.y), marker=_POINT if marker == "braille" else marker, color=colour)
    else:
        x, y = _thinned(series, chart.x.log, 2 * frame.columns)
        figure.plot(list(x), list(y), marker=marker, color=colour)


def _thinned(series: Series, log: bool, most: int) -> tuple[Points, Points]:
    """At most `most` points, evenly spaced on the axis as drawn, as a column shows at most two dots."""
    x, y = series.x, series.y
    if len(x) <= most:
        return x, y
    if log:
        wanted = np.geomspace(x[0], x[-1], most)
        index = np.unique(np.searchsorted(x, wanted).clip(0, len(x) - 1))
    else:
        index = np.unique(np.linspace(0, len(x) - 1, most).round().astype(np.intp))
    return x[index], y[index]


def _pieces(series: Series, chart: Chart, frame: Frame) -> tuple[Points, Points]:
    """The points of a broken line: dots in every second column, or two columns of every four."""
    ends = (float(series.x[0]), float(series.x[-1]))
    x = np.geomspace(*ends, 2 * frame.columns) if chart.x.log else np.linspace(*ends, 2 * frame.columns)
    y = np.interp(x, series.x, series.y)
    number = np.arange(len(x))
    kept = number % 3 == 0 if series.stroke is Stroke.DOTTED else number % 8 < 4
    return x[kept], y[kept]

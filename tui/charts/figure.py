"""What a chart consists of, the same for a terminal and for paper. Nothing here draws, or knows a widget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Strings, so that a screen that only shows charts need not wait for numpy.
Points: TypeAlias = "NDArray[np.float64]"
Span: TypeAlias = "tuple[float, float]"

ONLY_ZEROS = "all values are 0, which a log axis cannot show: a switches to linear axes"


class Stroke(StrEnum):
    """How a line is drawn."""

    SOLID = "solid"
    DASHED = "dashed"
    DOTTED = "dotted"


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: `x` and `y` float64 of one length. `number` picks its colour and marker; None: it is a dim
    curve to hold the others against. Those of one label have one place in the legend, those without none.
    `value` stands behind the label, `dot` is the point of the curve that it belongs to. `is_selected`: it is the one
    that the user looks at. `band` are the lowest and the highest of what the curve is the middle of."""

    label: str
    x: Points = field(repr=False)
    y: Points = field(repr=False)
    number: int | None = None
    stroke: Stroke = Stroke.SOLID
    is_selected: bool = False
    value: str = ""
    dot: tuple[float, float] | None = None
    band: tuple[Points, Points] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Level:
    """A dim horizontal line: `label` stands on the axis, `name` in the legend ("": nowhere)."""

    value: float
    label: str
    name: str = ""
    stroke: Stroke = Stroke.SOLID
    is_bright: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """`name` is written on paper, `unit` behind every number; without `span` it spans what is drawn. `places`: what its
    whole numbers from 0 on stand for, where they stand for something else. Of what is drawn in place of values that no
    axis can hold (extreme.py): whether its numbers are `exponents` of ten, or values over 10^`tens`."""

    name: str
    unit: str = ""
    log: bool = False
    span: Span | None = None
    places: tuple[str, ...] = ()
    exponents: bool = False
    tens: int = 0

    def at(self, number: float, text: str) -> str:
        """What is written at a number, `text` where it stands for itself."""
        return self.places[int(number)] if 0 <= number < len(self.places) else text


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the canvas of a chart is, and what it spans."""

    left: int
    columns: int
    rows: int
    x: Span
    y: Span


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves on common axes; x counts something, from whole number to whole number."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart, or several in rows of `columns` with one legend. Where their axes are `shared`, only the charts
    at the edges need numbers. `notes` end the legend; `empty` says what to do where there is nothing to draw. `at` is a
    place on the x axes that is marked, and its name; `values` says what the values in the legend are."""

    title: str
    charts: tuple[Chart, ...] = ()
    columns: int = 1
    shared: bool = False
    notes: tuple[str, ...] = ()
    empty: str = ""
    at: tuple[float, str] | None = None
    values: str = ""


@dataclass(frozen=True, slots=True)
class Sign:
    """One entry of a legend; `is_level`: of a horizontal line."""

    label: str
    number: int | None
    stroke: Stroke
    is_level: bool = False
    value: str = ""
    is_selected: bool = False


def signs(figure: Figure) -> list[Sign]:
    """The legend of a figure: the curves that have points, then what is dim, each label once."""
    curves = [
        Sign(s.label, s.number, s.stroke, value=s.value, is_selected=s.is_selected)
        for chart in figure.charts
        for s in chart.series
        if len(s.x)
    ]
    levels = [Sign(v.name, None, v.stroke, True) for chart in figure.charts for v in chart.levels]
    found = {sign.label: sign for sign in [*curves, *levels] if sign.label}
    return sorted(found.values(), key=lambda sign: sign.number is None)


def drawable(chart: Chart) -> Chart:
    """Without the points that its axes cannot show (infinite ones; a matrix of zeros has none on a log axis), without
    curves that have none left."""
    import numpy as np  # see above

    kept = []
    for series in chart.series:
        keep = (series.x > 0) | (not chart.x.log)
        keep &= ((series.y > 0) | (not chart.y.log)) & np.isfinite(series.y)
        if keep.any():
            band = series.band and (series.band[0][keep], series.band[1][keep])
            kept.append(replace(series, x=series.x[keep], y=series.y[keep], band=band))
    return replace(chart, series=tuple(kept))


def spans(chart: Chart) -> tuple[Span, Span]:
    """Where the axes of a drawable chart begin and end; never the same number twice."""
    x = chart.x.span or _span([s.x for s in chart.series])
    heights = [y for s in chart.series for y in (s.y, *(s.band or ()))]
    y = chart.y.span or _span(heights, [level.value for level in chart.levels])
    if not (chart.y.log or chart.y.span):
        y = min(0.0, y[0]), y[1]
    return _apart(x, chart.x.log), _apart(y, chart.y.log)


def _span(arrays: Sequence[Points], values: Sequence[float] = ()) -> Span:
    return min([*(float(a.min()) for a in arrays), *values]), max([*(float(a.max()) for a in arrays), *values])


def _apart(span: Span, log: bool) -> Span:
    low, high = span
    if high > low:
        return span
    return (low / 3, low * 3) if log else (low - 0.5, high + 0.5)

"""The parts of a chart, the same for a terminal and for a picture. Nothing here draws or knows a widget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Strings, so that a screen that only shows charts does not import numpy.
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
    """One curve: `x` and `y` are float64 of the same length. `number` picks colour and marker; None makes it a dim
    curve for comparison. Curves with the same `label` share a legend entry, those without have none. `value` follows
    the label, and `dot` is the point of the curve it belongs to. `is_selected`: the curve of the selection. `band`:
    lowest and highest values around the curve."""

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
    """A dim horizontal line: `label` is written on the axis, `name` in the legend ("" for nowhere)."""

    value: float
    label: str
    name: str = ""
    stroke: Stroke = Stroke.SOLID
    is_bright: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: `name` is written in pictures, `unit` after every number. Without `span` it spans what is drawn.
    `places` are names for its whole numbers from 0 on, if they are indices of something. Values that no axis can hold
    are drawn otherwise (extreme.py): with `exponents` the numbers are exponents of ten, with `tens` they are values
    over 10^`tens`."""

    name: str
    unit: str = ""
    log: bool = False
    span: Span | None = None
    places: tuple[str, ...] = ()
    exponents: bool = False
    tens: int = 0

    def at(self, number: float, text: str) -> str:
        """The name at a number, or `text` if it has none."""
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
    """Curves on common axes; x counts something in whole numbers."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart, or several in rows of `columns` with one legend. If their axes are `shared`, only charts at the edges
    need numbers. `notes` end the legend; `empty` says what to do if there is nothing to draw. `at` is a marked place on
    the x axes, with its name; `values` says what the legend's values are."""

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
    """One entry of a legend; `is_level`: it names a horizontal line."""

    label: str
    number: int | None
    stroke: Stroke
    is_level: bool = False
    value: str = ""
    is_selected: bool = False


def signs(figure: Figure) -> list[Sign]:
    """The entries of a figure's legend: curves that have points, then dim things, each label once."""
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
    """The chart without points that its axes cannot show (infinite ones, and zeros on a log axis), and without curves
    that then are empty."""
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
    """The spans of both axes of a drawable chart; start and end always differ."""
    x = chart.x.span or _span([s.x for s in chart.series])
    heights = [y for s in chart.series for y in (s.y, *(s.band or ()))]
    y = chart.y.span or _span(heights, [level.value for level in chart.levels])
    if not (chart.y.log or chart.y.span):
        y = min(0.0, y[0]), y[1]
    return _widened(x, chart.x.log), _widened(y, chart.y.log)


def _span(arrays: Sequence[Points], values: Sequence[float] = ()) -> Span:
    return min([*(float(a.min()) for a in arrays), *values]), max([*(float(a.max()) for a in arrays), *values])


def _widened(span: Span, log: bool) -> Span:
    low, high = span
    if high > low:
        return span
    return (low / 3, low * 3) if log else (low - 0.5, high + 0.5)

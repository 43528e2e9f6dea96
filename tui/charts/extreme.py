"""Charts of values near the limits of float64, drawn as exponents or divided by a power of ten: an axis needs room
beyond its curves, for which there are no float64 numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .figure import Chart, Span, spans

if TYPE_CHECKING:
    from .figure import Points

LARGE, SMALL = 1e290, 1e-290
"""Charts with values beyond these are drawn with transformed numbers."""
_ROOM = math.log10(3)
_LARGEST = float(np.finfo(np.float64).max)


def tamed(charts: Sequence[Chart]) -> list[Chart]:
    """The drawable charts, transformed if one of them has values beyond LARGE or SMALL: on a log axis to exponents, on
    a linear axis to values over a power of ten. Their axes say which."""
    found = [float(end) for chart in charts for y in _heights(chart) for end in (y.min(), y.max()) if end > 0]
    top, low = max(found, default=1.0), min(found, default=1.0)
    if any(chart.y.log for chart in charts):
        return [_as_exponents(chart) for chart in charts] if top > LARGE or low < SMALL else list(charts)
    return [_over(chart, tens_of(top)) for chart in charts] if tens_of(top) else list(charts)


def tens_of(top: float) -> int:
    """The exponent of the power of ten that numbers up to `top` are divided by, 0 if they are drawn as they are."""
    return math.floor(math.log10(top)) if top > LARGE or 0 < top < SMALL else 0


def over_tens(values: Points, tens: int) -> Points:
    """Numbers over a power of ten, which may be too large or small for a float."""
    half = tens // 2
    return values / 10.0**half / 10.0 ** (tens - half)


def _heights(chart: Chart) -> Iterator[Points]:
    return (y for series in chart.series for y in (series.y, *(series.band or ())))


def _as_exponents(chart: Chart) -> Chart:
    found = _changed(chart, lambda y: np.log10(np.maximum(y, math.ulp(0.0))))
    low, high = (math.log10(end) if 0 < end < math.inf else math.nan for end in spans(chart)[1])
    drawn = [float(end) for y in _heights(found) for end in (y.min(), y.max())]
    low = min(drawn) - _ROOM if math.isnan(low) else low
    high = max(drawn) + _ROOM if math.isnan(high) else high
    return replace(found, y=replace(chart.y, log=False, exponents=True, span=(low, high)))


def _over(chart: Chart, tens: int) -> Chart:
    found = _changed(chart, lambda y: over_tens(y, tens))
    span: Span | None = None
    if chart.y.span is not None:
        low, high = np.clip(chart.y.span, -_LARGEST, _LARGEST)
        span = tuple(over_tens(np.array([low, high]), tens).tolist())
    return replace(found, y=replace(chart.y, tens=tens, span=span))


def _changed(chart: Chart, change: Callable[[Points], Points]) -> Chart:
    """The chart with `change` applied to all y values."""

    def one(value: float) -> float:
        return float(change(np.array([value]))[0])

    series = [
        replace(
            s,
            y=change(s.y),
            band=s.band and (change(s.band[0]), change(s.band[1])),
            dot=s.dot and (s.dot[0], one(s.dot[1])),
        )
        for s in chart.series
    ]
    levels = [replace(level, value=one(level.value)) for level in chart.levels if math.isfinite(level.value)]
    return replace(chart, series=tuple(series), levels=tuple(levels))

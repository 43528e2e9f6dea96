"""numpy -> plotext figure -> lines. Nothing here knows a widget; it may run in any thread.

plotext 5: every chart is a figure object of its own (the module-level one is shared and clamped to
the terminal), and its legend box would cover the leading singular values, so legends are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Points = NDArray[np.float64]

# Distinct in 256 colours, on dark and on light backgrounds.
COLOURS = (33, 208, 71, 170, 178, 37, 160, 245)


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: `x` and `y` float64 of one length, a label and a colour of the 256."""

    label: str
    x: Points = field(repr=False)
    y: Points = field(repr=False)
    colour: int


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves on common axes. `levels` are horizontal lines, labelled on the y axis; `bare` has no legend.

    `y_unit` stands behind every number on the y axis.
    """

    title: str
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False
    y_range: tuple[float, float] | None = None
    y_unit: str = ""
    levels: tuple[tuple[float, str], ...] = ()
    bare: bool = False


def draw(chart: Chart, width: int, height: int) -> list[Text]:
    """The chart as `height` lines of `width` columns: a legend line, then the canvas."""
    legend = _legend(chart, width)
    shown = replace(chart, series=tuple(kept for s in chart.series if len((kept := _drawable(s, chart)).x)))
    if not shown.series or height < 6 or width < 20:
        has_values = any(len(s.x) for s in chart.series)
        reason = Text("only zeros: nothing to draw on these axes" if has_values and not shown.series else "", "dim")
        reason.truncate(width, overflow="ellipsis")
        return [legend, reason, *(Text("") for _ in range(height - 2))][:height]
    lines = Text.from_ansi(_build(shown, width, height - 1)).split("\n", allow_blank=False)
    return [legend, *lines][:height]


def beside(charts: Sequence[Chart], width: int, height: int) -> list[Text]:
    """Several charts side by side: one legend for all, then each under its own title."""
    each = width // len(charts)
    drawn = [draw(replace(chart, bare=True), each, height - 1) for chart in charts]
    joined = [_legend(replace(charts[0], title=""), width)]
    for parts in zip(*drawn, strict=True):
        line = Text()
        for part in parts:
            padded = part.copy()
            padded.truncate(each, pad=True)
            line.append_text(padded)
        joined.append(line)
    return joined


def _legend(chart: Chart, width: int) -> Text:
    """Title and curves; where they do not fit with thinner signs, then without the title, which is selected anyway."""
    series = () if chart.bare else chart.series
    for title, sign in ((chart.title, "\u2501\u2501 "), (chart.title, "\u2501 "), ("", "\u2501 ")):
        line = Text(title, style="bold", no_wrap=True)
        for one in series:
            line.append("  " if line else "")
            line.append(sign, style=f"not bold color({one.colour})")
            line.append(one.label, style="not bold")
        if line.cell_len <= width or not series:
            break
    line.truncate(width, overflow="ellipsis")
    return line


def _build(chart: Chart, width: int, height: int) -> str:
    from plotext._figure import _figure_class

    figure: Any = _figure_class()  # type: ignore[no-untyped-call]
    figure._limit_size(False, False)  # else it is clamped to the terminal that stdout happens to be
    figure.plotsize(width, height)
    figure.theme("clear")
    for series in chart.series:
        x, y = _thinned(series, chart.x_log, 2 * width)
        figure.plot(list(x), list(y), marker="braille", color=series.colour)
    figure.xscale("log" if chart.x_log else "linear")
    figure.yscale("log" if chart.y_log else "linear")
    _axes(figure, chart, width, height)
    return str(figure.build()).rstrip("\n")


def _axes(figure: Any, chart: Chart, width: int, height: int) -> None:
    low = min(float(s.x.min()) for s in chart.series)
    high = max(float(s.x.max()) for s in chart.series)
    along = _ticks(low, high, chart.x_log, max(2, width // 14))
    figure.xticks(along, [_tick(t) for t in along])
    bottom, top = chart.y_range or _span(chart.series, chart.y_log)
    # plotext takes the limits of a log axis as exponents.
    figure.ylim(*((math.log10(bottom), math.log10(top)) if chart.y_log else (bottom, top)))
    for level, _ in chart.levels:
        figure.hline(level, 240)
    # A level keeps its label; a tick within a line of it would take its place.
    near = 1.5 * (top - bottom) / max(1, height - 3)
    ticks = _ticks(bottom, top, chart.y_log, max(2, height // 4))
    free = [t for t in ticks if all(abs(t - level) > near for level, _ in chart.levels)]
    named = {t: _tick(t) + chart.y_unit for t in free} | dict(chart.levels)
    figure.yticks(list(named), [f"{text:>7}" for text in named.values()])


def _span(series: Sequence[Series], log: bool) -> tuple[float, float]:
    low, high = min(float(s.y.min()) for s in series), max(float(s.y.max()) for s in series)
    if log:
        return low, high if high > low else low * 10
    return min(0.0, low), high if high > low else low + 1.0


def _drawable(series: Series, chart: Chart) -> Series:
    """Without the points that a log axis cannot show: a matrix of zeros has none.

    The last hundredth of a descending curve may fall by decades (1.6e-3 after 1.2 in the demo) and would
    press all the rest into the top of a log axis: it is drawn down to a third of where it begins.
    """
    keep = (series.x > 0) | (not chart.x_log)
    if chart.y_log:
        tail = series.y[int(0.99 * (len(series.y) - 1))] / 3 if len(series.y) else 0.0
        keep &= (series.y > 0) & (series.y >= tail)
    return replace(series, x=series.x[keep], y=series.y[keep])


def _thinned(series: Series, log: bool, most: int) -> tuple[Points, Points]:
    """At most `most` points, evenly spaced on the axis as drawn: what two dots a column can show."""
    import numpy as np

    x, y = series.x, series.y
    if len(x) <= most:
        return x, y
    if log:
        wanted = np.geomspace(x[0], x[-1], most)
        index = np.unique(np.searchsorted(x, wanted).clip(0, len(x) - 1))
    else:
        index = np.unique(np.linspace(0, len(x) - 1, most).round().astype(np.intp))
    return x[index], y[index]


def _ticks(low: float, high: float, log: bool, most: int) -> list[float]:
    """Round numbers within the range: powers of ten on a log axis (1 2 5 where there are few), else steps."""
    if high <= low:
        return [low]
    if not log:
        step = _round_step((high - low) / most)
        first = math.ceil(low / step - 1e-9)
        return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**d for d in decades if low <= 10.0**d * 1.000001 and 10.0**d <= high * 1.000001]
    if len(tens) < 3:
        return [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high] or [low, high]
    return tens[:: max(1, -(-len(tens) // most))]


def _round_step(raw: float) -> float:
    scale = 10.0 ** math.floor(math.log10(raw))
    return next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw * 0.999)


def _tick(value: float) -> str:
    return (
        f"{value:.4g}"
        if 1e-4 <= abs(value) < 1e6 or value == 0
        else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    )

"""Figure -> plotext -> lines of a terminal. Nothing here knows a widget; it may run in any thread.

plotext 5: every chart is a figure object of its own (the module-level one is shared and clamped to
the terminal), and its legend box would cover the leading singular values, so legends are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..settings.palette import Depth, Palette
from .figure import ONLY_ZEROS, Chart, Figure, Level, Series, Sign, Span, Stroke, drawable, signs, spans
from .ruler import Ruler
from .ticks import tick_text, ticks

if TYPE_CHECKING:
    from .figure import Points

LEAST = (20, 6)
"""Columns and lines below which there is no chart."""
MARKERS = ("braille", "+", "x", "o", "*", "#", "=", "%")
"""What tells curves apart without colours."""
_TALL = 14
"""Lines from which a chart can spare a second one for its legend."""
_POINT = "\u28ff"
"""A curve of one point is one dot in eight: a whole cell can be seen."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure as lines; `ruler` where it is one chart: its x axis, taken for one of ranks."""

    lines: tuple[Text, ...]
    ruler: Ruler | None = None


def draw(figure: Figure, palette: Palette, width: int, height: int) -> Drawing:
    """The figure as `height` lines of at most `width` columns: the legend, then the charts."""
    charts = [drawn for chart in figure.charts if (drawn := drawable(chart)).series]
    reason = figure.empty or ("" if charts else ONLY_ZEROS)
    legend = _legend(figure, palette, width, 2 if height >= _TALL else 1) if not reason else [_title(figure, width)]
    room = height - len(legend)
    if not reason and (width < LEAST[0] or height < LEAST[1]):
        reason = "no room for a chart"
    if reason:
        return Drawing(tuple([*legend, *_centred(reason, width, room)][:height]))
    if len(charts) > 1:
        lines = _rows(figure, charts, palette, width, room)
        return Drawing(tuple([*legend, *lines, *(Text() for _ in range(room - len(lines)))][:height]))
    lines, frame = _panel(charts[0], palette, width, room)
    ruler = Ruler(frame.left, frame.columns, frame.x, charts[0].x.log, max(1, int(frame.x[1])))
    return Drawing(tuple([*legend, *lines][:height]), ruler)


def _title(figure: Figure, width: int) -> Text:
    title = Text(figure.title, "bold", no_wrap=True)
    title.truncate(width, overflow="ellipsis")
    return title


def _centred(sentence: str, width: int, height: int) -> list[Text]:
    """A sentence in the middle of empty lines."""
    line = Text(sentence, "dim", no_wrap=True)
    line.truncate(width, overflow="ellipsis")
    line.pad_left((width - line.cell_len) // 2)
    above = max(0, (height - 1) // 2)
    return [*(Text() for _ in range(above)), line, *(Text() for _ in range(height - above - 1))]


# The legend


def _legend(figure: Figure, palette: Palette, width: int, most: int) -> list[Text]:
    """Title, curves and notes in one line, thinner ones if need be, else in `most`; then without the title, which
    is selected anyway; what does not fit then is counted."""
    title = [Text(figure.title, "bold")] if figure.title else []
    thick, thin = (_entries(figure, palette, is_thin) for is_thin in (False, True))
    for lines in range(1, most + 1):
        for parts in ([*title, *thick], [*title, *thin]):
            if len(found := _flow(parts, width)) <= lines:
                return found
    found = _flow(thin, width)
    return found if len(found) <= most else _cut(thin, width, most)


def _entries(figure: Figure, palette: Palette, thin: bool) -> list[Text]:
    entries = []
    for sign in signs(figure):
        mark, colour = _mark(sign, palette)
        entries.append(Text.assemble((mark[0] if thin else mark, colour), " ", sign.label))
    return [*entries, *(Text(note, "dim") for note in figure.notes)]


def _mark(sign: Sign, palette: Palette) -> tuple[str, str]:
    """What stands before a label, and its style."""
    if sign.number is None:
        dashes = {Stroke.SOLID: "\u2500\u2500", Stroke.DASHED: "\u254c\u254c", Stroke.DOTTED: "\u2508\u2508"}
        is_point = palette.depth is Depth.MONO and sign.stroke is Stroke.SOLID and not sign.is_level
        return ".." if is_point else dashes[sign.stroke], f"color({palette.dim})"
    if palette.depth is not Depth.MONO:
        return "\u2501\u2501", f"color({palette.series[sign.number % len(palette.series)]})"
    marker = MARKERS[sign.number % len(MARKERS)]
    return "\u2812\u2812" if marker == "braille" else 2 * marker, ""


def _flow(parts: Sequence[Text], width: int) -> list[Text]:
    """The parts in as many lines as they take."""
    lines = [Text(no_wrap=True)]
    for part in parts:
        if lines[-1].cell_len and lines[-1].cell_len + 2 + part.cell_len > width:
            lines.append(Text(no_wrap=True))
        if lines[-1].cell_len:
            lines[-1].append("  ")
        lines[-1].append_text(part)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _cut(parts: Sequence[Text], width: int, most: int) -> list[Text]:
    """As many parts as fit into so many lines, and how many are left out."""
    kept = len(parts)
    while kept > 1:
        kept -= 1
        lines = _flow([*parts[:kept], Text(f"+{len(parts) - kept}", "dim")], width)
        if len(lines) <= most:
            break
    return lines


# Several charts


def _rows(figure: Figure, charts: Sequence[Chart], palette: Palette, width: int, height: int) -> list[Text]:
    """Charts in rows, each under its title."""
    count = -(-len(charts) // figure.columns)
    numbers = 1 if figure.shared else count  # lines of numbers under the rows
    canvas = max(1, (height - 2 * count - numbers) // count)
    left = max(_margin(chart, canvas) for chart in charts) if figure.shared else 0
    lines: list[Text] = []
    for row in range(count):
        under = not figure.shared or row == count - 1
        members = charts[row * figure.columns : (row + 1) * figure.columns]
        panels = []
        for place, chart in enumerate(members):
            each = (width - left) // figure.columns
            labelled = place == 0 or not figure.shared
            each += left if labelled else 0
            found, frame = _panel(chart, palette, each - 1, canvas + 1 + under, labelled, under)
            panels.append((each, [_heading(chart.title, frame.left), *found]))
        lines += _joined(panels)
    return lines


def _heading(title: str, left: int) -> Text:
    return Text(" " * left + title, "bold", no_wrap=True)


def _joined(panels: Sequence[tuple[int, list[Text]]]) -> list[Text]:
    """Panels of these widths beside each other."""
    lines = []
    for number in range(max(len(found) for _, found in panels)):
        line = Text(no_wrap=True)
        for width, found in panels:
            part = found[number].copy() if number < len(found) else Text()
            part.truncate(width, pad=True)
            line.append_text(part)
        lines.append(line)
    return lines


# One chart


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the canvas of a chart is, and what it spans."""

    left: int
    columns: int
    rows: int
    x: Span
    y: Span


def _panel(
    chart: Chart, palette: Palette, width: int, height: int, labelled: bool = True, under: bool = True
) -> tuple[list[Text], _Frame]:
    """Canvas and axes; `labelled` has numbers on the left, `under` below."""
    x, y = spans(chart)
    rows = max(1, height - 1 - under)
    names = _y_names(chart, y, rows)
    left = 1 + (_width_of(names.values()) if labelled else 0)
    frame = _Frame(left, max(1, width - left), rows, x, y)
    built = _build(chart, palette, frame, names if labelled else dict.fromkeys(names, ""), (width, height), under)
    return Text.from_ansi(built).split("\n", allow_blank=False)[:height], frame


def _margin(chart: Chart, rows: int) -> int:
    """Columns of the numbers on the left."""
    return _width_of(_y_names(chart, spans(chart)[1], rows).values())


def _width_of(names: Iterable[str]) -> int:
    return max(map(len, names), default=0)


def _build(
    chart: Chart, palette: Palette, frame: _Frame, names: dict[float, str], size: tuple[int, int], under: bool
) -> str:
    from plotext._figure import _figure_class

    figure: Any = _figure_class()  # type: ignore[no-untyped-call]
    figure._limit_size(False, False)  # else it is clamped to the terminal that stdout happens to be
    figure.plotsize(*size)
    figure.theme("clear")
    figure.xaxes(True, False)
    figure.yaxes(True, False)
    figure.xscale("log" if chart.x.log else "linear")
    figure.yscale("log" if chart.y.log else "linear")
    # plotext takes the limits of a log axis as exponents.
    figure.xlim(*(math.log10(v) if chart.x.log else v for v in frame.x))
    figure.ylim(*(math.log10(v) if chart.y.log else v for v in frame.y))
    along = ticks(frame.x, chart.x.log, max(2, frame.columns // 8), whole=True) if under else []
    figure.xticks(along, [tick_text(t) for t in along])
    figure.yticks(list(names), list(names.values()))
    # Dim things first: what is drawn later covers them.
    for level in sorted(chart.levels, key=lambda level: level.is_bright):
        _draw_level(figure, level, palette, frame)
    for series in sorted(chart.series, key=lambda s: s.number is not None):
        _draw_series(figure, series, chart, palette, frame)
    return str(figure.build()).rstrip("\n")


def _draw_level(figure: Any, level: Level, palette: Palette, frame: _Frame) -> None:
    if not frame.y[0] <= level.value <= frame.y[1]:
        return
    is_mono = palette.depth is Depth.MONO
    is_solid = level.is_bright if is_mono else level.stroke is Stroke.SOLID
    colour = "default" if is_mono or level.is_bright else palette.dim
    marker = "\u2500" if is_solid else "\u254c"
    figure.plot(list(frame.x), [level.value, level.value], marker=marker, color=colour)


def _draw_series(figure: Any, series: Series, chart: Chart, palette: Palette, frame: _Frame) -> None:
    if series.number is None:
        colour: int | str = palette.dim
        marker = "." if palette.depth is Depth.MONO and series.stroke is Stroke.SOLID else "braille"
    else:
        colour = palette.series[series.number % len(palette.series)]
        marker = MARKERS[series.number % len(MARKERS)] if palette.depth is Depth.MONO else "braille"
    if palette.depth is Depth.MONO:
        colour = "default"
    if series.stroke is not Stroke.SOLID:
        x, y = _pieces(series, chart, frame)
        figure.scatter(list(x), list(y), marker=marker, color=colour)
    elif len(series.x) == 1:
        figure.scatter(list(series.x), list(series.y), marker=_POINT if marker == "braille" else marker, color=colour)
    else:
        x, y = _thinned(series, chart.x.log, 2 * frame.columns)
        figure.plot(list(x), list(y), marker=marker, color=colour)


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


def _pieces(series: Series, chart: Chart, frame: _Frame) -> tuple[Points, Points]:
    """A broken line: dots of every second column, or two columns of every four."""
    import numpy as np

    ends = (float(series.x[0]), float(series.x[-1]))
    x = np.geomspace(*ends, 2 * frame.columns) if chart.x.log else np.linspace(*ends, 2 * frame.columns)
    y = np.interp(x, series.x, series.y)
    number = np.arange(len(x))
    kept = number % 3 == 0 if series.stroke is Stroke.DOTTED else number % 8 < 4
    return x[kept], y[kept]


# Numbers on axes


def _y_names(chart: Chart, span: Span, rows: int) -> dict[float, str]:
    """The numbers on the y axis. A level keeps its label; a tick within a line of it would take its place."""
    low, high = (math.log10(v) for v in span) if chart.y.log else span

    def row(value: float) -> float:
        return ((math.log10(value) if chart.y.log else value) - low) / (high - low) * (rows - 1)

    named: dict[float, str] = {}
    for level in sorted(chart.levels, key=lambda level: not level.is_bright):
        inside = span[0] <= level.value <= span[1]
        if level.label and inside and all(abs(row(level.value) - row(v)) >= 1 for v in named):
            named[level.value] = level.label
    found = ticks(span, chart.y.log, max(2, rows // (2 if chart.y.log else 3)))
    free = [t for t in found if all(abs(row(t) - row(v)) >= 1.5 for v in named)]
    return {t: tick_text(t) + chart.y.unit for t in free} | named

"""Draws a figure as lines of a terminal: legend, charts, numbers on their axes. Nothing here knows a widget, and it may
run in any thread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from ..settings.palette import Palette
from .extreme import tamed
from .figure import ONLY_ZEROS, Chart, Figure, Frame, Span, drawable, spans
from .legend import legend
from .ruler import Ruler
from .ticks import axis_ticks

LEAST = (20, 6)
"""Columns and lines that a chart needs at least."""
_TALL = 14
"""From as many lines on, the legend may take a second one."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure as lines, and where the x axis of each chart lies, as if it were of ranks."""

    lines: tuple[Text, ...]
    rulers: tuple[Ruler, ...] = ()

    @property
    def ruler(self) -> Ruler | None:
        """The ruler of the chart, if there is only one."""
        return self.rulers[0] if len(self.rulers) == 1 else None


def draw(figure: Figure, palette: Palette, width: int, height: int) -> Drawing:
    """The figure as `height` lines of at most `width` columns: the legend, then the charts."""
    charts = tamed([drawn for chart in figure.charts if (drawn := drawable(chart)).series])
    reason = figure.empty or ("" if charts else ONLY_ZEROS)
    above = legend(figure, palette, width, 2 if height >= _TALL else 1) if not reason else [_title(figure, width)]
    room = height - len(above)
    if not reason and (width < LEAST[0] or height < LEAST[1]):
        reason = "no room for a chart"
    if reason:
        return Drawing(tuple([*above, *_centred(reason, width, room)][:height]))
    if len(charts) > 1:
        lines, rulers = _rows(figure, charts, palette, width, room)
        below = (Text() for _ in range(room - len(lines)))
        moved = (replace(ruler, top=ruler.top + len(above)) for ruler in rulers)
        return Drawing(tuple([*above, *lines, *below][:height]), tuple(moved))
    lines, frame = _panel(charts[0], palette, width, room)
    return Drawing(tuple([*above, *lines][:height]), (_ruler(charts[0], frame, 0, len(above)),))


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


# Several charts


def _ruler(chart: Chart, frame: Frame, left: int, top: int) -> Ruler:
    """The x axis of a chart whose lines begin at column `left` and line `top`."""
    count = max(1, int(frame.x[1]))
    return Ruler(left + frame.left, frame.columns, frame.x, chart.x.log, count, top, frame.rows)


def _rows(
    figure: Figure, charts: Sequence[Chart], palette: Palette, width: int, height: int
) -> tuple[list[Text], list[Ruler]]:
    """Charts in rows, each below its title, and their x axes."""
    count = -(-len(charts) // figure.columns)
    numbers = 1 if figure.shared else count  # lines of numbers under the rows
    canvas = max(1, (height - 2 * count - numbers) // count)
    left = max(_margin(chart, canvas) for chart in charts) if figure.shared else 0
    lines: list[Text] = []
    rulers: list[Ruler] = []
    for row in range(count):
        under = not figure.shared or row == count - 1
        members = charts[row * figure.columns : (row + 1) * figure.columns]
        panels: list[tuple[int, list[Text]]] = []
        for place, chart in enumerate(members):
            each = (width - left) // figure.columns
            labelled = place == 0 or not figure.shared
            each += left if labelled else 0
            found, frame = _panel(chart, palette, each - 1, canvas + 1 + under, labelled, under)
            rulers.append(_ruler(chart, frame, sum(wide for wide, _ in panels), len(lines) + 1))
            panels.append((each, [_heading(chart.title, frame.left), *found]))
        lines += _joined(panels)
    return lines, rulers


def _heading(title: str, left: int) -> Text:
    return Text(" " * left + title, "bold", no_wrap=True)


def _joined(panels: Sequence[tuple[int, list[Text]]]) -> list[Text]:
    """Panels of these widths side by side."""
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


def _panel(
    chart: Chart, palette: Palette, width: int, height: int, labelled: bool = True, under: bool = True
) -> tuple[list[Text], Frame]:
    """Canvas and axes of a chart; `labelled` puts numbers on the left, `under` puts them below."""
    from .curves import build  # plotext, not imported for a screen without charts

    x, y = spans(chart)
    rows = max(1, height - 1 - under)
    names = _y_names(chart, y, rows)
    left = 1 + (_width_of(names.values()) if labelled else 0)
    frame = Frame(left, max(1, width - left), rows, x, y)
    lines = build(chart, palette, frame, names if labelled else dict.fromkeys(names, ""), (width, height), under)
    return lines[:height], frame


def _margin(chart: Chart, rows: int) -> int:
    """The width of the numbers on the left, in columns."""
    return _width_of(_y_names(chart, spans(chart)[1], rows).values())


def _width_of(names: Iterable[str]) -> int:
    return max(map(len, names), default=0)


# Numbers on axes


def _y_names(chart: Chart, span: Span, rows: int) -> dict[float, str]:
    """The numbers on the y axis. A level keeps its label; ticks within a line of it are left out."""
    low, high = (math.log10(v) for v in span) if chart.y.log else span

    def row(value: float) -> float:
        return ((math.log10(value) if chart.y.log else value) - low) / (high - low) * (rows - 1)

    named: dict[float, str] = {}
    for level in sorted(chart.levels, key=lambda level: not level.is_bright):
        inside = span[0] <= level.value <= span[1]
        if level.label and inside and all(abs(row(level.value) - row(v)) >= 1 for v in named):
            named[level.value] = level.label
    found = axis_ticks(chart.y, span, max(2, rows // (2 if chart.y.log or chart.y.exponents else 3)))
    free = {t: text for t, text in found.items() if all(abs(row(t) - row(v)) >= 1.5 for v in named)}
    return free | named

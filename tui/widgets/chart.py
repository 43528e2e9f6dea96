"""The pane of a chart: its lines as they were drawn, below them the cursor on its ranks, and a line of read-out."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.binding import BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.timer import Timer
from textual.widget import Widget

from ..charts.request import Painting
from ..charts.ruler import pointer, ruled
from ..settings import keys
from .one_style import OneStyle

FOOT = 2
"""Lines below the chart: the cursor's, kept free without a cursor so that nothing moves, and the read-out."""
REST = 0.1
"""Seconds after the cursor's last move before the rule through the chart follows it."""


class ChartPane(OneStyle, Widget, can_focus=True):
    """Shows the painting that `show` was given and a rank on it. Keys for other layers post `LayerStep`, those for
    other ranks `RankWalk`.

    It draws no chart itself. When the cursor moves to another rank, only two lines are drawn (362 bytes), not the chart
    (20 kB); the rule through the chart follows once the cursor rests.
    """

    BINDINGS: ClassVar[list[BindingType]] = keys.CHART

    class LayerStep(Message):
        """The user wants the same selection in another layer."""

        def __init__(self, layers: int) -> None:
            super().__init__()
            self.layers = layers

    class RankWalk(Message):
        """The user wants the rank this many columns further."""

        def __init__(self, columns: int) -> None:
            super().__init__()
            self.columns = columns

    class Resized(Message):
        """The size has changed."""

    def __init__(self, **kwargs: str) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._painting: Painting | None = None
        self._rank: int | None = None
        self._foot = (Text(), Text())
        self._rule: dict[int, list[int]] = {}
        self._rule_timer: Timer | None = None

    @property
    def canvas(self) -> tuple[int, int]:
        """Columns and lines for the chart, without the lines below it."""
        return self.size.width, max(0, self.size.height - FOOT)

    @property
    def readout(self) -> Text:
        """The last line as shown."""
        return self._foot[1]

    def show(self, painting: Painting) -> None:
        """Draw the lines of a painting, `canvas` in size, if they differ from those before."""
        before, self._painting = self._painting, painting
        if before is None or before.lines != painting.lines:
            self._foot = self._foot_lines()
            self._rule = painting.columns(self._rank)
            self.refresh()
        else:
            self._refresh_foot()
            self._want_rule()

    def set_rank(self, k: int | None) -> None:
        """Put the cursor on a rank, or remove it for None. It is only seen if the chart has ranks."""
        self._rank = k
        self._refresh_foot()
        self._want_rule()

    def action_step(self, layers: int) -> None:
        """Go to another layer."""
        self.post_message(self.LayerStep(layers))

    def action_walk(self, columns: int) -> None:
        """Go to another rank."""
        self.post_message(self.RankWalk(columns))

    def on_resize(self) -> None:
        self.post_message(self.Resized())

    def render_line(self, y: int) -> Strip:
        lines = self._painting.lines if self._painting is not None else ()
        from_foot = y - (self.size.height - FOOT)
        text = self._foot[from_foot] if from_foot >= 0 else lines[y] if y < len(lines) else Text()
        if from_foot < 0 and y in self._rule and self._painting is not None:
            text = ruled(text, self._rule[y], self._painting.request.palette.dim_style)
        strip = Strip(text.render(self.app.console)).adjust_cell_length(self.size.width)
        return strip.apply_style(self.rich_style)

    def _want_rule(self) -> None:
        """Draw the rule once the cursor has rested: each line of it costs as much as the two lines below."""
        if self._rule_timer is not None:
            self._rule_timer.stop()
        self._rule_timer = self.set_timer(REST, self._move_rule)

    def _move_rule(self) -> None:
        self._rule_timer = None
        before, self._rule = self._rule, self._painting.columns(self._rank) if self._painting is not None else {}
        for lines in (before, self._rule) if before != self._rule else ():
            for y, columns in lines.items():
                self.refresh(*(Region(column, y, 1, 1) for column in columns))

    def _refresh_foot(self) -> None:
        foot = self._foot_lines()
        for number, (old, new) in enumerate(zip(self._foot, foot, strict=True)):
            if old != new:
                self.refresh(Region(0, self.size.height - FOOT + number, self.size.width, 1))
        self._foot = foot

    def _foot_lines(self) -> tuple[Text, Text]:
        """The line of the cursor and the read-out."""
        painting, k = self._painting, self._rank
        if painting is None:
            return Text(), Text()
        if painting.at is not None:
            mark = painting.at
            return pointer(mark.rulers[0].place(mark.x), mark.name, self.size.width), painting.readout
        if k is None or painting.ruler is None:
            return Text(), painting.readout
        from ..charts.readout import rank_readout

        return painting.ruler.mark(k, self.size.width), rank_readout(painting, k, self.size.width)

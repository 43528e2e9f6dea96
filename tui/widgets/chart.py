"""A pane of ready-made lines: the chart, and under it one line of read-out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from .. import keys


class ChartPane(Widget, can_focus=True):
    """Shows what `show` was given; asks for other layers by `Step`. It draws nothing itself."""

    BINDINGS: ClassVar[list[BindingType]] = keys.CHART

    class Step(Message):
        """The user asks for the same selection in another layer."""

        def __init__(self, layers: int) -> None:
            super().__init__()
            self.layers = layers

    class Resized(Message):
        """There is another amount of room."""

    def __init__(self, **kwargs: str) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._lines: list[Text] = []
        self._readout = Text()

    def show(self, lines: Sequence[Text], readout: Text) -> None:
        """Draw these lines, `canvas` in size, and the read-out below them, where they are others than before."""
        if (list(lines), readout) == (self._lines, self._readout):
            return
        self._lines = list(lines)
        self._readout = readout
        self.refresh()

    @property
    def canvas(self) -> tuple[int, int]:
        """Columns and lines for the chart itself."""
        return self.size.width, max(0, self.size.height - 1)

    def action_step(self, layers: int) -> None:
        """Another layer."""
        self.post_message(self.Step(layers))

    def on_resize(self) -> None:
        self.post_message(self.Resized())

    def render_line(self, y: int) -> Strip:
        last = self.size.height - 1
        text = self._readout if y == last else self._lines[y] if y < len(self._lines) else Text()
        strip = Strip(text.render(self.app.console)).adjust_cell_length(self.size.width)
        return strip.apply_style(self.rich_style)

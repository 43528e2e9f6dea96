"""The single lines above and below the panes."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, Static

from ..drawing.strips import difference
from ..settings import keys


class Line(Widget):
    """One line: a text on the left that gives way, and one on the right that does not."""

    def __init__(self, **kwargs: str) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._left, self._right = Text(), Text()

    def set(self, left: Text | str, right: Text | str = "") -> None:
        """Show other texts; what is the same is not sent again (a line of blanks is 150 bytes a key)."""
        # A string is never markup: there are names of models and tensors in these.
        texts = [Text(part) if isinstance(part, str) else part for part in (left, right)]
        if texts == [self._left, self._right]:
            return
        before, right = self.render_line(0), self._right
        self._left, self._right = texts
        start, end = difference(before, self.render_line(0))
        if right != self._right:  # whole: a count sent digit by digit is unreadable in a recording
            start, end = min(start, self.size.width - self._right.cell_len), self.size.width
        self.refresh(Region(start, 0, end - start, 1))

    def render_line(self, _: int) -> Strip:
        width = self.size.width
        right = self._right.copy()
        right.truncate(width)
        left = self._left.copy()
        left.truncate(max(0, width - right.cell_len - bool(right)), overflow="ellipsis")
        gap = Text(" " * (width - left.cell_len - right.cell_len))
        line = Text.assemble(left, gap, right, no_wrap=True, end="")
        return Strip(line.render(self.app.console)).adjust_cell_length(width).apply_style(self.rich_style)


class Prompt(Horizontal):
    """The line for a filter ("/") or a command (":"); hidden while it is not in use."""

    class Answered(Message):
        """The user gave an answer (None: went back)."""

        def __init__(self, kind: str, text: str | None) -> None:
            super().__init__()
            self.kind = kind
            self.text = text

    BINDINGS: ClassVar[list[BindingType]] = keys.PROMPT

    def __init__(self, **kwargs: str) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.kind = ""
        self.display = False
        self._sign = Static(id="sign")
        self._input = Input(compact=True, select_on_focus=False)
        self._input.cursor_blink = False  # idle is silent

    def compose(self) -> ComposeResult:
        yield self._sign
        yield self._input

    def ask(self, kind: str, text: str, hint: str) -> None:
        """Open, with a text to edit."""
        self.kind = kind
        self._sign.update(Text(kind))
        self._input.value = text
        self._input.cursor_position = len(text)
        self._input.placeholder = hint
        self.display = True
        self.screen.set_focus(self._input)  # at once: the next key may be in the queue already

    def action_cancel(self) -> None:
        """Go back without an answer."""
        self._answer(None)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._answer(event.value)

    def _answer(self, text: str | None) -> None:
        self.display = False
        self.post_message(self.Answered(self.kind, text))

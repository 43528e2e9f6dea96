"""The line for a filter or a command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static

from ..settings import keys

Complete = Callable[[str], tuple[str, str]]
"""A text -> the text completed as far as possible, and the choices from there ("" if there is one)."""


class Prompt(Horizontal):
    """The line for a filter ("/") or a command (":"); hidden while it is not in use."""

    class Typed(Message):
        """The text has changed."""

        def __init__(self, kind: str, text: str) -> None:
            super().__init__()
            self.kind = kind
            self.text = text

    class Answered(Message):
        """The user submitted a text, or left (None)."""

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
        self._input.cursor_blink = False  # nothing is sent while the user does nothing
        self._hint = Static(id="told")
        self._lines: list[str] = []  # earlier answers, and last the current text
        self._at = 0
        self._complete: Complete | None = None

    def compose(self) -> ComposeResult:
        yield self._sign
        yield self._input
        yield self._hint

    def ask(
        self, kind: str, text: str, hint: str, before: Sequence[str] = (), complete: Complete | None = None
    ) -> None:
        """Open the line with a text to edit. `before`: earlier answers, the newest last."""
        self.kind = kind
        self._lines = [*before, text]
        self._at = len(before)
        self._complete = complete
        self._sign.update(Text(kind))
        self._write(text)
        self._input.placeholder = hint
        self.tell("")
        self.display = True
        self.screen.set_focus(self._input)  # at once: the next key may be in the queue already

    def tell(self, text: str) -> None:
        """Show a text to the right of the input."""
        self._hint.update(Text(text, no_wrap=True, overflow="ellipsis"))

    def action_history(self, step: int) -> None:
        """Go to earlier answers, or back towards the current text."""
        there = self._at + step
        if 0 <= there < len(self._lines):
            self._lines[self._at] = self._input.value
            self._at = there
            self._write(self._lines[there])

    def action_complete(self) -> None:
        """Complete the text as far as there is only one way."""
        if self._complete is not None:
            text, choices = self._complete(self._input.value)
            self._write(text)
            self.tell(choices)

    def action_cancel(self) -> None:
        """Leave without an answer."""
        self._answer(None)

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.display:
            self.post_message(self.Typed(self.kind, event.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._answer(event.value)

    def _write(self, text: str) -> None:
        self._input.value = text
        self._input.cursor_position = len(text)

    def _answer(self, text: str | None) -> None:
        self.display = False
        self.post_message(self.Answered(self.kind, text))

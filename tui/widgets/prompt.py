"""The line for a filter or a command."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static

from ..settings import keys


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

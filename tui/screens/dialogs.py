"""Small screens over the explorer: a question, and the keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from ..keys import shown_keys


class Confirm(ModalScreen[bool]):
    """A question answered by enter or y, esc or n."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,y", "answer(True)", "yes", id="confirm.yes"),
        Binding("escape,n,q", "answer(False)", "no", id="confirm.no"),
    ]

    def __init__(self, title: str, lines: Iterable[str]) -> None:
        super().__init__()
        self._title = title
        self._text = "\n".join(lines)

    def compose(self) -> ComposeResult:
        box = Static(Text(f"{self._text}\n\nenter  yes      esc  no"), id="box")
        box.border_title = self._title
        yield box

    def action_answer(self, yes: bool) -> None:
        """Close with the answer."""
        self.dismiss(yes)


class Help(ModalScreen[None]):
    """The keys of the explorer and of the pane that has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,backspace,enter", "close", "close", id="help.close"),
        Binding("down,j", "scroll(1)", "down", id="help.down"),
        Binding("up,k", "scroll(-1)", "up", id="help.up"),
    ]

    def __init__(self, sections: Iterable[tuple[str, Iterable[BindingType]]]) -> None:
        super().__init__()
        self._sections = [(title, list(bindings)) for title, bindings in sections]

    def compose(self) -> ComposeResult:
        table = Table.grid(padding=(0, 2))
        for number, (title, bindings) in enumerate(self._sections):
            table.add_row(*(("", "") if number else ()))
            table.add_row(Text(title, style="bold"), "")
            for binding in bindings:
                if isinstance(binding, Binding):
                    table.add_row(Text(shown_keys(binding)), Text(binding.tooltip))
        with VerticalScroll(id="box") as box:
            box.border_title = "keys"
            box.border_subtitle = "esc closes"
            yield Static(table)

    def action_close(self) -> None:
        """Back to the explorer."""
        self.dismiss(None)

    def action_scroll(self, lines: int) -> None:
        """A line up or down."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

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

from .. import keys


class Confirm(ModalScreen[bool]):
    """A question answered by enter or y, esc or n."""

    BINDINGS: ClassVar[list[BindingType]] = keys.CONFIRM

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
    """The keys of the explorer and of the pane that has the focus, and what the marks mean."""

    BINDINGS: ClassVar[list[BindingType]] = keys.HELP

    def __init__(
        self, sections: Iterable[tuple[str, Iterable[BindingType]]], legend: Iterable[tuple[str, str]]
    ) -> None:
        super().__init__()
        self._sections = [
            *(
                (title, [(keys.shown_keys(b), b.tooltip) for b in bound if isinstance(b, Binding)])
                for title, bound in sections
            ),
            ("marks in tree and heatmap", list(legend)),
        ]

    def compose(self) -> ComposeResult:
        table = Table.grid(padding=(0, 2))
        for number, (title, rows) in enumerate(self._sections):
            table.add_row(*(("", "") if number else ()))
            table.add_row("", Text(title, style="bold"))
            for key, text in rows:
                table.add_row(Text(key), Text(text))
        with VerticalScroll(id="box") as box:
            box.border_title = "keys"
            box.border_subtitle = "j k scroll   esc closes"
            yield Static(table)

    def action_close(self) -> None:
        """Back to the explorer."""
        self.dismiss(None)

    def action_scroll(self, lines: int) -> None:
        """Lines up or down."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

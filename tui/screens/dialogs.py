"""Small screens over the explorer: a question, a choice, lines to read, and the keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import ClassVar

from rich.console import Console
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.styles import RulesMap
from textual.events import Key
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.style import Style
from textual.visual import RenderOptions, Visual
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ..settings import keys

QUIET_SECONDS = 0.3
"""Seconds after painting a question before it takes an answer, and after any other key before it takes a yes: typing
meant for a shell (`sudo su`, `yes`) is no answer."""


class Confirm(ModalScreen[bool]):
    """A question. y says yes, and so does the key that opened it (`again`: Textual's names of it); esc and n say no."""

    BINDINGS: ClassVar[list[BindingType]] = keys.CONFIRM

    def __init__(self, title: str, lines: Iterable[str], again: Sequence[str], keymap: Mapping[str, str]) -> None:
        super().__init__()
        self._title = title
        self._text = "\n".join(lines)
        self._again = again
        self._yes = keys.keys_of(keys.CONFIRM, "confirm.yes", keymap)
        self._painted: float | None = None
        self._last_key = 0.0

    def compose(self) -> ComposeResult:
        yes, again = (keys.NAMES.get(found[0], found[0]) for found in (self._yes, self._again))
        box = Static(Text(f"{self._text}\n\n{yes} or {again}  yes      n or esc  no"), id="box")
        box.border_title = self._title
        yield box

    def on_mount(self) -> None:
        self.call_after_refresh(self._note_painted)

    def _note_painted(self) -> None:
        self._painted = monotonic()

    def on_key(self, event: Key) -> None:
        """Drop keys that were meant for something else, except esc, which nobody types at a shell.

        The time of a key is when it was read from the terminal.
        """
        before, self._last_key = self._last_key, event.time
        if event.key == "escape":
            return
        is_yes = event.key in (*self._yes, *self._again)
        if self._painted is None or event.time - self._painted < QUIET_SECONDS:
            event.stop()
        elif is_yes:
            event.stop()
            if event.time - before >= QUIET_SECONDS:
                self.action_answer(True)

    def action_answer(self, yes: bool) -> None:
        """Close with the answer."""
        self.dismiss(yes)


class Choice(ModalScreen[int | None]):
    """A choice of one of several lines by j k and enter; esc chooses none."""

    BINDINGS: ClassVar[list[BindingType]] = keys.CHOICE

    def __init__(self, title: str, rows: Sequence[tuple[str, str]], at: int = 0) -> None:
        super().__init__()
        self._title = title
        self._rows = rows
        self._at = at

    def compose(self) -> ComposeResult:
        name = max(len(name) for name, _ in self._rows) + 2
        lines = [Text(f"{left:<{name}}", no_wrap=True).append(right, "dim") for left, right in self._rows]
        box = OptionList(*(Option(line) for line in lines), id="box", compact=True)
        box.border_title = self._title
        box.border_subtitle = "enter chooses   esc cancels"
        yield box

    def on_mount(self) -> None:
        self.query_one(OptionList).highlighted = self._at

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_index)

    def action_cursor(self, step: int) -> None:
        """Go to the next or previous line."""
        options = self.query_one(OptionList)
        options.action_cursor_down() if step > 0 else options.action_cursor_up()

    def action_leave(self) -> None:
        """Close without a choice."""
        self.dismiss(None)


class Reading(ModalScreen[None]):
    """Lines to read, which may change while it is open."""

    BINDINGS: ClassVar[list[BindingType]] = keys.READING

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self._lines = Static(Text(text))

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="box") as box:
            box.border_title = self._title
            box.border_subtitle = "j k scroll   esc closes"
            yield self._lines

    def write(self, lines: Sequence[str]) -> None:
        """Show other lines."""
        self._lines.update(Text("\n".join(lines)))

    def action_close(self) -> None:
        """Go back to the explorer."""
        self.dismiss(None)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


class TableVisual(Visual):
    """A table that is laid out once for each width. While a screen is laid out and painted Textual asks several times
    for the height and the lines of what it shows, and a Rich table would be laid out anew each time."""

    def __init__(self, table: Table, console: Console) -> None:
        self._table = table
        self._console = console
        self._lines: dict[int, list[Strip]] = {}

    def _laid_out(self, width: int) -> list[Strip]:
        if width not in self._lines:
            lines = self._console.render_lines(self._table, self._console.options.update(width=width, height=None))
            self._lines[width] = [Strip(line) for line in lines]
        return self._lines[width]

    def get_optimal_width(self, rules: RulesMap, container_width: int) -> int:  # noqa: ARG002 - Textual's signature
        """As wide as what holds it."""
        return container_width

    def get_height(self, rules: RulesMap, width: int) -> int:  # noqa: ARG002 - Textual's signature
        """The number of lines at this width."""
        return len(self._laid_out(width))

    def render_strips(self, width: int, height: int | None, style: Style, options: RenderOptions) -> list[Strip]:  # noqa: ARG002
        """The first lines, all of them without a height, in the widget's style."""
        return [line.apply_style(style.rich_style) for line in self._laid_out(width)[:height]]


class Help(ModalScreen[None]):
    """The keys of the explorer and of the focused pane, the meaning of the marks, and the glossary."""

    BINDINGS: ClassVar[list[BindingType]] = keys.HELP

    def __init__(
        self,
        sections: Iterable[tuple[str, Iterable[Binding]]],
        legend: Iterable[tuple[str, str]],
        keymap: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._sections = [
            *((title, [(keys.shown_keys(b, keymap), b.tooltip) for b in bound]) for title, bound in sections),
            ("marks in tree and heatmap", list(legend)),
        ]

    def compose(self) -> ComposeResult:
        from ..data.glossary import GLOSSARY  # not needed for the first screen

        with VerticalScroll(id="box") as box:
            box.border_title = "keys, marks, words"
            box.border_subtitle = "j k scroll   G words   g keys   esc closes"
            yield self._table(self._sections)
            yield self._table([("words", GLOSSARY)], "glossary")

    def action_close(self) -> None:
        """Go back to the explorer."""
        self.dismiss(None)

    def _table(self, sections: Iterable[tuple[str, Iterable[tuple[str, str]]]], ident: str | None = None) -> Static:
        """A table of two columns, with a heading for each section and an empty line between sections."""
        table = Table.grid(padding=(0, 2))
        for title, rows in sections:
            table.add_row("", Text(title, style="bold"))
            for key, text in rows:
                table.add_row(Text(key), Text(text))
            table.add_row()
        return Static(TableVisual(table, self.app.console), id=ident)

    def action_words(self) -> None:
        """Go to the first line of the glossary."""
        self.query_one(VerticalScroll).scroll_to_widget(self.query_one("#glossary"), top=True, animate=False)

    def action_top(self) -> None:
        """Go to the first key."""
        self.query_one(VerticalScroll).scroll_home(animate=False)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

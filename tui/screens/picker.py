"""The choice among stored and cached models and the demo, if no MODEL is given."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from rankscope.engine.errors import printable

from ..data.at_hand import AtHand, Headers, choices, headers
from ..data.phrases import byte_size
from ..data.wording import ago
from ..settings import keys
from ..widgets.heatmap_table import shortened
from .memory import last_used
from .terminal_driver import TerminalDriver, draw_after_fg, use_plain

_HEADINGS = ("model", "layers", "stored", "size", "used", "from")
_WIDTHS = (6, 11, 9, 8)
"""Widths of the columns for layers, stored, size and used."""
_NAME = (12, 40)
"""Smallest and largest width of a name."""
_LEAVE_SECONDS = 0.2
"""Seconds that leaving waits for headers that are being read."""


class HeadersRead(Message):
    """The facts from a model's headers; None if they cannot be read."""

    def __init__(self, name: str, found: Headers | None) -> None:
        super().__init__()
        self.name = name
        self.found = found


class Picker(App[str]):
    """Returns the chosen model's name, None if the user left. Typing leaves the models with all of the words."""

    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = keys.PICKER

    def __init__(self, root: Path, said: str = "", suspend: bool = True) -> None:
        """`said`: why the model that was chosen before did not open. `suspend` as in the settings."""
        super().__init__(driver_class=TerminalDriver)
        use_plain(self)
        self._root = root
        self._said = said
        self._suspend = suspend
        self._now = time.time()
        self._found = choices(root, last_used())
        self._headers: dict[str, Headers | None] = {}
        self._shown: list[AtHand] = []
        self._is_left = threading.Event()
        # The headers of a model with 91,000 tensors take two seconds; another can be chosen meanwhile.
        self._reader = threading.Thread(target=self._read, daemon=True)

    def compose(self) -> ComposeResult:
        yield Input(id="words", compact=True, placeholder="type to find a model")
        yield Static(id="headings")
        options = OptionList(id="picker")
        options.border_title = "open a model"
        options.can_focus = False  # the app handles its keys, and typed words go to the line above
        yield options
        if self._said:
            yield Static(Text(printable(self._said, 500)), id="said")
        yield Static(
            Text(" enter opens   esc quits   or start with  rankscope-tui org/name | folder | file", no_wrap=True),
            id="keys",
        )

    def on_mount(self) -> None:
        draw_after_fg(self)
        self.query_one(Input).cursor_blink = False  # nothing is sent while the user does nothing
        self._list()
        self._reader.start()

    def on_unmount(self) -> None:
        self._is_left.set()
        self._reader.join(_LEAVE_SECONDS)

    def on_resize(self) -> None:
        self._list()

    @on(Input.Changed)
    def _typed(self) -> None:
        self._list()

    @on(HeadersRead)
    def _headers_read(self, message: HeadersRead) -> None:
        self._headers[message.name] = message.found
        choice = next((choice for choice in self._shown if choice.name == message.name), None)
        for options in self.query(OptionList):  # there is none while the picker closes
            if choice is not None:
                options.replace_option_prompt(choice.name, self._row(choice))

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.exit(self._shown[event.option_index].name)

    @on(Input.Submitted)
    def _entered(self) -> None:
        self.query_one(OptionList).action_select()

    def action_cursor(self, step: int) -> None:
        """Go to the next or previous line."""
        options = self.query_one(OptionList)
        options.action_cursor_down() if step > 0 else options.action_cursor_up()

    def action_leave(self) -> None:
        """Clear what is typed, or quit without a choice."""
        words = self.query_one(Input)
        if words.value:
            words.value = ""
        else:
            self.exit(None)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key works: the settings may forbid one."""
        if action == "suspend_process" and not self._suspend:
            return False
        return super().check_action(action, parameters)

    def _read(self) -> None:
        """Read the headers of one model after the other, in a thread."""
        for choice in self._found:
            if self._is_left.is_set():
                return
            try:
                found = headers(choice.name, self._root)
            except Exception:  # noqa: BLE001 - what is wrong with a model is reported when it is opened
                found = None
            with suppress(RuntimeError):  # the picker has ended since, and with it the event loop
                self.post_message(HeadersRead(choice.name, found))

    def _list(self) -> None:
        """List the models that have all of the words, with the cursor on the same model as before."""
        words = self.query_one(Input).value.lower().split()
        options = self.query_one(OptionList)
        at = self._shown[options.highlighted].name if options.highlighted is not None else ""
        self._shown = [c for c in self._found if all(word in f"{c.name} {c.where}".lower() for word in words)]
        options.clear_options()
        options.add_options(Option(self._row(choice), id=choice.name) for choice in self._shown)
        names = [choice.name for choice in self._shown]
        options.highlighted = (names.index(at) if at in names else 0) if names else None
        options.border_subtitle = f"{len(names)} of {len(self._found)}"
        self.query_one("#headings", Static).update(Text(f" {self._line(*_HEADINGS)}", "bold", no_wrap=True))

    def _row(self, choice: AtHand) -> Text:
        is_read = choice.name in self._headers
        found = self._headers.get(choice.name)
        unknown = "-" if is_read else "..."
        layers = str(found.layers) if found else unknown
        stored = f"{found.stored}/{found.projections}" if found else unknown
        size = unknown if found is None else "gone" if found.size is None else byte_size(found.size)
        used = "-" if choice.used is None else ago(self._now - choice.used)
        where = ", ".join(filter(None, [choice.where, choice.trouble]))
        row = Text(self._line(choice.title, layers, stored, size, used, where))
        row.truncate(max(1, self.size.width - 3), overflow="ellipsis")  # minus borders and a scroll bar
        return row

    def _line(self, name: str, *cells: str) -> str:
        least, most = _NAME
        longest = max((len(printable(choice.title)) for choice in self._found), default=least)
        width = max(least, min(most, longest, self.size.width - sum(_WIDTHS) - 24))
        numbers = "".join(f"{cell:>{wide}}" for cell, wide in zip(cells, _WIDTHS, strict=False))
        name = shortened(name, width)
        return f"{name}{' ' * (width - len(name))}{numbers}  {printable(cells[-1], 400)}"

"""The line for a filter or a command. A filter narrows while it is typed; commands are remembered and completed."""

from __future__ import annotations

from functools import partial

from textual.timer import Timer

from ...data.grid import Selection
from ...widgets.prompt import Prompt
from ..memory import Commands
from .background import Background

NARROW_SECONDS = 0.1
"""Least delay in seconds from the last key of a filter until it is applied."""
NARROW_RATE = 100_000
"""A number of projections that takes a second: to find and show what a filter shows of 45,000 takes 0.3 s."""


class Asking:
    """The prompt of a screen."""

    def __init__(self, screen: Background, commands: Commands) -> None:
        self._screen = screen
        self._state = screen.state
        self._commands = commands
        self._before: tuple[str, Selection, Selection | None] = "", Selection(), None
        self._all = 0
        self._timer: Timer | None = None

    @property
    def _prompt(self) -> Prompt:
        return self._screen.query_one(Prompt)

    def filter(self) -> None:
        """Open the line for a filter."""
        state = self._state
        self._before = state.pattern, state.selection, state.origin
        self._all = len(state.session.model.tree.scanned())
        self._prompt.ask("/", state.pattern, "filter: key, layers.3, *.mlp.*, 3dwn; empty shows all")
        self._count()

    def command(self) -> None:
        """Open the line for a command."""
        from ..completing import Completer  # not needed for the first screen

        hint = f"12: {self._state.grid.rows_are} 12; k 512; k q=96 kv=64; unit k/k0; tab completes; up: before"
        self._prompt.ask(":", "", hint, self._commands.lines, Completer(self._state).complete)

    def typed(self, kind: str, text: str) -> None:
        """Apply a filter while it is typed, once the user pauses."""
        if kind == "/":
            self._stop()
            rest = max(NARROW_SECONDS, self._all / NARROW_RATE)
            self._timer = self._screen.set_timer(rest, partial(self._narrow, text.strip()))

    def answered(self, kind: str, text: str | None) -> str:
        """Take the user's answer. Return the command, "" if there is nothing more to do."""
        self._stop()
        if kind == "/":
            self._end_filter(None if text is None else text.strip())
            return ""
        self._commands.add(text or "")
        return text or ""

    def _narrow(self, text: str) -> None:
        self._timer = None
        if text == self._state.pattern or self._state.narrow(text):
            self._count()
        else:
            self._prompt.tell(f"0 of {self._all}")

    def _count(self) -> None:
        state = self._state
        self._prompt.tell(f"{len(state.shown) or len(state.further)} of {self._all}")

    def _end_filter(self, text: str | None) -> None:
        """Keep the filter; None, or one that matches nothing, goes back to the one before."""
        state = self._state
        if text == state.pattern or (text is not None and state.narrow(text)):
            return
        pattern, selection, origin = self._before
        if state.pattern != pattern:
            state.narrow(pattern)
            state.select(selection, origin)
        if text is not None:
            state.say_unmatched(text)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

"""Restores how a model was looked at, and keeps that while it changes."""

from __future__ import annotations

from functools import partial

from textual.timer import Timer

from ...data.changes import Change
from ...data.remembered import Remembered
from ..memory import Memory
from ..messages import BackgroundDone
from .background import Background
from .weighing import Weigher

KEEP_SECONDS = 1.0
"""Seconds from the first change until it is kept: as much is lost if the explorer is killed."""
_REMEMBERED = frozenset({
    Change.SELECTION, Change.ROWS, Change.LENS, Change.MARKS, Change.PANE, Change.LAYOUT, Change.AXES, Change.RANK,
})  # fmt: skip


class Rememberer:
    """Remembers the state of a screen; nothing if `memory` is None."""

    def __init__(self, screen: Background, weigher: Weigher, memory: Memory | None) -> None:
        self._screen = screen
        self._weigher = weigher
        self._memory = memory
        self._is_shown = False
        self._timer: Timer | None = None

    def restore(self) -> None:
        """Begin where the user left, or with the first layer."""
        state = self._screen.state
        state.select_first()
        memory = self._memory
        if memory is None:
            return
        if said := (memory.last.show(state) if memory.last is not None else memory.said):
            state.say(said)
        self._is_shown = True
        self._wait()

    def changed(self, what: Change) -> None:
        """Keep the state a little later."""
        if what in _REMEMBERED and self._is_shown:
            self._wait()

    def keep(self) -> str:
        """Keep how the model is looked at now. Return why that failed, "" if it worked. From any thread."""
        if self._memory is None or not self._is_shown:
            return ""
        return self._memory.keep(Remembered.of(self._screen.state, self._weigher.shown))

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self._screen.set_timer(KEEP_SECONDS, self._due)

    def _due(self) -> None:
        self._timer = None
        self._screen.in_background(self._keep, "keeping how it is looked at")

    def _keep(self) -> None:
        if trouble := self.keep():
            self._screen.post_message(BackgroundDone(partial(self._screen.state.say, trouble)))

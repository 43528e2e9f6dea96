"""A model is shown as it was left, and how it is looked at is kept while it changes."""

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
"""After the first change until what changed is kept: what a killed explorer forgets."""
_REMEMBERED = frozenset({
    Change.SELECTION, Change.ROWS, Change.LENS, Change.MARKS, Change.PANE, Change.LAYOUT, Change.AXES, Change.RANK,
})  # fmt: skip


class Rememberer:
    """Of a screen; `memory` None: nothing is remembered."""

    def __init__(self, screen: Background, weigher: Weigher, memory: Memory | None) -> None:
        self._screen = screen
        self._weigher = weigher
        self._memory = memory
        self._is_shown = False
        self._timer: Timer | None = None

    def restore(self) -> None:
        """Begin with the first layer, or where the user left."""
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
        """Keep it, a little later."""
        if what in _REMEMBERED and self._is_shown:
            self._wait()

    def keep(self) -> str:
        """Keep how the model is looked at now; why that cannot be done, "" where it can. From any thread."""
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

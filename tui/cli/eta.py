"""Progress lines on stderr: how much of a run is done, and when it will end."""

from __future__ import annotations

import time

from ..drawing.console import say

_LINE_SECONDS = 5.0


class EtaLines:
    """Prints a line every few seconds, and one when a task is complete."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._what = ""

    def tell(self, what: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps of the task `what` are done. The clock restarts with each new task."""
        now = time.monotonic()
        if what != self._what:
            self._began = now if self._what else self._began
            self._what = what
        if now - self._last >= _LINE_SECONDS or done == total:
            self._last = now
            say(f"{done}/{total} {what}  ETA {(now - self._began) / done * (total - done):.0f}s")

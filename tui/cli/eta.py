"""Lines on stderr of how far a run is, and when it will be done."""

from __future__ import annotations

import time

from ..drawing.console import say

_LINE_SECONDS = 5.0


class EtaLines:
    """A line every few seconds, and at the end of each thing that is counted."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._what = ""

    def tell(self, what: str, done: int, total: int) -> None:
        """Of `what` so many are done, of so many; where it is not what was told of last, its time begins."""
        now = time.monotonic()
        if what != self._what:
            self._began = now if self._what else self._began
            self._what = what
        if now - self._last >= _LINE_SECONDS or done == total:
            self._last = now
            say(f"{done}/{total} {what}  ETA {(now - self._began) / done * (total - done):.0f}s")

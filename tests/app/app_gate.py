"""A gate before the solver, which a test opens for as many matrices as it wants solved."""

from __future__ import annotations

import threading


class Gate:
    """Solving waits here: a scan stands still for as long as a test looks at it."""

    def __init__(self) -> None:
        self._passes = threading.Semaphore(0)

    def let(self, count: int) -> None:
        """So many more matrices may be solved."""
        self._passes.release(count)

    def open(self) -> None:
        """All may."""
        self.let(10_000)

    def wait(self) -> None:
        """For a pass."""
        self._passes.acquire()

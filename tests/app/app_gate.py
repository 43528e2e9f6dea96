"""A gate before the solver, which a test opens for a number of matrices."""

from __future__ import annotations

import threading


class Gate:
    """A gate at which solving waits, so that a scan pauses for as long as a test looks at it."""

    def __init__(self) -> None:
        self._passes = threading.Semaphore(0)

    def let(self, count: int) -> None:
        """Let this many more matrices be solved."""
        self._passes.release(count)

    def open(self) -> None:
        """Let all matrices be solved."""
        self.let(10_000)

    def wait(self) -> None:
        """Wait until a matrix may be solved."""
        self._passes.acquire()

"""Detecting changes of a folder by its time stamp, which is one system call instead of a listing."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

SETTLED_SECONDS = 2.0
"""Two changes within one tick of the file system's clock leave the same time: a time is trusted only if a listing began
this long after it was first seen. FAT counts in steps of 2 s, other file systems in milliseconds."""

Stamp: TypeAlias = tuple[int, int, int, int] | None


class FolderWatch:
    """Compares the folder's time with that at the last listing; no clock is compared with that of another machine.
    Thread-safe: its fields are replaced together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: tuple[Stamp, float, bool] = (None, 0.0, False)

    def is_changed(self) -> bool:
        """Whether a listing may show something new."""
        stamp, _, is_settled = self._listed
        return not is_settled or stamp != self._stamp()

    def begin(self) -> tuple[Stamp, float]:
        """Call this before a listing, and pass the result to `end` after it."""
        return self._stamp(), time.monotonic()

    def end(self, begun: tuple[Stamp, float]) -> None:
        """Record that a listing has seen everything that was in the folder at `begun`."""
        stamp, now = begun
        before, since, _ = self._listed
        first = since if stamp == before else now
        self._listed = stamp, first, now - first >= SETTLED_SECONDS

    def _stamp(self) -> Stamp:
        """The folder's times; None if there is none or they cannot be read. A changed permission changes only
        st_ctime."""
        with suppress(OSError):
            found = self._folder.stat()
            return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev
        return None

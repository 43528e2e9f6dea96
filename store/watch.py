"""Whether a folder has changed, by its time: one question to the file system instead of a listing."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

SETTLED_SECONDS = 2.0
"""Two changes in one tick of the file system's clock leave one time: a time is trusted when a listing began that much
after it was seen first. FAT counts in steps of 2 s, others in milliseconds."""

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
        """To be called before a listing, and given to `end` after it."""
        return self._stamp(), time.monotonic()

    def end(self, begun: tuple[Stamp, float]) -> None:
        """All that was in the folder at `begun` has been seen."""
        stamp, now = begun
        before, since, _ = self._listed
        first = since if stamp == before else now
        self._listed = stamp, first, now - first >= SETTLED_SECONDS

    def _stamp(self) -> Stamp:
        """None where there is no folder, or it cannot be asked. A right that is given changes st_ctime alone."""
        with suppress(OSError):
            found = self._folder.stat()
            return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev
        return None

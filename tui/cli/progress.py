"""The progress of a computation on stderr: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from rankscope.engine.compute.events import Progress

from ..data.wording import describe
from ..drawing.console import make_console, say

LINE_SECONDS = 5.0
"""Seconds between two progress lines if stderr is no terminal."""
_BAR = 16
"""Characters of the progress bar: the numbers beside it need the other 64 of a narrow terminal."""


class _Lines:
    """Progress if stderr is no terminal: a plain line every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        return None

    def update(self, progress: Progress) -> None:
        if (time.monotonic() >= self._next and not progress.waiting) or not progress.busy:
            self._next = time.monotonic() + LINE_SECONDS
            say(describe(progress))


class _Bars:
    """Progress on a terminal: a bar."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(_BAR), MofNCompleteColumn(), TimeElapsedColumn())
        # Otherwise Rich prints the rows above the bar, on stderr, even if stdout is a file.
        self._bar = Bar(
            *columns,
            TextColumn("{task.fields[rest]}"),
            console=make_console(stderr=True),
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("starting", total=None, rest="")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        done = progress.done + progress.failed
        found = progress.devices
        label = f"{len(found)} devices" if len(found) > 1 else "".join(found) or "starting"
        rest = "waiting for room" if progress.waiting else describe(progress).partition("  ")[2]
        self._bar.update(self._task, description=label, total=progress.total, completed=done, rest=rest)


def progress_display() -> _Lines | _Bars:
    """A bar if stderr is a terminal, else lines."""
    return _Bars() if sys.stderr.isatty() else _Lines()

"""Signals that end a program: computed values are saved, the terminal is restored, and one line says so.

Python calls a signal handler between two steps of its main thread, which may be blocked by a name server's answer or
by a terminal that takes no output. So a thread of ours ends the program: Python writes the signal's number into a pipe
at once (signal.set_wakeup_fd), and the thread reads it. If the main thread responds, it unwinds first, as by ctrl+c.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SUSPENDING = (signal.SIGTSTP, signal.SIGCONT)
UNWIND_SECONDS = 0.8
"""Seconds that the main thread has to stop its work; the program ends within a second."""
_WRITE_SECONDS = 0.1
"""Seconds to wait for a terminal or pipe that takes no output."""


@dataclass(frozen=True, slots=True)
class Task:
    """Work to do before the program ends: `save` saves and returns a line about it, `restore` resets the terminal."""

    save: Callable[[], str]
    restore: Callable[[], None] | None


class Ending:
    """Inside `with`, a signal ends the process with exit code 128 + its number, after its tasks are done.

    A signal that was ignored before, by nohup or a shell's `&`, stays ignored. In threads other than the main one this
    does nothing, as only the main thread may set handlers.
    """

    def __init__(self, prog: str) -> None:
        self.tasks: list[Task] = []
        self._prog = prog
        self._number = 0
        self._is_inside = False
        self._unwound = threading.Event()
        self._before: dict[int, Callable[[int, FrameType | None], object] | int] = {}

    def __enter__(self) -> Ending:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._thread = threading.Thread(target=self._wait, name="rankscope-signals", daemon=True)
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before is not None and before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._on_signal)
        _open.append(self)
        self._is_inside = True
        return self

    def __exit__(self, *_: object) -> None:
        if not _open or _open[-1] is not self:
            return
        self._is_inside = False
        if self._number:
            self._leave_it_to_the_thread()
        _open.pop()
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)

    def _leave_it_to_the_thread(self) -> NoReturn:
        """Wait, as the main thread has unwound: the other thread says what was saved, and ends the process."""
        with suppress(OSError):
            sys.stdout.flush()
        self._unwound.set()
        while True:
            signal.pause()

    def has_come(self) -> bool:
        """Whether a signal has come and the program is ending."""
        return bool(self._number)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """Note a signal, in the main thread. Later signals change nothing, as saving has begun."""
        if self._number:
            return
        self._number = number
        for other in _SUSPENDING:  # Textual's handlers: they would stop the process, or set up the screen again
            if callable(signal.getsignal(other)):
                signal.signal(other, _do_nothing)
        if self._is_inside and not any(task.restore for task in self.tasks):
            raise KeyboardInterrupt

    def _wait(self) -> None:
        # A process in the background may still restore its terminal.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        while came := os.read(self._reading, 1):
            if came[0] in self._before:
                self._end(came[0])

    def _end(self, number: int) -> NoReturn:
        until = time.monotonic() + UNWIND_SECONDS
        tasks = list(self.tasks)
        said = [_result(task.save) for task in tasks]
        has_screen = False
        for task in tasks:
            if task.restore is not None:
                has_screen = True
                _result(task.restore)
        if not has_screen and not self._unwound.wait(max(0.0, until - time.monotonic())) and os.isatty(2):
            _write("\r\n\x1b[?25h")  # from the progress bar, which hides the cursor
        name = signal.Signals(number).name
        _write("; ".join([f"{self._prog}: stopped by {name}", *filter(None, said)]) + "\n")
        os._exit(128 + number)


@contextmanager
def at_end(save: Callable[[], str], restore: Callable[[], None] | None = None) -> Iterator[None]:
    """Inside `with`, a signal that ends the program first calls `save` from another thread, and prints what it returns.

    `restore` says that there is a screen: it is called after `save`, and the main thread is not interrupted.
    """
    task = Task(save, restore)
    for ending in _open[-1:]:
        ending.tasks.append(task)
    try:
        yield
    finally:
        for ending in _open[-1:]:
            if not ending.has_come():
                ending.tasks.remove(task)


_open: list[Ending] = []
"""The one whose `with` the main thread is in; there are several only if a test calls a command within another."""


def _result(save: Callable[[], str | None]) -> str:
    """What the function returns, or why it failed: the rest of the ending goes on."""
    try:
        return save() or ""
    except Exception as error:  # noqa: BLE001 - whatever it is, the process ends, and says so
        return f"{type(error).__name__}: {error}"


def _write(text: str) -> None:
    """Write on stderr without its lock, which a thread may hold; give up if the terminal is gone or takes no output."""
    try:
        if select.select([], [2], [], _WRITE_SECONDS)[1]:
            os.write(2, text.encode("ascii", "backslashreplace"))
    except OSError:
        return


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    return

"""The terminal under the explorer: where output is written, how it is encoded, and how the terminal is restored."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
from codecs import getincrementaldecoder
from contextlib import suppress
from typing import Any, cast

from rich.segment import Segment
from textual.app import App
from textual.color import Color
from textual.drivers import linux_driver
from textual.drivers.linux_driver import LinuxDriver
from textual.filter import LineFilter
from textual.scrollbar import ScrollBarRender

from ..settings.encoding import letters, plain, shows_unicode

_LOCK_SECONDS = _WRITE_SECONDS = 0.1
"""Seconds to wait for a terminal that takes no output."""
_PIECE = 4096
_AS_BEFORE = "".join(
    [
        "\x1b[?2026l",  # no output is held back
        "\x1b[0m",
        "\x1b[?2004l",  # bracketed paste
        "\x1b[?7h",  # long lines wrap
        "\x1b[?2048l",  # reports of the size
        *(f"\x1b[?{mode}l" for mode in (1000, 1003, 1015, 1006, 1016)),  # mouse
        "\x1b[<u",  # kitty's keys, before the other screen
        "\x1b[?1049l",
        "\x1b[?25h",  # cursor
        "\x1b[?1004l",  # focus
    ]
)
"""What `LinuxDriver.stop_application_mode` writes, and what resets a line that was cut off."""


class Output:
    """The file that Textual's thread writes to: stdout, even if stderr is redirected. If the terminal is gone, output
    is dropped."""

    def __init__(self) -> None:
        stdout = sys.__stdout__
        assert stdout is not None  # checked by main_tui: it is a terminal
        self._fd = os.dup(stdout.fileno())
        self._encoding, self._errors = stdout.encoding, stdout.errors or "strict"
        self._lock = threading.Lock()
        self._closed = False

    def write(self, text: str) -> int:
        """Write all of it, until `leave` is called."""
        data = text.encode(self._encoding, self._errors)
        with self._lock, suppress(OSError):
            for start in range(0, len(data), _PIECE):
                self._write(data[start : start + _PIECE])
        return len(text)

    def _write(self, data: bytes) -> None:
        while data and not self._closed:
            data = data[os.write(self._fd, data) :]

    def flush(self) -> None:
        """Do nothing, as nothing is buffered."""

    def fileno(self) -> int:
        """The terminal's file descriptor."""
        return self._fd

    def leave(self, last: str) -> None:
        """Write a last text and nothing after it, from any thread; skipped if the terminal takes no output any more."""
        self._closed = True
        is_free = self._lock.acquire(timeout=_LOCK_SECONDS)
        try:
            with suppress(OSError):
                if select.select([], [self._fd], [], _WRITE_SECONDS)[1]:
                    os.write(self._fd, last.encode("ascii"))
        finally:
            if is_free:
                self._lock.release()


class TerminalDriver(LinuxDriver):
    """Textual's driver, drawing on stdout and reading in the terminal's encoding; it can be reset from any thread."""

    def __init__(self, app: App[Any], **options: Any) -> None:
        super().__init__(app, **options)
        self._output = Output()
        self._file = cast(Any, self._output)
        self._in_use = False
        self._of, self._suspending = app, app.app_suspend_signal

    def suspend_application_mode(self) -> None:
        """Restore the terminal until fg. Textual only does so for its key, not for a SIGTSTP from elsewhere."""
        self._suspending.publish(self._of)
        super().suspend_application_mode()

    def start_application_mode(self) -> None:
        """Switch to the other screen, and read single keys."""
        self._in_use = True
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def stop_application_mode(self) -> None:
        """Restore the terminal."""
        super().stop_application_mode()
        self._in_use = False

    def run_input_thread(self) -> None:
        """Read keys. Textual assumes that terminals send UTF-8, and stops at bytes that are not; so we decode for
        it."""
        linux_driver.getincrementaldecoder = lambda _: lambda: self  # type: ignore[attr-defined, assignment]
        assert sys.__stdin__ is not None
        self._decoder = getincrementaldecoder(sys.__stdin__.encoding)("replace")
        super().run_input_thread()

    def decode(self, data: bytes, final: bool = False) -> str:
        """Decode what was typed. If the terminal is gone, end the program, by another signal if SIGHUP is ignored
        (nohup): otherwise Textual would read nothing in an endless loop."""
        if not data and not final:
            is_told = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP if is_told else signal.SIGTERM)
            self.exit_event.wait()
        return self._decoder.decode(data, final)

    def put_back(self) -> None:
        """Restore the terminal at once, from any thread; later output is not seen."""
        if self._in_use:
            if self.attrs_before is not None:
                with suppress(termios.error):
                    termios.tcsetattr(self.fileno, termios.TCSANOW, self.attrs_before)
                    termios.tcflush(self.fileno, termios.TCIFLUSH)  # replies to queries of the terminal
            self._output.leave(_AS_BEFORE)


class _Plain(LineFilter):
    """Textual's last step before a line is written."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - the base class's
        """The segments in characters that the terminal has."""
        return [Segment(plain(text, self._encoding), style, control) for text, style, control in segments]


def use_plain(app: App[Any]) -> None:
    """Draw an app in ASCII if the terminal's encoding is not UTF-8."""
    if not shows_unicode():
        # A bar that begins or ends within a line or column is rounded to its edge.
        ScrollBarRender.VERTICAL_BARS = ScrollBarRender.HORIZONTAL_BARS = [" "] * 8
        app._filters.append(_Plain(letters()))


def draw_after_fg(app: App[Any]) -> None:
    """Draw all of an app again when the shell's fg brings it back; the app must be mounted."""
    app.app_resume_signal.subscribe(app, lambda _: app.refresh(layout=True))


def put_back(app: App[Any]) -> None:
    """Restore the terminal that an app draws on, from any thread."""
    if isinstance(app._driver, TerminalDriver):
        app._driver.put_back()

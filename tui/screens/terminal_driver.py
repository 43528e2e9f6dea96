"""The terminal under the explorer: where lines are written, how they are encoded, and how it is put back."""

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
"""How long a terminal that takes nothing is waited for."""
_PIECE = 4096
_AS_BEFORE = "".join(
    [
        "\x1b[?2026l",  # nothing is held back
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
"""What `LinuxDriver.stop_application_mode` writes, and what ends a line that was cut off."""


class Output:
    """The file that Textual's thread writes to: stdout, whatever stderr is. A terminal that is gone takes all."""

    def __init__(self) -> None:
        stdout = sys.__stdout__
        assert stdout is not None  # main_tui has looked: it is a terminal
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
        """Nothing is held back."""

    def fileno(self) -> int:
        """Of the terminal."""
        return self._fd

    def leave(self, last: str) -> None:
        """Write this and nothing after it, from any thread; not where the terminal takes nothing any more."""
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
    """Textual's, but it draws on stdout, reads in the terminal's encoding, and can be put back from any thread."""

    def __init__(self, app: App[Any], **options: Any) -> None:
        super().__init__(app, **options)
        self._output = Output()
        self._file = cast(Any, self._output)
        self._in_use = False
        self._of, self._suspending = app, app.app_suspend_signal

    def suspend_application_mode(self) -> None:
        """As the terminal was before, until fg. Textual tells of its own key alone, not of a SIGTSTP from elsewhere."""
        self._suspending.publish(self._of)
        super().suspend_application_mode()

    def start_application_mode(self) -> None:
        """The other screen, and keys one by one."""
        self._in_use = True
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def stop_application_mode(self) -> None:
        """As the terminal was before."""
        super().stop_application_mode()
        self._in_use = False

    def run_input_thread(self) -> None:
        """Textual takes every terminal's bytes for UTF-8, and one that is not for the end."""
        linux_driver.getincrementaldecoder = lambda _: lambda: self  # type: ignore[attr-defined, assignment]
        assert sys.__stdin__ is not None
        self._decoder = getincrementaldecoder(sys.__stdin__.encoding)("replace")
        super().run_input_thread()

    def decode(self, data: bytes, final: bool = False) -> str:
        """What was typed. Where the terminal is gone it ends the program, by another signal where that of a terminal
        is ignored (nohup): textual would read nothing, again and again."""
        if not data and not final:
            is_told = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP if is_told else signal.SIGTERM)
            self.exit_event.wait()
        return self._decoder.decode(data, final)

    def put_back(self) -> None:
        """As the terminal was before, at once and from any thread; what is drawn later is not seen."""
        if self._in_use:
            if self.attrs_before is not None:
                with suppress(termios.error):
                    termios.tcsetattr(self.fileno, termios.TCSANOW, self.attrs_before)
                    termios.tcflush(self.fileno, termios.TCIFLUSH)  # answers to what was asked of the terminal
            self._output.leave(_AS_BEFORE)


class _Plain(LineFilter):
    """Textual's last step before a line is written."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - the base class's
        """In characters that the terminal has."""
        return [Segment(plain(text, self._encoding), style, control) for text, style, control in segments]


def use_plain(app: App[Any]) -> None:
    """Draw an app in ASCII where the terminal's encoding is not UTF-8."""
    if not shows_unicode():
        # A bar that begins or ends within a line or column does so at its edge.
        ScrollBarRender.VERTICAL_BARS = ScrollBarRender.HORIZONTAL_BARS = [" "] * 8
        app._filters.append(_Plain(letters()))


def draw_after_fg(app: App[Any]) -> None:
    """Have all of an app drawn again when the shell's fg brings it back; it has to be mounted."""
    app.app_resume_signal.subscribe(app, lambda _: app.refresh(layout=True))


def put_back(app: App[Any]) -> None:
    """Put back the terminal that an app draws on, from any thread."""
    if isinstance(app._driver, TerminalDriver):
        app._driver.put_back()

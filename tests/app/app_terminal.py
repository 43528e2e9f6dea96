"""The explorer as a real process on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEADLINE = 60.0
"""Seconds after which a silent program has failed; nothing passes or fails by being slower or faster."""
BACK = b"\x1b[?1049l"
"""The terminal sequence that switches back to the other screen."""


class Terminal:
    """A Python program on a pseudo-terminal of 120x40; stderr goes to the file `stderr` instead of the terminal."""

    def __init__(
        self,
        folder: Path,
        program: str,
        *words: object,
        env: Mapping[str, str] | None = None,
        stderr: Path | None = None,
    ) -> None:
        environ = {
            **os.environ,
            "TERM": "xterm-256color",
            "XDG_STATE_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            **(env or {}),
        }
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
            if stderr is not None:
                os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
            os.execve(sys.executable, [sys.executable, "-c", program, *map(str, words)], environ)
        self.before = self.settings  # the program still has to be loaded
        self.written = b""

    @property
    def settings(self) -> list[Any]:
        """The terminal's settings (echo, line mode and so on), which a program must put back."""
        return termios.tcgetattr(self.terminal)

    def until(self, text: bytes) -> None:
        """Wait for a text on the screen; fail if the program ends without it."""
        while text not in self.written:
            assert self._read(), self.written[-2000:]

    def press(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def until_stopped(self) -> None:
        """Wait until the process is suspended, reading its output meanwhile: it cannot stop while it cannot write."""
        while not (found := os.waitpid(self.child, os.WUNTRACED | os.WNOHANG))[0]:
            if select.select([self.terminal], [], [], 0.02)[0]:
                assert self._read(), self.written[-2000:]
        assert os.WIFSTOPPED(found[1])

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        while self._read():
            pass
        os.close(self.terminal)
        return self.exit_code()

    def exit_code(self) -> int:
        """The exit code of a program that writes nothing more, once it has ended. Pytest shows what it wrote last."""
        print(self.written[-4000:].decode(errors="replace"))  # noqa: T201 - pytest shows it where a test fails
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])

    @property
    def left(self) -> str:
        """The lines that are on the terminal after the explorer has ended."""
        _, back, text = self.written.rpartition(BACK)
        assert back
        return text.partition(b"\x1b[?1004l")[2].decode()

    def _read(self) -> bool:
        ready, _, _ = select.select([self.terminal], [], [], DEADLINE)
        assert ready, f"nothing more is written after {self.written[-2000:]!r}"
        try:
            found = os.read(self.terminal, 1 << 16)
        except OSError:  # the program has ended
            return False
        self.written += found
        return bool(found)

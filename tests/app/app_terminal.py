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

DEADLINE = 20.0
"""Seconds after which a silent program has failed; nothing passes or fails by being slower or faster."""
BACK = b"\x1b[?1049l"
"""A terminal's word for: the other screen again."""


class Terminal:
    """A Python program on a pseudo-terminal of 120x40; `stderr` is a file in the place of the terminal."""

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
        self.before = self.settings  # the program has yet to be loaded
        self.written = b""

    @property
    def settings(self) -> list[Any]:
        """Echo, lines or single keys, and so on: what a program must put back."""
        return termios.tcgetattr(self.terminal)

    def until(self, text: bytes) -> None:
        """Wait for it on the screen: a program that ends without it fails the test."""
        while text not in self.written:
            assert self._read(), self.written[-2000:]

    def press(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def until_stopped(self) -> None:
        """Wait until it is suspended, reading: a program whose writing waits for us would never be."""
        while not (found := os.waitpid(self.child, os.WUNTRACED | os.WNOHANG))[0]:
            if select.select([self.terminal], [], [], 0.02)[0]:
                assert self._read(), self.written[-2000:]
        assert os.WIFSTOPPED(found[1])

    def end(self) -> int:
        """Wait for the end; returns the exit code."""
        while self._read():
            pass
        os.close(self.terminal)
        return self.exit_code()

    def exit_code(self) -> int:
        """Wait for the end of a program that writes nothing more."""
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])

    @property
    def left(self) -> str:
        """What stands on the terminal after the explorer has gone."""
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

"""Runs of `rankscope`, in this process and as separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli_models import rows_of

PROGRAM = "import sys; from rankscope.tui.cli.main import main; sys.exit(main())"
NEXT = "--next-command"
SEVERAL = f"""
import sys
from itertools import groupby
from rankscope.tui.cli.main import main
for is_next, words in groupby(sys.argv[1:], "{NEXT}".__eq__):
    if not is_next:
        assert main(list(words)) == 0
        print("{NEXT}")
"""
"""Several commands in one process, which starts once for all of them."""


@dataclass(frozen=True)
class Ran:
    """The outcome of a command."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.out)

    @property
    def states(self) -> dict[str, str]:
        return {row["address"]: row["state"] for row in self.rows}

    @property
    def error(self) -> str:
        """The single line of an error."""
        assert (self.code, self.out) == (2, "")
        (line,) = self.err.splitlines()
        assert line.isprintable()
        return line


Run = Callable[..., Ran]


def start(*words: str | Path, program: str = PROGRAM, **options: Any) -> subprocess.Popen[str]:
    """Start a separate process; the test waits on its pipes."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", **options}
    return subprocess.Popen([sys.executable, "-c", program, *map(str, words)], **streams)


def finish(process: subprocess.Popen[str]) -> Ran:
    """Wait for the end of a process."""
    out, err = process.communicate(timeout=300)
    return Ran(process.returncode, out, err)


def spawn(*words: str | Path, env: Mapping[str, str] | None = None, program: str = PROGRAM) -> Ran:
    """Run a separate process to its end; `env` is added to this process's environment."""
    return finish(start(*words, program=program, env={**os.environ, **(env or {})}))

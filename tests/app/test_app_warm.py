"""The explorer with a separate process for a GPU, here played by a CPU core: killed, suspended, and resumed."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from app_terminal import DEADLINE, Terminal

from rankscope.store.models import stored_models

PROGRAM = """
import sys
from rankscope.engine.compute import driver
from rankscope.engine.compute.devices import Device
from rankscope.tui.cli.main import main_tui
from rankscope.tui.screens import dialogs

driver.gpus = lambda: [Device("cpu", "one core")]
dialogs.Confirm.on_key = lambda *_: None  # an answer counts at once
sys.exit(main_tui(sys.argv[1:]))
"""
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="processes are looked up as Linux has them"
)


def workers_of(terminal: Terminal) -> list[int]:
    """The worker processes that an explorer has spawned by Python's multiprocessing."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            parent = int(_stat(int(folder.name))[1])
            if parent == terminal.child and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: state, parent ... (proc(5))."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def test_a_process_for_the_gpu_is_replaced_when_it_dies_and_stands_still_and_ends_with_the_explorer(
    tmp_path: Path, llama: Path, root: Path
) -> None:
    terminal = Terminal(tmp_path, PROGRAM, llama, "--store", root)
    terminal.until(b"0/42")
    terminal.press(b"3\r")
    terminal.until(b"4/42")  # the attention of a layer, solved by the process that the first screen has started
    (worker,) = workers_of(terminal)

    dead = os.pidfd_open(worker)
    os.kill(worker, signal.SIGKILL)
    assert select.select([dead], [], [], DEADLINE)[0]
    terminal.press(b"s")
    terminal.until(b"y or s  yes")
    terminal.press(b"y")
    terminal.until(b"42/42")
    assert not re.search(rb"[1-9]\d* failed", terminal.written)
    (another,) = workers_of(terminal)
    assert another != worker

    for suspend in (partial(terminal.press, b"\x1a"), partial(os.kill, terminal.child, signal.SIGTSTP)):
        suspend()
        terminal.until_stopped()
        assert _stat(another)[0] == "T"
        terminal.written = b""
        os.kill(terminal.child, signal.SIGCONT)
        terminal.until(b"\x1b[40;1H")  # the last line, after all others
        until = time.monotonic() + DEADLINE
        while _stat(another)[0] == "T":  # it goes on once the explorer has drawn
            assert time.monotonic() < until, "the explorer goes on and its worker process does not"
            select.select([], [], [], 0.01)

    gone = os.pidfd_open(another)
    os.kill(terminal.child, signal.SIGKILL)
    assert select.select([gone], [], [], DEADLINE)[0], "the explorer was killed and its worker process lives"
    assert terminal.exit_code() == -signal.SIGKILL
    assert [model.spectra for model in stored_models(root)] == [42]

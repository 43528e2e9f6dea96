"""Signals to the explorer on a pseudo-terminal: computed spectra are saved, and the terminal is restored."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from app_models import LLAMA, fill, llama_weights, save_model
from app_terminal import Terminal
from textual.app import App
from textual.geometry import Region
from textual.widgets import Static

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.store.models import stored_models
from rankscope.tui.data.model import open_model
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.settings.config import Config

COMPUTED = 5
STUCK = f"""
import os, signal, sys, threading
from rankscope.engine.compute.worker_thread import Solver
from rankscope.store.spectra import SpectraStore
from rankscope.tui.cli import ending
from rankscope.tui.cli.main import main_tui
from rankscope.tui.screens import dialogs

signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell's & has it ignored, and then it stays so
dialogs.Confirm.on_key = lambda *_: None  # an answer counts at once
solve, save, came = Solver._spectrum, SpectraStore._save, threading.Event()
solved = []

def solve_a_few(*arguments):
    solved.append(None)
    if len(solved) > {COMPUTED}:
        with open(sys.argv[1], "w"):  # says that all others are computed
            pass
        threading.Event().wait()  # LAPACK cannot be interrupted
    return solve(*arguments)

def save_late(*arguments):
    came.wait()
    save(*arguments)

handle = ending.Ending._end

def end(*arguments):
    for number in (signal.SIGINT, signal.SIGTERM):  # of somebody impatient
        os.kill(os.getpid(), number)
    came.set()
    handle(*arguments)

Solver._spectrum, SpectraStore._save, ending.Ending._end = solve_a_few, save_late, end
sys.exit(main_tui(sys.argv[2:]))
"""
"""A solver that never ends, and spectra none of which is saved before the signal comes."""
PLAIN = "import sys; from rankscope.tui.cli.main import main_tui; sys.exit(main_tui())"
ON = (b"\x1b[?1049h", b"\x1b[?25l", b"\x1b[?2004h", b"\x1b[?7l", b"\x1b[?1004h")
OFF = (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?2004l", b"\x1b[?7h", b"\x1b[?1004l")
MOUSE = tuple(f"\x1b[?{mode}h".encode() for mode in (1000, 1002, 1003, 1006, 1015, 1016))
"""The sequences that turn on, and off, the other screen, a hidden cursor, bracketed paste, focus reports and no line
wrap."""


def is_put_back(terminal: Terminal) -> bool:
    """Whether everything turned on was turned off later, and echo and line mode are as before."""
    written = terminal.written
    assert all(written.rfind(on) >= 0 for on in ON)
    assert not any(on in written for on in MOUSE)
    return (
        all(written.rfind(on) < written.rfind(off) for on, off in zip(ON, OFF, strict=True))
        and terminal.settings == terminal.before
    )


def scanning(tmp_path: Path, llama: Path, root: Path) -> Terminal:
    """An explorer with a few unsaved spectra and a solver that is stuck."""
    os.mkfifo(tmp_path / "stuck")
    terminal = Terminal(tmp_path, STUCK, tmp_path / "stuck", llama, "--store", root, "--threads", "1")
    terminal.until(b"0/42")
    terminal.press(b"s")
    terminal.until(b"y or s  yes")
    terminal.press(b"y")
    (tmp_path / "stuck").read_bytes()  # waits until someone opens it
    assert not stored_models(root)
    assert terminal.settings != terminal.before
    return terminal


def test_a_signal_saves_and_puts_the_terminal_back(tmp_path: Path, llama: Path, root: Path) -> None:
    terminal = scanning(tmp_path, llama, root)
    os.kill(terminal.child, signal.SIGQUIT)
    terminal.until(b"SIG")
    terminal.until(b"\n")
    assert is_put_back(terminal)
    assert terminal.left.splitlines() == [f"rankscope-tui: stopped by SIGQUIT; {COMPUTED} new spectra are saved"]
    assert terminal.end() == 128 + signal.SIGQUIT
    assert [model.spectra for model in stored_models(root)] == [COMPUTED]


def test_a_terminal_that_is_gone_loses_nothing(tmp_path: Path, llama: Path, root: Path) -> None:
    terminal = scanning(tmp_path, llama, root)
    os.close(terminal.terminal)  # the terminal sends SIGHUP
    assert terminal.exit_code() == 128 + signal.SIGHUP
    assert [model.spectra for model in stored_models(root)] == [COMPUTED]


def test_a_terminal_that_is_gone_under_nohup_is_noticed(tmp_path: Path, llama: Path, root: Path) -> None:
    nohup = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {PLAIN}"
    terminal = Terminal(tmp_path, nohup, llama, "--store", root)
    terminal.until(b"0/42")
    os.close(terminal.terminal)
    assert terminal.exit_code() == 128 + signal.SIGTERM


@pytest.mark.parametrize("is_picker", [False, True], ids=["explorer", "picker"])
def test_ctrl_z_gives_the_terminal_to_the_shell_and_fg_takes_it(
    tmp_path: Path, llama: Path, root: Path, is_picker: bool
) -> None:
    fill(llama, root)
    words, shown = ([], b"open a model") if is_picker else ([llama], b"42/42")
    terminal = Terminal(tmp_path, PLAIN, *words, "--store", root)
    terminal.until(shown)
    terminal.press(b"\x1a")
    terminal.until_stopped()
    terminal.until(OFF[-1])
    assert is_put_back(terminal)
    terminal.written = b""
    os.kill(terminal.child, signal.SIGCONT)
    terminal.until(b"\x1b[40;1H")  # the last line, after all others
    assert shown in terminal.written
    assert terminal.settings != terminal.before
    os.kill(terminal.child, signal.SIGTERM)
    terminal.until(b"SIGTERM")
    assert is_put_back(terminal)
    assert terminal.end() == 128 + signal.SIGTERM


def test_outside_utf_8_and_with_stderr_in_a_file_it_draws_in_ascii(tmp_path: Path, root: Path) -> None:
    folder = save_model(tmp_path / "m\xfcll", llama_weights(2), LLAMA)
    fill(folder, root)
    log = tmp_path / "log"
    terminal = Terminal(tmp_path, PLAIN, folder, "--store", root, env={"PYTHONIOENCODING": "latin-1"}, stderr=log)
    terminal.until(b"14/14")
    for key, seen in (
        (b"1", b"log x log"),
        (b"2", b"% of sum"),
        (b"3", b"shade"),
        (b"4", b"by layer"),
        (b"?", b"scroll"),
    ):
        terminal.press(key)
        terminal.until(seen)
    terminal.press(b"\xfc\x11")  # no UTF-8
    assert terminal.end() == 0
    assert log.read_bytes() == b""
    shown = terminal.written.decode("latin-1")
    assert set(filter(str.isprintable, shown)) <= {*map(chr, range(32, 127)), "\xfc"}
    assert "m\xfcll" in shown
    assert "\\u" not in shown
    assert "-----" in shown


@pytest.mark.parametrize("suspend", [True, False])
async def test_a_setting_takes_ctrl_z_away(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch, suspend: bool
) -> None:
    pressed: list[object] = []
    monkeypatch.setattr(App, "action_suspend_process", lambda self: pressed.append(self))
    app = RankScopeApp([open_model(str(llama), root)], root, ComputeSettings("cpu", 1), Config(suspend=suspend))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("ctrl+z", "question_mark", "ctrl+z")  # in a dialog too
        assert pressed == [app, app] * suspend
        (keys, *_) = app.screen.query(Static)
        lines = [line.text.split() for line in keys.render_lines(Region(0, 0, *keys.size))]
        assert ("ctrl+z" in [words[0] for words in lines if words]) is suspend
    assert app.close(20)

"""From the command line to the screen and back: one model or two, and errors that end it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from app_models import LLAMA, fill, llama_weights, save_model
from app_terminal import Terminal

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.errors import InputError
from rankscope.tui.cli import arguments
from rankscope.tui.cli.launch import run_app
from rankscope.tui.cli.main import main_tui
from rankscope.tui.data.model import open_model
from rankscope.tui.data.session import Session, State
from rankscope.tui.screens import app as app_module
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.settings.config import Config

PROGRAM = """
import sys
from rankscope.tui.cli.main import main_tui
from rankscope.tui.screens.explorer.screen import Explorer

def fail(self):
    raise ValueError("on purpose")

if sys.argv[1] != "nothing":
    setattr(Explorer, sys.argv[1], fail)
sys.exit(main_tui(sys.argv[2:]))
"""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Folders of a llama with other weights, and of one with a layer less."""
    return save_model(tmp_path / "other-llama", llama_weights(5), LLAMA)


def test_an_error_before_the_first_screen_is_one_line_and_code_1(llama: Path, root: Path, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, PROGRAM, "on_mount", llama, "--store", root)
    assert terminal.end() == 1
    (line,) = terminal.left.splitlines()
    log = tmp_path / "rankscope" / "log" / "rankscope.log"
    assert line == f"rankscope-tui: Mount failed: ValueError: on purpose; details in {log}"
    assert "Traceback" in log.read_text()


def test_a_key_that_fails_says_so_and_the_explorer_goes_on(llama: Path, root: Path, tmp_path: Path) -> None:
    fill(llama, root)
    terminal = Terminal(tmp_path, PROGRAM, "action_axes", llama, "--store", root)
    terminal.until(b"42/42")
    terminal.press(b"a")
    terminal.until(b"the key a failed: ValueError")
    terminal.press(b"t")
    terminal.until(b"k95")
    terminal.press(b"\x11")
    assert terminal.end() == 0
    assert terminal.left == ""


def test_two_models_open_beside_each_other(llama: Path, other: Path, root: Path, tmp_path: Path) -> None:
    fill(llama, root)
    fill(other, root)
    terminal = Terminal(tmp_path, PROGRAM, "nothing", llama, "--against", other, "--store", root, "--theme", "nord")
    terminal.until(b"other-llama")
    terminal.press(b"\x11")
    assert terminal.end() == 0
    assert terminal.left == ""


def test_a_second_model_that_is_not_there_is_one_line(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr(os, "environ", {**os.environ})  # Textual's own setting of this process stays as it is
    assert main_tui([str(llama), "--against", "/nowhere", "--store", str(root)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/nowhere" in line


async def test_what_is_computed_of_the_second_model_is_known_of_the_second(
    llama: Path, other: Path, root: Path
) -> None:
    models = [open_model(str(folder), root) for folder in (llama, other)]
    app = RankScopeApp(models, root, ComputeSettings("cpu", 1), Config())
    first, second = app.pair.sessions
    async with app.run_test(size=(120, 40)) as pilot:
        key = next(p for p in second.model.tree.scanned() if p.role == "key")
        assert second.compute([key]) == [key]
        for _ in range(4000):
            if second.state(key) is State.DONE:
                break
            await pilot.pause(0.005)
        assert second.entry(key) is not None
        assert not any(first.entry(p) for p in first.model.tree.projections)
    assert app.close(20)


def test_closing_both_takes_no_longer_than_closing_one(
    llama: Path, other: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = RankScopeApp([open_model(str(f), root) for f in (llama, other)], root, ComputeSettings("cpu", 1), Config())
    now = 0.0
    done: list[object] = []

    def close(session: Session, timeout: float | None = None) -> bool:
        nonlocal now
        assert timeout is not None
        done.append(timeout)
        now += 0.5  # a thread that the process waits for
        return session is not app.pair.first

    monkeypatch.setattr(app_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Session, "stop", lambda session: done.append(session))
    monkeypatch.setattr(Session, "close", close)
    assert not app.close(0.75)
    assert done == [app.pair.first, app.pair.second, 0.75, 0.25]


def test_a_scheduler_without_dask_is_told_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    parser = argparse.ArgumentParser()
    arguments.explorer(parser)
    given = parser.parse_args([str(tmp_path / "no such model"), "--scheduler", "tcp://127.0.0.1:1"])
    with pytest.raises(InputError, match=r"needs Dask:  \S+ -m pip install 'rankscope-tui\[cluster\]'$"):
        run_app(given, tmp_path)


def test_what_the_explorer_computes_gives_way_to_its_keys(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ComputeSettings] = []

    def app_of(_models: object, _root: Path, settings: ComputeSettings, *_: object, **__: object) -> None:
        made.append(settings)
        raise InputError("seen")

    monkeypatch.setattr(app_module, "RankScopeApp", app_of)
    parser = argparse.ArgumentParser()
    arguments.explorer(parser)
    with pytest.raises(InputError, match="seen"):
        run_app(parser.parse_args([str(llama)]), root)
    assert [settings.gives_way for settings in made] == [True]

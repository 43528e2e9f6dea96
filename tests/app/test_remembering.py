"""A model opens as it was left: by its content, whatever the command line says over it, and whatever became of the
file in which that is kept."""

from __future__ import annotations

import json
import os
import shutil
import time
from argparse import ArgumentParser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from app_looking import DEADLINE, View, exploring
from app_models import LLAMA, fill, llama_weights, save_model
from app_terminal import Terminal

from rankscope.tui.cli.arguments import explorer
from rankscope.tui.cli.launch import _under
from rankscope.tui.data.model import Model, open_model
from rankscope.tui.data.remembered import Remembered, UnreadableError, read
from rankscope.tui.screens.explorer import remembering
from rankscope.tui.screens.first_run import mark_seen
from rankscope.tui.screens.memory import Commands, Memory, last_used

PROGRAM = "import sys; from rankscope.tui.cli.main import main_tui; sys.exit(main_tui(sys.argv[1:]))"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's state folder of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    mark_seen()
    monkeypatch.setattr(remembering, "KEEP_SECONDS", 0.01)
    return tmp_path / "state" / "rankscope"


@pytest.fixture
def model(llama: Path, root: Path) -> Model:
    """A computed llama."""
    return fill(llama, root)


@asynccontextmanager
async def looking(model: Model, root: Path, memory: Memory | None = None, **options: Any) -> AsyncIterator[View]:
    async with exploring(model, root, memory=memory or Memory(model), **options) as view:
        await view.rests()
        yield view


async def test_it_opens_as_it_was_left(model: Model, root: Path) -> None:
    async with looking(model, root) as view:
        await view.press("3", "z", "j", "j", "L", "space", "t", "5")
        await view.press("colon")
        await view.type("unit k/k0")
        await view.press("2", "colon")
        await view.type("k 7")
        await view.rests()
        left = Remembered.of(view.app.explorer.state, view.app.explorer.weigher.shown)
        selected, title = view.selected, view.pane("table")
    async with looking(model, root) as view:
        state = view.app.explorer.state
        assert Remembered.of(state, view.app.explorer.weigher.shown) == left
        assert (state.pane, state.top, state.k, state.threshold) == (2, 5, 7, 0.95)
        assert (view.selected, len(state.marks)) == (selected, 1)
        assert selected == "layers.0.attention.output"
        assert state.overview is True
        assert view.app.focused is view.app.explorer.chart
        assert view.pane("table") == title
        await view.until(lambda: not view.app.explorer.table.unread(), "its numbers that are worked out from values")


async def test_a_filter_is_shown_again_with_a_line_that_says_so(model: Model, root: Path) -> None:
    async with looking(model, root) as view:
        await view.press("slash")
        await view.type("value")
    async with looking(model, root) as view:
        assert view.app.explorer.state.pattern == "value"
        assert view.foot.startswith("opened as you left it, with the filter value")
        await view.press("slash", *["backspace"] * 5, "enter")
        assert view.app.explorer.state.pattern == ""
    async with looking(model, root) as view:
        assert "filter value" not in view.text


async def test_it_is_known_by_its_content(llama: Path, root: Path, tmp_path: Path, state: Path) -> None:
    """Moved, it is as it was left; another model that comes to its place is not."""
    folder = shutil.copytree(llama, tmp_path / "moved")
    first = open_model(str(folder), root)
    async with looking(first, root) as view:
        await view.press("4")
    folder.rename(tmp_path / "again")
    assert (last := Memory(open_model(str(tmp_path / "again"), root)).last) is not None
    assert last.pane == 4
    other = save_model(folder, llama_weights(2), LLAMA)
    assert Memory(open_model(str(other), root)).last is None
    assert set(last_used()) == {first.folder}
    assert not any(root.rglob("*.json"))
    assert len(list(state.rglob("*.json"))) == 1


async def test_fresh_begins_anew(model: Model, root: Path) -> None:
    async with looking(model, root) as view:
        await view.press("4")
    async with looking(model, root, Memory(model, fresh=True)) as view:
        assert view.app.explorer.state.pane == 0
    last = Memory(model).last
    assert last is not None
    assert last.pane == 0  # how the fresh one was left


async def test_what_is_no_longer_there_is_left_out(model: Model, root: Path) -> None:
    """Of what another version of a model, of a library or of a filter had."""
    gone = Remembered(
        pane=8, top=5, chart=2, row=("", 99), column=("attention", "key"), unit="k/kz", marks=("layers.99.x", "y"),
        pattern="nothing of that name", k=10**9, axes=77, single="layers.99.mlp.up",
    )  # fmt: skip
    memory = Memory(model)
    memory.last = gone
    async with looking(model, root, memory) as view:
        state = view.app.explorer.state
        assert (state.pane, state.top, state.chart) == (2, 5, 2)
        assert (state.pattern, state.marks, state.lens.measure.name) == ("", {}, "k")
        assert view.selected == "layers.0.attention"


@pytest.mark.parametrize("how", ["empty", "cut", "text", "list", "types", "deep", "folder", "fifo", "newer"])
def test_a_file_that_says_nothing_is_one_line(how: str, llama: Path, root: Path) -> None:
    model = open_model(str(llama), root)
    whole = Remembered(pane=4).written(name="x")
    path = Memory(model)._path
    path.parent.mkdir()
    content = {
        "empty": b"", "cut": whole[:-9], "text": b"\xff\x00what", "list": b"[1]", "deep": b"[" * 60_000,
        "types": json.dumps({"version": 1, "view": {"pane": True, "marks": 3}}).encode(),
        "newer": json.dumps({"version": 2, "sight": {}}).encode(),
    }  # fmt: skip
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(content[how])
    memory = Memory(model)
    assert memory.last is None
    assert memory.said.startswith("the view you left it in cannot be restored")
    assert last_used() == {}
    assert memory.keep(Remembered(pane=2)) == ""  # and not a second line
    if how == "newer":
        assert path.read_bytes() == content[how]
    elif how != "folder":
        assert read(path.read_bytes()).pane == 2


async def test_what_cannot_be_read_or_written_is_said_once_and_no_error(model: Model, root: Path, state: Path) -> None:
    (state / "models").write_text("a file in the way")
    async with looking(model, root) as view:
        await view.sees("the view you leave it in cannot be kept")
        await view.press("3", "j", "2")
        assert "cannot be kept" not in view.text
    (state / "models").unlink()
    path = Memory(model)._path
    path.parent.mkdir()
    path.write_text("{")
    async with looking(model, root) as view:
        assert view.foot.startswith("the view you left it in cannot be restored")
        assert not view.app._notifications


def test_the_last_of_two_explorers_counts_and_one_that_rests_takes_nothing_back(llama: Path, root: Path) -> None:
    model = open_model(str(llama), root)
    resting, busy = Memory(model), Memory(model)
    assert resting.keep(Remembered(pane=1)) == ""
    assert busy.keep(Remembered(pane=2)) == ""
    assert resting.keep(Remembered(pane=1)) == ""  # as it ends
    last = Memory(model).last
    assert last is not None
    assert last.pane == 2


def test_killed_it_opens_as_it_was_and_the_command_line_counts_more(llama: Path, root: Path, tmp_path: Path) -> None:
    fill(llama, root)
    terminal = Terminal(tmp_path, PROGRAM, llama, "--store", root)
    terminal.until(b"42/42")
    terminal.press(b"3jjt")
    path = _until_kept(tmp_path)
    os.kill(terminal.child, 9)
    assert terminal.end() == -9
    left = read(path.read_bytes())
    path.write_bytes(replace(left, weighting="/gone/x.imatrix").written())
    terminal = Terminal(tmp_path, PROGRAM, llama, "--store", root, "-t", "80")
    terminal.until(b"k80")
    terminal.press(b"\x11")
    assert terminal.end() == 0
    assert b"you left it under /gone/x.imatrix, which cannot be used now: " in terminal.written
    assert read(path.read_bytes()) == replace(left, threshold=0.8)


@pytest.mark.parametrize(
    ("words", "name", "gauge"),
    [([], "norm", "fixed"), (["--gauge", "raw"], "norm", ""), (["--weight", "none"], "", "")],
)
def test_weighting_and_gauge_are_as_they_were_left_or_as_they_are_named(
    words: list[str], name: str, gauge: str, llama: Path, root: Path
) -> None:
    model = open_model(str(llama), root)
    memory = Memory(model)
    memory.last = Remembered(weighting="norm", fixed=True)
    parser = ArgumentParser()
    explorer(parser)
    under = _under(parser.parse_args(words), [model], root, memory)
    shown = model if under is None else under[1][0]
    made = next(p for p in shown.tree.projections if p.role == "query").derived
    assert ((made.weighting, made.gauge) if made is not None else ("", "")) == (name, gauge)


def _until_kept(folder: Path) -> Path:
    """Wait until an explorer has kept that it shows ranks at 95 %."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        for path in (folder / "rankscope" / "models").glob("*.json"):
            if read(path.read_bytes()).threshold == 0.95:
                return path
        time.sleep(0.01)
    raise AssertionError("it was not kept")


@pytest.mark.parametrize("field", ["pane", "row", "unit", "threshold", "marks", "k", "overview", "stored", "fixed"])
def test_what_is_written_is_read_and_nothing_of_another_type(field: str) -> None:
    whole = Remembered(
        4, 5, 2, 3, ("vision", 7), ("attention", "key"), "mlp", "layers.\udcff", "k/k0", 0.97, ("a", "b"), 12, "*.key",
        True, True, True, 2, True, "norm", ("imatrix", "a.gguf"), True,
    )  # fmt: skip
    assert read(whole.written(name="n")) == whole
    for wrong in (-1, 2.5, [[]], {"a": 1}, "x" * 5000, 10**30):
        said = json.loads(whole.written())
        said["view"][field] = wrong
        with pytest.raises(UnreadableError, match="damaged"):
            read(json.dumps(said).encode())


def test_commands_are_remembered_for_all_explorers(state: Path) -> None:
    one, two = Commands(), Commands()
    for commands, text in ((one, "t 97"), (two, "unit k/k0"), (one, "12"), (one, "12"), (one, " ")):
        commands.add(text)
    assert one.lines == ["t 97", "12"]
    assert Commands().lines == ["t 97", "unit k/k0", "12"]
    for number in range(20_000):
        one.lines.append(f"k {number}")
    (state / "commands").write_bytes(b"\xff\n" + b"".join(b"k %d\n" % n for n in range(20_000)) + b"half")
    assert len(Commands().lines) == 200
    assert (state / "commands").stat().st_size < 4000
    (state / "commands").unlink()
    (state / "commands").mkdir()
    three = Commands()
    three.add("t 97")
    assert three.lines == ["t 97"]
    Commands(kept=False).add("k 9")
    assert Commands().lines == []

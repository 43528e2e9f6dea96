"""The line for filters and commands: what narrows while it is typed, what is remembered, what tab completes."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_looking import SMALL, exploring
from app_models import LLAMA, fill, llama_weights, save_model

from rankscope.engine.errors import InputError
from rankscope.tui.data.filter import find
from rankscope.tui.data.model import Model, open_model
from rankscope.tui.data.pair import Pair
from rankscope.tui.data.state import ExplorerState
from rankscope.tui.screens.command_line import command_names, parse_command
from rankscope.tui.screens.completing import Completer
from rankscope.tui.screens.memory import Memory


@pytest.fixture
def completer(llama: Path, root: Path) -> Completer:
    """Of an explorer that shows the llama."""
    from rankscope.engine.compute.engine import ComputeSettings
    from rankscope.tui.data.session import Session

    session = Session(open_model(str(llama), root), root, lambda _: None, ComputeSettings("cpu", 1))
    return Completer(ExplorerState.of(Pair(session), 0.9, (0.8, 0.9, 0.995)))


async def test_a_filter_narrows_while_it_is_typed(llama: Path, root: Path) -> None:
    async with exploring(fill(llama, root), root, SMALL) as view:
        state = view.app.explorer.state
        await view.press("3", "J", "J", "L", "slash")
        assert "42 of 42" in view.lines[-2]
        selected = view.selected
        await view.press(*"layers")
        await view.sees("42 of 42")
        await view.press("full_stop", "3")
        await view.sees("7 of 42")
        assert {p.layer for p in state.shown} == {3}
        await view.press("full_stop", *"mlp")
        await view.sees("3 of 42")
        assert [p.address for p in state.shown] == [p.address for p in find(state.session.model.every, "layers.3.mlp")]
        await view.press("x")
        await view.sees("0 of 42")
        assert len(state.shown) == 3  # what was found last stays in sight
        await view.press("escape")
        assert (state.pattern, len(state.shown), view.selected) == ("", 42, selected)
        assert "42 of 42" not in view.text


async def test_enter_keeps_a_filter_and_one_that_names_nothing_leaves_the_one_before(llama: Path, root: Path) -> None:
    async with exploring(fill(llama, root), root) as view:
        state = view.app.explorer.state
        await view.press("slash", *"value", "enter")  # before it was shown
        assert (state.pattern, len(state.shown)) == ("value", 6)
        await view.press("slash", "backspace", "backspace", "backspace")
        await view.until(lambda: state.pattern == "va", "what narrows")
        await view.press(*"xyz")
        await view.sees("0 of 42")
        await view.press("enter")
        assert (state.pattern, len(state.shown)) == ("value", 6)
        assert view.foot == "no address matches 'vaxyz'"
        await view.press("slash", *["backspace"] * 5)
        await view.sees("42 of 42")
        await view.press("enter")
        assert state.pattern == ""


async def test_commands_come_back_by_up_and_down_and_in_the_next_explorer(
    model: Model, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with exploring(model, root, memory=Memory(model)) as view:
        for command in ("t 80", "unit k/k*", "nonsense"):
            await view.press("colon")
            await view.type(command)
        await view.press("colon", "3", "up", "up", "up", "up")
        assert view.lines[-2].startswith(": t 80")
        await view.press("down", "down", "down", "down")
        assert view.app.explorer.query_one("#prompt Input").value == "3"  # type: ignore[attr-defined]
        await view.press("enter")
        assert view.selected.startswith("layers.3")
    async with exploring(model, root, memory=Memory(model)) as view:
        await view.press("colon", "up", "up", "up", "enter")
        assert view.app.explorer.state.lens.measure.name == "k/k*"


@pytest.fixture
def model(llama: Path, root: Path) -> Model:
    return open_model(str(llama), root)


async def test_tab_completes_and_names_the_ways(llama: Path, root: Path) -> None:
    async with exploring(llama, root, SMALL) as view:
        await view.press("colon", "u", "tab", *"eff", "tab", "enter")
        assert view.app.explorer.state.lens.measure.name == "effective_rank"
        await view.press("colon", *"unit", "space", "k", "tab")
        assert "k  k/k*  k/k0" in view.lines[-2]
        await view.press("escape", "colon")
        assert "k/k*" not in view.lines[-2]


@pytest.mark.parametrize(
    ("text", "completed", "ways"),
    [
        ("fil", "filter ", ""),
        ("t ", "t ", "80  90  99.5"),
        ("t 99", "t 99.5", ""),
        ("filter val", "filter value", ""),
        ("mark lay", "mark layers.", ""),
        ("mark layers.5.m", "mark layers.5.mlp.", ""),
        ("mark layers.5.mlp.u", "mark layers.5.mlp.up", ""),
        ("weight no", "weight no", "none  norm"),
        ("zzz", "zzz", ""),
        ("unit zzz", "unit zzz", ""),
        ("12", "12", ""),
        ("k 5", "k 5", ""),
    ],
)
def test_what_tab_makes_of_a_text(text: str, completed: str, ways: str, completer: Completer) -> None:
    assert completer.complete(text) == (completed, ways)


def test_files_are_completed(completer: Completer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model-a", llama_weights(1), LLAMA)
    (tmp_path / "moments.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert completer.complete("against mod") == ("against model-a/", "")
    assert completer.complete(f"against {tmp_path}/model-a/c") == (f"against {tmp_path}/model-a/config.json", "")
    assert completer.complete("weight mo") == ("weight mo", "model-a/  moments.safetensors")
    for odd in ("~nobody-of-this-name/x", "gone/x", "model-a/config.json/x", "x\0y"):
        assert completer.complete(f"export {odd}") == (f"export {odd}", "")


@pytest.mark.parametrize("name", sorted(command_names()))
def test_every_name_that_is_offered_is_a_command(name: str) -> None:
    try:
        assert parse_command(name)
    except InputError as error:
        assert "needs an argument" in str(error)  # noqa: PT017 - either is right

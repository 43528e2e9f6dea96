"""Keys typed ahead at a shell answer no question; a scan says how to stop it, and when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from app_gate import Gate
from app_looking import SMALL, View, exploring

from rankscope.engine.compute.worker_thread import Solver
from rankscope.engine.errors import InputError
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.screens.dialogs import Confirm
from rankscope.tui.settings.config import Config

TYPED = ["ls", "sudo su", "yes", "ss", "sssssssy", "ls\n", "sudo su\n", "yes\n", "ss\n", "sys", "s\n"]
BURST, TYPIST = 0.0, 0.12
"""Seconds between two keys."""
NAMES = {" ": "space", "\n": "enter"}


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list with one entry for each time that the bell rang."""
    rung: list[None] = []
    monkeypatch.setattr(RankScopeApp, "bell", lambda _: rung.append(None))
    return rung


def _asks(view: View) -> bool:
    return isinstance(view.app.screen, Confirm)


@pytest.mark.parametrize("pace", [BURST, TYPIST], ids=["at once", "typed"])
async def test_what_is_typed_at_a_shell_starts_nothing(
    llama: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pace: float
) -> None:
    monkeypatch.chdir(tmp_path)
    async with exploring(llama, root) as view:
        for text in TYPED:
            keys = [NAMES.get(character, character) for character in text]
            if pace == BURST:
                await view.rush(*keys)
            else:
                for number, key in enumerate(keys):
                    await view.rush(key, later=number * pace)
            assert not view.app.explorer.state.is_busy, text
            while view.app.screen is not view.app.explorer:
                await view.press("escape")
        assert not view.has_engine


async def test_keys_in_one_packet_answer_no_question_that_they_asked(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.rush("s", "y", "s", "enter", "n")
        assert _asks(view)  # that n was not an answer either
        await view.rush("x", later=1.0)
        await view.rush("y", later=1.2)  # too soon after another key
        assert _asks(view)
        assert not view.has_engine
        await view.rush("y", later=2.0)
        assert not _asks(view)
        await view.sees("42/42 stored")


@pytest.mark.parametrize(("key", "is_yes"), [("y", True), ("s", True), ("n", False), ("escape", False), ("q", False)])
async def test_the_answers_to_the_question_before_a_scan(
    llama: Path, root: Path, gate: Gate, key: str, is_yes: bool
) -> None:
    async with exploring(llama, root, SMALL) as view:
        await view.press("s")
        assert "y or s  yes" in " ".join(view.box)
        await view.answer("enter")
        assert _asks(view)
        await view.rush(key, later=2.0)
        assert not _asks(view)
        assert view.app.explorer.state.is_busy is is_yes
        gate.open()


async def test_a_key_of_the_users_own_that_asked_answers_too(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root, config=Config(keymap={"scan": "f5", "confirm.yes": "z"})) as view:
        await view.press("f5")
        assert "z or f5  yes" in " ".join(view.box)
        for key in ("y", "s"):
            await view.answer(key)
        assert _asks(view)
        await view.rush("f5", later=2.0)
        assert view.app.explorer.state.is_busy
        gate.open()


async def test_q_asks_while_something_is_computed(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root) as view:
        gate.let(2)
        await view.scan()
        await view.sees("2/42 stored")
        await view.rush("q", "q", "enter")
        assert "2 of 42 are computed and saved." in " ".join(view.box)
        await view.answer("n")
        assert view.app._exit is False
        await view.press("q")
        await view.answer("q")
        assert view.app._exit is True
        gate.open()


async def test_q_quits_at_once_where_nothing_is_computed(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("q")
        assert view.app._exit is True


async def test_s_counts_only_what_was_not_asked_for(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root) as view:
        await view.press("slash")
        await view.type("layers.4")
        await view.scan()
        await view.press("s")
        assert view.foot == "x stop  all that is missing is queued already; x stops"
        await view.press("escape", "s")
        assert "compute 35 projections" in " ".join(view.box)
        await view.answer("y")
        gate.open()
        await view.sees("42/42 stored", "42 computed in")


async def test_what_the_second_model_waits_with_is_not_lost_to_a_selection(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root, against=llama) as view:
        await view.press("slash")
        await view.type("layers.4.mlp")
        await view.scan()
        await view.press("s")
        assert "queued already" in view.foot
        await view.press("escape", "0", "j", "enter")
        gate.open()
        await view.until(lambda: not view.app.explorer.state.is_busy, "the end")
        second = view.app.pair.second
        assert second is not None
        found = [p for p in second.model.tree.projections if p.address.startswith("layers.4.mlp")]
        await view.until(lambda: second.stored(found) == len(found) == 3, "those of the second model")


async def test_a_scan_says_how_to_stop_it_and_that_it_is_through(
    llama: Path, root: Path, gate: Gate, rings: list[None]
) -> None:
    async with exploring(llama, root, SMALL) as view:
        seconds = iter([100.0, 114.2])
        view.app.explorer.scanner._clock = lambda: next(seconds)
        before = view.foot
        assert not before.startswith("x stop")
        await view.scan()
        assert view.foot == f"x stop  {before.replace('s scan  ', '')}"
        assert not rings
        gate.open()
        await view.until(lambda: view.foot == "42 computed in 14 s, 0 failed, saved", "the last word")
        assert len(rings) == 1
        await view.press("j")
        assert view.foot == before


async def test_what_failed_is_counted_and_the_bell_can_be_turned_off(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch, rings: list[None]
) -> None:
    def fail(*_: Any) -> None:
        raise InputError("on purpose")

    async with exploring(llama, root, config=Config(bell=False)) as view:
        monkeypatch.setattr(Solver, "_spectrum", fail)
        await view.scan()
        await view.until(lambda: view.foot.startswith("0 computed in "), "the last word")
        assert view.foot.endswith(", 42 failed")
        assert not rings


async def test_no_bell_for_one_projection_and_none_after_a_stop(
    llama: Path, root: Path, gate: Gate, rings: list[None]
) -> None:
    async with exploring(llama, root) as view:
        gate.let(4)
        await view.press("enter")
        await view.sees("4/42 stored")
        await view.until(lambda: not view.app.explorer.state.is_busy, "the end")
        await view.scan()
        await view.until(lambda: view.cells(0)[4] == "*", "the next")
        await view.press("x")
        gate.open()
        await view.sees("stopped; what is finished is saved")
        assert not rings

"""The second time in the explorer: keys while a scan runs, rows that move, walks that end, cursors at their end."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

import pytest
from app_gate import Gate
from app_looking import View, exploring
from app_models import fill, rank_in

from rankscope.engine.compute.events import Event, Started
from rankscope.engine.compute.worker_thread import Solver
from rankscope.tui.data.measures import units
from rankscope.tui.data.session import Session
from rankscope.tui.screens import clipboard

ROLES = ("query", "key", "value", "output", "gate", "up", "down")


def _address(layer: int, role: str) -> str:
    return f"layers.{layer}.{'mlp' if role in ROLES[4:] else 'attention'}.{role}"


ALL = [_address(layer, role) for layer in range(6) for role in ROLES]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses whose computation has begun, in order."""
    found: list[str] = []
    apply = Session.apply

    def watched(session: Session, events: Iterable[Event]) -> list[str]:
        events = list(events)
        found.extend(event.projection.address for event in events if isinstance(event, Started))
        return apply(session, events)

    monkeypatch.setattr(Session, "apply", watched)
    return found


async def test_a_second_scan_comes_after_the_first_and_takes_the_rest(
    llama: Path, root: Path, gate: Gate, started: list[str]
) -> None:
    """What is queued is not queued again, and keeps its place; the rest follows in model order."""
    async with exploring(llama, root) as view:
        await view.press("slash")
        await view.type("layers.4")
        await view.scan()
        await view.until(lambda: started[:1] == [_address(4, "query")], "the first")
        await view.press("escape", "s")
        await view.sees("compute 35 projections")
        await view.answer("y")
        gate.let(6)
        await view.sees("6/42 stored", "6/42  ")
        gate.open()
        await view.sees("42/42 stored")
        await view.until(lambda: view.job.endswith("cpu"), "the end")
        first = [address for address in ALL if address.startswith("layers.4.")]
        assert started == [*first, *(address for address in ALL if address not in first)]
        await view.press("s")
        assert view.foot == "everything is computed; 1 matrix (embed_tokens) is left out: filter * adds them"
        await view.press("slash")
        await view.type("key")
        await view.press("s")
        assert view.foot == "everything that the filter shows is computed"


async def test_after_a_stop_a_second_scan_takes_up_what_is_left(
    llama: Path, root: Path, gate: Gate, started: list[str]
) -> None:
    async with exploring(llama, root) as view:
        gate.let(3)
        await view.scan()
        await view.sees("3/42 stored")
        await view.press("x")
        gate.open()
        await view.sees("stopped; what is finished is saved")
        before = list(started)
        assert before == ALL[: len(before)]
        await view.press("s")
        await view.sees(f"compute {42 - len(before)} projections")
        await view.answer("y")
        await view.sees("42/42 stored")
        assert started == ALL


def _rows(view: View) -> list[str]:
    """The addresses of the table that are in view, from the top."""
    lines = takewhile(lambda line: "layers." in line, view.pane("table")[1:])  # up to the foot
    return [line.lstrip("> +").split()[0] for line in lines]


async def test_a_row_that_is_saved_moves_to_its_place_in_a_sorted_table(llama: Path, root: Path) -> None:
    """Sorted by k90: what is not known stands last; once it is, between its neighbours, equal ones in model order."""
    late = [_address(0, "gate"), _address(5, "key")]
    by_rank = sorted(ALL, key=lambda a: -rank_in(llama, int(a.split(".")[1]), a.rpartition(".")[2], 0.9))
    fill(llama, root, [address for address in ALL if address not in late])
    async with exploring(llama, root, (120, 60)) as view:
        await view.press("5")
        await view.sees("address ^")
        await view.press("l", "l", "l", "l", "o", "g")
        await view.sees("v k90")
        known = [address for address in by_rank if address not in late]
        shown = _rows(view)
        assert len(shown) > 20
        assert shown == known[: len(shown)]
        await view.press("G")
        await view.until(lambda: _rows(view)[-2:] == late, "what is not known at the end")
        await view.scan()
        await view.sees("42/42 stored")
        await view.press("g")
        await view.until(lambda: _rows(view) == by_rank[: len(_rows(view))], "the rows in their places")
        await view.press("G")
        await view.until(lambda: _rows(view) == by_rank[-len(_rows(view)) :], "the last rows in their places")


async def test_a_move_in_the_tree_ends_a_walk(llama: Path, root: Path) -> None:
    """The dim curve of where J began is gone after any other move, and a second walk begins anew."""
    fill(llama, root)
    async with exploring(llama, root) as view:
        await view.press("3", "l", "J", "J")
        await view.chart("from layers.0.attention.key")
        await view.press("0", "j")
        assert view.selected == _address(2, "value")
        await view.rests()
        assert not any("from layers" in line for line in view.pane("chart"))
        await view.press("J")
        await view.chart("from layers.2.attention.value")
        await view.press("K")
        await view.rests()
        assert not any("from layers" in line for line in view.pane("chart"))


async def test_the_rank_cursor_stays_at_the_last_rank_and_at_the_first(llama: Path, root: Path) -> None:
    """A key of 24 x 48 has 24 singular values."""
    fill(llama, root)
    async with exploring(llama, root) as view:
        await view.press("n", "L", "1")
        await view.rests()
        for commands, keys, shown in (
            ("k 23", [], "k 23  sigma"),
            ("k 23", ["full_stop"], "k 24  sigma"),
            ("k 23", ["full_stop", "full_stop", "full_stop"], "k 24  sigma"),
            ("k 24", ["l", "l"], "k 24  sigma"),
            ("k 99", [], "k 24 (r, not 99)  sigma"),
            ("k 99", ["comma"], "k 24  sigma"),
            ("k 2", ["comma"], "k 1  sigma"),
            ("k 2", ["comma", "comma"], "k 1  sigma"),
        ):
            await view.press("colon")
            await view.type(commands)
            await view.press(*keys)
            await view.chart(shown)
        await view.press("escape")
        assert not any("sigma" in line.partition("  ")[2][:6] for line in view.pane("chart")[-1:])
        await view.press("full_stop")  # it begins at the threshold rank
        await view.chart(f"k {rank_in(llama, 0, 'key', 0.9)}  sigma")


async def test_a_move_and_the_tree_within_a_tenth_of_a_second_is_a_move_in_the_tree(llama: Path, root: Path) -> None:
    """The tree follows other panes once they have rested; whoever goes there sooner finds the selection there."""
    async with exploring(llama, root) as view:
        await view.press("3")
        await view.rests()
        await view.press("j", "j", "l", "0", "j")
        assert view.selected == _address(2, "value")
        assert "v 2" in view.labels
        assert "v 1" not in view.labels


async def test_what_failed_is_computed_the_second_time_and_no_failure_is_left(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("on purpose")

    async with exploring(llama, root) as view:
        monkeypatch.setattr(Solver, "_spectrum", fail)
        await view.press("3", "l", "enter")
        await view.until(lambda: view.job.endswith("cpu  1 failed"), "the failure")
        assert view.job.startswith("layers.0.attention.key  24x48  failed")
        assert view.foot == "cannot be computed: MemoryError: on purpose"
        monkeypatch.undo()
        await view.press("enter")
        await view.sees("1/42 stored")
        await view.until(lambda: view.job.endswith("  cpu"), "a job line without a failure")
        rank = rank_in(llama, 0, "key", 0.9)
        assert view.job.startswith(f"layers.0.attention.key  24x48  k90 {rank} ")
        assert view.cells(0)[1] == str(rank)
        assert "failed" not in view.text


async def test_keys_that_are_faster_than_the_table_act_in_it(llama: Path, root: Path) -> None:
    """They are in the queue before the table has been on the screen once."""
    fill(llama, root)
    async with exploring(llama, root) as view:
        await view.rush("5", "G")
        await view.until(lambda: view.selected == ALL[-1], "the last row")
        assert not view.app._notifications


async def test_titles_say_what_is_filtered(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, (200, 60)) as view:
        await view.sees("\u2500 0 tree  ", " k90 \u2500")
        await view.press("slash")
        await view.type("*.mlp.up")
        await view.sees(
            "0 tree  filter *.mlp.up  ",
            "3 heatmap  k90 = fewest singular values for 90 % of energy \u2500",
            "1.1    filter *.mlp.up \u2500\u2518",
        )
        await view.press("5")
        await view.sees(
            "5 table  k90 = fewest singular values for 90 % of energy \u2500", "\u2500 filter *.mlp.up \u2500\u2518"
        )
        await view.press("t", "4")
        await view.sees("k95 = fewest singular values for 95 % of energy", "4 layers  k95 by layer \u2500")
        await view.press("6")
        await view.sees("6 compare  marked projections, differences to the first", "of the marks  log x log")
        await view.press("3", "escape")
        await view.sees("0 tree   ", " k95 \u2500\u2510", "for 95 % of energy \u2500")


async def test_a_filter_cuts_no_formula(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, (80, 24)) as view:
        await view.press("slash")
        await view.type("layers.*.attention.[qkvo]*")
        await view.press("3")
        for unit in units():
            view.app.explorer.state.set_unit(unit.name)
            await view.pilot.pause()
            if unit.needs_ranks:  # the title is what they come to
                await view.sees("(layer 0 query)", "filter layers")
                continue
            assert f"{unit.titled(0.9)} = {unit.explained(0.9)} \u2500" in view.lines[1]
            assert "filter layers" in view.text


async def test_what_fails_in_the_background_is_said_and_the_next_key_works(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise ValueError("on purpose")

    fill(llama, root)
    async with exploring(llama, root) as view:
        monkeypatch.setattr(clipboard, "copy", fail)
        await view.press("3", "y")
        await view.until(lambda: bool(view.app._notifications), "a sentence about the failure")
        (note,) = view.app._notifications
        assert note.message.startswith("copying failed: ValueError: on purpose; details in ")
        assert (note.title, note.severity) == ("rankscope", "error")
        await view.press("5")
        await view.press("colon")
        await view.type("export nowhere/spectra.csv")
        await view.sees("cannot write nowhere/spectra.csv: No such file or directory")
        monkeypatch.undo()
        await view.press("t")
        await view.sees("k95")

"""What is computed, and when: the selection by enter, the rest by s, nothing by moving."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from app_gate import Gate
from app_looking import SMALL, WIDE, View, exploring
from app_models import fill, llama_weights, rank_in

from rankscope.engine.compute.events import Event, Started
from rankscope.store.spectra import SpectraStore
from rankscope.tui.data.model import open_model
from rankscope.tui.data.phrases import byte_size
from rankscope.tui.data.wording import duration
from rankscope.tui.screens import estimate


def _stored(model: Path, root: Path) -> set[str]:
    with SpectraStore(root, open_model(str(model), root).folder) as store:
        return {entry.projection.address for entry in store.entries()}


def _computed(view: View, row: int, column: int) -> bool:
    return view.cells(row)[column].isdigit()


async def test_it_opens_with_nothing_computed(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        assert view.lines[0].split() == ["tiny-llama", "6", "layers", "0/42", "stored"]
        assert [view.cells(row) for row in range(6)] == [["."] * 7] * 6
        assert view.labels[:5] == ["v tiny-llama", "v layers (6)", "v 0", "> attention", "> mlp"]
        assert view.job == "layers.0.attention"
        await view.chart("0 of 4 computed")
    assert not root.exists()


@pytest.mark.parametrize("size", [SMALL, WIDE])
async def test_where_nothing_is_computed_the_chart_says_what_there_is_to_do(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(estimate, "CORE_PACE", 1e4)
    weights = llama_weights(6)
    flops = {name: min(w.shape) ** 2 * max(w.shape) + 4 / 3 * min(w.shape) ** 3 for name, w in weights.items()}
    matrices = [name for name in weights if "_proj" in name]
    first = [name for name in matrices if "layers.0.self_attn" in name]
    count = byte_size(sum(weights[name].nbytes for name in matrices))
    seconds = sum(flops[name] for name in matrices) / 1e4
    async with exploring(llama, root, size) as view:
        await view.press("3", "0", "3")
        shown = (await view.chart("k*     m n / (m + n)"))[:5]
        assert f"asks, then computes 42: reads {count}, about {duration(seconds)} on 1 core" in shown[0]
        seconds = sum(flops[name] for name in first) / 1e4
        count = byte_size(sum(weights[name].nbytes for name in first))
        assert f"computes the 4 selected: reads {count}, about {duration(seconds)} on 1 core" in shown[1]
        assert [line.split()[0] for line in shown] == ["s", "enter", "k90", "k0", "k*"]
        await view.press("enter")
        await view.sees("4/42 stored")
        await view.until(lambda: "asks, then" not in view.text, "the curves")


async def test_enter_computes_the_selection_and_nothing_else(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("3", "j", "l", "enter")
        await view.until(lambda: _computed(view, 1, 1), "layers.1.attention.key")
        assert view.cells(1)[1] == str(rank_in(llama, 1, "key", 0.9))
        await view.sees("1/42 stored", "# key      24x48", "k60", "effective rank")
        assert sum(_computed(view, row, column) for row in range(6) for column in range(7)) == 1
    assert _stored(llama, root) == {"layers.1.attention.key"}


async def test_enter_on_a_block_in_the_tree_computes_the_block(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("enter")
        await view.sees("4/42 stored", "> attention #", "layers.0.attention  \u2501 query 23  \u2501 key 13")
        await view.press("enter", "j")  # computed: enter opens it
        assert view.labels[4].startswith("# query    48x48")
    assert _stored(llama, root) == {f"layers.0.attention.{role}" for role in ("query", "key", "value", "output")}


async def test_moving_never_computes(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        for keys in ("jjlljjkh", "3jjllhkGg", "1jjk", "2jkJKHL", "4JJnN", "0jjjjj"):
            await view.press(*keys)
        await view.press("tab", "tab", "ctrl+d", "ctrl+u", "shift+tab", "t", "T", "a", "escape", "x")
        assert not view.has_engine
    assert not [t.name for t in threading.enumerate() if t.name.startswith("rankscope-") and "charts" not in t.name]
    assert not root.exists()


async def test_s_asks_first_and_y_scans(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("s")
        await view.sees("compute 42 projections", "reading", "y or s  yes")
        await view.answer("escape")
        assert view.app.screen is view.app.explorer
        assert not view.has_engine
        await view.scan()
        await view.sees("42/42 stored")
        await view.until(lambda: view.job.endswith("cpu"), "the job's end")
        for role, name in enumerate(("query", "key", "value", "output", "gate", "up", "down")):
            assert [view.cells(layer)[role] for layer in range(6)] == [
                str(rank_in(llama, layer, name, 0.9)) for layer in range(6)
            ]
        await view.press("s")
        rest = "1 matrix (embed_tokens) is left out: filter * adds them"
        assert view.foot == f"everything is computed; {rest}"


async def test_the_scan_keeps_to_the_filter(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("slash")
        await view.type("layers.2.attention")
        await view.press("s")
        await view.sees("compute 4 projections that match layers.2.attention")
        await view.answer("y")
        await view.sees("4/42 stored")
    assert {a.rpartition(".")[0] for a in _stored(llama, root)} == {"layers.2.attention"}


async def test_the_whole_model_is_not_computed_without_a_question(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("g", "enter")
        await view.sees("compute 42 projections")
        assert not view.has_engine


async def test_enter_on_a_heading_opens_it_and_computes_nothing(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("g", "j", "enter")
        assert view.labels[1:3] == ["> layers (6)", "> roles (7)"]
        assert not view.has_engine


async def test_x_stops_and_what_is_finished_is_kept(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root) as view:
        await view.press("x")
        assert view.foot == "nothing is being computed"
        gate.let(2)
        await view.scan()
        await view.sees("2/42 stored", "[*]")
        assert view.cells(5) == [":"] * 7
        await view.press("x")
        await view.until(lambda: view.cells(5) == ["."] * 7, "what waited to be dropped")
        assert "stopping" in view.job
        gate.open()
        await view.until(lambda: not view.app.explorer.state.is_busy, "the end of the running projection")
        await view.until(lambda: view.job.endswith("cpu"), "a job line at rest")
        assert view.foot == "stopped; what is finished is saved"
        shown = view.lines[0].split()[-2]
    assert f"{len(_stored(llama, root))}/42" == shown


async def test_the_job_line_tells_what_goes_on(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root, (80, 24)) as view:
        await view.scan()
        assert view.job.startswith("layers.0.attention")
        gate.let(10)
        words = ["cpu", "layers.1.", "10/42", "/s", "ETA", "0 failed"]
        await view.until(lambda: all(word in view.job for word in words), "device, what, count, rate, ETA, failures")
        gate.open()


async def test_an_urgent_selection_overtakes_the_scan(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root) as view:
        await view.scan()
        await view.press("3", "G", "enter")
        order: list[str] = []
        apply = view.app.pair.first.apply

        def watched(events: Iterable[Event]) -> list[str]:
            events = list(events)
            order.extend(event.projection.address for event in events if isinstance(event, Started))
            return apply(events)

        view.app.pair.first.apply = watched  # type: ignore[method-assign]
        gate.open()
        await view.until(lambda: "42/42" in view.lines[0], "the end")
        assert order.index("layers.5.attention.query") < 4  # what was being read already comes before it


async def test_ctrl_c_stops_and_twice_quits(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root) as view:
        gate.let(1)
        await view.scan()
        await view.sees("1/42 stored")
        await view.press("ctrl+c")
        assert view.app.explorer.state.is_stopping
        assert view.foot.startswith("stopping")
        assert view.app._exit is False
        view.app.action_interrupt()
        assert view.app._exit is True
        gate.open()


async def test_ctrl_c_quits_where_nothing_runs_and_leaves_a_prompt_first(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("colon", "1", "ctrl+c")
        assert view.app._exit is False
        assert not view.app.explorer.query_one("#prompt").display
        view.app.action_interrupt()
        assert view.app._exit is True


async def test_a_threshold_that_the_store_does_not_keep_is_shown_for_what_is_computed_later(
    llama: Path, root: Path
) -> None:
    async with exploring(llama, root, threshold=0.5) as view:
        await view.press("3", "enter")
        await view.until(lambda: _computed(view, 0, 0), "a number")
        assert view.cells(0)[0] == str(rank_in(llama, 0, "query", 0.5))


async def test_a_stored_model_whose_weights_are_gone_says_so(llama: Path, root: Path) -> None:
    model = fill(llama, root, ["layers.0.attention.query", "layers.3.mlp.up"])
    alone = open_model(model.folder, root)
    assert alone.checkpoint is None
    async with exploring(alone, root) as view:
        await view.sees("stored spectra only, no weights", "2/2 stored")
        await view.press("s")
        assert view.foot == "everything is computed"
    for segment in (root / model.folder).iterdir():
        segment.unlink()
    async with exploring(alone, root) as view:
        await view.press("3", "enter")
        assert view.foot.startswith("only what is stored can be shown: ")
        assert not view.has_engine

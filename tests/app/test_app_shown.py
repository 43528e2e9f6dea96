"""Thresholds, filters and moving: one selection, which every pane shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_looking import SMALL, View, exploring
from app_models import LLAMA, fill, llama_weights, numpy_rank, rank_in, save_model
from safetensors.numpy import load_file

ROLES = ("query", "key", "value", "output", "gate", "up", "down")


def _ranks(model: Path, threshold: float) -> list[list[str]]:
    return [[str(rank_in(model, layer, role, threshold)) for role in ROLES] for layer in range(6)]


def _shown(view: View) -> list[list[str]]:
    return [view.cells(row) for row in range(6)]


async def test_a_computed_model_opens_with_its_heatmap_filled(llama: Path, root: Path) -> None:
    model = fill(llama, root)
    async with exploring(model, root) as view:
        assert _shown(view) == _ranks(llama, 0.9)
        assert "42/42 stored" in view.lines[0]
        assert not view.has_engine


async def test_thresholds_go_round_and_any_other_joins_them(llama: Path, root: Path) -> None:
    model = fill(llama, root)
    async with exploring(model, root) as view:
        for key, threshold in (("t", 0.95), ("t", 0.99), ("t", 0.6), ("T", 0.99), ("t", 0.6)):
            await view.press(key)
            assert _shown(view) == _ranks(llama, threshold)
            assert f"k{threshold * 100:.0f} = fewest singular values for {threshold * 100:.0f} % of energy" in view.text
        for command, threshold, name in (("t 97", 0.97, "97"), ("t 0.5", 0.5, "50"), ("t 99.5%", 0.995, "99.5")):
            await view.press("colon")
            await view.type(command)
            await view.until(lambda t=threshold: _shown(view) == _ranks(llama, t), command)  # type: ignore[misc]
            assert f"k{name} = fewest singular values for {name} % of energy" in view.text
        await view.press("t", "t")  # 99.5, 50, 60
        assert _shown(view) == _ranks(llama, 0.6)


@pytest.mark.parametrize("command", ["t 0", "t 101", "t x", "t -3", "nonsense", "99", "[red]x[/]"])
async def test_a_wrong_command_is_one_line_and_changes_nothing(llama: Path, root: Path, command: str) -> None:
    async with exploring(llama, root, SMALL) as view:
        before = view.lines[:-1]
        await view.press("colon")
        view.app.explorer.query_one("#prompt Input").value = command  # type: ignore[attr-defined]
        await view.press("enter")
        assert view.lines[:-1] == before
        shown = command.removeprefix("t ")
        assert shown in view.foot


async def test_the_filter_narrows_tree_heatmap_and_chart(llama: Path, root: Path) -> None:
    model = fill(llama, root)
    async with exploring(model, root) as view:
        await view.press("slash")
        assert view.pane("prompt") is not None
        await view.type("key")
        assert view.labels[:2] == ["v tiny-llama #", "v layers (6)"]
        assert "filter key" in view.lines[1]
        assert [view.cells(row) for row in range(6)] == [[str(rank_in(llama, n, "key", 0.9))] for n in range(6)]
        assert not any(label.startswith(("> mlp", "> other")) for label in view.labels)
        await view.press("4")
        chart = await view.chart("layer 0: ", "\u2501 key")
        assert len(view.colours()) == 1
        assert "query" not in "".join(chart)
        await view.press("escape", "escape")  # to the tree, then the filter
        assert _shown(view) == _ranks(llama, 0.9)
        await view.chart("\u2501 query ", "\u2501 key ")


async def test_esc_goes_back_from_a_chart_to_where_it_was_opened(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root) as view:
        await view.press("slash")
        await view.type("key")
        for before in (5, 3, 0):
            await view.press(str(before), "1", "2", "4", "escape")
            assert view.app.explorer.state.pane == before
            assert view.app.explorer.state.pattern == "key"
        await view.press("3", "1")
        await view.rests()
        await view.press("l")
        assert view.app.explorer.state.k is not None
        await view.press("escape", "escape")
        assert view.app.explorer.focused is view.app.explorer.heatmap
        await view.press("escape", "escape")
        assert (view.app.explorer.state.pane, view.app.explorer.state.pattern) == (0, "")


async def test_undoing_the_filter_keeps_the_selection(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("slash")
        await view.type("mlp")
        await view.press("3", "j", "j", "l", "escape")
        assert view.selected == "layers.2.mlp.up"
        assert view.job.startswith("layers.2.mlp.up")


async def test_a_filter_that_names_nothing_is_refused(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("slash")
        await view.type("nothing")
        assert view.foot == "no address matches 'nothing'"
        assert view.cells(0) == ["."] * 7


async def test_n_goes_through_what_the_filter_leaves(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("slash")
        await view.type("*.mlp.[gu]*")
        seen = []
        for key in "nnnNN":
            await view.press(key)
            seen.append(view.selected)
        up, gate, next_gate = "layers.0.mlp.up", "layers.0.mlp.gate", "layers.1.mlp.gate"
        assert seen == [gate, up, next_gate, up, gate]


@pytest.mark.parametrize("pane", "01234")
async def test_layer_and_role_steps_work_from_every_pane(llama: Path, root: Path, pane: str) -> None:
    async with exploring(llama, root) as view:
        await view.press(pane, "n", "J", "J", "L")
        assert view.selected == "layers.2.attention.key"
        assert ">    2" in view.pane("heatmap")[4]
        assert view.app.explorer.heatmap.cursor == (2, 1)
        await view.press("K", "H")
        assert view.selected == "layers.1.attention.query"
        tree = view.app.explorer.tree_pane
        await view.until(lambda: str(tree.cursor_node and tree.cursor_node.label) == "query", "the tree to follow")
        await view.press(*"HHKKKK")
        assert view.selected == "layers.0.attention.query"  # it stays at the ends


async def test_stepping_leaves_the_tree_as_it_was(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("3", *"jjjj")
        opened = ["v tiny-llama", "v layers (6)", "v 4", "v attention"]
        await view.until(lambda: [label for label in view.labels if label.startswith("v ")] == opened, "layer 4 alone")


async def test_a_command_goes_to_a_layer(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("colon")
        await view.type("4")
        assert view.selected == "layers.4.attention"
        await view.press("3", "l", "colon")
        await view.type("2")
        assert view.selected == "layers.2.attention.key"
        await view.press("colon")
        await view.type("77")
        assert view.foot == "there is no layer 77 here: there are 0 to 5"


async def test_what_is_refused_is_said_in_full_on_a_narrow_screen(llama: Path, root: Path) -> None:
    cure = "write 512, or by role query=1536,key_value=512 (short: q k v o kv)"
    async with exploring(llama, root, SMALL) as view:
        await view.press("colon")
        await view.type("scan all")
        assert view.foot == ":scan takes no argument: leave all out"
        assert not view.app._notifications
        await view.press("colon")
        await view.type("k query=many")
        assert cure not in view.foot
        (toast,) = view.app._notifications
        assert toast.message == f"'query=many' is not a rank: {cure}"


async def test_every_action_is_a_command_too(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        for command, seen in (("scan", "compute 42 projections"), ("help", "Go to the tree")):
            await view.press("colon")
            await view.type(command)
            await view.sees(seen)
            await view.press("escape")
        await view.press("colon")
        await view.type("view.energy")
        assert view.app.explorer.focused is view.app.explorer.chart
        await view.press("colon")
        await view.type("filter value")
        assert view.cells(0) == ["."]
        await view.press("colon")
        await view.type("q")
        assert view.app._exit


async def test_experts_share_a_cell_and_are_told_apart_in_the_tree(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(2)
    for layer in range(2):
        for role in ("gate_proj", "up_proj", "down_proj"):
            whole = weights.pop(f"model.layers.{layer}.mlp.{role}.weight")
            for expert in range(5):
                weights[f"model.layers.{layer}.mlp.experts.{expert}.{role}.weight"] = whole[: 40 - expert] + expert
    folder = save_model(tmp_path / "moe", weights, {**LLAMA, "model_type": "qwen3_moe"})
    model = fill(folder, root)
    stored = load_file(folder / "model.safetensors")
    ranks = [numpy_rank(stored[f"model.layers.1.mlp.experts.{e}.gate_proj.weight"], 0.9) for e in range(5)]
    async with exploring(model, root) as view:
        middle = np.median(ranks)
        far = max(ranks, key=lambda k: (abs(k - middle), k))
        assert view.cells(1)[4:6] == [f"{middle:.0f}", f"^{far}"]
        await view.press("3", "j", *"llll")
        chart = await view.chart("layers.1.expert.gate", "\u2501\u2501 e0", "\u2501\u2501 e4")
        assert f"5 of 5 computed  k90 {min(ranks)} to {max(ranks)}" in chart[-1]
        assert len(view.colours()) > 1
        await view.press("0", "l", "l", "j")
        assert view.selected == "layers.1.expert.1.gate"
        await view.press("K")
        assert view.selected == "layers.0.expert.1.gate"
        assert view.app.explorer.heatmap.cursor == (0, 4)


async def test_the_heatmap_marks_all_that_is_selected(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        heatmap = view.app.explorer.heatmap
        assert heatmap.render_line(2).text.count("[.]") == 4  # the attention of layer 0
        await view.press("j")
        assert view.pane("heatmap")[2].split() == [">", "0", ".", ".", ".", ".", "[.]", "[.]", "[.]"]
        await view.press("J")
        assert [line.count("[.]") for line in view.pane("heatmap")[2:8]] == [0, 3, 0, 0, 0, 0]
        await view.press("3", "j")
        assert [line.count("[.]") for line in view.pane("heatmap")[2:8]] == [0, 0, 1, 0, 0, 0]
        await view.press("0", "g", "j", "h", "j", "l", "j")
        assert view.selected == "attention.query over 6 layers"
        assert [line.count("[.]") for line in view.pane("heatmap")[2:8]] == [1] * 6

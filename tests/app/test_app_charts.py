"""The charts as the user sees them: title, legend, axes, curves by colour, thresholds as lines."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from app_looking import HUGE, WIDE, View, exploring
from app_models import fill, rank_in
from safetensors.numpy import load_file


@pytest.fixture
async def view(llama: Path, root: Path) -> AsyncIterator[View]:
    """A computed model on a wide screen."""
    async with exploring(fill(llama, root), root, WIDE) as found:
        yield found


def _y_labels(lines: list[str]) -> list[str]:
    found = (re.match(r" *([0-9][^\u2502]*?)[\u2524\u251c]", line[:12]) for line in lines)
    return [match[1] for match in found if match]


def _x_labels(lines: list[str]) -> list[str]:
    return lines[-3].split()


async def test_a_block_is_one_chart_of_its_projections(view: View) -> None:
    lines = await view.chart("layers.0.attention  ", "\u2501 query ", "\u2501 key ", "\u2501 value ", "\u2501 output ")
    assert len(view.colours()) == 4
    assert "4 of 4 computed  k90" in lines[-1]
    await view.press("j")  # the MLP of the layer
    await view.chart("layers.0.mlp  ", "\u2501 gate ", "\u2501 up ", "\u2501 down ")
    assert len(view.colours()) == 3
    await view.press("k", "k")  # the layer
    await view.chart("layers.0  ", "\u2501 query", "\u2501 output", "\u2501 gate", "\u2501 down")
    assert len(view.colours()) == 7


async def test_a_role_over_the_layers_is_one_chart(view: View) -> None:
    await view.press("g", "j", "h", "j", "l", "j", "j")
    assert view.selected == "attention.key over 6 layers"
    lines = await view.chart("attention.key over 6 layers  ", "\u2501 0: ", "\u2501 5: ", "colours by curve")
    assert len(view.colours()) == 6
    assert "6 of 6 computed" in lines[-1]


async def test_the_axes_go_round_between_logarithmic_and_linear(view: View) -> None:
    titles, drawn = [], []
    await view.press("n")
    for _ in range(4):
        before = len(drawn)
        await view.until(lambda n=before: not n or view.pane("chart") != drawn[n - 1], "other axes")  # type: ignore[misc]
        drawn.append(await view.chart("layers.0.attention.query", "effective rank"))
        titles.append(view.app.explorer.chart.border_title)
        await view.press("a")
    assert [str(t).rpartition("  ")[2] for t in titles] == ["log x log", "log y", "linear", "log x log"]
    assert _x_labels(drawn[0])[:3] == ["1", "2", "5"]
    assert _x_labels(drawn[1]) == _x_labels(drawn[2]) == ["10", "20", "30", "40"]
    assert "0" in _y_labels(drawn[2])
    assert "0" not in _y_labels(drawn[1])
    assert drawn[3] == drawn[0]


async def test_energy_has_one_kind_of_axes_more(view: View) -> None:
    await view.press("n", "2")
    titles = []
    for _ in range(4):
        await view.chart("layers.0.attention.query")
        titles.append(str(view.app.explorer.chart.border_title).rpartition("  ")[2])
        await view.press("a")
    assert titles == ["log x", "linear", "minus noise", "log x"]
    await view.press("a")
    await view.press("1")
    assert str(view.app.explorer.chart.border_title).endswith("linear")


async def test_energy_has_a_line_for_every_threshold(view: View) -> None:
    await view.press("n", "2")
    lines = await view.chart("layers.0.attention.query", "90 %")
    assert {"60 %", "80 %", "90 %"} <= set(_y_labels(lines))
    assert sum("\u2500" * 3 in line or "\u254c" * 3 in line for line in lines[1:-3]) >= 3
    await view.press("colon")
    await view.type("t 97")
    await view.chart("97 %", "90 %", "80 %", "60 %", "k97")


async def test_components_by_layer_are_the_ranks(view: View, llama: Path) -> None:
    await view.press("4")
    lines = await view.chart("layer 0: query ", "\u2501 query", "\u2501 down")
    assert _x_labels(lines) == ["0", "1", "2", "3", "4", "5"]
    assert len(view.colours()) == 7
    most = max(rank_in(llama, n, r, 0.9) for n in range(6) for r in ("query", "key", "value", "output", "gate", "up"))
    labels = [float(text) for text in _y_labels(lines)]
    assert labels == sorted(labels, reverse=True)
    assert labels[-1] == 0
    assert most - 10 <= labels[0] <= most


async def test_the_cursor_walks_over_the_layers_and_the_title_follows_the_unit(view: View, llama: Path) -> None:
    await view.press("4", "l", "l", "h")
    await view.chart("^ layer 1", f"layer 1: query {rank_in(llama, 1, 'query', 0.9)}  key ")
    await view.press("u", "j", "j", "enter")
    await view.chart("layer 1: query .")
    assert "k90/k0 by layer" in str(view.app.explorer.chart.border_title)


async def test_components_by_layer_at_every_threshold_on_a_huge_screen(llama: Path, root: Path) -> None:
    async with exploring(fill(llama, root), root, HUGE) as view:
        await view.press("4")
        lines = await view.chart("k60 by layer", "k80 by layer", "k90 by layer")
        assert next(line for line in lines if "by" in line).split() == [
            "k60",
            "by",
            "layer",
            "k80",
            "by",
            "layer",
            "k90",
            "by",
            "layer",
        ]
        assert _x_labels(lines) == ["0", "1", "2", "3", "4", "5"] * 3


async def test_the_read_out_is_what_numpy_finds(view: View, llama: Path) -> None:
    await view.press("n", "J", "L")
    line = (await view.chart("layers.1.attention.key"))[-1]
    weights = load_file(llama / "model.safetensors")["model.layers.1.self_attn.k_proj.weight"]
    values = np.linalg.svd(weights.astype(np.float64), compute_uv=False)
    stable = (values**2).sum() / values[0] ** 2
    ranks = [f"k{t:.0f} {rank_in(llama, 1, 'key', t / 100)}" for t in (60, 80, 90, 95, 99)]
    assert line.startswith("  ".join(["24x48", *ranks, "effective rank"]))
    await view.pilot.resize_terminal(*HUGE)
    await view.chart(f"stable rank {stable:.2f}")


async def test_only_the_values_that_are_drawn_are_loaded(view: View) -> None:
    await view.chart("layers.0.attention")
    await view.press("3", "j", "j")
    await view.chart("layers.2.attention.query")
    keys = set(view.app.pair.first._values)
    addresses = {p.address for p in view.app.pair.first.model.tree.projections if p.key in keys}
    assert {"layers.0.attention.key", "layers.2.attention.query"} <= addresses
    assert not any("mlp" in a or a.startswith("layers.3") for a in addresses)


async def test_what_is_half_computed_draws_what_there_is(llama: Path, root: Path) -> None:
    model = fill(llama, root, ["layers.0.attention.key", "layers.0.attention.output"])
    async with exploring(model, root) as view:
        lines = await view.chart("\u2501 key ", "\u2501 output ")
        assert "query" not in lines[0]
        assert "2 of 4 computed" in lines[-1]
        assert len(view.colours()) == 2

"""The tree: whole numbers or none, in the chosen unit, under its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_looking import View, exploring
from app_models import fill, matrix, numpy_rank, save_model

from rankscope.engine.null import null_rank

EXPERTS, LAYERS = 12, 2
CONFIG = {"model_type": "mixtral", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.w1.weight"
UP = "model.layers.{}.block_sparse_moe.experts.{}.w3.weight"
LOW = (120, 20)
"""A size too low for the tree, which then has a scroll bar."""
BAR = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a mixture of experts, and the root of a store that has all gates but one."""
    places = [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
    weights = {EXPERT.format(*place): matrix((128, 64), place[1]) for place in places}
    weights |= {UP.format(*place): matrix((128, 64), place[1]) for place in places}
    tmp_path = tmp_path_factory.mktemp("moe")
    folder, root = save_model(tmp_path / "moe", weights, CONFIG), tmp_path / "store"
    fill(folder, root, [f"layers.{layer}.expert.{expert}.gate" for layer, expert in places[:-1]])
    return folder, root


async def opened(view: View) -> list[str]:
    """The tree's lines with the experts of layer 0 open, without guides."""
    await view.press("l", "l", "l", "l", "l", "l", "l", "j", "j")
    return view.labels


def numbers(labels: list[str]) -> list[str]:
    """The last words of the visible lines of experts."""
    return [label.split()[-1] for label in labels if label.startswith("# expert")]


async def test_ranks_of_experts_are_whole_beside_a_scroll_bar(moe: tuple[Path, Path]) -> None:
    async with exploring(*moe, LOW) as view:
        found = numbers(await opened(view))
        wanted = [str(numpy_rank(matrix((128, 64), expert), 0.9)) for expert in range(EXPERTS)]
        assert len(found) > 6
        assert found == wanted[: len(found)]
        # The numbers end under the end of their heading.
        lines = (line.rstrip(BAR) for line in view.pane("tree") if "# expert" in line)
        assert {*map(len, lines)} == {len(view.lines[1].partition("k90")[0]) + len("k90") - 1}


@pytest.mark.parametrize("width", [60, 30, 24])
async def test_what_does_not_fit_is_left_out(moe: tuple[Path, Path], width: int) -> None:
    async with exploring(*moe, (width, 20)) as view:
        shown = [label.split() for label in await opened(view) if "expert 1 " in f"{label} "]
        assert shown[0][:3] == ["#", "expert", "1"]
        rank = str(numpy_rank(matrix((128, 64), 1), 0.9))
        assert shown[0][3:] == {60: ["128x64", rank], 30: [rank], 24: []}[width]


async def test_a_count_is_whole_or_not_there(moe: tuple[Path, Path]) -> None:
    for width, count in ((60, "  23 of 48"), (14, "")):
        async with exploring(*moe, (width, 20)) as view:
            assert view.labels[0] == f"v moe{count}"


async def test_numbers_follow_the_unit(moe: tuple[Path, Path]) -> None:
    async with exploring(*moe, LOW) as view:
        await opened(view)
        await view.press("colon")
        await view.type("unit k/k0")
        await view.press("0")
        noise = null_rank(128, 64, 0.9)
        wanted = [f"{numpy_rank(matrix((128, 64), expert), 0.9) / noise:.2f}" for expert in range(EXPERTS)]
        found = numbers(view.labels)
        assert len(found) > 6
        assert found == wanted[: len(found)]
        assert view.lines[1].split(" \u2500\u2510")[0].endswith("k90/k0")


async def test_the_heading_stays_where_a_filter_is_long(moe: tuple[Path, Path]) -> None:
    async with exploring(*moe, LOW) as view:
        await view.press("slash")
        await view.type("layers.0.expert.*.gate")
        title = view.lines[1].split(" \u2500\u2510")[0]
        assert title.endswith(" k90")
        assert "\u2026" in title

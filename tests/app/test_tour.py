"""`:tour`: followed key by key, on a computed model and on one that is not, to a result that numpy confirms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_looking import SMALL, View, exploring
from app_models import LLAMA, fill, matrix, numpy_rank, rank_in, save_model
from safetensors.numpy import load_file

from rankscope.tui.data.tour import Tour
from rankscope.tui.screens.dialogs import Reading


async def _begin(view: View) -> None:
    await view.press("colon")
    await view.type("tour")


async def _choose(view: View, name: str) -> None:
    await view.press("colon")
    await view.type(f"unit {name}")


def _tour(view: View) -> str:
    return view.pane("tour")[0].strip()


async def test_it_leads_to_an_answer(llama: Path, root: Path) -> None:
    async with exploring(llama, root, SMALL) as view:
        await _begin(view)
        assert _tour(view).startswith("tour 1/7  /value enter:")
        await view.press("j")  # other keys still work, and do not advance the tour
        await view.press("slash")
        await view.type("value")
        assert _tour(view).startswith("tour 2/7  s, then y:")
        await view.scan()
        await view.until(lambda: _tour(view).startswith("tour 3/7  3:"), "what is computed")
        await view.press("3")
        await _choose(view, "k/k0")
        await _choose(view, "k/k*")
        assert _tour(view).startswith("tour 6/7  4:")
        await view.press("4")
        assert _tour(view).startswith("tour 7/7  2, then :k 12 enter")
        await view.press("2")
        await view.rests()  # a rank is put on a visible chart
        await view.press("colon")
        await view.type("k 12")
        assert isinstance(view.app.screen, Reading)
        ranks = [rank_in(llama, layer, "value", 0.9) for layer in range(6)]
        said = " ".join(" ".join(view.box).replace("\u2502", " ").split())
        at = ranks.index(max(ranks))
        assert f"layers.{at}.attention.value: k90 is {max(ranks)} of 24; the least is {min(ranks)}" in said
        weights = load_file(llama / "model.safetensors")[f"model.layers.{at}.self_attn.v_proj.weight"]
        squares = np.linalg.svd(weights.astype(np.float64), compute_uv=False) ** 2
        assert f"keeps {100 * squares[:12].sum() / squares.sum():.1f} % of it, with 75% of the parameters" in said
        below = sum(rank <= 24 * 48 // 72 for rank in ranks)
        assert (
            f"fewer parameters in {below} of 6" in said if below else "more parameters than the matrix in all" in said
        )
        await view.press("escape")
        assert "tour" not in view.text


async def test_what_is_done_already_is_passed_over_and_the_tour_can_be_left(llama: Path, root: Path) -> None:
    async with exploring(fill(llama, root), root) as view:
        height = view.app.explorer.chart.size.height
        await view.press("slash")
        await view.type("attention.value")
        await view.press("3")
        await _begin(view)
        assert _tour(view).startswith("tour 4/7  u, k/k0, enter:")
        await _begin(view)
        assert view.foot == "the tour is ended; :tour starts it again"
        await view.press("j", "1", "3")
        assert "tour" not in view.text
        assert view.app.explorer.chart.size.height == height


async def test_the_role_is_one_that_the_model_has(root: Path, tmp_path: Path) -> None:
    """Without attention it works, in 80 columns and at any threshold; without layers it says that it cannot."""
    weights = {f"model.layers.{n}.mlp.up_proj.weight": matrix((20, 30), n) for n in range(3)}
    folder = save_model(tmp_path / "mlps", weights, LLAMA)
    async with exploring(fill(folder, root), root, SMALL, 0.995) as view:
        state = view.app.explorer.state
        tour = Tour.of(state)
        assert tour is not None
        steps = tour.steps(state)
        assert all(len(f" tour 1/7  {step.keys}:  {step.shows}") <= 80 for step in steps)
        (first, *_), last = tour.answer(state), steps[-1]
        assert first.startswith("Which layer's up projection needs most components for 99.5 % of its energy")
        assert last.keys == "2, then :k 10 enter"
        ranks = [numpy_rank(w, 0.995) for w in weights.values()]
        assert f"k99.5 is {max(ranks)} of 20; the least is {min(ranks)}" in "\n".join(tour.answer(state))
    bare = save_model(tmp_path / "bare", {"table": matrix((20, 30), 1)}, {})
    async with exploring(bare, root) as view:
        await _begin(view)
        assert view.foot == "the tour needs a model with layers"


@pytest.mark.parametrize("stored", [0, 1])
async def test_one_that_is_not_computed_is_no_error(llama: Path, root: Path, stored: int) -> None:
    addresses = [f"layers.{n}.attention.value" for n in range(stored)]
    async with exploring(fill(llama, root, addresses), root) as view:
        state = view.app.explorer.state
        tour = Tour.of(state)
        assert tour is not None
        found = "\n".join(tour.answer(state))
        assert ("None of the 6 value projections is computed" in found) == (not stored)

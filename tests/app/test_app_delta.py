"""`d` once more, and view 8: what a fine-tune changed, against LAPACK in float64."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from app_looking import HUGE, SMALL, View, exploring
from app_models import LLAMA, llama_weights, numpy_rank, save_model
from numpy.typing import NDArray
from safetensors.torch import save_file

RANK = 3
QUERY = "model.layers.{}.self_attn.q_proj.weight"
Tensors = dict[str, Any]


def delta(base: Tensors, tuned: Tensors, layer: int) -> NDArray[np.float64]:
    """What was changed of a query, of what is stored."""
    name = QUERY.format(layer)
    return np.asarray((tuned[name].double() - base[name].double()).numpy())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Tensors, Tensors]:
    """A base in bfloat16, and a fine-tune of rank 3 of its queries; embeddings grew, a gate is gone, a norm moved."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("tuned")
    base: Tensors = {name: torch.tensor(w).bfloat16() for name, w in llama_weights(2).items()}
    tuned = dict(base)
    for layer in range(2):
        change = rng.standard_normal((48, RANK)) @ rng.standard_normal((RANK, 48)) * 0.02 * (layer + 1)
        tuned[QUERY.format(layer)] = torch.tensor(base[QUERY.format(layer)].double().numpy() + change).bfloat16()
    tuned["model.embed_tokens.weight"] = torch.zeros(104, 48).bfloat16()
    tuned["model.layers.0.input_layernorm.weight"] = torch.full((48,), 2.0).bfloat16()
    del tuned["model.layers.1.mlp.gate_proj.weight"]
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_model(folder / name, {"x": np.ones(1)}, LLAMA)
        save_file({key: t.clone() for key, t in tensors.items()}, folder / name / "model.safetensors")
    return folder / "base", folder / "tuned", base, tuned


def row_of(view: View, address: str) -> list[str]:
    """A line of the table, without its marks."""
    found = [line.strip(" >+").split() for line in view.pane("delta")]
    return next((line for line in found if line and line[0] == address), [])


async def test_d_goes_on_to_the_differences_and_back(pair: Any, root: Path) -> None:
    """Every view is of the differences then: computed by enter and by s, under the key at which A's own are not."""
    base, other, weights, tuned = pair
    async with exploring(base, root, HUGE, against=other) as view:
        await view.rests()
        await view.press("3", "d", "d")
        await view.sees("k90 B/A")
        await view.press("d")
        await view.sees("tuned - base", "0/13 stored", "k90 delta")
        await view.press("J", "K", "L", "H", "enter")
        wanted = numpy_rank(delta(weights, tuned, 0), 0.9)
        await view.sees(f"layers.0.attention.query  48x48  k90 delta {wanted}", "1/13 stored")
        await view.press("s")
        await view.sees("12 projections of B - A")
        await view.answer("y")
        await view.sees("13/13 stored")
        await view.until(lambda: view.cells(0)[0] == str(wanted), "the rank in the heatmap")
        sigma = np.linalg.svd(delta(weights, tuned, 0), compute_uv=False)
        await view.press("1")
        await view.chart(f"sigma_1 {sigma[0]:.4g}")
        await view.press("3", "d")
        await view.sees("A base", "B tuned", "A 0/14 stored  B 0/13", "k90 of A")
        assert view.app.pair.second is not None
        await view.press("d")
        await view.sees("k90 of B")
        await view.rush("d", "d", "d", "d")  # B/A, delta, A, B: whatever has been read by then
        await view.rests()
        await view.sees("k90 of B", "A base")


async def test_the_table_has_what_the_command_prints(pair: Any, root: Path, tmp_path: Path) -> None:
    base, other, weights, tuned = pair
    async with exploring(base, root, HUGE, against=other) as view:
        await view.rests()
        await view.press("8")
        await view.sees("8 delta  tuned - base", "layers.1.mlp.gate")
        assert row_of(view, "layers.0.attention.query")[1:4] == ["48x48", ".", "."]
        await view.scan()
        await view.sees("13/13 stored", "unchanged")
        for layer in range(2):
            change = delta(weights, tuned, layer)
            sigma = np.linalg.svd(change, compute_uv=False)
            name, k = QUERY.format(layer), numpy_rank(change, 0.9)
            same = (weights[name] == tuned[name]).double().mean().item()
            relative = np.linalg.norm(change) / weights[name].double().norm().item()
            found = [str(k), f"{(sigma**2).sum() / sigma[0] ** 2:.2f}", f"{relative:.2e}", f"{100 * same:.1f}"]
            address = f"layers.{layer}.attention.query"
            await view.until(lambda at=address: "3" in row_of(view, at), "what was read")  # type: ignore[misc]
            assert row_of(view, address)[2:8] == [">=", str(RANK), *found], row_of(view, address)
            assert row_of(view, address)[8:10] == [str(min(k, RANK)), str(min(k, RANK) * 96)]
        assert row_of(view, "layers.0.attention.key")[1:6] == ["24x48", "unchanged", "-", "-", "-"]
        await view.press("l", "l", "l", "l", "l", "o", "colon")  # by |d| / |W|
        await view.type(f"export {tmp_path / 'delta.csv'}")
        await view.sees("written")
        with (tmp_path / "delta.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["address"] for row in rows[:2]] == ["layers.1.attention.query", "layers.0.attention.query"]
        assert {row["state"] for row in rows[2:]} == {"unchanged"}
        await view.press("t")
        await view.sees("k95/k0")
        k95 = str(numpy_rank(delta(weights, tuned, 1), 0.95))
        await view.until(lambda: row_of(view, "layers.1.attention.query")[4:5] == [k95], "k95")


async def test_what_has_no_difference_is_listed(pair: Any, root: Path) -> None:
    base, other, _, _ = pair
    async with exploring(base, root, SMALL, against=other) as view:
        await view.rests()
        await view.press("8")
        await view.sees("8 delta  tuned - base")
        await view.press("G")
        await view.sees("only in A: layers.1.mlp.gate")
        await view.until(lambda: "shapes" in row_of(view, "other.model.embed_tokens.weight"), "other shapes")
        assert sum("vectors" in line for line in view.pane("delta")) == 2
        await view.press("slash")
        await view.type("layers.1")
        await view.until(lambda: not row_of(view, "other.model.embed_tokens.weight"), "the filter")
        assert row_of(view, "layers.1.mlp.gate")[1:] == ["only", "in", "A"]


async def test_under_a_weighting_there_is_the_noise_of_its_own(pair: Any, root: Path) -> None:
    """The gains of the first norm of A are ones, so that only rows without a norm are refused."""
    base, other, weights, tuned = pair
    async with exploring(base, root, HUGE, against=other) as view:
        await view.rests()
        await view.press("8")
        await view.sees("8 delta  tuned - base")
        await view.press("v")
        await view.sees("differences are computed in the raw gauge: d leaves them")
        await view.press("colon")
        await view.type("weight norm")
        await view.sees("tuned - base, weighted by norm", "weighted by norm gains")
        await view.press("s")
        await view.sees("of B - A by norm", "of noise under the same")
        await view.answer("y")
        await view.until(lambda: row_of(view, "layers.0.attention.query")[2:4] == [">=", str(RANK)], "numbers")
        await view.until(lambda: row_of(view, "layers.0.attention.query")[-1].startswith("0."), "k/k0 below 1")
        k = numpy_rank(delta(weights, tuned, 0), 0.9)
        assert row_of(view, "layers.0.attention.query")[4] == str(k)
        await view.press("d")
        await view.sees("A base weighted by norm gains", "B tuned weighted by norm gains")


async def test_one_model_and_other_models_say_what_helps(pair: Any, llama: Path, root: Path, tmp_path: Path) -> None:
    base, _, _, _ = pair
    nothing = save_model(tmp_path / "wide", {"model.layers.0.mlp.up_proj.weight": np.ones((8, 4), np.float32)}, LLAMA)
    async with exploring(base, root, SMALL) as view:
        await view.rests()
        await view.press("8")
        await view.sees("only one model is open: :against org/name", "8 delta  8 shows what a second model changed")
        await view.press("j", "l", "o", "G", "y", "e", "escape", "d")
        await view.sees("only one model is open")
        await view.press("colon")
        await view.type(f"against {nothing}")
        await view.sees("d shows A, B, B/A, delta")
        await view.press("d")
        await view.press("8")
        await view.sees("no matrix is in both base and wide")
        assert view.app.explorer.state.lens.side == "A"
        await view.press("colon")
        await view.type(f"against {llama}")
        await view.sees("B is tiny-llama")
        await view.press("8")
        await view.sees("tiny-llama - base")
        await view.press("j", "i")
        await view.sees("i shows a projection of one model")
        await view.press("7")
        await view.sees("single heads are shown for one model: d leaves the delta")
        await view.press("colon")
        await view.type("plan 20%")
        await view.sees("a plan is for one model")


async def test_the_store_alone_shows_what_is_stored(pair: Any, root: Path, tmp_path: Path) -> None:
    held = [shutil.copytree(folder, tmp_path / folder.name) for folder in pair[:2]]
    async with exploring(held[0], root, SMALL, against=held[1]) as view:
        await view.rests()
        await view.scan()
        await view.until(lambda: view.app.pair.second is not None and view.app.pair.second.saved == 13, "both")
        await view.press("8")
        await view.sees("tuned - base")
        await view.scan()
        await view.sees("13/13 stored")
    shutil.rmtree(held[1])
    async with exploring(held[0], root, SMALL, against=str(held[1])) as view:
        await view.rests()
        await view.press("8")
        await view.sees(f"8 delta  {tmp_path}"[:40], "13/13 stored", f">= {RANK}")
        assert not view.has_engine

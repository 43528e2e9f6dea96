"""The explorer in the fixed gauge: `v`, what is computed for it, and what says that it is shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from app_looking import WIDE, View, exploring
from app_models import Weights, numpy_rank, save_model

CONFIG = {"model_type": "llama", "num_attention_heads": 4}
LAYER = "model.layers.0"


def weights() -> Weights:
    """Two layers whose gains and neurons are of very different sizes."""
    found: Weights = {}
    for n in range(2):
        rng, layer = np.random.default_rng(n), f"model.layers.{n}"
        for name in ("q", "k", "v", "o"):
            found[f"{layer}.self_attn.{name}_proj.weight"] = rng.standard_normal((24, 24)).astype(np.float32)
        for name, shape in {"gate": (40, 24), "up": (40, 24), "down": (24, 40)}.items():
            found[f"{layer}.mlp.{name}_proj.weight"] = rng.standard_normal(shape).astype(np.float32)
        found[f"{layer}.mlp.up_proj.weight"] *= np.geomspace(1, 100, 40, dtype=np.float32)[:, None]
        for name in ("input", "post_attention"):
            found[f"{layer}.{name}_layernorm.weight"] = np.geomspace(1, 50, 24, dtype=np.float32)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", weights(), CONFIG)


def explicit() -> dict[str, int]:
    """k90 of layer 0 by LAPACK, gains folded and neurons balanced by hand."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    mlp, gain = f"{LAYER}.mlp", w[f"{LAYER}.post_attention_layernorm.weight"]
    up, down = w[f"{mlp}.up_proj.weight"] * gain, w[f"{mlp}.down_proj.weight"]
    c = np.sqrt(np.linalg.norm(down, axis=0) / np.linalg.norm(up, axis=1))
    query = w[f"{LAYER}.self_attn.q_proj.weight"]
    return {
        "query": numpy_rank(query * w[f"{LAYER}.input_layernorm.weight"], 0.9),
        "up": numpy_rank(c[:, None] * up, 0.9),
        "down": numpy_rank(down / c, 0.9),
    }


def products() -> list[int]:
    """k90 by LAPACK of what each of the four heads of layer 0 writes, W_o W_v behind the gain."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    value = w[f"{LAYER}.self_attn.v_proj.weight"] * w[f"{LAYER}.input_layernorm.weight"]
    output = w[f"{LAYER}.self_attn.o_proj.weight"]
    return [numpy_rank(output[:, at : at + 6] @ value[at : at + 6], 0.9) for at in range(0, 24, 6)]


async def turn(seen: View, *, fixed: bool) -> None:
    await seen.press("v")
    await seen.until(lambda: ("gauge-fixed" in seen.lines[0]) is fixed, "the gauge")


async def test_v_goes_to_the_fixed_gauge_and_back(model: Path, root: Path) -> None:
    async with exploring(model, root, WIDE) as seen:
        await seen.press("s")
        await seen.answer("y")
        await seen.sees("14 computed in ")
        raw = seen.cells(0)
        await turn(seen, fixed=True)
        assert "gauge-fixed: gains folded, neurons balanced" in seen.lines[0]
        assert "k90 fixed" in seen.text
        assert seen.cells(0)[:6] == ["."] * 6
        await seen.press("s")
        assert "compute 18 projections in the fixed gauge" in seen.text
        await seen.answer("y")
        await seen.sees("18 computed in ")
        await seen.rests()
        shown, true = seen.cells(0), explicit()
        assert [shown[n] for n in (0, -2, -1)] == [str(true[role]) for role in ("query", "up", "down")]
        assert shown != raw
        await turn(seen, fixed=False)
        assert seen.cells(0) == raw
        assert "k90 fixed" not in seen.lines[1]


async def test_a_folded_projection_is_the_one_by_norm(model: Path, root: Path) -> None:
    async with exploring(model, root, WIDE, weight="norm") as seen:
        await seen.press("s")
        await seen.answer("y")
        await seen.sees("14 computed in ")
        by_norm = seen.cells(0)
    async with exploring(model, root, WIDE) as seen:
        await turn(seen, fixed=True)
        assert seen.cells(0)[:6] == [*by_norm[:2], ".", by_norm[4], ".", "."]


async def test_of_a_model_that_is_not_known_no_gauge_is_fixed(root: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "odd", weights(), {"model_type": "nobody"})
    async with exploring(folder, root, WIDE) as seen:
        await seen.press("v")
        await seen.sees("the gauge cannot be fixed: layers.0.attention.query: ")
        assert seen.text.count("layers.0.attention.query: ") == 1
        assert "gauge-fixed" not in seen.lines[0]
        await seen.press("j")
        assert seen.app.is_running


async def test_under_a_weighting_the_gauge_changes_up_alone(model: Path, root: Path) -> None:
    async with exploring(model, root, WIDE, weight="norm") as seen:
        await seen.press("s")
        await seen.answer("y")
        await seen.sees("14 computed in ")
        by_norm = seen.cells(0)
        await turn(seen, fixed=True)
        assert "weighted by norm gains" in seen.lines[0]
        assert "k90 norm fixed" in seen.text
        assert seen.cells(0)[:6] == [*by_norm[:2], ".", by_norm[4], ".", by_norm[6]]


async def test_v_shows_what_is_stored_of_a_model_that_is_gone(root: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "gone", weights(), CONFIG)
    async with exploring(folder, root, WIDE) as seen:
        await seen.press("s")
        await seen.answer("y")
        await seen.sees("14 computed in ")
        await turn(seen, fixed=True)
        await seen.press("slash", *"mlp", "enter", "s")
        await seen.answer("y")
        await seen.sees("6 computed in ")
        await seen.rests()
        await seen.press("escape", "slash")
        await seen.type("layers.0.attention.output")  # in whose place the products stand
        await seen.press("s")
        await seen.answer("y")
        await seen.sees("4 computed in ")
        await seen.rests()
    shutil.rmtree(folder)
    async with exploring(folder, root, WIDE) as seen:
        await turn(seen, fixed=True)
        assert "gauge-fixed: gains folded" in seen.lines[0]
        shown, true = seen.cells(0), explicit()
        # Value and output are those of layer 1, whose products are not stored.
        assert [shown[n] for n in (-2, -1)] == [str(true[role]) for role in ("up", "down")]
        assert (shown[:2], shown[4]) == (["?", "?"], str(round(np.median(products()))))
        await seen.press("3", "l", "h")
        await seen.sees("it is not stored in the fixed gauge")
        assert not seen.has_engine


async def test_value_and_output_are_their_products_by_kv_head(model: Path, root: Path) -> None:
    """In heatmap, tree, table and chart; what is selected is theirs, and the factors' behind `v`."""
    async with exploring(model, root, WIDE) as seen:
        await seen.rests()
        await seen.press("3", "l", "l", "l")
        await seen.sees("layers.0.attention.output")
        await turn(seen, fixed=True)
        await seen.sees("4 KV heads: median ^a tenth off")
        await seen.press("enter")
        await seen.sees("layer 0", "KV head", "kv3", "layers.0.attention.kv_head.0.ov  6x6  not computed")
        await seen.press("s")
        await seen.answer("y")
        await seen.sees("18 computed in ")
        await seen.rests()
        each = products()
        shown = [line.split()[-1].strip("[]") for line in seen.pane("heatmap") if " kv" in line and "_" not in line]
        assert shown == list(map(str, each))
        await seen.press("j", "J")
        await seen.sees("layers.1.attention.kv_head.1.ov  6x6  k90 fixed")  # the same head of the next layer
        await seen.press("K", "escape")
        middle = np.median(each)
        far = max(sorted(each, reverse=True), key=lambda k: abs(k - middle))
        assert abs(far - middle) < 2  # so that the median stands for all of them
        words = [word.strip("[]") for word in seen.cells(0)]
        assert words[2] == f"{middle:.0f}"
        assert not any(word.startswith("^") for word in words)
        await seen.press("0", "l", "l")
        await seen.sees("KV head 0", "KV head 3")
        await seen.press("5")
        await seen.sees("layers.0.attention.kv_head.3.ov")
        await turn(seen, fixed=False)
        await seen.sees("layers.0.attention.value")

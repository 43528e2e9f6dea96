"""Latent attention in the explorer: products of its factors beside the factors, against explicit products."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from app_looking import View, exploring
from app_models import Weights, matrix, numpy_rank, save_model

from rankscope.tui.data.grid import Selection
from rankscope.tui.data.model import open_model
from rankscope.tui.data.stacks import with_stacks

BROAD = (200, 50)
"""Room for all columns."""
HIDDEN, HEADS, NOPE, ROPE, VALUE = 40, 3, 4, 2, 5
KV_LORA, Q_LORA = 8, 12
LAYERS = 2
Matrix = np.ndarray[Any, np.dtype[np.float64]]
CONFIG = {
    "model_type": "deepseek_v2", "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "kv_lora_rank": KV_LORA, "q_lora_rank": Q_LORA, "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE,
    "v_head_dim": VALUE, "n_routed_experts": 2, "first_k_dense_replace": 1, "num_hidden_layers": LAYERS,
}  # fmt: skip


def deepseek(folder: Path, **changes: object) -> Path:
    """A dense layer, then one of experts."""
    shapes = {"kv_a_proj_with_mqa": (KV_LORA + ROPE, HIDDEN), "kv_b_proj": (HEADS * (NOPE + VALUE), KV_LORA)}
    shapes |= {"q_a_proj": (Q_LORA, HIDDEN), "q_b_proj": (HEADS * (NOPE + ROPE), Q_LORA)}
    shapes |= {"o_proj": (HIDDEN, HEADS * VALUE)}
    weights: Weights = {}
    for layer in range(LAYERS):
        at, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        for n, (name, shape) in enumerate(shapes.items()):
            weights[f"{at}.{name}.weight"] = matrix(shape, 11 * layer + n)
        for name, size in (("kv", KV_LORA), ("q", Q_LORA)):
            gains = np.logspace(0, -1 - layer, size) * (-1) ** np.arange(size)  # of both signs
            weights[f"{at}.{name}_a_layernorm.weight"] = gains.astype(np.float32)
        for expert in ("", ".shared_experts") if layer else ("",):
            for name, shape in (("gate_proj", (6, HIDDEN)), ("up_proj", (6, HIDDEN)), ("down_proj", (HIDDEN, 6))):
                weights[f"{mlp}{'.experts.0' if layer and not expert else expert}.{name}.weight"] = matrix(shape, 5)
    return save_model(folder, weights, CONFIG | changes)


def held(folder: Path) -> list[dict[str, Matrix]]:
    """The attention of each layer in float64, by module name."""
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    return [
        {n.split(".")[4]: w.astype(np.float64) for n, w in weights.items() if f"layers.{layer}.self_attn" in n}
        for layer in range(LAYERS)
    ]


def products(own: dict[str, Matrix]) -> dict[str, Matrix]:
    """kv_b diag(gain) kv_a and q_b diag(gain) q_a, as stored."""
    first = own["kv_a_proj_with_mqa"][:KV_LORA]
    return {
        "key_value": own["kv_b_proj"] @ np.diag(own["kv_a_layernorm"]) @ first,
        "query_product": own["q_b_proj"] @ np.diag(own["q_a_layernorm"]) @ own["q_a_proj"],
    }


def column(seen: View, heading: str) -> list[str]:
    titles = seen.pane("heatmap")[1].split()[1:]
    return [seen.cells(row)[titles.index(heading)] for row in range(LAYERS)] if heading in titles else []


async def compute(seen: View, role: str) -> None:
    """Press enter on the node of a role that is derived."""
    state = seen.app.explorer.state
    (found,) = (column for column in state.grid.derived if column.role == role)
    state.select(Selection(column=found))
    await seen.press("0")
    assert f"{role}, derived" in seen.labels[seen.app.explorer.tree_pane.cursor_line]
    await seen.press("enter")


async def test_products_are_computed_on_their_nodes(tmp_path: Path, root: Path) -> None:
    folder = deepseek(tmp_path / "mla")
    expected = [products(own) for own in held(folder)]
    ranks = {role: [str(numpy_rank(each[role], 0.9)) for each in expected] for role in expected[0]}
    async with exploring(folder, root, BROAD) as seen:
        counted = seen.lines[0]
        assert set(ranks) == {column.role for column in seen.app.explorer.state.grid.derived}
        for role, found in ranks.items():
            await compute(seen, role)
            await seen.until(lambda role=role, found=found: column(seen, role) == found, f"{role} {found}")  # type: ignore[misc]
        assert seen.lines[0] == counted  # no total includes them
        await seen.press("s")
        await seen.answer("y")
        await seen.until(lambda: "stored" in seen.lines[0] and "0/" not in seen.lines[0], "the factors")
        await seen.press("colon")
        await seen.type("unit k/k0")  # there is no noise for a product
        await seen.until(lambda: {mark for role in ranks for mark in column(seen, role)} == {"-"}, "no number")
        await seen.press("5")
        titles = seen.pane("table")[0].removeprefix("  ").replace("address ^", "address").split("  ")
        places = [n for n, title in enumerate(filter(None, map(str.strip, titles))) if title in ("lora", "of lora %")]
        rows = {row.lstrip("> ").split()[0]: row.lstrip("> ").split() for row in seen.pane("table")[1:] if "." in row}
    for role, lora in (("key_value", KV_LORA), ("query_product", Q_LORA)):
        row = rows[f"layers.0.attention.{role}"]
        assert [row[n] for n in places] == [str(lora), f"{100 * int(ranks[role][0]) / lora:.1f}"]
    shutil.rmtree(folder)
    async with exploring(folder, root, BROAD) as seen:
        await seen.until(lambda: all(column(seen, role) == found for role, found in ranks.items()), "what is stored")


def test_a_norm_that_is_not_known_refuses_the_products_alone(tmp_path: Path, root: Path) -> None:
    model = open_model(str(deepseek(tmp_path / "mla", model_type="of_my_own")), root)
    found = with_stacks(model, root).further
    assert [p.role for p in found] == ["key_value", "query_product"] * LAYERS
    assert all("no norms are known for of_my_own" in (p.problem or "") for p in found)
    assert not any(p.problem for p in model.tree.scanned())

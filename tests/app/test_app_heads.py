"""View 7: heads x layers, one kind at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_looking import HUGE, SMALL, exploring
from app_models import LLAMA, fill, llama_weights, numpy_rank, save_model
from textual.widgets import Tree

HEADS, DIM, HIDDEN = 4, 12, 48


def product(layer: int, head: int) -> np.ndarray:
    """W_q^T W_k of a head."""
    held = llama_weights(layer + 1)
    q, k = (held[f"model.layers.{layer}.self_attn.{name}_proj.weight"].astype(np.float64) for name in "qk")
    return np.asarray(q.reshape(-1, DIM, HIDDEN)[head].T @ k.reshape(-1, DIM, HIDDEN)[head // 2])


async def test_enter_computes_the_head_under_the_cursor(llama: Path, root: Path) -> None:
    """The kind goes by H and L, the layer by J and K, and totals stand as they were."""
    fill(llama, root)
    async with exploring(llama, root, HUGE) as view:
        await view.rests()
        before = view.lines[0]
        await view.press("7")
        await view.sees("7 heads  query", "shade k90/k0")
        await view.press("L", "L", "L")
        await view.sees("QK, offset 0, RoPE not applied", "shade k90 %")
        await view.press("j", "j", "j", "J", "l", "K")
        await view.sees("layers.1.attention.head.3.qk  12x12  not computed")
        await view.press("enter")
        wanted = numpy_rank(product(1, 3), 0.9)
        await view.sees(f"layers.1.attention.head.3.qk  12x12  k90 {wanted}")
        await view.until(lambda: str(wanted) in view.pane("heads")[4].split(), "the number in the cell")
        assert view.pane("heads")[1].split()[1:3] == [".", "."]
        assert view.lines[0] == before
        await view.press("H", "H", "H", "H", "H", "J")
        await view.sees("layers.2.attention.head.1.query")  # there are two KV heads on the way
        await view.press("t")
        await view.sees("7 heads  query: k95")


async def test_the_tree_stands_at_the_projection_of_the_head(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, HUGE) as view:
        await view.rests()
        await view.press("7")
        await view.sees("7 heads  query")
        for keys, wanted in (
            (("l", "l", "j"), ("2", "query")),
            (("L", "h"), ("1", "key")),
            (("L", "L"), ("1", "query")),
        ):
            await view.press(*keys)
            await view.rests()
            node = view.app.explorer.query_one(Tree).cursor_node
            assert node is not None
            assert node.parent is not None
            assert node.parent.parent is not None
            assert (str(node.parent.parent.label).split()[0], str(node.label).split()[0]) == wanted


async def test_an_offset_and_the_fixed_gauge_show_others(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, SMALL) as view:
        await view.rests()
        await view.press("7")
        await view.sees("7 heads  query")
        await view.press("L", "L")
        await view.sees("7 heads  value", "layers.0.attention.kv_head.0.value")
        await view.press("L", "colon")
        await view.type("offset 9")
        await view.sees("QK, offset 9, RoPE applied")
        await view.press("enter")
        await view.sees("layers.0.attention.head.0.qk  12x12  k90 ")
        await view.press("colon")
        await view.type("offset -1")
        await view.sees("not a whole number")
        await view.press("v")
        await view.sees("fixed gauge")
        await view.press("H")
        await view.sees("7 heads  key")  # no values: only their products say something there
        await view.press("L", "L", "L", "L")
        await view.sees("7 heads  OV by KV head", "layers.0.attention.kv_head.0.ov")


async def test_what_cannot_be_made_says_why(tmp_path: Path, root: Path) -> None:
    more = {"model.layers.0.self_attn.q_norm.weight": np.ones(DIM, np.float32)}
    model = save_model(tmp_path / "normed", llama_weights(2) | more, LLAMA)
    async with exploring(model, root, SMALL) as view:
        await view.rests()
        await view.press("7")
        await view.sees("7 heads  query")
        await view.press("L", "L", "L")
        await view.sees("(QK norm)")
        assert "?" in view.pane("heads")[1]
        await view.press("enter")
        await view.sees("queries and keys are normed")


@pytest.mark.parametrize("size", [SMALL, HUGE])
async def test_a_model_without_heads_says_so(size: tuple[int, int], tmp_path: Path, root: Path) -> None:
    alone = {name: w for name, w in llama_weights(1).items() if ".mlp." in name}
    async with exploring(save_model(tmp_path / "mlps", alone, LLAMA), root, size) as view:
        await view.rests()
        await view.press("7")
        await view.sees("no attention has a known number of heads")
        await view.press("j", "L", "J", "enter", "z", "y", "3", "7")
        await view.sees("no attention has a known number of heads")

"""A layer as a whole: roles that contradict the shapes are mended where one reading is left, else reported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lapack_reference import assert_same_spectrum, compute
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint

Array = NDArray[np.float32]
D, F = 22, 37
IN, OUT = (F, D), (D, F)
QUERY = {"self_attn.q_proj": (D, D)}


def _opened(folder: Path, shapes: Mapping[str, Any], **config: Any) -> tuple[Checkpoint, Tree, dict[str, Array]]:
    rng = np.random.default_rng(3)
    arrays = {f"blocks.0.{path}.weight": rng.standard_normal(s).astype(np.float32) for path, s in shapes.items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "newcomer", **config}))
    checkpoint = open_checkpoint(str(folder))
    return checkpoint, build_tree(checkpoint), arrays


def _roles(tree: Tree) -> dict[str, str]:
    """The roles of a layer's MLPs by path, or the reasons for having none."""
    found: dict[str, str] = {}
    for p in tree.projections:
        path = p.tensor.removeprefix("blocks.0.").removesuffix(".weight")
        if p.block != "attention":
            found[path] = f"{found[path]} {p.role}" if path in found else p.note or p.role
    return found


@pytest.mark.parametrize(
    ("shapes", "roles"),
    [
        ({"mlp.w12": (2 * F, D), "mlp.w3": OUT}, {"mlp.w12": "gate up", "mlp.w3": "down"}),  # DINOv2
        ({"ffn.w12": (2 * D, D), "ffn.w3": (D, D)}, {"ffn.w12": "gate up", "ffn.w3": "down"}),  # square
        ({"mlp.w1": IN, "mlp.w2": IN, "mlp.w3": OUT}, {"mlp.w1": "gate", "mlp.w2": "up", "mlp.w3": "down"}),  # EVA-02
        ({"feed_forward.w1": IN, "feed_forward.w2": OUT}, {"feed_forward.w1": "up", "feed_forward.w2": "down"}),
        ({**QUERY, "mlp.fc0": IN, "mlp.fc1": OUT}, {"mlp.fc0": "up", "mlp.fc1": "down"}),  # MoonViT
        ({**QUERY, "mlp.first": IN, "mlp.fc1": OUT}, {"mlp.first": "mlp.first", "mlp.fc1": "down"}),
        ({**QUERY, "ffn.fc2": IN}, {"ffn.fc2": "up"}),
        # Correct roles stay: single tensors, stored as (in, out), and parts in a file that lacks the others.
        ({**QUERY, "mlp.fc1": IN, "mlp.fc2": OUT}, {"mlp.fc1": "up", "mlp.fc2": "down"}),
        ({**QUERY, "mlp.c_fc": OUT, "mlp.c_proj": IN}, {"mlp.c_fc": "up", "mlp.c_proj": "down"}),
        ({**QUERY, "mlp.gate_proj": IN}, {"mlp.gate_proj": "gate"}),
        ({"mlps.0.fc1": IN, "mlps.1.fc1": IN}, {"mlps.0.fc1": "up", "mlps.1.fc1": "up"}),
    ],
    ids=str,
)
def test_roles_are_what_the_shapes_of_a_block_allow(tmp_path: Path, shapes: Any, roles: dict[str, str]) -> None:
    _, tree, _ = _opened(tmp_path, shapes)
    assert _roles(tree) == roles


def test_a_mended_role_has_the_rows_of_its_tensor(tmp_path: Path) -> None:
    checkpoint, tree, arrays = _opened(tmp_path, {"mlp.w12": (2 * F, D), "mlp.w3": OUT})
    found = {p.role: p for p in tree.projections}
    gate, up = np.split(arrays["blocks.0.mlp.w12.weight"], 2)
    for role, part in {"gate": gate, "up": up, "down": arrays["blocks.0.mlp.w3.weight"]}.items():
        assert (found[role].rows, found[role].cols) == part.shape
        assert_same_spectrum(compute(checkpoint, found[role]), part)


def test_experts_are_mended_one_and_all(tmp_path: Path) -> None:
    shapes = {f"mlp.experts.{e}.{name}": shape for e in range(3) for name, shape in (("w1", IN), ("w2", OUT))}
    _, tree, _ = _opened(tmp_path, shapes)
    assert [p.address for p in tree.projections] == [
        f"layers.0.expert.{e}.{role}" for e in range(3) for role in ("up", "down")
    ]


@pytest.mark.parametrize(
    ("shapes", "held"),
    [
        ({"mlp.fc0": (D, D), "mlp.fc1": (D, D)}, "mlp.fc0 up 22 x 22, mlp.fc1 up 22 x 22"),
        ({"mlp.fc1": (2 * F, D), "mlp.fc2": OUT}, "mlp.fc1 up 74 x 22, mlp.fc2 down 22 x 37"),
        ({"mlp.fc1": IN, "mlp.w3": IN, "mlp.fc2": OUT}, "mlp.fc1 up 37 x 22, mlp.fc2 down 22 x 37, mlp.w3 up 37 x 22"),
    ],
    ids=["square", "fused without a word", "two ups"],
)
def test_what_stays_contradictory_stays_whole_and_says_so(tmp_path: Path, shapes: Any, held: str) -> None:
    _, tree, _ = _opened(tmp_path, shapes)
    assert {p.tensor for p in tree.scanned()} == {f"blocks.0.{path}.weight" for path in shapes}
    for p in tree.projections:
        assert (p.block, p.slice, p.note) == ("other", None, f"shapes contradict the names of one block: {held}")


def test_names_of_their_own_are_kept_and_the_contradiction_is_told(tmp_path: Path) -> None:
    """Each tensor is valid by itself: only its name may be wrong, and no other reading fits."""
    (tmp_path / "pair").mkdir()
    _, tree, _ = _opened(tmp_path / "pair", {"mlp.up_proj": (F, D), "mlp.down_proj": (D, F + 4)})
    held = "mlp.down_proj down 22 x 41, mlp.up_proj up 37 x 22"
    assert [(p.address, p.note) for p in tree.projections] == [
        (f"layers.0.mlp.{role}", f"shapes contradict the names of one block: {held}") for role in ("up", "down")
    ]
    _, tree, _ = _opened(tmp_path, {**QUERY, "mlp.down_proj": IN})
    held = "mlp.down_proj down 37 x 22"
    assert [(p.address, p.note) for p in tree.projections if p.block == "mlp"] == [
        ("layers.0.mlp.down", f"shapes contradict the names of one block: {held}")
    ]


@pytest.mark.parametrize(
    ("shapes", "roles"),
    [
        ({"w1": (3, *IN), "w2": (3, *OUT)}, ["up", "down"]),
        ({"w1": (3, *IN), "w2": (3, *IN), "w3": (3, *OUT)}, ["gate", "up", "down"]),
        ({"gate_proj": (3, D, F), "up_proj": (3, D, F), "down_proj": (3, F, D)}, ["gate", "up", "down"]),  # (in, out)
    ],
    ids=["no up", "w3 is the down", "input first"],
)
def test_stacks_of_experts_are_mended_as_single_ones_are(tmp_path: Path, shapes: Any, roles: list[str]) -> None:
    experts = {f"mlp.experts.{name}": shape for name, shape in shapes.items()}
    _, tree, _ = _opened(tmp_path, {**QUERY, **experts}, hidden_size=D)
    found = [p for p in tree.projections if p.block == "expert"]
    assert [(p.expert, p.role) for p in found] == [(e, role) for e in range(3) for role in roles]
    assert [p.tensor.split(".")[-2] for p in found] == [*shapes] * 3
    assert all((p.rows, p.cols) == (OUT if p.role == "down" else IN) for p in found)
    assert not any(p.note for p in found)


def test_nothing_follows_from_what_may_lie_elsewhere(tmp_path: Path) -> None:
    """A gate without an up is one only where no layer has an up and no unreadable file may hold it."""
    rng = np.random.default_rng(3)
    names = [f"blocks.{n}.mlp.{role}" for n in range(2) for role in ("gate_proj", "up_proj", "down_proj")]
    arrays: dict[str, NDArray[Any]] = {
        f"{name}.weight": rng.standard_normal(OUT if "down" in name else IN).astype(np.float32) for name in names
    }
    del arrays["blocks.0.mlp.up_proj.weight"]
    arrays["blocks.1.mlp.up_proj.weight"] = np.ones(IN, np.int8)
    save_file(arrays, tmp_path / "model.safetensors")
    tree = build_tree(open_checkpoint(str(tmp_path)))
    assert [p.address for p in tree.projections] == [
        f"layers.{n}.mlp.{role}" for n in range(2) for role in ("gate", "up", "down") if (n, role) != (0, "up")
    ]
    assert not any(p.note for p in tree.projections)


def test_experts_of_unequal_widths_are_read_by_their_names(tmp_path: Path) -> None:
    shapes = {f"mlp.experts.{e}.{w}": s for e in range(3) for w, s in (("w1", (F + e, D)), ("w2", (D, F + e)))}
    _, tree, _ = _opened(tmp_path, shapes)
    assert [(p.expert, p.role) for p in tree.projections] == [(e, role) for e in range(3) for role in ("up", "down")]


SMALL = {
    "vocab_size": 17, "hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 1, "num_attention_heads": 3,
    "num_key_value_heads": 3, "kv_lora_rank": 11, "qk_rope_head_dim": 4, "qk_nope_head_dim": 5, "v_head_dim": 7,
    "q_lora_rank": 13, "head_dim": 4, "index_head_dim": 8, "index_n_heads": 2, "first_k_dense_replace": 1,
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.mark.parametrize("original", [True, False], ids=["hub", "memory"])
def test_latent_queries_with_an_output_gate_are_cut_as_the_model_cuts_them(tmp_path: Path, original: bool) -> None:
    """A.X-K2: q_gate_proj(...).view(heads, -1).split([qk_head_dim, v_head_dim])"""
    torch.manual_seed(7)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model("axk2", **SMALL))
    model.save_pretrained(tmp_path, save_original_format=original)
    checkpoint = open_checkpoint(str(tmp_path))
    found = {p.address: p for p in build_tree(checkpoint).projections}
    attention = model.model.layers[0].self_attn
    fused = attention.q_gate_proj.weight.detach().unflatten(0, (attention.num_heads, -1))
    query, gate = fused.split([attention.qk_head_dim, attention.v_head_dim], dim=1)
    for role, rows in (("query_b", query.flatten(0, 1)), ("gate", gate.flatten(0, 1))):
        projection = found[f"layers.0.attention.{role}"]
        assert (projection.rows, projection.cols) == rows.shape
        assert_same_spectrum(compute(checkpoint, projection), rows.numpy())


def test_latent_queries_of_other_heads_are_told(tmp_path: Path) -> None:
    """3 x (5 + 4) rows would be right, 3 x (5 + 4 + 7) with a gate; an unproven number of heads cuts nothing."""
    shapes = {
        "self_attn.q_b_proj": (29, 13), "self_attn.kv_a_proj_with_mqa": (15, 24), "self_attn.kv_b_proj": (36, 11),
        "self_attn.o_proj": (24, 21),
    }  # fmt: skip
    _, tree, _ = _opened(tmp_path, shapes, num_attention_heads=3)
    line = (
        "expected 27 rows of latent queries for 3 heads, or 48 with an output gate, not 29: heads or shapes are wrong"
    )
    assert [(p.role, p.note) for p in tree.scanned() if p.note] == [
        ("self_attn.kv_b_proj", line), ("self_attn.q_b_proj", line),
    ]  # fmt: skip

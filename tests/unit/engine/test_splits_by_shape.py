"""Splits that the shapes of a layer prove where config.json leaves them out or contradicts them."""

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
from running_modules import matrix_of
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModel

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint

Array = NDArray[np.float32]
STEM = "model.layers.0.self_attn."


def _random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _opened(folder: Path, arrays: Mapping[str, Array], config: Mapping[str, Any]) -> tuple[Checkpoint, Tree]:
    save_file(dict(arrays), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(folder))
    return checkpoint, build_tree(checkpoint)


def _assert_parts(checkpoint: Checkpoint, tree: Tree, wanted: Mapping[str, Any]) -> None:
    """Check that each role of the layer's attention has the spectrum of these rows."""
    found = {p.role: p for p in tree.projections if p.block == "attention" and p.layer == 0}
    for role, rows in wanted.items():
        assert (found[role].rows, found[role].cols) == rows.shape
        assert_same_spectrum(compute(checkpoint, found[role]), np.asarray(rows))


@pytest.mark.parametrize("kv_heads", [7, 1])
@pytest.mark.parametrize("said", [True, False], ids=["said", "silent"])
def test_keys_and_values_without_queries_fill_their_tensor(tmp_path: Path, kv_heads: int, said: bool) -> None:
    """TeleChat: key_value.view(kv_heads, 2 * head_dim), with 7 heads of 6."""
    fused, stem = _random(2 * 6 * kv_heads, 40), "transformer.h.0.self_attention."
    arrays = {f"{stem}key_value.weight": fused, f"{stem}dense.weight": _random(40, 42)}
    config = {"model_type": "telechat", "n_head": 7, "hidden_size": 40}
    checkpoint, tree = _opened(tmp_path, arrays, config | ({"num_key_value_heads": kv_heads} if said else {}))
    pairs = fused.reshape(kv_heads, 2, 6, 40)
    wanted = {role: pairs[:, i].reshape(-1, 40) for i, role in enumerate(("key", "value"))}
    _assert_parts(checkpoint, tree, wanted)


def test_key_heads_that_contradict_the_shape_are_told(tmp_path: Path) -> None:
    stem = "transformer.h.0.self_attention."
    arrays = {f"{stem}key_value.weight": _random(84, 40), f"{stem}dense.weight": _random(40, 42)}
    config = {"model_type": "telechat", "n_head": 7, "hidden_size": 40, "num_key_value_heads": 2}
    _, tree = _opened(tmp_path, arrays, config)
    (whole,) = [p for p in tree.scanned() if p.block == "other"]
    assert whole.note == "expected 2 x (key 6 + value 6) along axis 0 of 84: cannot be split"


HEADS, NOPE, ROPE, VALUE, RANK, HIDDEN = 3, 5, 4, 7, 11, 26
MLA = {"num_attention_heads": HEADS, "kv_lora_rank": RANK, "qk_nope_head_dim": NOPE, "v_head_dim": VALUE}


@pytest.mark.parametrize("normed", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("config", [{}, {"qk_rope_head_dim": 0}, {"qk_rope_head_dim": ROPE}], ids=str)
def test_a_latent_without_rotated_key_is_the_whole_tensor(tmp_path: Path, config: Any, normed: bool) -> None:
    """Layers without RoPE keep their numbers in config.json as if they had it (mistral_large4)."""
    latent, expanded = _random(RANK, HIDDEN), _random(HEADS * (NOPE + VALUE), RANK)
    arrays = {
        f"{STEM}kv_a_proj_with_mqa.weight": latent, f"{STEM}kv_b_proj.weight": expanded,
        f"{STEM}o_proj.weight": _random(HIDDEN, HEADS * VALUE),
    }  # fmt: skip
    norm = {f"{STEM}kv_a_layernorm.weight": _random(RANK)} if normed else {}
    checkpoint, tree = _opened(tmp_path, arrays | norm, {**MLA, **config})
    _assert_parts(checkpoint, tree, {"kv_a": latent})
    (whole,) = [p for p in tree.scanned() if p.role == "kv_a"]
    assert (whole.slice, whole.note) == (None, "")
    assert not [p for p in tree.projections if p.role == "key_rope"]


@pytest.mark.parametrize("said", [NOPE, NOPE + ROPE, 2])
def test_the_width_of_a_heads_key_is_what_the_shapes_leave(tmp_path: Path, said: int) -> None:
    expanded = _random(HEADS * (NOPE + VALUE), RANK)
    arrays = {f"{STEM}kv_b_proj.weight": expanded, f"{STEM}o_proj.weight": _random(HIDDEN, HEADS * VALUE)}
    checkpoint, tree = _opened(tmp_path, arrays, {**MLA, "qk_nope_head_dim": said})
    heads = expanded.reshape(HEADS, NOPE + VALUE, RANK)
    wanted = {"key_b": heads[:, :NOPE].reshape(-1, RANK), "value_b": heads[:, NOPE:].reshape(-1, RANK)}
    _assert_parts(checkpoint, tree, wanted)


def test_a_head_has_a_whole_number_of_columns(tmp_path: Path) -> None:
    arrays = {f"{STEM}kv_b_proj.weight": _random(36, RANK), f"{STEM}o_proj.weight": _random(HIDDEN, 22)}
    _, tree = _opened(tmp_path, arrays, MLA)
    (whole,) = [p for p in tree.scanned() if p.block == "other"]
    assert whole.note == "the output matrix has 22 columns for 3 heads: cannot be split"


def test_the_norm_of_latent_queries_says_nothing_of_heads(tmp_path: Path) -> None:
    """Here `q_norm` norms the latent, which is as wide as all values together but for a whole factor."""
    expanded = _random(6 * (NOPE + 4), RANK)
    arrays = {
        f"{STEM}kv_b_proj.weight": expanded, f"{STEM}o_proj.weight": _random(HIDDEN, 24),
        f"{STEM}q_a_proj.weight": _random(12, HIDDEN), f"{STEM}q_norm.weight": _random(12),
    }  # fmt: skip
    checkpoint, tree = _opened(tmp_path, arrays, {**MLA, "num_attention_heads": 6, "v_head_dim": 4})
    _assert_parts(checkpoint, tree, {"key_b": expanded.reshape(6, NOPE + 4, RANK)[:, :NOPE].reshape(-1, RANK)})


def test_a_running_layer_without_rope_expands_its_latent_as_we_split_it(tmp_path: Path) -> None:
    """mistral_large4: the second of two layers is without RoPE, and its keys are wider than config.json says."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(
        "mistral_large4_text", vocab_size=17, hidden_size=24, intermediate_size=31, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=11, qk_rope_head_dim=4, qk_nope_head_dim=5,
        v_head_dim=7, head_dim=4, index_head_dim=8, index_n_heads=2, index_topk=4, no_rope_layers=[0, 1],
        moe_intermediate_size=13, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2,
    )  # fmt: skip
    model: Any = AutoModel
    model = model.from_config(config).double()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    tree = build_tree(checkpoint)
    attention = model.layers[0].self_attn
    unrotated = torch.zeros(1, 1, RANK + 1, attention.qk_rope_head_dim).double()
    units = torch.cat([torch.eye(RANK), torch.zeros(1, RANK)])[None, None].double()
    keys, values = attention.expand_kv(units, unrotated)
    rows = {
        role: states[0, :, :-1].permute(0, 2, 1).reshape(-1, RANK).detach()
        for role, states in (("key_b", keys), ("value_b", values))
    }
    _assert_parts(checkpoint, tree, {"kv_a": matrix_of(attention.kv_a_proj_with_mqa), **rows})

"""Fused queries, keys and values of an unknown model: split where output matrix and heads prove it, else whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lapack_reference import assert_same_spectrum, compute
from safetensors.numpy import save_file
from torch import nn

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint

HEAD_DIM, HEADS, HIDDEN = 6, 5, 22
WIDTH = HEAD_DIM * HEADS


def _fused(folder: Path, name: str, kv_heads: int, config: dict[str, Any], output: str = "o_proj") -> Any:
    parent = name.rpartition(".")[0]
    rng = np.random.default_rng(3)
    shapes = {name: (WIDTH + 2 * kv_heads * HEAD_DIM, HIDDEN), f"{parent}.{output}": (HIDDEN, WIDTH)}
    arrays = {f"model.layers.0.{n}.weight": rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(folder))
    found = [p for p in build_tree(checkpoint).scanned() if p.role != "output"]
    return checkpoint, found, arrays[f"model.layers.0.{name}.weight"]


@pytest.mark.parametrize("config", [{}, {"model_type": "newcomer"}, {"model_type": None}], ids=str)
@pytest.mark.parametrize(
    ("name", "kv_heads"),
    [("self_attn.qkv_proj", 2), ("attention.query_key_value", 1), ("self_attn.Wqkv", 5), ("attn.Wqkv", 1)],
)
def test_one_layout_that_fits_is_the_split(tmp_path: Path, name: str, kv_heads: int, config: dict[str, Any]) -> None:
    checkpoint, found, fused = _fused(tmp_path, name, kv_heads, {**config, "num_attention_heads": HEADS})
    parts = np.split(fused, [WIDTH, WIDTH + kv_heads * HEAD_DIM])
    assert [p.role for p in found] == ["query", "key", "value"]
    for projection, part in zip(found, parts, strict=True):
        assert_same_spectrum(compute(checkpoint, projection), part)


@pytest.mark.parametrize(
    ("name", "kv_heads", "config", "line"),
    [
        ("self_attn.qkv_proj", 5, {"n_head": 5}, "and it fits as CAT and HEAD: not split"),
        ("attention.query_key_value", 5, {"n_head": 5}, "and it fits as CAT and GROUP: not split"),
        ("self_attn.qkv_proj", 2, {}, "there is no number of heads: not split"),
        ("self_attn.qkv_proj", 2, {"n_head": 7}, "7 heads fit neither queries nor keys of 54 rows: not split"),
    ],
)
def test_what_nothing_proves_stays_whole_with_a_line(
    tmp_path: Path, name: str, kv_heads: int, config: dict[str, Any], line: str
) -> None:
    _, found, fused = _fused(tmp_path, name, kv_heads, config)
    ((block, rows, note),) = [(p.block, p.rows, p.note) for p in found]
    assert (block, rows) == ("other", fused.shape[0])
    assert line in note


def test_without_an_output_matrix_nothing_is_proven(tmp_path: Path) -> None:
    _, found, _ = _fused(tmp_path, "self_attn.qkv_proj", 2, {"n_head": 5}, "unnamed")
    assert [p.note for p in found if p.note] == [
        "no model_type says how it is fused, and there is no output matrix: not split"
    ]


@pytest.mark.parametrize("name", ["attn.Wqkv", "attn.qkv", "window_attn.qkv", "att_proj"])
@pytest.mark.parametrize("model_type", ["mpt", "newcomer"])
def test_without_an_output_matrix_only_a_known_type_says_where_queries_end(
    tmp_path: Path, name: str, model_type: str
) -> None:
    _, found, _ = _fused(tmp_path, name, HEADS, {"model_type": model_type}, output="o_matrix")
    line = "no known model_type says how it is fused, and there is no output matrix: not split"
    wanted = [("query", ""), ("key", ""), ("value", "")] if model_type == "mpt" else [(name, line)]
    assert [(p.role, p.note) for p in found if "o_matrix" not in p.tensor] == wanted


def test_torchs_own_attention_is_thirds_under_any_parent(tmp_path: Path) -> None:
    module = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 3, 17, batch_first=True), 1)
    arrays = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    save_file(arrays, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    found = {p.role: p for p in build_tree(checkpoint).projections if p.block == "attention"}
    thirds = np.split(arrays["layers.0.self_attn.in_proj_weight"], 3)
    for role, part in zip(("query", "key", "value"), thirds, strict=True):
        assert_same_spectrum(compute(checkpoint, found[role]), part)

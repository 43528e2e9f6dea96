"""Families that only remote code runs: our slices against the split that their published code states."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from family_builds import SPECS
from family_published import HD, NKV, PUBLISHED, Array, D, F, Published
from family_specs import FAMILIES
from lapack_reference import assert_same_spectrum, compute
from safetensors.numpy import save_file

from rankscope.engine.catalogue.families import KNOWN_FAMILIES
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.tui.data.wording import left_out


def _save(folder: Path, family: Published) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    arrays = {
        f"{family.prefix}.{layer}.{path}{'' if path.endswith('_weight') else '.weight'}": rng.standard_normal(
            shape
        ).astype(np.float32)
        for layer in range(2)
        for path, shape in {**{path: shape for path, (shape, _) in family.tensors.items()}, **family.others}.items()
    }
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": family.model_type, **family.config}))
    return arrays


@pytest.mark.parametrize("family", PUBLISHED, ids=lambda family: family.name or family.model_type)
def test_slices_are_the_published_split(tmp_path: Path, family: Published) -> None:
    arrays = _save(tmp_path, family)
    checkpoint = open_checkpoint(str(tmp_path))
    tree = build_tree(checkpoint)
    wanted: dict[str, Array] = {}
    for path, (_, place) in family.tensors.items():
        for layer in range(2):
            array = next(
                a for name, a in arrays.items() if name.removesuffix(".weight") == f"{family.prefix}.{layer}.{path}"
            )
            parts = {place: array} if isinstance(place, str) else place(array)
            wanted |= {f"layers.{layer}.{role}": part for role, part in parts.items()}
    found = {re.sub(r"^vision\.", "", p.address): p for p in tree.projections if p.block != "other"}
    assert found.keys() == wanted.keys()
    for address, p in found.items():
        assert (p.rows, p.cols) == wanted[address].shape
        assert_same_spectrum(compute(checkpoint, p), wanted[address], 1e-9)
    assert tree.known
    assert not any(p.note for p in tree.projections)
    assert left_out(tree) == family.left_out or not family.left_out


def test_linear_attention_in_one_tensor_is_whole_with_a_line_where_no_type_says_its_order(tmp_path: Path) -> None:
    """Lara-Mini: nothing published states the order of the parts of `linear_attn.in_proj`."""
    rng = np.random.default_rng(5)
    shapes = {"in_proj": (4 * D, D), "out_proj": (D, D)}
    arrays = {f"layers.0.linear_attn.{n}.weight": rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lara_mini", "linear_num_key_heads": NKV}))
    checkpoint = open_checkpoint(str(tmp_path))
    output, fused = build_tree(checkpoint).scanned()
    assert output.address == "layers.0.linear_attention.output"
    assert (fused.block, fused.rows) == ("other", 4 * D)
    assert fused.note == "no model_type says how it is fused: not split"
    assert_same_spectrum(compute(checkpoint, fused), arrays[fused.tensor])


def test_openelm_splits_every_layer_by_its_own_heads(tmp_path: Path) -> None:
    """CAT with num_query_heads and num_kv_heads of the layer; proj_1 is gate | up."""
    rng = np.random.default_rng(5)
    heads_of = [(4, 1), (6, 2)]
    arrays = {}
    for layer, (nh, nkv) in enumerate(heads_of):
        stem = f"transformer.layers.{layer}."
        arrays[f"{stem}attn.qkv_proj.weight"] = rng.standard_normal(((nh + 2 * nkv) * HD, D)).astype(np.float32)
        arrays[f"{stem}attn.out_proj.weight"] = rng.standard_normal((D, nh * HD)).astype(np.float32)
        arrays[f"{stem}ffn.proj_1.weight"] = rng.standard_normal((2 * F, D)).astype(np.float32)
        arrays[f"{stem}ffn.proj_2.weight"] = rng.standard_normal((D, F)).astype(np.float32)
    config = {"model_type": "openelm", "model_dim": D, "head_dim": HD, "num_transformer_layers": 2}
    config |= {"num_query_heads": [4, 6], "num_kv_heads": [1, 2]}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(tmp_path))
    found = {p.address: p for p in build_tree(checkpoint).projections}
    for layer, (nh, nkv) in enumerate(heads_of):
        fused = arrays[f"transformer.layers.{layer}.attn.qkv_proj.weight"]
        parts = np.split(fused, [nh * HD, (nh + nkv) * HD])
        for role, part in zip(("query", "key", "value"), parts, strict=True):
            assert_same_spectrum(compute(checkpoint, found[f"layers.{layer}.attention.{role}"]), part)
        gate, up = np.split(arrays[f"transformer.layers.{layer}.ffn.proj_1.weight"], 2)
        assert_same_spectrum(compute(checkpoint, found[f"layers.{layer}.mlp.gate"]), gate)
        assert_same_spectrum(compute(checkpoint, found[f"layers.{layer}.mlp.up"]), up)


def test_every_known_family_is_under_test() -> None:
    run = {spec.model_type for spec in SPECS} | {family.model_type for family in FAMILIES}
    published = {family.model_type for family in PUBLISHED} | {"openelm", "lara_mini"}
    assert KNOWN_FAMILIES - run - published == set()

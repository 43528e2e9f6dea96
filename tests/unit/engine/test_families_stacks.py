"""Experts in one tensor, in every orientation; content keys; and shapes that outweigh config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from lapack_reference import assert_same_spectrum, compute
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.spectrum import Slice, digest

Arrays = Mapping[str, NDArray[np.float32]]
E, INNER = 3, 10
LAYER = "model.layers.0."


def _opened(folder: Path, arrays: Arrays, config: Mapping[str, Any]) -> tuple[Checkpoint, Tree]:
    save_file(dict(arrays), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(folder))
    return checkpoint, build_tree(checkpoint)


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("hidden", [14, 2 * INNER, INNER], ids=["odd", "hidden = 2 inner", "hidden = inner"])
@pytest.mark.parametrize("input_first", [False, True])
@pytest.mark.parametrize("config", [{}, {"hidden_size": 999}], ids=["silent", "wrong"])
def test_a_stack_says_by_its_shapes_how_it_stands(
    tmp_path: Path, hidden: int, input_first: bool, config: dict[str, Any]
) -> None:
    """(E, 2I, H) with (E, H, I), or (E, H, 2I) with (E, I, H): config.json is neither needed nor used."""
    fused, down = _random(E, 2 * INNER, hidden), _random(E, hidden, INNER)
    stored = {"gate_up_proj": fused, "down_proj": down}
    if input_first:
        stored = {name: np.ascontiguousarray(array.swapaxes(1, 2)) for name, array in stored.items()}
    arrays = {f"{LAYER}mlp.experts.{name}": array for name, array in stored.items()}
    checkpoint, tree = _opened(tmp_path, arrays, {"model_type": "newcomer", **config})
    found = {p.address: p for p in tree.projections}
    wanted = {
        f"layers.0.expert.{e}.{role}": part
        for e in range(E)
        for role, part in (("gate", fused[e, :INNER]), ("up", fused[e, INNER:]), ("down", down[e]))
    }
    assert found.keys() == wanted.keys()
    for address, part in wanted.items():
        assert (found[address].rows, found[address].cols) == part.shape
        assert_same_spectrum(compute(checkpoint, found[address]), part)
    assert len({p.key for p in tree.projections}) == len(wanted)
    assert tree.known


def test_a_stack_that_cannot_be_halved_says_so(tmp_path: Path) -> None:
    arrays = {f"{LAYER}mlp.experts.gate_up_proj": _random(E, 7, 4), f"{LAYER}mlp.experts.down_proj": _random(E, 4, 3)}
    _, tree = _opened(tmp_path, arrays, {"model_type": "mixtral", "hidden_size": 4})
    (whole,) = [p for p in tree.projections if p.block == "other"]
    assert whole.note == "expected 1 x (gate 3 + up 3) along axis 0 of 7: cannot be split"


def test_dbrx_needs_the_number_of_experts(tmp_path: Path) -> None:
    stem = "transformer.blocks.0.ffn."
    arrays = {f"{stem}experts.mlp.w1": _random(6, 4), f"{stem}router.layer.weight": _random(3, 4)}
    (tmp_path / "routed").mkdir()
    (tmp_path / "alone").mkdir()
    _, tree = _opened(tmp_path / "routed", arrays, {"model_type": "dbrx"})
    assert [(p.address, p.rows) for p in tree.scanned()] == [(f"layers.0.expert.{e}.gate", 2) for e in range(3)]
    _, tree = _opened(tmp_path / "alone", dict(list(arrays.items())[:1]), {"model_type": "dbrx"})
    (whole,) = tree.scanned()
    assert (whole.rows, whole.block) == (6, "other")
    assert "experts" in whole.note


def test_content_keys_of_slices_that_had_one_stay() -> None:
    """Frozen: a store made before stacks were known is still found."""
    part = Slice(0, 1, 48, 16)
    assert str(part) == "Slice(axis=0, groups=1, offset=48, width=16)"
    assert digest("id", 8, 16, "F32", (80, 30), part, "") == "40ce39fc51eb1de7bc95f52f52c44824"
    assert digest("id", 8, 16, "F32", (80, 30), None, "") == "f0ad243be42369782377d744ccb826f8"
    assert str(Slice(0, 1, 48, 16, 0)) != str(part)


def test_the_key_of_a_projection_is_the_digest_of_what_it_is(tmp_path: Path) -> None:
    checkpoint, tree = _opened(tmp_path, {f"{LAYER}mlp.gate_up_proj.weight": _random(8, 5)}, {})
    (tensor,) = checkpoint.tensors
    for p in tree.projections:
        assert p.key == digest(tensor.source.identity, tensor.begin, tensor.end, "F32", (8, 5), p.slice, "")


PHI3 = {"model_type": "phi3", "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 30}
QKV, OUTPUT, NORM = f"{LAYER}self_attn.qkv_proj.weight", f"{LAYER}self_attn.o_proj.weight", "q_norm.weight"


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        (PHI3, True),  # head_dim is not hidden / heads, and silent
        ({**PHI3, "head_dim": 5}, True),  # wrong
        ({"model_type": "phi3", "num_attention_heads": 6}, True),  # key heads are silent
        ({"model_type": "phi3"}, True),
        ({**PHI3, "num_key_value_heads": 3}, False),
    ],
    ids=["silent head_dim", "wrong head_dim", "silent key heads", "silent", "wrong key heads"],
)
def test_the_output_matrix_says_how_wide_queries_are(tmp_path: Path, config: dict[str, Any], fits: bool) -> None:
    fused = _random(80, 30)
    checkpoint, tree = _opened(tmp_path, {QKV: fused, OUTPUT: _random(30, 48)}, config)
    parts = {p.role: p for p in tree.projections if p.tensor == QKV and p.block != "other"}
    assert bool(parts) == fits
    for role, part in zip(parts, np.split(fused, [48, 64]), strict=False):
        assert_same_spectrum(compute(checkpoint, parts[role]), part)
    assert [p.note for p in tree.scanned() if p.tensor == QKV and not fits] == [
        "expected 1 x (query 48 + key 24 + value 24) along axis 0 of 80: cannot be split"
    ] * (not fits)


def test_heads_that_contradict_the_output_matrix_are_not_split(tmp_path: Path) -> None:
    """GPT-NeoX's thirds would fit 72 rows, but 30 inputs of the output matrix are no third of them."""
    stem = "gpt_neox.layers.0.attention."
    arrays = {f"{stem}query_key_value.weight": _random(72, 24), f"{stem}dense.weight": _random(24, 30)}
    _, tree = _opened(tmp_path, arrays, {"model_type": "gpt_neox", "num_attention_heads": 3, "hidden_size": 24})
    (whole,) = [p for p in tree.scanned() if p.block == "other"]
    assert whole.note == "3 x (query 8 + key 8 + value 8) has 24 queries, the output matrix 30: cannot be split"


def test_adapters_of_fused_tensors_and_of_two_names(tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.3.self_attn.qkv_proj."
    names = [f"{stem}lora_{ab}.{adapter}.weight" for ab in "AB" for adapter in ("default", "vision")]
    _, tree = _opened(tmp_path, {name: _random(4, 4) for name in names}, {"model_type": "phi4mm"})
    addresses = [p.address for p in tree.scanned()]
    sides = ("A", "A_vision", "B", "BA", "BA_vision", "B_vision")
    assert addresses == [f"layers.3.lora.qkv_proj_{name}" for name in sides]


def test_layers_of_multi_token_prediction_are_labelled(tmp_path: Path) -> None:
    arrays = {f"{name}.layers.0.mlp.down_proj.weight": _random(4, 4) for name in ("model", "mtp")}
    _, tree = _opened(tmp_path, arrays, {"model_type": "qwen3_next"})
    assert [p.address for p in tree.scanned()] == ["layers.0.mlp.down", "mtp.layers.0.mlp.down"]


def test_a_towers_own_config_splits_its_tensors(tmp_path: Path) -> None:
    """The text's heads would not fit the vision tower's HEAD layout; the inner model_type picks the layout."""
    name = "vision_tower.encoder.layers.0.attention.query_key_value.weight"
    config = {
        **{"model_type": "outer", "text_config": {"model_type": "llama", "num_attention_heads": 7}},
        **{"vision_config": {"model_type": "bloom", "num_attention_heads": 2, "hidden_size": 8}},
    }
    _, tree = _opened(tmp_path, {name: _random(24, 8)}, config)
    assert [(p.address, p.slice) for p in tree.scanned()] == [
        (f"vision.layers.0.attention.{role}", Slice(0, 2, 4 * i, 4)) for i, role in enumerate(("query", "key", "value"))
    ]


def test_gguf_names_of_fused_stacked_and_shared_tensors(tmp_path: Path) -> None:
    shapes = {
        "blk.0.attn_qkv": (64 + 32, 64), "blk.0.attn_output": (64, 64), "blk.0.attn_q_a": (16, 64),
        "blk.0.attn_kv_a_norm": (24,), "blk.0.attn_kv_a_mqa": (32, 64), "blk.0.ffn_gate_inp": (E, 64),
        "blk.0.ffn_gate_exps": (E, 40, 64), "blk.0.ffn_up_exps": (E, 40, 64), "blk.0.ffn_down_exps": (E, 64, 40),
        "blk.0.ffn_gate_shexp": (24, 64), "blk.1.ffn_up": (80, 64), "blk.1.ffn_down": (64, 40),
        "blk.1.ssm_in": (128, 64), "blk.1.ssm_out": (64, 64), "blk.2.ffn_gate.1": (40, 64),
    }  # fmt: skip
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(file), "glm4moe")
    arrays = {f"{name}.weight": _random(*shape) for name, shape in shapes.items()}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(str(file))
    tree = build_tree(checkpoint)
    qkv, shared = np.split(arrays["blk.0.attn_qkv.weight"], [64, 80]), arrays["blk.0.ffn_gate_shexp.weight"]
    latent, mixer = np.split(arrays["blk.0.attn_kv_a_mqa.weight"], [24]), np.split(arrays["blk.1.ssm_in.weight"], 2)
    gate_up = np.split(arrays["blk.1.ffn_up.weight"], 2)
    wanted = {
        **{f"layers.0.attention.{role}": part for role, part in zip(("query", "key", "value"), qkv, strict=True)},
        **{"layers.0.attention.output": arrays["blk.0.attn_output.weight"]},
        **{"layers.0.attention.query_a": arrays["blk.0.attn_q_a.weight"]},
        **{f"layers.0.attention.{role}": part for role, part in zip(("kv_a", "key_rope"), latent, strict=True)},
        **{
            f"layers.0.expert.{e}.{role}": arrays[f"blk.0.ffn_{role}_exps.weight"][e]
            for e in range(E)
            for role in ("gate", "up", "down")
        },
        **{"layers.0.shared_expert.gate": shared, "layers.1.mlp.down": arrays["blk.1.ffn_down.weight"]},
        **{f"layers.1.mlp.{role}": part for role, part in zip(("gate", "up"), gate_up, strict=True)},
        **{f"layers.1.ssm.{role}": part for role, part in zip(("x", "z"), mixer, strict=True)},
        **{
            "layers.1.ssm.output": arrays["blk.1.ssm_out.weight"],
            "layers.2.expert.1.gate": arrays["blk.2.ffn_gate.1.weight"],
        },
    }
    found = {p.address: p for p in tree.projections if p.block != "other"}
    assert found.keys() == wanted.keys()
    for address, part in wanted.items():
        assert_same_spectrum(compute(checkpoint, found[address]), part)
    assert tree.known

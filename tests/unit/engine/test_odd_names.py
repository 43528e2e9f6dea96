"""Names that no rule expects: unknown families, wrong configs, wrappers, two towers, and hostile tensor names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lapack_reference import assert_same_spectrum, compute
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from rankscope.engine.catalogue.tree import Tree, build_tree, kinds_of
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint

LLAMA = {"model_type": "llama", "num_attention_heads": 3, "hidden_size": 9}


def _saved(folder: Path, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None) -> Checkpoint:
    rng = np.random.default_rng(5)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(str(folder))


def _matrices(checkpoint: Checkpoint) -> set[str]:
    return {t.name for t in checkpoint.tensors if len(t.shape) == 2}


def _assert_sound(checkpoint: Checkpoint, tree: Tree) -> None:
    """Check that addresses are unique, printable and without glob characters, and that every tensor is there."""
    addresses = [p.address for p in tree.projections]
    assert len(set(addresses)) == len(addresses)
    assert all(address.isprintable() for address in addresses)
    assert not any(c in address for address in addresses for c in " *?[]\\/")
    assert {p.tensor for p in tree.projections if not p.is_product} == {t.name for t in checkpoint.tensors}


NO_NAME_KNOWN = {
    "backbone.layers.0.mixer.alpha.weight": (5, 7),
    "backbone.layers.0.mixer.beta.weight": (7, 5),
    "backbone.layers.1.mixer.alpha.weight": (5, 7),
    "backbone.layers.1.scale": (7,),
    "head.weight": (11, 7),
}
SOME_NAMES_KNOWN = {
    "model.layers.0.self_attn.q_proj.weight": (9, 9),
    "model.layers.0.self_attn.k_proj.weight": (3, 9),
    "model.layers.0.self_attn.strange_proj.weight": (5, 9),
    "model.layers.1.self_attn.q_proj.weight": (9, 9),
}
NO_WEIGHT_SUFFIX = {
    "transformer.resblocks.0.attn.fused_weight": (27, 9),
    "transformer.resblocks.0.attn.out_proj.weight": (9, 9),
    "transformer.resblocks.0.mlp.c_fc.weight": (13, 9),
    "transformer.resblocks.0.mlp.c_proj.weight": (9, 13),
}


@pytest.mark.parametrize("shapes", [NO_NAME_KNOWN, SOME_NAMES_KNOWN, NO_WEIGHT_SUFFIX], ids=["none", "some", "suffix"])
def test_a_scan_of_an_unknown_family_covers_every_matrix(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    checkpoint = _saved(tmp_path, shapes, {"model_type": "newcomer"})
    tree = build_tree(checkpoint)
    _assert_sound(checkpoint, tree)
    assert {p.tensor for p in tree.scanned()} == _matrices(checkpoint) - {"head.weight"}
    assert not tree.known


def test_known_names_keep_their_roles_beside_unknown_ones(tmp_path: Path) -> None:
    tree = build_tree(_saved(tmp_path, SOME_NAMES_KNOWN, {"model_type": "newcomer"}))
    named = [p.address for p in tree.projections if p.block != "other"]
    assert named == ["layers.0.attention.query", "layers.0.attention.key", "layers.1.attention.query"]
    assert "other.model.layers.0.self_attn.strange_proj.weight" in {p.address for p in tree.projections}


def test_tables_of_integers_are_no_part_of_a_scan(tmp_path: Path) -> None:
    names = {"h.0.mixer.alpha.weight": np.ones((3, 4), np.float32), "position_ids": np.ones((1, 8), np.int64)}
    save_file(names, tmp_path / "model.safetensors")
    tree = build_tree(open_checkpoint(str(tmp_path)))
    assert [p.tensor for p in tree.scanned()] == ["h.0.mixer.alpha.weight"]
    assert {p.tensor: p.problem for p in tree.projections}["position_ids"] == "I64 holds whole numbers, not weights"


def test_what_a_known_family_adds_is_left_out_of_a_scan_and_said(tmp_path: Path) -> None:
    shapes = {f"model.layers.0.{name}.weight": (9, 9) for name in ("self_attn.q_proj", "mlp.gate", "side.extra")}
    tree = build_tree(_saved(tmp_path, shapes, LLAMA))
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.query"]
    assert [p.role for p in tree.left_out()] == ["mlp.gate", "side.extra"]
    assert kinds_of(tree.left_out()) == "mlp.gate, side.extra"


def test_layers_behind_the_last_are_told_apart(tmp_path: Path) -> None:
    shapes = {f"model.layers.{layer}.self_attn.q_proj.weight": (9, 9) for layer in range(3)}
    checkpoint = _saved(tmp_path, shapes, {**LLAMA, "num_hidden_layers": 2})
    addresses = [p.address for p in build_tree(checkpoint).scanned()]
    assert addresses == [f"layers.{i}.attention.query" for i in range(2)] + ["mtp.layers.2.attention.query"]


def test_without_a_config_names_speak_alone(tmp_path: Path) -> None:
    tree = build_tree(_saved(tmp_path, {"layers.0.self_attn.q_proj.weight": (9, 9), "layers.0.ln.weight": (9,)}, None))
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.query"]


def test_a_matrix_of_an_unknown_family_is_computed_as_it_is(tmp_path: Path) -> None:
    checkpoint = _saved(tmp_path, NO_NAME_KNOWN, None)
    for projection in build_tree(checkpoint).scanned():
        tensor = next(t for t in checkpoint.tensors if t.name == projection.tensor)
        weights, _ = checkpoint.read(tensor)
        assert_same_spectrum(compute(checkpoint, projection), weights)


PHI3 = {"model_type": "phi3", "num_attention_heads": 6, "head_dim": 8, "hidden_size": 30}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**PHI3, "num_key_value_heads": 3}, "expected 1 x (query 48 + key 24 + value 24) along axis 0 of 80"),
        (
            {**PHI3, "num_attention_heads": 48, "head_dim": 1, "num_key_value_heads": 17},
            "(query 48 + key 17 + value 17)",
        ),
    ],
    ids=["wrong", "as wrong"],
)
def test_a_fused_tensor_against_its_config_is_not_split(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    name = "model.layers.0.self_attn.qkv_proj.weight"
    checkpoint = _saved(tmp_path, {name: (80, 30), "model.layers.0.self_attn.o_proj.weight": (30, 48)}, config)
    tree = build_tree(checkpoint)
    (fused,) = [p for p in tree.projections if p.tensor == name]
    assert (fused.block, fused.slice, fused.rows, fused.cols) == ("other", None, 80, 30)
    assert expected in fused.note
    assert fused.problem is None
    assert [p.address for p in tree.projections if p.block != "other"] == ["layers.0.attention.output"]


def test_a_scan_does_not_leave_out_an_unsplit_attention(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.qkv_proj.weight"
    shapes = {name: (80, 30), "model.layers.0.self_attn.o_proj.weight": (30, 48)}
    tree = build_tree(_saved(tmp_path, shapes, {**PHI3, "num_key_value_heads": 3}))
    assert name in {p.tensor for p in tree.scanned()}


@pytest.mark.parametrize("prefix", ["base_model.model.", "module.", "_orig_mod.", "module.base_model.model."])
def test_wrappers_do_not_change_addresses(tmp_path: Path, prefix: str) -> None:
    names = {"model.layers.0.self_attn.k_proj.weight": (3, 9), "model.layers.0.mlp.down_proj.weight": (9, 5)}
    checkpoint = _saved(tmp_path, {prefix + name: shape for name, shape in names.items()}, LLAMA)
    tree = build_tree(checkpoint)
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.key", "layers.0.mlp.down"]
    _assert_sound(checkpoint, tree)


def test_adapters_are_kept_apart_from_the_layer_they_wrap(tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.0.self_attn.q_proj."
    shapes = {f"{stem}base_layer.weight": (9, 9), f"{stem}lora_A.weight": (2, 9), f"{stem}lora_B.weight": (9, 2)}
    checkpoint = _saved(tmp_path, shapes, LLAMA)
    tree = build_tree(checkpoint)
    named = [(p.address, p.tensor) for p in tree.projections if p.block != "other"]
    assert named == [
        ("layers.0.attention.query", f"{stem}base_layer.weight"),
        ("layers.0.lora.query_A", f"{stem}lora_A.weight"),
        ("layers.0.lora.query_B", f"{stem}lora_B.weight"),
        ("layers.0.lora.query_BA", ""),
    ]
    _assert_sound(checkpoint, tree)


T5 = {"d_model": 18, "d_kv": 5, "d_ff": 23, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3, "vocab_size": 29}
BART = {
    "d_model": 18,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 23,
    "decoder_ffn_dim": 23,
    "vocab_size": 29,
    "max_position_embeddings": 16,
}


@pytest.mark.parametrize(("kind", "sizes"), [("t5", T5), ("bart", BART)])
def test_encoder_and_decoder_stand_apart(tmp_path: Path, kind: str, sizes: dict[str, Any]) -> None:
    torch.manual_seed(3)
    model: Any = AutoModelForSeq2SeqLM
    model.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    tree = build_tree(checkpoint)
    _assert_sound(checkpoint, tree)
    four = ("query", "key", "value", "output")
    roles = [*(f"attention.{role}" for role in four), "mlp.up", "mlp.down"]
    crossed = [*roles, *(f"cross_attention.{role}" for role in four)]
    wanted = {f"encoder.layers.{i}.{role}" for i in range(2) for role in roles}
    wanted |= {f"decoder.layers.{i}.{role}" for i in range(2) for role in crossed}
    assert {p.address for p in tree.scanned()} == wanted
    for p in (p for p in tree.projections if p.block != "other"):
        assert p.tensor.removeprefix("model.").startswith(f"{p.tower}.")
        assert (p.block == "cross_attention") == ("EncDecAttention" in p.tensor or "encoder_attn" in p.tensor)


HOSTILE = (
    "layers.0.\x1b[2J\x1b[31mred.weight",
    "layers.0.[bold red]key[/].weight",
    "../../../etc/passwd",
    "a/b\\c",
    "layers.*.attention.key",
    "layers.?.[ab]",
    "tab\tnew\nline",
    "percent%1B",
    "percent\x1b",
    "zero\u200bwidth\u202e",
    "\ud7ff\U0001f600",
    "",
    "blank name",
    "layers.1.self_attn.q_proj\x00.weight",
)
COLLISIONS = {
    "layers 3 and 03": ("layers.3.self_attn.q_proj.weight", "layers.03.self_attn.q_proj.weight"),
    "other digits": ("layers.3.self_attn.q_proj.weight", "layers.\u0663.self_attn.q_proj.weight"),
    "superscript": ("\u00b2", "2"),
    "a tower called other": (
        "other.layers.0.self_attn.q_proj.weight",
        "x.layers.0.self_attn.q_proj.weight",
        "layers.0.attention.query",
    ),
    "same words, other order": ("a.b.layers.0.self_attn.q_proj.weight", "b.a.layers.0.self_attn.q_proj.weight"),
    "dot and underscore": (
        "a.b.layers.0.self_attn.q_proj.weight",
        "a_b.layers.0.self_attn.q_proj.weight",
        "c.layers.0.self_attn.q_proj.weight",
    ),
    "two outputs": ("layers.0.self_attn.o_proj.weight", "layers.0.self_attn.out_proj.weight"),
    "endless number": ("layers." + "9" * 5000 + ".self_attn.q_proj.weight", "x"),
    "endless expert": ("layers.0.mlp.experts." + "9" * 5000 + ".up_proj.weight", "x"),
}


def test_hostile_names_give_safe_addresses(tmp_path: Path) -> None:
    checkpoint = _saved(tmp_path, dict.fromkeys(HOSTILE, (3, 4)), LLAMA)
    tree = build_tree(checkpoint)
    _assert_sound(checkpoint, tree)
    assert all(p.role.isprintable() for p in tree.projections)
    assert {p.address for p in tree.projections if p.block == "other"} == {p.address for p in tree.projections}


@pytest.mark.parametrize("names", COLLISIONS.values(), ids=COLLISIONS.keys())
def test_names_that_mean_the_same_stay_apart(tmp_path: Path, names: tuple[str, ...]) -> None:
    checkpoint = _saved(tmp_path, dict.fromkeys(names, (3, 9)), LLAMA)
    tree = build_tree(checkpoint)
    _assert_sound(checkpoint, tree)
    for projection in tree.projections:
        assert tree.scanned(projection.address) == [projection]


@pytest.mark.parametrize("path", ["mixer.proj", "block.linear", "mlp.D", "self_attn.router_proj"])
def test_a_matrix_of_an_unknown_family_is_not_taken_for_none(tmp_path: Path, path: str) -> None:
    """A tensor that is no projection in one family (GGUF's `proj`, Zamba's `linear`) may be one in another place."""
    shapes = {f"layers.0.{name}.weight": (5, 7) for name in ("self_attn.q_proj", path)}
    tree = build_tree(_saved(tmp_path, shapes, {"model_type": "newcomer"}))
    assert not tree.known
    assert len(tree.scanned()) == 2


@pytest.mark.parametrize(
    ("gate", "model_type"),
    [
        ("mlp.gate", "qwen3_moe"), ("block_sparse_moe.gate", "mixtral"), ("mlp.gate.wg", "hunyuan_v1_moe"),
        ("mlp.router", "gpt_oss"), ("block_sparse_moe.router.layer", "granitemoe"), ("mlp.router.gate", "afmoe"),
        ("mlp.router.classifier", "longcat_flash"), ("feed_forward.gate", "lfm2_moe"), ("mixer.gate", "nemotron_h"),
        ("ffn.gate", "deepseek_v4"), ("ffn_gate_inp", "llama"), ("mlp.shared_expert_gate", "qwen2_moe"),
        ("mlp.gate", "newcomer"),
    ],
)  # fmt: skip
def test_a_router_is_no_gate(tmp_path: Path, gate: str, model_type: str) -> None:
    shapes = {"model.layers.0.self_attn.q_proj.weight": (8, 8), f"model.layers.0.{gate}.weight": (4, 8)}
    tree = build_tree(_saved(tmp_path, shapes, {"model_type": model_type}))
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.query"]
    assert tree.known
    assert [p.role for p in tree.left_out()] == [gate]

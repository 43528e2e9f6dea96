"""Layers under words that nobody listed; stacks under experts; what a scan leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lapack_reference import assert_same_spectrum, compute
from safetensors.numpy import save_file

from rankscope.engine.catalogue.tree import Tree, build_tree, kinds_of
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.tui.data.wording import left_out

Shapes = Mapping[str, tuple[int, ...]]


def _opened(folder: Path, shapes: Shapes, config: Mapping[str, Any] | None = None) -> tuple[Checkpoint, Tree]:
    rng = np.random.default_rng(11)
    save_file(
        {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config or {}))
    checkpoint = open_checkpoint(str(folder))
    return checkpoint, build_tree(checkpoint)


@pytest.mark.parametrize(
    "stem",
    ["zebra_layers.{}", "enc.conformer.{}", "m.encoders.{}", "transformer_blocks.{}", "net.{}", "module.tiers.{}"],
)
@pytest.mark.parametrize("first", [0, 1, 7])
def test_a_list_of_any_word_is_one_of_layers(tmp_path: Path, stem: str, first: int) -> None:
    paths = {"self_attn.q_proj": (9, 7), "mlp.fc1": (11, 7)}
    shapes = {f"{stem.format(first + 2 * i)}.{p}.weight": s for i in range(2) for p, s in paths.items()}
    checkpoint, tree = _opened(tmp_path, {**shapes, "embed.weight": (13, 7)})
    roles = ("attention.query", "mlp.up")
    assert [p.address for p in tree.scanned()] == [f"layers.{first + 2 * i}.{r}" for i in range(2) for r in roles]
    for p in tree.scanned():
        weights, _ = checkpoint.read(next(t for t in checkpoint.tensors if t.name == p.tensor))
        assert_same_spectrum(compute(checkpoint, p), weights)


def test_lists_beside_known_ones_stand_apart(tmp_path: Path) -> None:
    lists = ("layer", "r_layers", "x_layers")
    shapes = {f"lx.encoder.{w}.{i}.attention.self.key.weight": (5, 5) for w in lists for i in range(2)}
    _, tree = _opened(tmp_path, shapes)
    towers = ("", "r_layers.", "x_layers.")
    assert {p.address for p in tree.scanned()} == {f"{t}layers.{i}.attention.key" for t in towers for i in range(2)}


@pytest.mark.parametrize(
    "names",
    [
        ["a.experts.{}.w1"],
        ["heads.{}.fc1"],
        ["adapters.{}.down_proj"],
        ["lora_b.{}.fc1"],
        ["visual.merger.mlp.{}"],
        ["visual.merger.mlp.{}.fc1"],
        ["output_hypernetworks_mlps.{}.fc1"],
        ["things.{}.unheard_of"],
    ],
)
def test_numbers_that_count_no_layers(tmp_path: Path, names: list[str]) -> None:
    shapes = {f"{name.format(i)}.weight": (5, 7) for name in names for i in range(3)}
    _, tree = _opened(tmp_path, {**shapes, "layers.0.self_attn.q_proj.weight": (7, 7)})
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.query"]
    assert {p.tensor for p in tree.left_out()} == set(shapes)


def test_one_layer_of_an_unknown_word_is_left_out_and_said(tmp_path: Path) -> None:
    shapes = {"q_layers.0.self_attn.q_proj.weight": (7, 7), "layers.0.self_attn.q_proj.weight": (7, 7)}
    _, tree = _opened(tmp_path, {**shapes, "model.embed_tokens.weight": (13, 7), "norm.weight": (7,)})
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.query"]
    assert left_out(tree) == "left out: 2 matrices (embed_tokens, q_layers ...)"
    assert len(tree.scanned("*")) == 3


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    _, tree = _opened(tmp_path, {"layers.0.self_attn.q_proj.weight": (7, 7), "layers.0.norm.weight": (7,)})
    assert left_out(tree) == ""


def test_kinds_are_named_by_their_number_and_no_more_than_fit(tmp_path: Path) -> None:
    shapes = {f"layers.{i}.mlp.gate.weight": (3, 7) for i in range(3)} | {f"{c}.weight": (5, 7) for c in "vwxyz"}
    _, tree = _opened(tmp_path, {**shapes, "layers.0.self_attn.q_proj.weight": (7, 7)})
    assert kinds_of(tree.left_out()) == "mlp.gate, v, w, x, ..."


def test_a_stack_under_experts_without_a_rule_is_unstacked(tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.mlp.experts.odd_weight": (3, 5, 7) for i in range(2)}
    checkpoint, tree = _opened(tmp_path, {**shapes, "model.layers.0.mlp.experts.up_proj_bias": (3, 4)})
    assert [p.address for p in tree.scanned()] == [f"layers.{i}.expert.{e}.odd" for i in range(2) for e in range(3)]
    for p in tree.scanned():
        weights, _ = checkpoint.read(next(t for t in checkpoint.tensors if t.name == p.tensor))
        assert_same_spectrum(compute(checkpoint, p), np.asarray(weights)[p.expert])


def test_an_unknown_family_leaves_embeddings_and_heads_to_who_names_them(tmp_path: Path) -> None:
    shapes = {f"layers.{i}.mystery.weight": (5, 7) for i in range(2)}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, tree = _opened(tmp_path / "a", {**shapes, "embed.weight": (19, 7), "head.weight": (17, 7)})
    assert {p.tensor for p in tree.scanned()} == set(shapes)
    assert left_out(tree) == "left out: 2 matrices (embed, head)"
    assert [p.rows for p in tree.scanned("other.head.weight")] == [17]
    _, bare = _opened(tmp_path / "b", {"embed.weight": (19, 7), "head.weight": (17, 7)})
    assert {p.rows for p in bare.scanned()} == {19, 17}
    assert left_out(bare) == ""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("visn_self_att.self.key", "attention.key"),
        ("lang_self_att.output.dense", "attention.output"),
        ("cross_attn_video.q_proj", "cross_attention.query"),
        ("gated_cross_attn.to_out.0", "cross_attention.output"),
        ("attn1.to_q", "attention.query"),
        ("attn2.to_v", "cross_attention.value"),
        ("self_attn.linear_k", "attention.key"),
        ("self_attn.k_proj.linear", "attention.key"),
        ("self_attn.g_proj", "attention.gate"),
        ("linear_attn.v_proj", "linear_attention.value"),
        ("feed_forward2.linear2", "mlp.down"),
        ("feed_forward_in.down_proj", "mlp.down"),
        ("ffw_layer_start.ffw_layer_1", "mlp.up"),
        ("mlp.proj_out", "mlp.down"),
        ("share_expert.up_proj", "shared_expert.up"),
        ("mlp.linear_gate", "mlp.gate"),
        ("attn.wk_dv", "attention.key"),
        ("self_attn.post.linear", "attention.output"),
        ("self_attn.qkv_proj.v_proj_delayed", "attention.value"),
        ("attention.b_proj", "linear_attention.b"),
        ("linear_attn.dense", "linear_attention.output"),
        ("lconv1d.linear_end.linear", "conv.output"),
    ],
)
def test_names_of_many_families(tmp_path: Path, path: str, place: str) -> None:
    _, tree = _opened(tmp_path, {f"layers.0.{path}.weight": (5, 7)})
    assert [p.address for p in tree.projections] == [f"layers.0.{place}"]


@pytest.mark.parametrize(
    "path",
    ["mlp.gate.weight_1", "post_norm.mlp.up_proj", "text_moe.gate", "mlp.gate.router_mlp.fc1", "input_layernorm.W_up"],
)
def test_routers_and_gated_norms_are_no_mlps(tmp_path: Path, path: str) -> None:
    _, tree = _opened(tmp_path, {f"layers.0.{path}.weight": (5, 7), "layers.0.self_attn.q_proj.weight": (7, 7)})
    assert [p.block for p in tree.projections] == ["attention", "other"]
    assert [p.role for p in tree.left_out()] == [path]


@pytest.mark.parametrize("evidence", ["q_conv1d.weight", "A_log"])
@pytest.mark.parametrize("parent", ["attention", "self_attn"])
def test_a_convolution_of_queries_or_a_decay_means_linear_attention(tmp_path: Path, parent: str, evidence: str) -> None:
    roles = {"q_proj": "query", "v_proj": "value", "g_proj": "gate", "o_proj": "output"}
    shapes: dict[str, tuple[int, ...]] = {
        f"layers.{i}.{parent}.{path}.weight": (5, 5) for i in range(2) for path in roles
    }
    shapes |= {f"layers.0.{parent}.{evidence}": (5, 1, 4), "layers.0.cross_attn.q_proj.weight": (5, 5)}
    _, tree = _opened(tmp_path, shapes)
    wanted = {
        f"layers.{i}.{block}.{role}"
        for i, block in enumerate(("linear_attention", "attention"))
        for role in roles.values()
    }
    assert {p.address for p in tree.scanned()} == wanted | {"layers.0.cross_attention.query"}


def test_a_bare_gate_is_a_router_beside_experts_alone(tmp_path: Path) -> None:
    shapes = {f"layers.0.experts.{e}.w1.weight": (5, 7) for e in range(3)}
    _, tree = _opened(tmp_path, {**shapes, "layers.0.gate.weight": (3, 7), "layers.0.deep.gate.weight": (3, 7)})
    assert not tree.known  # layers.0.deep.gate may be anything
    (tmp_path / "x").mkdir()
    _, tree = _opened(tmp_path / "x", {**shapes, "layers.0.gate.weight": (3, 7)})
    assert tree.known
    assert left_out(tree) == "left out: 1 matrix (gate)"


@pytest.mark.parametrize("shape", [(21, 7), (7, 21)])
def test_c_attn_of_an_unknown_type_is_whole_with_a_line(tmp_path: Path, shape: tuple[int, int]) -> None:
    shapes = {"h.0.attn.c_attn.weight": shape, "h.0.attn.c_proj.weight": (7, 7)}
    _, tree = _opened(tmp_path, shapes, {"model_type": "newcomer", "n_head": 7, "n_embd": 7})
    output, fused = tree.scanned()
    assert output.role == "output"
    assert (fused.rows, fused.cols) == shape
    assert fused.note.endswith(("not split", "cannot be split"))


def test_c_attn_with_one_key_is_split_whatever_the_type(tmp_path: Path) -> None:
    shapes = {"h.0.attn.c_attn.weight": (10, 6), "h.0.attn.c_proj.weight": (6, 6)}
    config = {"model_type": "newcomer", "n_head": 3, "n_embd": 6, "num_key_value_heads": 1}
    _, tree = _opened(tmp_path, shapes, config)
    assert [(p.role, p.rows) for p in tree.scanned()] == [("query", 6), ("key", 2), ("value", 2), ("output", 6)]


def test_a_number_is_no_name_of_what_is_left_out(tmp_path: Path) -> None:
    _, tree = _opened(
        tmp_path, {"layers.0.self_attn.q_proj.weight": (7, 7), "res.queries.0": (3, 7), "res.queries.1": (3, 7)}
    )
    assert left_out(tree) == "left out: 2 matrices (queries)"

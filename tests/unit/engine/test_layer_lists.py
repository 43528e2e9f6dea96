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
        ["visual.merger_list.0.mlp.{}", "visual.merger_list.1.mlp.{}"],
        ["output_hypernetworks_mlps.{}.fc1"],
        ["things.{}.unheard_of"],
    ],
)
def test_numbers_that_count_no_layers(tmp_path: Path, names: list[str]) -> None:
    shapes = {f"{name.format(i)}.weight": (5, 7) for name in names for i in range(3)}
    _, tree = _opened(tmp_path, {**shapes, "layers.0.self_attn.q_proj.weight": (7, 7)})
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.query"]
    assert {p.tensor for p in tree.left_out()} == set(shapes)


def test_lists_of_one_block_are_parts_of_the_same_layers(tmp_path: Path) -> None:
    """XLM's `attentions` and `ffns`, and BLT's cross-attention, of which the encoder has one."""
    names = ("attentions.0.q_lin", "attentions.1.q_lin", "ffns.0.lin1", "ffns.1.lin1")
    cross = ("enc.cross_attn_layers.0.q_proj", "dec.cross_attn_layers.0.q_proj", "dec.cross_attn_layers.1.q_proj")
    shapes = {f"{name}.weight": (5, 5) for name in (*(f"enc.{n}" for n in names), *cross)}
    _, tree = _opened(tmp_path, shapes)
    assert {p.address: p.tensor.removesuffix(".weight") for p in tree.scanned()} == {
        **{f"enc.layers.{i}.attention.query": f"enc.attentions.{i}.q_lin" for i in range(2)},
        **{f"enc.layers.{i}.mlp.up": f"enc.ffns.{i}.lin1" for i in range(2)},
        "enc.layers.0.cross_attention.query": "enc.cross_attn_layers.0.q_proj",
        **{f"dec.layers.{i}.cross_attention.query": f"dec.cross_attn_layers.{i}.q_proj" for i in range(2)},
    }


def test_a_step_of_a_head_is_no_layer(tmp_path: Path) -> None:
    shapes = {f"box_head.layers.{i}.weight": (7, 7) for i in range(3)}
    _, tree = _opened(tmp_path, {**shapes, "layers.0.self_attn.q_proj.weight": (7, 7)}, {"model_type": "newcomer"})
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.query"]
    assert left_out(tree) == "3 matrices (box_head) are left out"


def test_what_has_the_shorter_name_keeps_the_plain_address(tmp_path: Path) -> None:
    paths = ("mlp.up_proj", "audio_mlp.up_proj", "attention.output.dense", "temporal_attention.output.dense")
    _, tree = _opened(tmp_path, {f"layers.0.{path}.weight": (5, 5) for path in paths})
    assert {p.address: p.tensor.removeprefix("layers.0.").removesuffix(".weight") for p in tree.scanned()} == {
        "layers.0.mlp.up": paths[0],
        "layers.0.audio_mlp.mlp.up": paths[1],
        "layers.0.attention.output": paths[2],
        "layers.0.temporal_attention.attention.output": paths[3],
    }


@pytest.mark.parametrize("outer", ["newcomer", "llama"])
def test_a_known_text_model_says_nothing_of_another_tower(tmp_path: Path, outer: str) -> None:
    shapes = {
        f"{t}.layers.{i}.{p}.weight": (5, 5)
        for t in ("left", "right")
        for i in range(2)
        for p in ("attn.q_proj", "odd")
    }
    _, tree = _opened(tmp_path, shapes, {"model_type": outer, "text_config": {"model_type": "llama", "x": 1}})
    assert len(tree.scanned()) == (8 if outer == "newcomer" else 4)


def test_one_layer_of_an_unknown_word_is_left_out_and_said(tmp_path: Path) -> None:
    shapes = {"q_layers.0.self_attn.q_proj.weight": (7, 7), "layers.0.self_attn.q_proj.weight": (7, 7)}
    _, tree = _opened(tmp_path, {**shapes, "model.embed_tokens.weight": (13, 7), "norm.weight": (7,)})
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.query"]
    assert left_out(tree) == "2 matrices (embed_tokens, q_layers ...) are left out"
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
    assert left_out(tree) == "2 matrices (embed, head) are left out"
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
        ("attn.projection_layer", "attention.output"),
        ("first_sub_layer.query_net", "attention.query"),
        ("second_sub_layer.value_net", "cross_attention.value"),
        ("third_sub_layer.dense_in", "mlp.up"),
        ("encoder_attn_text.key", "cross_attention.key"),
        ("encoder_attn.output_proj", "cross_attention.output"),
        ("LocalSelfAttention.q", "attention.query"),
        ("self_attn.relative_k_proj", "attention.pos_key"),
        ("attention.receptance", "attention.gate"),
        ("audio_mlp.gate_proj", "mlp.gate"),
        ("ffn1.output_dense", "mlp.down"),
        ("ffn.net.0", "mlp.up"),
        ("ffn.net.3", "mlp.down"),
        ("deformable_layer.fc2", "mlp.down"),
        ("pointwise_conv1", "mlp.up"),
        ("transformer.layer.1.output.dense", "mlp.down"),
        ("mlstm_layer.q", "linear_attention.query"),
        ("conv.pointwise_lin2", "conv.output"),
    ],
)
def test_names_of_many_families(tmp_path: Path, path: str, place: str) -> None:
    _, tree = _opened(tmp_path, {f"layers.0.{path}.weight": (5, 7)})
    assert [p.address for p in tree.projections] == [f"layers.0.{place}"]


@pytest.mark.parametrize(
    "path",
    [
        "mlp.gate.weight_1",
        "post_norm.mlp.up_proj",
        "text_moe.gate",
        "mlp.gate.router_mlp.fc1",
        "input_layernorm.W_up",
    ],
)
def test_routers_and_gated_norms_are_no_mlps(tmp_path: Path, path: str) -> None:
    _, tree = _opened(tmp_path, {f"layers.0.{path}.weight": (5, 7), "layers.0.self_attn.q_proj.weight": (7, 7)})
    assert [p.block for p in tree.projections] == ["attention", "other"]
    assert [p.role for p in tree.left_out()] == [path]


def test_a_bottleneck_before_the_attention_is_not_its_output(tmp_path: Path) -> None:
    _, tree = _opened(tmp_path, {"layers.0.bottleneck.attention.dense.weight": (5, 7)})
    assert [p.block for p in tree.projections] == ["other"]


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
    assert left_out(tree) == "1 matrix (gate) is left out"


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
    assert left_out(tree) == "2 matrices (queries) are left out"


@pytest.mark.parametrize(
    ("path", "rows", "roles"),
    [
        (
            "image_cross_attn.in_proj_weight",
            15,
            ["cross_attention.query", "cross_attention.key", "cross_attention.value"],
        ),
        ("window_attn.qkv", 15, ["attention.query", "attention.key", "attention.value"]),
        ("attn.w_qkv", 15, ["attention.query", "attention.key", "attention.value"]),
        ("self_attn.to_kv", 10, ["attention.key", "attention.value"]),
    ],
)
def test_fused_attention_under_other_parents(tmp_path: Path, path: str, rows: int, roles: list[str]) -> None:
    output = f"layers.0.{path.partition('.')[0]}.proj.weight"
    checkpoint, tree = _opened(tmp_path, {f"layers.0.{path}": (rows, 5), output: (5, 5)})
    found = [p for p in tree.projections if p.tensor != output]
    assert [p.address for p in found] == [f"layers.0.{role}" for role in roles]
    weights, _ = checkpoint.read(next(t for t in checkpoint.tensors if t.name != output))
    for number, p in enumerate(found):
        assert_same_spectrum(compute(checkpoint, p), np.asarray(weights)[5 * number : 5 * number + 5])


@pytest.mark.parametrize(
    "path",
    [
        *("attn.rel_pos_h", "self_attn.bias_u", "attention.self.continuous_position_bias_mlp.0", "codebook.embed_sum"),
        *("attention.rel_attn_embed", "self.relative_position_index", "self_attn.distance_embedding"),
    ],
)
def test_tables_of_positions_and_codes_are_left_out_of_a_scan(tmp_path: Path, path: str) -> None:
    shapes = {"layers.0.self_attn.q_proj.weight": (7, 7), f"layers.0.{path}": (5, 7)}
    _, tree = _opened(tmp_path, shapes, {"model_type": "newcomer"})
    assert [p.address for p in tree.scanned()] == ["layers.0.attention.query"]
    assert [p.role for p in tree.left_out()] == [path]

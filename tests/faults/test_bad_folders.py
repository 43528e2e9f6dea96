"""Folders that are incomplete, contradictory or hostile, and names that are."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer
from opening import CONFIG, DOWN, KEY, QUERY, index, refusal, stored, tree_or_refusal, weights

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.errors import printable
from rankscope.engine.formats.safetensors import INDEX

SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def fill(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def sharded(folder: Path, *, indexed: bool = True) -> Path:
    fill(folder, **{SHARD_1: weights(QUERY), SHARD_2: weights(DOWN)})
    return fill(folder, **{INDEX: index({QUERY: SHARD_1, DOWN: SHARD_2})}) if indexed else folder


def tensors(model: Path | str) -> set[str]:
    return {t.name for t in open_checkpoint(str(model), Access.CACHE).tensors}


@pytest.mark.parametrize(
    "path", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all", "no/such/folder", "no.safetensors"]
)
def test_no_such_folder(path: str) -> None:
    assert f"no such file or folder: {path}" in refusal(path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    assert "no weights that can be read" in refusal(tmp_path)
    fill(tmp_path, **{"m.h5": b"", "m.onnx": b"", "training_args.bin": b"", "config.json": b"{}"})
    assert "it holds m.h5 of TensorFlow or Keras, m.onnx of ONNX" in refusal(tmp_path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    fill(tmp_path, **{"notes.txt": b"PK"})
    line = refusal(tmp_path / "notes.txt")
    assert "neither a folder nor a file of weights (.safetensors, .bin, .pt, .pth, .ckpt, .gguf)" in line


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("shard", [SHARD_1, SHARD_2])
def test_a_missing_shard_is_named(tmp_path: Path, shard: str, indexed: bool) -> None:
    sharded(tmp_path, indexed=indexed)
    assert tensors(tmp_path) == {QUERY, DOWN}
    (tmp_path / shard).unlink()
    line = refusal(tmp_path)
    assert shard in line
    assert "one of 2" in line
    (tmp_path / shard).symlink_to("gone")
    assert shard in refusal(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/x.safetensors",
        "a/../../x.safetensors",
        "a\\b.safetensors",
        "..",
        "",
        "x.bin",
        "\x1b[2J.safetensors",
    ],
)
def test_an_index_that_points_elsewhere(tmp_path: Path, shard: str) -> None:
    folder = fill(tmp_path / "model", **{INDEX: index({QUERY: shard})})
    fill(folder / "a", **{"b.safetensors": weights(QUERY)})
    fill(tmp_path, **{"x.safetensors": weights(QUERY)})
    assert "is not a .safetensors file of its folder" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty: download it again"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": null}', "no weight_map"),
        (b'{"weight_map": {}}', "no weight_map"),
        (b'{"weight_map": ["model.safetensors"]}', "no weight_map"),
        (b'{"weight_map": {"a": 1}}', "no weight_map"),
        (b'{"weight_map": {"a": null}}', "no weight_map"),
        (b'{"weight_map": {"a": ["model.safetensors"]}}', "no weight_map"),
        (json.dumps({"weight_map": {"a": "x" * 5000 + ".safetensors"}}).encode(), "cannot read"),
    ],
    ids=itertools.count(),
)
def test_an_index_that_is_none(tmp_path: Path, content: bytes, reason: str) -> None:
    fill(tmp_path, **{INDEX: content, "model.safetensors": weights(QUERY)})
    assert reason in refusal(tmp_path)


def test_an_index_that_promises_too_much_is_a_warning(tmp_path: Path) -> None:
    fill(tmp_path, **{SHARD_1: weights(QUERY), INDEX: index({QUERY: SHARD_1, "\x1b[2Jlost": SHARD_1, "zz": SHARD_1})})
    assert isinstance(tree_or_refusal(tmp_path), Tree)
    (warning,) = open_checkpoint(str(tmp_path)).warnings
    assert warning == r"the index names 2 tensors that no shard holds, e.g. \x1b[2Jlost"


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    fill(tmp_path, **{SHARD_1: weights(QUERY), SHARD_2: weights(DOWN, QUERY, seed=1)})
    line = refusal(tmp_path)
    assert all(name in line for name in (QUERY, SHARD_1, SHARD_2))


@pytest.mark.parametrize("indexed", [True, False])
def test_the_weights_native_copies_are_ignored(tmp_path: Path, indexed: bool) -> None:
    sharded(tmp_path, indexed=indexed)
    fill(tmp_path, **{"consolidated.safetensors": weights("layers.0.attention.wq.weight")})
    fill(tmp_path / "original", **{"model.safetensors": weights("layers.0.attention.wq.weight")})
    assert tensors(tmp_path) == {QUERY, DOWN}


def test_a_native_copy_alone_is_the_model(tmp_path: Path) -> None:
    fill(tmp_path, **{"consolidated.safetensors": weights("layers.0.attention.wq.weight")})
    assert tensors(tmp_path) == {"layers.0.attention.wq.weight"}


def test_links_to_folders_and_into_the_hub_cache(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--org--tiny"
    blobs = fill(cache / "blobs", **{"a" * 64: weights(QUERY), "b" * 40: json.dumps(CONFIG).encode()})
    snapshot = fill(cache / "snapshots" / ("c" * 40))
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{'a' * 64}")
    (snapshot / "config.json").symlink_to(f"../../blobs/{'b' * 40}")
    (tmp_path / "link").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "link", tmp_path / "link" / "model.safetensors"):
        opened = open_checkpoint(str(path))
        assert opened.config == CONFIG
        assert [(t.source.identity, t.source.content_addressed) for t in opened.tensors] == [("a" * 64, True)]
    assert build_tree(opened).projections[0].address == "layers.0.attention.query"
    (blobs / ("a" * 64)).unlink()
    refusal(tmp_path / "link")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[1, 2]", b'"llama"', b"null", b"\xff", b"[" * 100_000, b"9" * 5000],
    ids=itertools.count(),
)
def test_a_broken_config_is_refused(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path, **{"model.safetensors": weights(QUERY), "config.json": content})
    assert "config.json" in refusal(tmp_path)
    assert "config.json" in refusal(tmp_path / "model.safetensors")


FUSED = {
    "model.layers.0.self_attn.qkv_proj.weight": (16, 8),
    "model.layers.0.self_attn.query_key_value.weight": (24, 8),
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (6, 8),
    "model.layers.0.self_attn.kv_b_proj.weight": (16, 8),
    "model.layers.0.mlp.gate_up_proj.weight": (7, 8),
    "model.layers.1.self_attn.q_proj.weight": (8, 8),
    "vision_tower.layers.0.self_attn.q_proj.weight": (8, 8),
    "empty.layers.0.self_attn.q_proj.weight": (0, 8),
    "model.layers.0.self_attn.rotary": (),
}
SIZES: dict[str, Any] = {
    "model_type": "phi3", "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "num_hidden_layers": 1, "num_nextn_predict_layers": 1, "kv_lora_rank": 4, "qk_rope_head_dim": 2,
    "qk_nope_head_dim": 4, "v_head_dim": 4, "text_config": {}, "vision_config": {},
}  # fmt: skip
WRONG: list[Any] = [
    "8", "", "\x1b[31m", None, -8, 0, 3, 7, 2.5, 8.0, True, [], [8], {}, {"model_type": []}, 10**30, 10**4000,
]  # fmt: skip


def open_fused(folder: Path, config: dict[str, Any]) -> Tree:
    begin, header = 0, {}
    for name, shape in FUSED.items():
        end = begin + 4 * int(np.prod(shape, dtype=int))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(config) if max(map(_digits, config.values())) < 4300 else "{}"
    fill(folder, **{"model.safetensors": stored(header, bytes(begin)), "config.json": text.encode()})
    tree = tree_or_refusal(folder)
    assert isinstance(tree, Tree)
    return tree


def _digits(value: object) -> int:
    return value.bit_length() // 3 if isinstance(value, int) else 0


def parts(tree: Tree, tensor: str) -> list[tuple[str, int]]:
    return [(p.role, p.rows) for p in tree.projections if p.tensor == tensor and p.block != "other"]


QKV = "model.layers.0.self_attn.qkv_proj.weight"


def test_a_right_config_splits_what_is_fused(tmp_path: Path) -> None:
    tree = open_fused(tmp_path, SIZES)
    assert parts(tree, QKV) == [("query", 8), ("key", 4), ("value", 4)]
    assert len(parts(tree, "model.layers.0.self_attn.kv_b_proj.weight")) == 2


@pytest.mark.parametrize("key", SIZES)
def test_a_config_of_wrong_types_never_splits_wrongly(tmp_path: Path, key: str) -> None:
    for wrong in WRONG:
        tree = open_fused(tmp_path, SIZES | {key: wrong})
        for tensor, shape in FUSED.items():
            split = parts(tree, tensor)
            assert sum(rows for _, rows in split) in (0, *shape[:1]), (wrong, tensor, split)
            whole = [p for p in tree.projections if p.tensor == tensor and p.block == "other"]
            assert bool(split) != bool(whole)


@pytest.mark.parametrize("heads", [3, 5, 16, 10**6])
def test_heads_that_do_not_divide_leave_the_tensor_whole_and_say_so(tmp_path: Path, heads: int) -> None:
    tree = open_fused(tmp_path, SIZES | {"num_attention_heads": heads})
    (whole,) = [p for p in tree.projections if p.tensor == QKV]
    assert (whole.block, whole.rows) == ("other", 16)
    assert "cannot be split" in whole.note


ODD_NAMES = [
    "", ".", ".weight", "*", "a b", "%41", "A", "[bold]x[/bold]", "a/b", "a\\b", "\n", "\x1b]0;title\x07", "\u202e",
    "\u200b", "x" * 3000, "layers.0.self_attn.q_proj.weight", "\x1b[2Ja.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.\x1b[31mq_proj.weight", "model.layers.0.\n.q_proj.weight",
    "model.layers.0.mlp.[red].weight", "*.layers.0.self_attn.q_proj.weight", "b c.layers.0.self_attn.q_proj.weight",
    "layers.0.layers.1.mlp.up_proj.weight", "layers.-1.mlp.up_proj.weight", "layers.00.mlp.up_proj.weight",
    "layers.0.mlp.up_proj.weight", "layers.99999999999999999999.mlp.up_proj.weight", "layers.٣.mlp.up_proj.weight",
    "experts.1.layers.0.experts.2.experts.3.up_proj.weight", "模型.layers.0.mlp.gate_proj.weight",
]  # fmt: skip


def test_tensors_with_odd_names_get_safe_addresses(tmp_path: Path) -> None:
    fill(tmp_path, **{"model.safetensors": weights(*ODD_NAMES)})
    tree = tree_or_refusal(tmp_path)  # checks that addresses are unique and printable, and no tensor is lost
    assert isinstance(tree, Tree)
    for p in tree.projections:
        assert printable(p.tensor).isprintable()
        assert (p.role + p.note + (p.problem or "")).isprintable()


@pytest.mark.parametrize(
    "name",
    ["a1²2", "layers." + "9" * 5000 + ".mlp.up_proj.weight", "9" * 5000],
    ids=["superscript", "layer", "name"],
)
def test_digits_that_are_no_number(tmp_path: Path, name: str) -> None:
    fill(tmp_path, **{"model.safetensors": weights(name)})
    assert isinstance(tree_or_refusal(tmp_path), Tree)


def test_a_towers_label_is_safe(tmp_path: Path) -> None:
    prefixes = ("encoder", "\x1b[2Ja")
    fill(tmp_path, **{"model.safetensors": weights(*(f"{p}.layers.0.self_attn.q_proj.weight" for p in prefixes))})
    labels = [p.tower or "" for p in build_tree(open_checkpoint(str(tmp_path))).projections]
    assert len(labels) == 2
    assert all(label.isprintable() for label in labels)


@pytest.mark.parametrize("name", ["[red]x[bold]", "\x1b[2J", "a\nb", "\u202etxt", os.fsdecode(b"\xff"), "x" * 200])
@pytest.mark.parametrize("content", [b"{}", weights(QUERY)], ids=["broken", "whole"])
def test_a_file_with_an_odd_name(tmp_path: Path, name: str, content: bytes) -> None:
    folder = fill(tmp_path / name, **{f"{name}.safetensors": content})
    outcomes = {type(tree_or_refusal(path)) for path in (folder, folder / f"{name}.safetensors")}
    assert outcomes == {str if content == b"{}" else Tree}
    refusal(folder / f"{name}.gguf")
    refusal(fill(folder / "empty"))


@pytest.mark.parametrize("name", ["gpt2", "org/tiny", "gpt2@main"])
def test_a_path_that_exists_wins_over_a_hub_id(hub: HubServer, tmp_path: Path, name: str) -> None:
    hub.push("gpt2", {"model.safetensors": weights(DOWN)})
    hub.push("org/tiny", {"model.safetensors": weights(DOWN)})
    fill(tmp_path / name, **{"model.safetensors": weights(KEY)})
    opened = open_checkpoint(name)
    assert {t.name for t in opened.tensors} == {KEY}
    assert (opened.commit, opened.location) == ("", Path(name))
    assert hub.requests == []

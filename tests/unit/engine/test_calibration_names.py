"""Which numbers of an imatrix are those of a projection, held against the gguf package's table of names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from calibration_files import legacy, stats, write_gguf, write_moments
from safetensors.numpy import load_file, save_file

from rankscope.engine.calibration.file_weighting import FileWeighting, open_weighting
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.errors import WeightsError
from rankscope.engine.spectrum import Projection, Slice

ARCH = gguf.MODEL_ARCH
LLAMA = {f"self_attn.{n}_proj": (24, 24) for n in "qo"} | {f"self_attn.{n}_proj": (8, 24) for n in "kv"}
MLP = {"mlp.gate_proj": (40, 24), "mlp.up_proj": (40, 24), "mlp.down_proj": (24, 40)}
EXPERT = {"gate_proj": (12, 24), "up_proj": (12, 24), "down_proj": (24, 12)}
HEADS = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 2}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 5, "linear_value_head_dim": 7}

MODELS: dict[str, tuple[gguf.MODEL_ARCH, str, Mapping[str, tuple[int, ...]], Mapping[str, Any]]] = {
    "llama": (ARCH.LLAMA, "model.layers.{}.", LLAMA | MLP, {}),
    "phi3": (
        ARCH.PHI3,
        "model.layers.{}.",
        {
            "self_attn.qkv_proj": (40, 24),
            "self_attn.o_proj": (24, 24),
            "mlp.gate_up_proj": (80, 24),
            "mlp.down_proj": (24, 40),
        },
        {},
    ),
    "gpt_neox": (
        ARCH.GPTNEOX,
        "gpt_neox.layers.{}.",
        {
            "attention.query_key_value": (72, 24),
            "attention.dense": (24, 24),
            "mlp.dense_h_to_4h": (40, 24),
            "mlp.dense_4h_to_h": (24, 40),
        },
        {"num_key_value_heads": 6},
    ),
    "qwen2_moe": (
        ARCH.QWEN2MOE,
        "model.layers.{}.",
        LLAMA
        | {f"mlp.experts.{e}.{name}": shape for e in range(3) for name, shape in EXPERT.items()}
        | {f"mlp.shared_expert.{name}": shape for name, shape in EXPERT.items()},
        {"num_experts": 3},
    ),
    "deepseek_v2": (
        ARCH.DEEPSEEK2,
        "model.layers.{}.",
        {
            "self_attn.q_a_proj": (17, 24),
            "self_attn.q_b_proj": (66, 17),
            "self_attn.kv_a_proj_with_mqa": (17, 24),
            "self_attn.kv_b_proj": (84, 11),
            "self_attn.o_proj": (24, 54),
        }
        | MLP,
        {"num_key_value_heads": 6, "kv_lora_rank": 11, "qk_rope_head_dim": 6, "qk_nope_head_dim": 5, "v_head_dim": 9},
    ),
    "qwen3_5_text": (
        ARCH.QWEN35,
        "model.layers.{}.",
        {
            "linear_attn.in_proj_qkv": (48, 24),
            "linear_attn.in_proj_z": (28, 24),
            "linear_attn.in_proj_a": (4, 24),
            "linear_attn.in_proj_b": (4, 24),
            "linear_attn.out_proj": (24, 28),
        }
        | MLP,
        LINEAR,
    ),
    "qwen3_next": (
        ARCH.QWEN3NEXT,
        "model.layers.{}.",
        {"linear_attn.in_proj_qkvz": (76, 24), "linear_attn.in_proj_ba": (8, 24), "linear_attn.out_proj": (24, 28)},
        LINEAR,
    ),
    "mamba": (
        ARCH.MAMBA,
        "backbone.layers.{}.",
        {"mixer.in_proj": (60, 24), "mixer.x_proj": (13, 30), "mixer.dt_proj": (30, 5), "mixer.out_proj": (24, 30)},
        {},
    ),
    "lfm2": (
        ARCH.LFM2,
        "model.layers.{}.",
        {"conv.in_proj": (72, 24), "conv.out_proj": (24, 24)},
        {},
    ),
}


def saved(folder: Path, kind: str) -> Path:
    """A checkpoint of two layers of this kind, under its names on the Hub."""
    _, prefix, shapes, config = MODELS[kind]
    rng = np.random.default_rng(3)
    tensors = {
        f"{prefix.format(layer)}{name}.weight": rng.standard_normal(shape, np.float32)
        for layer in range(2)
        for name, shape in shapes.items()
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **HEADS, **config}))
    return folder


def opened(model: Path, file: Path) -> tuple[FileWeighting, list[Projection]]:
    checkpoint = open_checkpoint(str(model))
    projections = [p for p in build_tree(checkpoint).projections if p.block != "other"]
    return open_weighting(str(file), checkpoint.name, checkpoint.config), projections


def mean_squares(weighting: FileWeighting, projection: Projection) -> np.ndarray[Any, Any]:
    (operand,) = weighting.moment(projection).operands
    assert operand.load is not None
    return operand.load()


@pytest.mark.parametrize("kind", MODELS)
def test_every_projection_has_the_numbers_that_ggufs_own_table_says(tmp_path: Path, kind: str) -> None:
    table = gguf.get_tensor_name_map(MODELS[kind][0], 2)
    _, projections = opened(saved(tmp_path / "model", kind), write_gguf(tmp_path / "a", {"blk.0.x": stats(4)}))
    assert len(projections) >= 8
    named, held = {}, {}
    for p in projections:
        name = table.get_name(re.sub(r"experts\.\d+", "experts", p.tensor), try_suffixes=(".weight",))
        assert name is not None
        named[p.address] = name
        held[name] = stats(p.cols, (512,) * (3 if p.expert is not None else 1), seed=len(held))
    weighting, projections = opened(tmp_path / "model", write_gguf(tmp_path / "imatrix.gguf", held))
    assert weighting.warnings == ()
    for p in projections:
        expected = held[named[p.address]].sums[p.expert or 0].astype(float) / 512
        found = mean_squares(weighting, p)
        if (kind, p.role) == ("qwen3_5_text", "output"):  # in another order: test_calibration_channels
            expected, found = np.sort(expected), np.sort(found)
        np.testing.assert_array_equal(found, expected)


def _in_gguf(folder: Path, kind: str) -> Path:
    """The weights of a checkpoint as GGUF: of experts, stacks."""
    architecture, *_ = MODELS[kind]
    table = gguf.get_tensor_name_map(architecture, 2)
    stacks: dict[str, list[np.ndarray[Any, Any]]] = {}
    for name, array in sorted(load_file(folder / "model.safetensors").items()):
        theirs = table.get_name(re.sub(r"experts\.\d+", "experts", name), try_suffixes=(".weight",))
        assert theirs is not None
        stacks.setdefault(theirs, []).append(array)
    file = folder.with_suffix(".gguf")
    writer = gguf.GGUFWriter(str(file), gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_expert_count(3)
    for name, arrays in stacks.items():
        writer.add_tensor(name, np.stack(arrays) if "_exps" in name else arrays[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("kind", ["llama", "phi3", "qwen2_moe"])
def test_one_imatrix_for_a_model_and_for_its_gguf(tmp_path: Path, kind: str) -> None:
    model = saved(tmp_path / "model", kind)
    as_gguf = _in_gguf(model, kind)
    held = {
        t.name: stats(t.shape[-1], (512,) * 3 if len(t.shape) == 3 else (512,), seed=n)
        for n, t in enumerate(open_checkpoint(str(as_gguf)).tensors)
    }
    file = write_gguf(tmp_path / "imatrix.gguf", held)
    digests = []
    for path in (model, as_gguf):
        weighting, projections = opened(path, file)
        digests.append({p.address: weighting.moment(p).digest for p in projections})
    assert digests[0] == digests[1]
    assert len(digests[0]) == {"llama": 14, "phi3": 14, "qwen2_moe": 32}[kind]


@pytest.mark.parametrize("as_gguf", [False, True])
def test_experts_of_another_width_in_a_file_of_old(tmp_path: Path, as_gguf: bool) -> None:
    """Its one count for all experts does not say how many there are: the model does."""
    name = "blk.0.ffn_gate_exps.weight"
    model = saved(tmp_path / "m", "qwen2_moe")
    for cols, said in ((24, ""), (12, f"{name} takes 12 input features in the file, not 24"), (48, "takes 48 input")):
        (tmp_path / "a.dat").write_bytes(legacy({name: stats(cols, (512, 99, 7))}))
        weighting, projections = opened(_in_gguf(model, "qwen2_moe") if as_gguf else model, tmp_path / "a.dat")
        expert = next(p for p in projections if p.address == "layers.0.expert.1.gate")
        if said:
            assert said in refused(weighting, [expert], expert.address)
        else:
            assert weighting.moment(expert).cols == cols


def test_the_demo_is_weighted_whole(tmp_path: Path) -> None:
    demo = open_checkpoint("demo")
    matrices = [t for t in demo.tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    held = {t.name: stats(t.shape[1], (512,), seed=n) for n, t in enumerate(matrices)}
    file = tmp_path / "SmolLM2-135M-Instruct.imatrix"
    file.write_bytes(legacy(held))
    weighting, projections = opened(Path("demo"), file)
    assert len({weighting.moment(p).digest for p in projections}) == len(projections) == 210
    assert weighting.warnings == ()
    assert (weighting.name, weighting.label) == ("imatrix", f"imatrix {file.name} (wiki.train.raw, 1 chunk)")


def refused(weighting: FileWeighting, projections: Iterable[Projection], address: str) -> str:
    with pytest.raises(WeightsError) as refusal:
        weighting.moment(next(p for p in projections if p.address == address))
    return str(refusal.value)


def test_what_is_not_in_the_file_is_told_by_name(tmp_path: Path) -> None:
    held = {
        "blk.1.attn_q.weight": stats(24),
        "blk.1.ffn_gate.weight": stats(25),
        "blk.1.ffn_down.weight": stats(40, (0,)),
    }
    weighting, projections = opened(saved(tmp_path / "m", "llama"), write_gguf(tmp_path / "a", held))
    assert weighting.moment(next(p for p in projections if p.address == "layers.1.attention.query")).cols == 24
    said = refused(weighting, projections, "layers.0.attention.query")
    assert said == "model.layers.0.self_attn.q_proj.weight has no moments in the file"
    assert "blk.1.ffn_gate.weight takes 25 input features in the file, not 24" in refused(
        weighting, projections, "layers.1.mlp.gate"
    )
    assert "blk.1.ffn_down.weight is unseen" in refused(weighting, projections, "layers.1.mlp.down")


def test_a_vector_has_no_moments(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a", {"blk.0.attn_norm.weight": stats(24)})
    weighting, projections = opened(saved(tmp_path / "m", "llama"), file)
    vector = replace(projections[0], tensor="blk.0.attn_norm.weight", rows=0, cols=0)
    assert refused(weighting, [vector], vector.address) == "blk.0.attn_norm.weight is not a matrix"


def test_the_absorbed_halves_of_latent_attention_are_not_used(tmp_path: Path) -> None:
    held = {f"blk.{layer}.attn_{half}_b.weight": stats(11, (512,), matrices=6) for layer in range(2) for half in "kv"}
    file = write_gguf(tmp_path / "a", held)
    weighting, projections = opened(saved(tmp_path / "m", "deepseek_v2"), file)
    for role in ("key_b", "value_b"):
        said = refused(weighting, projections, f"layers.1.attention.{role}")
        assert said.startswith("model.layers.1.self_attn.kv_b_proj.weight is not weighted")
    stack = replace(projections[0], tensor="blk.0.attn_k_b.weight", slice=Slice(0, 1, 0, 5, 2), cols=11)
    assert "attn_k_b and attn_v_b" in refused(weighting, [stack], stack.address)
    file = write_gguf(tmp_path / "b", held | {"model.layers.0.self_attn.kv_b_proj.weight": stats(11, (512,))})
    weighting, _ = opened(tmp_path / "m", file)
    of_gguf = replace(next(p for p in projections if p.address == "layers.0.attention.key_b"), tensor=stack.tensor)
    assert weighting.moment(of_gguf).cols == 11  # the model's own has the input of both


def test_projections_that_a_name_does_not_tell_apart_are_refused(tmp_path: Path) -> None:
    weighting, projections = opened(
        saved(tmp_path / "m", "llama"), write_gguf(tmp_path / "a", {"blk.0.attn_q.weight": stats(24)})
    )
    query = projections[0]
    assert query.address == "layers.0.attention.query"
    for other in (
        replace(
            query, address="layers.0.self_attn_1.attention.query", tensor="model.layers.0.self_attn.1.q_proj.weight"
        ),
        replace(
            query, address="vision.layers.0.attention.query", tower="vision", tensor="visual.blocks.0.attn.q.weight"
        ),
        replace(
            query, address="mtp.layers.0.attention.query", tower="mtp", tensor="mtp.layers.0.self_attn.q_proj.weight"
        ),
    ):
        assert "has no moments in the file" in refused(weighting, [other], other.address)


def test_the_head_is_output_in_gguf(tmp_path: Path) -> None:
    model = saved(tmp_path / "m", "llama")
    save_file(
        {**load_file(model / "model.safetensors"), "lm_head.weight": np.ones((9, 24), np.float32)},
        model / "model.safetensors",
    )
    checkpoint = open_checkpoint(str(model))
    head = next(p for p in build_tree(checkpoint).projections if p.tensor == "lm_head.weight")
    held = {"output.weight": stats(24, (3,))}
    weighting = open_weighting(str(write_gguf(tmp_path / "a", held)), "m", checkpoint.config)
    np.testing.assert_array_equal(mean_squares(weighting, head), held["output.weight"].sums[0].astype(float) / 3)


def test_moments_under_names_with_another_prefix(tmp_path: Path) -> None:
    name = "language_model.layers.1.mlp.gate_proj"
    x2 = np.arange(1.0, 25.0)
    file = write_moments(
        tmp_path / "m.safetensors",
        {f"{name}.x2": x2, f"{name}.count": np.array(2.0)},
        inputs=json.dumps({name.replace("gate", "up"): name}),
    )
    for model in (folder := saved(tmp_path / "m", "llama"), _in_gguf(folder, "llama")):
        weighting, projections = opened(model, file)
        assert (weighting.name, weighting.label) == ("moments", "moments m.safetensors (2 tokens)")
        for p in projections:
            if p.layer == 1 and p.role in ("gate", "up"):
                np.testing.assert_array_equal(mean_squares(weighting, p), x2 / 2)
            else:
                assert "has no moments in the file" in refused(weighting, [p], p.address)


def test_experts_that_stand_alone_in_the_file(tmp_path: Path) -> None:
    held = {f"blk.0.ffn_{role}.{e}.weight": stats(24, (512,), seed=e) for e in range(2) for role in ("gate", "up")}
    weighting, projections = opened(saved(tmp_path / "m", "qwen2_moe"), write_gguf(tmp_path / "a", held))
    for p in projections:
        if p.layer == 0 and p.expert in (0, 1) and p.role != "down":
            expected = held[f"blk.0.ffn_{p.role}.{p.expert}.weight"].sums[0].astype(float) / 512
            np.testing.assert_array_equal(mean_squares(weighting, p), expected)
        else:
            assert "has no moments in the file" in refused(weighting, [p], p.address)


def test_moments_of_another_tower_are_not_those_of_the_text(tmp_path: Path) -> None:
    names = [f"{tower}.layers.0.self_attn.q_proj.weight" for tower in ("vision_tower.encoder", "audio_tower", "mtp")]
    sums = {f"{name}.{kind}": np.ones(24 if kind == "x2" else 1) for name in names for kind in ("x2", "count")}
    weighting, projections = opened(saved(tmp_path / "m", "llama"), write_moments(tmp_path / "m.safetensors", sums))
    assert "has no moments in the file" in refused(weighting, projections, "layers.0.attention.query")

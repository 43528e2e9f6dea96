"""Which layers keep a cache, with how many heads, and how their keys are rotated: against transformers' modules and
configurations where it has them."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import saved
from transformers import AutoConfig

from rankscope.engine.catalogue import rope
from rankscope.engine.catalogue.caches import HeadsOf, caches
from rankscope.engine.catalogue.rope import NO_ROPE, rope_of
from rankscope.engine.errors import WeightsError

MODELS = Path(find_spec("transformers").origin).parent / "models"  # type: ignore[union-attr, arg-type]
ROTATES = ("rotate_half", "rotate_every_two", "_apply_rotary_emb")
TEXT = {"qwen2_vl_text": "qwen2_vl", "qwen2_5_vl_text": "qwen2_5_vl", "gemma3_text": "gemma3", "aria_text": "aria"}


def rotation(family: str) -> Any:
    """transformers' function that turns a pair by 90 degrees, cut out of its module: importing 40 takes long."""
    folder = TEXT.get(family, family)
    module = ast.parse((MODELS / folder / f"modeling_{folder}.py").read_text())
    for name in ROTATES[:2]:
        for node in module.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                held: dict[str, Any] = {"torch": torch}
                exec(ast.unparse(node), held)
                return held[name]
    return None


PUBLISHED_ONLY = {"chatglm", "internlm2", "exaone", "minicpm"}  # families of remote code
WITHOUT_A_FUNCTION = {"gpt_oss", "phi"}


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_pairs_are_those_of_transformers(interleaved: bool) -> None:
    families = (rope._INTERLEAVED if interleaved else rope._HALVES) - PUBLISHED_ONLY
    one = torch.eye(8)[:1].reshape(1, 1, 1, 8)
    partner = 1 if interleaved else 4
    tried = 0
    for family in sorted(families):
        if (found := rotation(family)) is not None:
            tried += 1
            assert found(one).flatten().tolist().index(1.0) == partner, family
    assert tried >= len(families) - len(WITHOUT_A_FUNCTION)


@pytest.mark.parametrize("family", ["llama", "phi", "gpt_neox", "glm", "glm4", "stablelm", "persimmon", "nemotron"])
def test_how_many_rows_are_rotated_is_what_transformers_takes(family: str) -> None:
    config = AutoConfig.for_model(family)
    part = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    for stated in (config.to_dict(), {"model_type": family}):
        assert rope_of(stated, False, "k", 0, 80).dims == int(80 * part)
    theta = rope_of(config.to_dict(), False, "k", 0, 80).theta
    assert theta == config.rope_parameters["rope_theta"]


@pytest.mark.parametrize("family", ["smollm3", "cohere2"])
def test_layers_without_rope_are_those_of_transformers(family: str) -> None:
    config = AutoConfig.for_model(family, num_hidden_layers=12)
    types = config.layer_types if family == "cohere2" else config.no_rope_layers
    true = [bool(t == "sliding_attention") if family == "cohere2" else bool(t) for t in types]
    assert not all(true)
    for stated in (config.to_dict(), {"model_type": family}):
        assert [rope_of(stated, False, "k", n, 16) != NO_ROPE for n in range(12)] == true


def test_what_is_not_known_is_refused() -> None:
    for config in ({}, {"model_type": "new"}, {"model_type": "llama", "rotary_dim": 7}):
        with pytest.raises(WeightsError, match="only --rope recompute can be used"):
            rope_of(config, False, "model.layers.0.self_attn.k_proj.weight", 0, 8)
    assert rope_of({"model_type": "gpt2"}, False, "k", 0, 8) == NO_ROPE
    assert rope_of({"model_type": "falcon", "alibi": True}, False, "k", 0, 8) == NO_ROPE


def test_gguf_and_metas_files_have_llamas_pairs_side_by_side() -> None:
    stated = {"model_type": "llama", "rotary_dim": 6, "rope_theta": 5e5}
    assert rope_of(stated, True, "blk.0.attn_k.weight", 0, 8) == rope.Rope(6, True, 5e5)
    assert not rope_of(stated, False, "model.layers.0.self_attn.k_proj.weight", 0, 8).is_interleaved
    assert rope_of({}, False, "layers.0.attention.wk.weight", 0, 8) == rope.Rope(8, True, 1e4)
    assert not rope_of({"model_type": "qwen2"}, True, "blk.0.attn_k.weight", 0, 8).is_interleaved


def attention(prefix: str, kv: int = 4) -> dict[str, torch.Tensor]:
    shapes = {"q": (8, 8), "k": (kv, 8), "v": (kv, 8), "o": (8, 8)}
    return {f"{prefix}.{name}_proj.weight": torch.ones(shape) for name, shape in shapes.items()}


LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 4}


def test_layers_that_own_no_cache_are_left_out(tmp_path: Path) -> None:
    tensors = {k: t for n in range(4) for k, t in attention(f"model.layers.{n}.self_attn").items()}
    for tower in ("vision_tower.encoder.layers", "visual.layers", "audio_tower.layers", "mtp.layers"):
        tensors |= attention(f"{tower}.0.self_attn")
    tensors |= attention("model.encoder.layers.0.self_attn")
    found = {}
    for name, more in (("all", {}), ("shared", {"num_kv_shared_layers": 1})):
        (tmp_path / name).mkdir()
        checkpoint, projections = saved(tmp_path / name, tensors, LLAMA | more)
        found[name] = [next(iter(c.roles.values())).tensor for c in caches(checkpoint, projections)]
    own = [f"model.layers.{n}.self_attn.q_proj.weight" for n in range(4)]
    assert found == {"all": own, "shared": own[:3]}


def test_heads_are_those_of_the_shapes(tmp_path: Path) -> None:
    checkpoint, projections = saved(tmp_path, attention("model.layers.0.self_attn", 2), LLAMA)
    (cache,) = caches(checkpoint, projections)
    heads = HeadsOf(checkpoint).of(cache)
    assert (heads.count, heads.head_dim, heads.rope.dims) == (1, 2, 2)  # one of 4 heads of 2 rows is a key's


@pytest.mark.parametrize("norm", ["k_norm", "k_layernorm", "key_layernorm"])
def test_normed_keys_are_refused(tmp_path: Path, norm: str) -> None:
    tensors = attention("model.layers.0.self_attn") | {f"model.layers.0.self_attn.{norm}.weight": torch.ones(2)}
    checkpoint, projections = saved(tmp_path, tensors, LLAMA)
    with pytest.raises(WeightsError, match="normed before they are rotated"):
        HeadsOf(checkpoint).of(caches(checkpoint, projections)[0])


@pytest.mark.parametrize("more", [{"clip_qkv": 8.0}, {"attn_config": {"clip_qkv": 6}}])
def test_clipped_keys_are_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    checkpoint, projections = saved(tmp_path, attention("model.layers.0.self_attn"), LLAMA | more)
    with pytest.raises(WeightsError, match="clipped"):
        HeadsOf(checkpoint).of(caches(checkpoint, projections)[0])


def test_without_a_configuration_heads_are_not_known(tmp_path: Path) -> None:
    checkpoint, projections = saved(tmp_path, attention("model.layers.0.self_attn"), {})
    with pytest.raises(WeightsError, match="how many heads"):
        HeadsOf(checkpoint).of(caches(checkpoint, projections)[0])

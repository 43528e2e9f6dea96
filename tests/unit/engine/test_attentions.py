"""How the attention of families is made of heads: fused, interleaved and transposed weights against those that were
fused; and what has no product says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import saved
from lapack_reference import lapack

from rankscope.engine.catalogue.attention import Attention, attentions
from rankscope.engine.catalogue.frequencies import frequencies, rope_at
from rankscope.engine.catalogue.rope import Rope
from rankscope.engine.catalogue.rules import cut
from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.derive.formulas import FORMULAS
from rankscope.engine.derive.head_matrices import GROUP_OV, KEY, OV, QK, QUERY, heads_of
from rankscope.engine.errors import WeightsError
from rankscope.engine.spectrum import Projection

HIDDEN = 12
Tensors = dict[str, torch.Tensor]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(heads: int, kv: int, dim: int) -> tuple[torch.Tensor, ...]:
    """Query, key, value by head, (heads, dim, hidden), and the output's columns by head, (heads, hidden, dim)."""
    q, k, v = (random(n, dim, HIDDEN, seed=seed) for seed, n in enumerate((heads, kv, kv)))
    return q, k, v, random(heads, HIDDEN, dim, seed=3)


def values(checkpoint: Checkpoint, p: Projection) -> Any:
    """Singular values of what the engine makes of a row, read as the engine reads."""
    tensors = {t.name: t for t in checkpoint.tensors}
    matrices = []
    for q in p.parents:
        weights, _ = checkpoint.read(tensors[q.tensor])
        matrix = weights if q.slice is None else cut(weights, q.slice)
        matrices.append(matrix.T if q.transposed else matrix)
    assert p.derived is not None
    found: Any = FORMULAS[p.derived.formula](p, matrices)
    return lapack(getattr(found, "matrix", found))


def llama(prefix: str, q: Any, k: Any, v: Any, o: Any) -> Tensors:
    by = {"q": q.reshape(-1, HIDDEN), "k": k.reshape(-1, HIDDEN), "v": v.reshape(-1, HIDDEN)}
    by["o"] = o.permute(1, 0, 2).reshape(HIDDEN, -1)
    return {f"{prefix}.{name}_proj.weight": matrix.contiguous() for name, matrix in by.items()}


def family(name: str) -> tuple[Tensors, dict[str, Any], tuple[torch.Tensor, ...]]:
    """Tensors and configuration of a family, and the parts they were made of."""
    heads, kv, dim = {"gpt_neox": (4, 4, 3), "gpt2": (3, 3, 4), "gemma": (4, 2, 5)}.get(name, (4, 2, 3))
    q, k, v, o = made = parts(heads, kv, dim)
    rows = [w.reshape(-1, HIDDEN) for w in (q, k, v)]
    out = o.permute(1, 0, 2).reshape(HIDDEN, -1).contiguous()
    config = {"model_type": name, "hidden_size": HIDDEN, "num_attention_heads": heads, "num_key_value_heads": kv}
    if name == "phi3":
        at = "model.layers.0.self_attn"
        return {f"{at}.qkv_proj.weight": torch.cat(rows), f"{at}.o_proj.weight": out}, config, made
    if name == "gpt_neox":
        at, fused = "gpt_neox.layers.0.attention", torch.stack([q, k, v], 1).reshape(-1, HIDDEN)
        return {f"{at}.query_key_value.weight": fused, f"{at}.dense.weight": out}, config, made
    if name == "gpt2":
        at, config = "h.0.attn", {"model_type": "gpt2", "n_embd": HIDDEN, "n_head": heads}
        fused = torch.cat(rows).T.contiguous()
        return {f"{at}.c_attn.weight": fused, f"{at}.c_proj.weight": out.T.contiguous()}, config, made
    return llama("model.layers.0.self_attn", *made), config | {"head_dim": dim}, made


def only(tensors: Tensors, config: dict[str, Any], folder: Path) -> tuple[Checkpoint, Attention]:
    checkpoint, projections = saved(folder, tensors, config)
    found, unknown = attentions(checkpoint, projections)
    assert unknown == {}
    return checkpoint, found[0]


@pytest.mark.parametrize("name", ["phi3", "gpt_neox", "gpt2", "gemma", "llama"])
def test_heads_are_those_that_were_fused(name: str, tmp_path: Path) -> None:
    tensors, config, (q, k, v, o) = family(name)
    checkpoint, a = only(tensors, config, tmp_path)
    assert (a.count, a.kv_count, a.dim) == (len(q), len(k), q.shape[1])
    group, last = len(q) // len(k), len(q) - 1
    both = torch.cat([o[h] @ v[-1] for h in range(len(q) - group, len(q))])
    for kind, number, wanted in (
        (QUERY, last, q[last]),
        (KEY, len(k) - 1, k[-1]),
        (QK, last, q[last].T @ k[-1]),
        (QK, 1, q[1].T @ k[1 // group]),
        (OV, last, o[last] @ v[-1]),
        (GROUP_OV, len(k) - 1, both),
    ):
        found, sigma = values(checkpoint, heads_of(a, kind)[number]), lapack(wanted)
        assert abs(found - sigma[: len(found)]).max() < 1e-10 * sigma[0], kind


def test_latent_attention_is_of_the_factors_that_expand_it(tmp_path: Path) -> None:
    """Of each head the rows of its query that meet a key without RoPE, behind which those of the rotated key stand."""
    heads, nope, rope, dim, rank = 3, 4, 2, 5, 7
    q, kv = random(heads, nope + rope, HIDDEN), random(heads, nope + dim, rank, seed=1)
    o = random(HIDDEN, heads * dim, seed=2)
    at = "model.layers.0.self_attn"
    tensors = {
        f"{at}.q_proj.weight": q.reshape(-1, HIDDEN),
        f"{at}.kv_a_proj_with_mqa.weight": random(rank + rope, HIDDEN),
        f"{at}.kv_a_layernorm.weight": torch.ones(rank),
        f"{at}.kv_b_proj.weight": kv.reshape(-1, rank),
        f"{at}.o_proj.weight": o,
    }
    config = {"model_type": "deepseek_v2", "hidden_size": HIDDEN, "num_attention_heads": heads, "kv_lora_rank": rank}
    config |= {"qk_rope_head_dim": rope, "qk_nope_head_dim": nope, "v_head_dim": dim}
    checkpoint, a = only(tensors, config, tmp_path)
    assert (a.is_latent, a.count, a.kv_count, a.query_dim, a.dim, a.value_dim) == (True, 3, 3, 6, 4, 5)
    for h in range(heads):
        row = heads_of(a, QK)[h]
        sigma = lapack(q[h, :nope].T @ kv[h, :nope])
        assert abs(values(checkpoint, row) - sigma[:nope]).max() < 1e-10 * sigma[0]
        sigma = lapack(o.reshape(HIDDEN, heads, dim)[:, h] @ kv[h, nope:])
        assert abs(values(checkpoint, heads_of(a, OV)[h]) - sigma[:dim]).max() < 1e-10 * sigma[0]
    assert row.derived is not None
    assert row.derived.label == "QK, without the rotated rows"


AT = "model.layers.0.self_attn"
QK_NORM, V_NORM, CLIP = "(QK norm)", "(v_norm)", "(clip_qkv)"


@pytest.mark.parametrize(
    ("tensor", "config", "no_qk", "no_ov"),
    [
        ("q_norm", {}, QK_NORM, ""),
        ("k_layernorm", {}, QK_NORM, ""),
        ("v_norm", {}, "", V_NORM),
        ("", {"use_qk_norm": True}, QK_NORM, ""),
        ("", {"model_type": "gemma3n_text"}, "", V_NORM),
        ("", {"clip_qkv": 8.0}, CLIP, CLIP),
        ("", {"attn_config": {"clip_qkv": 6}}, CLIP, CLIP),
        ("", {"model_type": "diffllama"}, "difference of two", "difference of two"),
        ("attn_sub_norm", {"model_type": "bitnet"}, "", "there is a norm between"),
        ("rotary_emb.inv_freq", {"use_qk_norm": False}, "", ""),
    ],
)
def test_what_has_no_product_says_so(
    tensor: str, config: dict[str, Any], no_qk: str, no_ov: str, tmp_path: Path
) -> None:
    tensors, plain, _ = family("llama")
    more = {f"{AT}.{tensor}.weight": torch.ones(HIDDEN)} if tensor else {}
    _, a = only(tensors | more, plain | config, tmp_path)
    for found, wanted, kind in ((a.no_qk, no_qk, QK), (a.no_ov, no_ov, OV)):
        assert (wanted in found, bool(wanted)) == (True, bool(found)), found
        row = heads_of(a, kind)[0]
        assert row.problem == (found or None)
        assert found.count("\n") == 0


def test_an_output_gate_has_no_ov(tmp_path: Path) -> None:
    """Qwen3-Next's query has a gate behind each head."""
    q, k, v, o = parts(4, 2, 3)
    tensors = llama(AT, torch.cat([q, q], 1), k, v, o)
    config = {"model_type": "qwen3_next", "hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2}
    checkpoint, a = only(tensors, config | {"head_dim": 3}, tmp_path)
    assert "a gate" in a.no_ov
    sigma = lapack(q[2].T @ k[1])
    assert abs(values(checkpoint, heads_of(a, QK)[2]) - sigma[:3]).max() < 1e-10 * sigma[0]


def test_heads_that_cannot_be_told_are_said(tmp_path: Path) -> None:
    tensors, config, _ = family("llama")
    for number, wrong in enumerate(({}, config | {"num_attention_heads": 5}, config | {"num_attention_heads": 3})):
        (tmp_path / str(number)).mkdir()
        checkpoint, projections = saved(tmp_path / str(number), tensors, {**wrong, "head_dim": None})
        found, unknown = attentions(checkpoint, projections)
        assert (found, list(unknown)) == ([], ["layers.0.attention"])
        assert unknown["layers.0.attention"].startswith("layers.0.attention: ")


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
    ],
)  # fmt: skip
def test_frequencies_are_those_of_transformers(scaling: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        rope_parameters={"rope_theta": 5e3, **scaling},
        max_position_embeddings=512,
    )
    wanted = LlamaRotaryEmbedding(config).inv_freq.double().tolist()
    stated = {"model_type": "llama", "rope_theta": 5e3, "rope_scaling": scaling}
    for given in (config.to_dict(), stated):
        assert frequencies(given, Rope(32, False, 5e3), 0, False) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    "more",
    [{"rope_scaling": {"type": "yarn", "factor": 2.0}}, {"rope_local_base_freq": 1e4}, {"model_type": "new"}],
)
def test_an_offset_whose_rotation_is_not_known_is_refused(more: dict[str, Any], tmp_path: Path) -> None:
    tensors, config, _ = family("llama")
    checkpoint, projections = saved(tmp_path, tensors, config | more)
    key = next(p for p in projections if p.role == "key")
    with pytest.raises(WeightsError, match=r"layers\.0\.attention\.key: .*only offset 0 can be used"):
        rope_at(checkpoint, key, 3)

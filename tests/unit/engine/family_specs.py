"""The families under test: tiny odd configurations, and where their projections are, found by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import running_modules as running
from torch import nn

_SMALL = {
    "vocab_size": 37,
    "hidden_size": 30,
    "intermediate_size": 41,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_WIDE_HEADS = {**_SMALL, "head_dim": 8}  # heads * head_dim = 48, hidden 30
_LATENT = {
    **_SMALL,
    "num_key_value_heads": 6,
    "kv_lora_rank": 11,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 5,
    "v_head_dim": 9,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 13,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
_GPT2 = {"vocab_size": 37, "n_embd": 21, "n_layer": 2, "n_head": 3, "n_positions": 32}


@dataclass(frozen=True)
class Family:
    """A family under test: `plain` names the running submodule of a layer that is one projection; `measured` finds the
    fused ones.

    `roles` is exactly what each of the layers must hold.
    """

    model_type: str
    config: Mapping[str, Any]
    layers: str
    plain: Mapping[str, str]
    roles: tuple[frozenset[str], ...]
    measured: Callable[[nn.Module], running.States] | None = None
    others: frozenset[str] = field(default_factory=frozenset)
    causal: bool = True


def _twice(roles: str) -> tuple[frozenset[str], ...]:
    return (frozenset(roles.split()),) * 2


_QKVO = "attention.query attention.key attention.value attention.output"
_GATED = _twice(f"{_QKVO} mlp.gate mlp.up mlp.down")
_UNGATED = _twice(f"{_QKVO} mlp.up mlp.down")
_LLAMA = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_EMBEDDED = frozenset({"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"})
_HEADED = _EMBEDDED | {"lm_head.weight"}
_NORMED = {"model.layers.1.self_attn.q_norm.weight", "model.layers.1.self_attn.k_norm.weight"}
_MLA_COMMON = "attention.kv_a attention.key_rope attention.key_b attention.value_b attention.output "
_EXPERTS = " ".join(f"expert.{e}.{role}" for e in range(4) for role in ("gate", "up", "down"))
_MOE = f"shared_expert.gate shared_expert.up shared_expert.down {_EXPERTS}"
_MLA_PLAIN = {role: _LLAMA[role] for role in ("attention.output", "mlp.gate", "mlp.up", "mlp.down")} | {
    f"shared_expert.{role}": f"mlp.shared_experts.{role}_proj" for role in ("gate", "up", "down")
}


def _mla_roles(query: str) -> tuple[frozenset[str], ...]:
    """A dense layer, then one of experts."""
    return (
        frozenset(f"{query} {_MLA_COMMON} mlp.gate mlp.up mlp.down".split()),
        frozenset(f"{query} {_MLA_COMMON} {_MOE}".split()),
    )


FAMILIES = (
    Family("llama", _WIDE_HEADS, "model.layers", _LLAMA, _GATED, others=_HEADED),
    Family("mistral", _WIDE_HEADS, "model.layers", _LLAMA, _GATED, others=_HEADED),
    Family("qwen2", _SMALL, "model.layers", _LLAMA, _GATED, others=_HEADED),
    Family("qwen3", _WIDE_HEADS, "model.layers", _LLAMA, _GATED, others=_HEADED | _NORMED),
    Family("gemma2", _WIDE_HEADS, "model.layers", _LLAMA, _GATED, others=_EMBEDDED),
    Family("gemma3_text", _WIDE_HEADS, "model.layers", _LLAMA, _GATED, others=_EMBEDDED | _NORMED),
    Family(
        "phi",
        _SMALL,
        "model.layers",
        {
            **{role: _LLAMA[role] for role in ("attention.query", "attention.key", "attention.value")},
            "attention.output": "self_attn.dense",
            "mlp.up": "mlp.fc1",
            "mlp.down": "mlp.fc2",
        },
        _UNGATED,
        others=frozenset({"model.embed_tokens.weight", "lm_head.weight", "model.final_layernorm.weight"}),
    ),
    Family(
        "phi3",
        _WIDE_HEADS,
        "model.layers",
        {"attention.output": "self_attn.o_proj", "mlp.down": "mlp.down_proj"},
        _GATED,
        running.phi3_layer,
        others=_HEADED,
    ),
    Family(
        "gpt2",
        {**_GPT2, "bos_token_id": 1, "eos_token_id": 2},
        "transformer.h",
        {"attention.output": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"},
        _UNGATED,
        running.gpt2_layer,
        others=frozenset({"transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight"}),
    ),
    Family(
        "gpt_neox",
        _SMALL,
        "gpt_neox.layers",
        {"attention.output": "attention.dense", "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h"},
        _UNGATED,
        running.gpt_neox_layer,
        others=frozenset({"gpt_neox.embed_in.weight", "embed_out.weight", "gpt_neox.layers.0.input_layernorm.weight"}),
    ),
    Family(
        "bert",
        _SMALL,
        "encoder.layer",
        {
            "attention.query": "attention.self.query",
            "attention.key": "attention.self.key",
            "attention.value": "attention.self.value",
            "attention.output": "attention.output.dense",
            "mlp.up": "intermediate.dense",
            "mlp.down": "output.dense",
        },
        _UNGATED,
        others=frozenset(
            {"embeddings.word_embeddings.weight", "pooler.dense.weight", "encoder.layer.1.output.LayerNorm.weight"}
        ),
        causal=False,
    ),
    Family(
        "deepseek_v2",
        {**_LATENT, "q_lora_rank": None, "n_shared_experts": 2, "topk_method": "greedy"},
        "model.layers",
        {**_MLA_PLAIN, "attention.query": "self_attn.q_proj"},
        _mla_roles("attention.query"),
        running.deepseek_v2_layer,
        others=_HEADED | {"model.layers.1.mlp.gate.weight", "model.layers.0.self_attn.kv_a_layernorm.weight"},
    ),
    Family(
        "deepseek_v3",
        {**_LATENT, "q_lora_rank": 17, "n_shared_experts": 1},
        "model.layers",
        {
            **_MLA_PLAIN,
            "attention.query_a": "self_attn.q_a_proj",
            "attention.query_b": "self_attn.q_b_proj",
        },
        _mla_roles("attention.query_a attention.query_b"),
        running.deepseek_v3_layer,
        others=_HEADED | {"model.layers.1.mlp.gate.weight", "model.layers.0.self_attn.q_a_layernorm.weight"},
    ),
)

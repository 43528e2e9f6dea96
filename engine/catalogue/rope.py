"""How the keys of an attention are rotated by position (RoPE), by family.

That is: which rows of a head form a pair, how many rows are rotated, and with which base. It follows from the model
type and config.json or GGUF metadata, without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import WeightsError, printable
from .layouts import models

_HALVES = models(
    "llama mistral mixtral ministral ministral3 qwen2 qwen2_moe qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text "
    "qwen3 qwen3_moe gemma gemma2 gemma3 gemma3_text phi phi3 phimoe starcoder2 stablelm gpt_neox gpt_neox_japanese "
    "falcon olmo olmo2 olmo3 olmoe granite granitemoe granitemoeshared persimmon nemotron jetmoe dbrx smollm3 arcee "
    "seed_oss bitnet gpt_oss internlm2 exaone minicpm aria_text diffllama"
)
_INTERLEAVED = models("gptj codegen cohere cohere2 glm glm4 helium ernie4_5 ernie4_5_moe chatglm")
_UNROTATED = models(
    "gpt2 gpt_neo gpt_bigcode opt bloom mpt biogpt xglm openai-gpt t5 mt5 umt5 bart mbart pegasus "
    "whisper jamba nemotron_h"
)
_GGUF_HALVES = models(
    "falcon grok dbrx stablelm bitnet qwen qwen2 qwen2moe qwen3 qwen3moe olmo2 olmoe phi2 phi3 phimoe gemma gemma2 "
    "gemma3 starcoder2 openelm gptneox codeshell nemotron exaone gpt-oss"
)
_GGUF_INTERLEAVED = models(
    "llama deci starcoder internlm2 minicpm xverse command-r cohere2 olmo arctic deepseek chatglm granite granitemoe "
    "arcee ernie4_5 ernie4_5-moe smollm3 bailingmoe mistral3"
)
_GGUF_UNROTATED = models("gpt2 bloom mpt jais refact jamba t5")
"""From llama.cpp's llama_model_rope_type; its converter reorders the rows of llama's queries and keys to match."""
_PARTS = {
    **dict.fromkeys(("phi", "persimmon", "nemotron", "glm", "glm4", "chatglm"), 0.5),
    **dict.fromkeys(("stablelm", "gpt_neox"), 0.25),
}
"""The share of a head's rows that is rotated if config.json does not state it; in other families all."""
_META = "attention.wk.weight"
"""The keys in Meta's own files, and in Mistral's, which have no model_type beside them."""
_THETA = 10_000.0
_EVERY = 4
"""SmolLM3 and Cohere 2 have no RoPE in every fourth layer, if config.json does not list these layers."""


@dataclass(frozen=True, slots=True)
class Rope:
    """The first `dims` rows of each head of a key are rotated, the others not; 0 if none are.

    Pair i is turned by position x theta^(-2 i / dims), more slowly for larger i. It consists of rows 2 i and 2 i + 1 if
    `is_interleaved`, else i and i + dims / 2.
    """

    dims: int
    is_interleaved: bool
    theta: float


_FAMILIES = _HALVES, _INTERLEAVED, _UNROTATED
_GGUF_FAMILIES = _GGUF_HALVES, _GGUF_INTERLEAVED, _GGUF_UNROTATED
NO_ROPE = Rope(0, False, _THETA)


def rope_of(config: Mapping[str, Any], is_gguf: bool, tensor: str, layer: int, head_dim: int) -> Rope:
    """The rotation of the key in a tensor, whose heads have `head_dim` rows. `config` is the part for its tower.

    Raises:
        WeightsError: it is not known for this type of model.
    """
    family = str(config.get("model_type") or "")
    if not family and tensor.endswith(_META):
        return Rope(head_dim, True, _number(config, "rope_theta") or _THETA)
    halves, interleaved, unrotated = _GGUF_FAMILIES if is_gguf else _FAMILIES
    if family in unrotated or (family == "falcon" and config.get("alibi")):
        return NO_ROPE
    if family not in interleaved and family not in halves:
        named = f"of {printable(family)}" if family else "without a model_type"
        raise WeightsError(f"it is not known how keys {named} are rotated: only --rope recompute can be used")
    if _is_unrotated(config, family, layer):
        return NO_ROPE
    stated = _stated(config, layer)
    dims = int(_number(config, "rotary_dim") or _part(config, stated, family, is_gguf) * head_dim)
    if dims % 2 or not 0 < dims <= head_dim:
        raise WeightsError(f"{dims} rotated rows for heads of {head_dim}: only --rope recompute can be used")
    theta = _number(stated, "rope_theta") or _number(config, "rope_theta") or _number(config, "rotary_emb_base")
    return Rope(dims, family in interleaved, theta or _THETA)


def _stated(config: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    """The settings of RoPE as transformers 5 writes them, for all layers or for the layer's type; {} if there are
    none."""
    found = config.get("rope_parameters")
    types = config.get("layer_types")
    if isinstance(found, Mapping) and isinstance(types, list) and layer < len(types):
        inner = found.get(str(types[layer]))
        found = inner if isinstance(inner, Mapping) else found
    return found if isinstance(found, Mapping) else {}


def _part(config: Mapping[str, Any], stated: Mapping[str, Any], family: str, is_gguf: bool) -> float:
    """The share of a head's rows that is rotated."""
    places = ((stated, "partial_rotary_factor"), (config, "partial_rotary_factor"), (config, "rotary_pct"))
    found = next(filter(None, (_number(held, key) for held, key in places)), None)
    return found or (1.0 if is_gguf else _PARTS.get(family, 1.0))


def _is_unrotated(config: Mapping[str, Any], family: str, layer: int) -> bool:
    """True if this layer does not rotate keys, though its family does."""
    if family == "smollm3":
        listed = config.get("no_rope_layers")  # 1 where RoPE is applied
        if isinstance(listed, list) and layer < len(listed):
            return not listed[layer]
        return (layer + 1) % (_whole(config, "no_rope_layer_interval") or _EVERY) == 0
    if family == "cohere2":
        types = config.get("layer_types")
        if isinstance(types, list) and layer < len(types):
            return bool(types[layer] != "sliding_attention")
        return (layer + 1) % (_whole(config, "sliding_window_pattern") or _EVERY) == 0
    return False


def _whole(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int and value > 0 else None


def _number(config: Mapping[str, Any], key: str) -> float | None:
    """A positive number from a config.json that may hold anything."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < 1e30 else None

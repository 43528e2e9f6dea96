"""How model families name and fuse their projections: a table of rules, and the one splitter.

A rule says: within a layer, a tensor whose path ends like this is that projection, or these,
side by side along one axis. Singular values do not change under transposition or permutation of
rows, so head order, RoPE permutations and (in, out) storage only matter for which rows belong
to which projection. A new family is a line in FUSED (or nothing, where its names are in PLAIN).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .spectrum import Slice


@dataclass(frozen=True, slots=True)
class Layout:
    """`axis` is `groups` equal groups; each holds the parts (role, width) in order.

    Widths and groups are names of Dims.sizes. All widths may instead be plain numbers: then they
    are shares of the group, whatever its size, and no config is needed.
    """

    axis: int
    groups: int | str
    parts: tuple[tuple[str, int | str], ...]


def _shares(axis: int, groups: int | str, *roles: str) -> Layout:
    return Layout(axis, groups, tuple((role, 1) for role in roles))


QKV = ("query", "key", "value")
CAT = Layout(0, 1, (("query", "queries"), ("key", "keys"), ("value", "keys")))
THIRDS = _shares(0, 1, *QKV)
CONV1D_THIRDS = _shares(1, 1, *QKV)
HEAD = _shares(0, "heads", *QKV)
HALVES = _shares(0, 1, "gate", "up")
LATENT = Layout(0, 1, (("kv_a", "kv_lora_rank"), ("key_rope", "qk_rope_head_dim")))
LATENT_B = Layout(0, "heads", (("key_b", "qk_nope_head_dim"), ("value_b", "v_head_dim")))


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose path in the layer ends with `path` (a regular expression over whole names)."""

    path: str
    block: str
    role: str = ""
    layout: Layout | None = None
    models: frozenset[str] = frozenset()
    transposed: bool = False


def _models(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Names whose meaning depends on the family, by its model_type: looked up before PLAIN.
_GPT2 = _models("gpt2 openai-gpt imagegpt decision_transformer")
_NEOX = _models("gpt_neox gpt_neox_japanese bloom persimmon fuyu")
_ATTENTION = r"(?:self_attn|self_attention|SelfAttention|attention|attn)(?:\.(?:self|attention|attn))?"
FUSED = (
    Rule(r"self_attn\.qkv_proj", "attention", layout=CAT, models=_models("phi3 phi4_multimodal")),
    Rule(r"mlp\.gate_up_proj", "mlp", layout=HALVES),
    Rule(r"attn\.c_attn", "attention", layout=CONV1D_THIRDS, models=_GPT2, transposed=True),
    Rule(r"attn\.c_proj", "attention", "output", models=_GPT2, transposed=True),
    Rule(r"mlp\.c_fc", "mlp", "up", models=_GPT2, transposed=True),
    Rule(r"mlp\.c_proj", "mlp", "down", models=_GPT2, transposed=True),
    Rule(r"(?:self_)?(?:attention|attn)\.query_key_value", "attention", layout=HEAD, models=_NEOX),
    Rule(r"self_attn\.kv_a_proj_with_mqa", "attention", layout=LATENT),
    Rule(r"self_attn\.kv_b_proj", "attention", layout=LATENT_B),
    Rule(r"^attn_qkv", "attention", layout=CAT, models=_models("phi3")),  # GGUF
    Rule(r"^ffn_up", "mlp", layout=HALVES, models=_models("phi3")),  # GGUF
    Rule(r"^attn_qkv", "attention", layout=THIRDS, models=_models("gpt2")),  # GGUF
    Rule(r"attn\.c_attn", "attention", layout=THIRDS, models=_models("qwen")),
    Rule(r"mlp\.w1", "mlp", "up", models=_models("qwen")),
    Rule(r"mlp\.w2", "mlp", "gate", models=_models("qwen")),
)

_CROSS = r"(?:encoder_attn|cross_attn|crossattention|EncDecAttention)(?:\.self)?"
_FFN = r"(?:mlp|feed_forward|ffn|DenseReluDense|experts|shared_experts?|shared_mlp)"


def _roles(block: str, parent: str, **roles: str) -> tuple[Rule, ...]:
    return tuple(Rule(rf"{parent}(?:{names})", block, role) for role, names in roles.items())


_ATTENTION_ROLES = {
    "query": "q_proj|query|query_proj|q_lin|q|wq|Wq",
    "key": "k_proj|key|key_proj|k_lin|k|wk|Wk",
    "value": "v_proj|value|value_proj|v_lin|v|wv|Wv",
    "output": r"o_proj|out_proj|out_lin|c_proj|o|wo|dense|output\.dense",
}
# Names that mean the same in every family that uses them; the first match wins.
PLAIN = (
    *_roles("cross_attention", rf"{_CROSS}\.", **_ATTENTION_ROLES),
    *_roles("attention", rf"{_ATTENTION}\.", **_ATTENTION_ROLES),
    *_roles("attention", r"self_attn\.", query_a="q_a_proj", query_b="q_b_proj"),
    *_roles("mlp", rf"{_FFN}\.", gate="gate_proj|w1|wi_0", up="up_proj|w3|wi_1|wi", down="down_proj|w2|wo"),
    *_roles("mlp", rf"{_FFN}\.", up="fc1|fc_in|c_fc|lin1|dense_h_to_4h", down="fc2|fc_out|c_proj|lin2|dense_4h_to_h"),
    *_roles("mlp", "^", up=r"intermediate\.dense|fc1", down=r"output\.dense|fc2"),
    *_roles("attention", "^attn_", query="q", key="k", value="v", output="output"),  # GGUF
    *_roles("mlp", "^ffn_", gate="gate", up="up", down="down"),  # GGUF
)

# Matrices inside layers that are known to be no projection: routers, gates of one row, tables, scales, and what
# multi-token-prediction layers add.
NOT_PROJECTIONS = re.compile(
    r"(?:^|\.)(?:(?:mlp|block_sparse_moe|feed_forward|moe)\.(?:gate|router(?:\.\w+)*)|shared_expert_gate|ffn_gate_inp"
    r"|relative_attention_bias|e_score_correction_bias|weight_scale(?:_inv)?|eh_proj|shared_head\.head|embed_tokens|A_log|masked_bias|bias)$"
)

# Families whose every projection the rules name, as transformers writes them (GGUF files have names of their own):
# a scan leaves out whatever else their layers hold. In any other family a matrix without a rule may be a
# projection, and a scan computes it under its own name.
KNOWN_FAMILIES = _models(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 gpt2 gpt_neox bert deepseek_v2 deepseek_v3"
)

BLOCKS = ("attention", "cross_attention", "mlp", "shared_expert", "expert", "other")
ROLES = (
    "query", "query_a", "query_b", "key", "kv_a", "key_rope", "key_b", "value", "value_b", "output",
    "gate", "up", "down",
)  # fmt: skip
"""The order of blocks and roles on screen and in tables."""


@lru_cache(maxsize=65536)
def find_rule(path: str, model_type: str) -> Rule | None:
    """The rule for a tensor by its path inside the layer, expert index and `.weight` left out.

    Cached: a model of 91,000 tensors has a few dozen paths.
    """
    for rule in (*FUSED, *PLAIN):
        if (not rule.models or model_type in rule.models) and re.search(rf"(?:^|\.){rule.path}$", path):
            return rule
    return None


_ALIASES = {
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads"),
    "head_dim": ("head_dim",),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "kv_lora_rank": ("kv_lora_rank",),
    "qk_rope_head_dim": ("qk_rope_head_dim",),
    "qk_nope_head_dim": ("qk_nope_head_dim",),
    "v_head_dim": ("v_head_dim",),
}


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers that layouts name, from the keys a raw config.json may use; absent ones are absent."""
    found: dict[str, int] = {}
    for name, keys in _ALIASES.items():
        values = [config[key] for key in keys if type(config.get(key)) is int and config[key] > 0]
        if values:
            found[name] = values[0]
    if "heads" in found:
        heads = found["heads"]
        kv_heads = found.setdefault("kv_heads", heads)
        if "hidden" in found:
            found.setdefault("head_dim", found["hidden"] // heads)
        if "head_dim" in found:
            found["queries"] = heads * found["head_dim"]
            found["keys"] = kv_heads * found["head_dim"]
    return found


def split(shape: tuple[int, int], layout: Layout, known: Mapping[str, int]) -> list[tuple[str, Slice]]:
    """Role and slice of each part of a fused tensor.

    Raises:
        ValueError: a number is missing from config.json, or the parts do not fill the axis.
    """
    wanted = [layout.groups, *(width for _, width in layout.parts)]
    missing = sorted({name for name in wanted if isinstance(name, str) and name not in known})
    if missing:
        raise ValueError(f"config.json gives no {', '.join(missing)}: cannot be split")
    size = shape[layout.axis]
    groups = known[layout.groups] if isinstance(layout.groups, str) else layout.groups
    if all(isinstance(width, int) for _, width in layout.parts):
        unit = size // (groups * len(layout.parts))
        widths = [unit for _ in layout.parts]
    else:
        widths = [known[str(width)] for _, width in layout.parts]
    if size == 0 or groups * sum(widths) != size:
        parts = " + ".join(f"{role} {width}" for (role, _), width in zip(layout.parts, widths, strict=True))
        raise ValueError(f"expected {groups} x ({parts}) along axis {layout.axis} of {size}: cannot be split")
    offsets = [sum(widths[:i]) for i in range(len(widths))]
    return [
        (role, Slice(layout.axis, groups, offset, width))
        for (role, _), offset, width in zip(layout.parts, offsets, widths, strict=True)
    ]


def cut(array: Any, part: Slice) -> Any:
    """The slice of a 2-D array or tensor (numpy or torch), shape (groups * width) along the axis."""
    if part.axis == 1:
        rows = array.shape[0]
        return array.reshape(rows, part.groups, -1)[:, :, part.offset : part.offset + part.width].reshape(rows, -1)
    cols = array.shape[1]
    return array.reshape(part.groups, -1, cols)[:, part.offset : part.offset + part.width].reshape(-1, cols)

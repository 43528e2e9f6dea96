"""The numbers that layouts name: from the shapes of a layer if they tell, else from config.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from .families import FLAGS

Sizes: TypeAlias = Mapping[str, int]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shapes of a layer's other tensors, (out, in): by `block.role`, and for vectors by the last word of their name."""

_TOO_LARGE = 1 << 48
_ALIASES = {
    "heads": (
        "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "encoder_attention_heads",
        "decoder_attention_heads", "num_query_heads",
    ),
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed", "model_dim", "dim", "embed_dim", "emb_dim"),
    "kv_heads": (
        "num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "num_query_groups",
        "attn_config.kv_n_heads", "multi_query_group_num",
    ),
    "head_dim": ("head_dim", "kv_channels", "d_kv", "attention_head_dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"),
    "experts": (
        "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "ffn_config.moe_num_experts",
    ),
    "kv_lora_rank": ("kv_lora_rank",),
    "qk_rope_head_dim": ("qk_rope_head_dim",),
    "qk_nope_head_dim": ("qk_nope_head_dim",),
    "v_head_dim": ("v_head_dim",),
    "delta_heads": ("linear_num_key_heads",),
    "delta_key": ("linear_key_head_dim",),
    "o_groups": ("o_groups",),
    "indexer_keys": ("indexer_head_dim", "index_head_dim"),
}  # fmt: skip


def family_of(config: Mapping[str, Any]) -> str:
    """The model_type, followed by the flag that decides its layout if one does: `falcon+multi_query`."""
    model_type = str(config.get("model_type", ""))
    for flag, default in FLAGS.get(model_type, ()):
        if config.get(flag, default):
            return f"{model_type}+{flag}"
    return model_type


def sizes(config: Mapping[str, Any], layer: int = 0) -> dict[str, int]:
    """The numbers of a config.json under one name each; missing ones are absent, lists give the value of `layer`."""
    found: dict[str, int] = {}
    for name, keys in _ALIASES.items():
        values = (_number(config, key, layer) for key in keys)
        if value := next((v for v in values if v is not None), None):
            found[name] = value
    if str(config.get("model_type")) == "chatglm" and not config.get("multi_query_attention"):
        found.pop("kv_heads", None)  # the number of groups is stated, but not used
    return found


def _number(config: Mapping[str, Any], key: str, layer: int) -> int | None:
    """A positive whole number at a key, which may be dotted; from a list, the value of `layer`."""
    first, _, rest = key.partition(".")
    value = config.get(first)
    if rest:
        return _number(value, rest, layer) if isinstance(value, Mapping) else None
    if isinstance(value, list) and layer < len(value):
        value = value[layer]
    return value if type(value) is int and 0 < value < _TOO_LARGE else None


def resolve(known: Sizes, shapes: Shapes, block: str, size: int, roles: Collection[str]) -> dict[str, int]:
    """Every number that a layout of these roles may name, for a fused tensor of `block` with `size` along its axis.

    Shapes take precedence over config.json; numbers that neither tells are absent.

    Raises:
        ValueError: the shapes of the layer contradict the heads.
    """
    found = dict(known)
    output = shapes.get(f"{block}.output", ())
    width = output[1] if len(output) == 2 else 0
    _resolve_heads(found, shapes, width, size, roles)
    if "kv_a" in roles:
        _resolve_latent(found, shapes, size)
    if "key_b" in roles or "query_b" in roles:
        _resolve_expanded(found, width, size)
    if width and block in ("attention", "cross_attention"):
        found["attended"] = width
    if width:
        found["inner"] = found["delta_values"] = width
        found["delta_keys"] = (size - (2 if "z" in roles else 1) * width) // 2
        if heads := found.get("delta_heads"):
            found["delta_value"], found["delta_key"] = width // heads, found["delta_keys"] // heads
        if len(decay := shapes.get("A_log", shapes.get("ssm_a", ()))) == 1:
            found["ssm_heads"] = decay[0]
            found["states"] = (size - 2 * width - decay[0]) // 2
    if dt := shapes.get("ssm.dt_b"):
        found["dt_rank"], found["state"] = dt[1], (size - dt[1]) // 2
    if router := shapes.get("router"):
        found["experts"] = router[0]
    if keys := shapes["indexer_norm"][0] if "indexer_norm" in shapes else found.get("indexer_keys"):
        found["indexer_keys"], found["indexer_queries"] = keys, size - keys  # one key for all heads
    found["pairs"] = size // 2
    return found


def _resolve_heads(found: dict[str, int], shapes: Shapes, width: int, size: int, roles: Collection[str]) -> None:
    """Add heads, their size, and the rows of all queries and of all keys; `width`: inputs of the output matrix."""
    heads, head_dim = _heads(found, shapes, width)
    queries = width or heads * head_dim
    if not queries:
        return
    found["queries"] = queries
    if heads:
        found["heads"], found["head_dim"] = heads, head_dim
    if "kv_heads" in found and head_dim:
        found["keys"] = found["kv_heads"] * head_dim
    elif "query" not in roles:
        found["keys"] = size // 2
    else:
        found["keys"] = max(0, size - queries) // 2 if width else queries
    kv_heads = found["keys"] // head_dim if head_dim else 0
    if kv_heads:
        found.setdefault("kv_heads", kv_heads)
        found["group_queries"] = queries // found["kv_heads"]


def _heads(found: Sizes, shapes: Shapes, width: int) -> tuple[int, int]:
    """Number and size of the query heads, 0 if not known: by a norm of each head, else by the output matrix."""
    heads, head_dim = found.get("heads", 0), found.get("head_dim", 0)
    norm = next((shapes[name][0] for name in ("q_norm", "attn_q_norm", "q_layernorm") if name in shapes), 0)
    # For latent queries the norm is that of the latent.
    if norm and width and norm != width and width % norm == 0 and "attention.query_a" not in shapes:
        return width // norm, norm
    if heads and width:
        return heads, width // heads
    if heads and not head_dim:
        return heads, found.get("hidden", 0) // heads
    return heads, head_dim


def _resolve_latent(found: dict[str, int], shapes: Shapes, size: int) -> None:
    """Add the widths of the latent of keys and values, and of the rotated key beside it, which takes the rest."""
    if latent := _latent_width(shapes):
        found["kv_lora_rank"], found["qk_rope_head_dim"] = latent, size - latent


def _latent_width(shapes: Shapes) -> int:
    """The width of the latent of keys and values, from its norm or the matrix that reads it; 0 without both."""
    norms = ("kv_a_layernorm", "attn_kv_a_norm", "kv_a_norm")
    expanded = shapes.get("attention.key_b+value_b", ())
    return next((shapes[name][0] for name in norms if name in shapes), expanded[1] if len(expanded) == 2 else 0)


def _resolve_expanded(found: dict[str, int], width: int, size: int) -> None:
    """Add the rows of each head that are expanded from a latent, beside a value: a key before rotation, or a query.

    Raises:
        ValueError: the columns of the output matrix are no multiple of the heads.
    """
    if not (heads := found.get("heads")) or not width:
        return
    if width % heads:
        raise ValueError(f"the output matrix has {width} columns for {heads} heads: cannot be split")
    found["v_head_dim"] = width // heads
    found["qk_nope_head_dim"] = found["latent_query"] = size // heads - width // heads

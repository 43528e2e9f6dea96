"""The heads of a layer's attention, and whether products of a head's matrices describe what the head does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import WeightsError
from ..spectrum import Projection
from .layouts import models
from .names import inner_config, locate
from .norms import Norms
from .sizes import sizes
from .tree import ListedCheckpoint

_QK_NORM = re.compile(r"(?:^|\.|_)(?:[qk]|qk|query|key)_?(?:layer)?norm\b|\.[qk]_ln\b")
_V_NORM = re.compile(r"(?:^|\.|_)v(?:alue)?_?(?:layer)?norm\b")
_V_NORMED = models("gemma3n gemma3n_text gemma4 gemma4_text")
"""Families whose values are normed without gains, so that no tensor shows it."""
_QK_FLAGS = ("use_qk_norm", "qk_norm", "qk_layernorm", "qk_layernorms", "use_qk_l2norm", "attn_config.qk_ln")
_MIXES = models("diffllama diffllama2")
"""Families whose heads are differences of two."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention: `count` query heads, of which the first `count / kv_count` use KV head 0, and so on.

    `query`, `key`, `value` and `output` are its projections; for latent attention (MLA) those that expand the latents.
    A head has `query_dim` rows of the query, the first `dim` of which are multiplied with its `dim` rows of the key,
    and `value_dim` rows of the value. `no_qk` and `no_ov` say why no product of query and key, or of value and output,
    describes a head; "" if one does.
    """

    address: str
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    count: int
    kv_count: int
    query_dim: int
    dim: int
    value_dim: int
    no_qk: str = ""
    no_ov: str = ""

    @property
    def group(self) -> int:
        """The number of query heads that share a KV head."""
        return self.count // self.kv_count

    @property
    def is_latent(self) -> bool:
        """True if keys and values are expanded from a latent."""
        return self.key.role == "key_b"


def attentions(
    checkpoint: ListedCheckpoint, projections: Iterable[Projection]
) -> tuple[list[Attention], dict[str, str]]:
    """The attentions of a checkpoint, in its order, from its projections (none derived); and for each other attention,
    by its address, a sentence that says why its heads are not known."""
    groups: dict[str, dict[str, Projection]] = {}
    for p in projections:
        is_matrix = p.rows and not p.is_product
        if p.block in ("attention", "cross_attention") and p.expert is None and p.layer is not None and is_matrix:
            groups.setdefault(p.address.rpartition(".")[0], {})[p.role] = p
    found: list[Attention] = []
    unknown: dict[str, str] = {}
    making = _AttentionMaker(checkpoint)
    for address, roles in groups.items():
        if not {"output"} <= roles.keys() or not ({"key", "value"} <= roles.keys() or "key_b" in roles):
            continue
        try:
            found.append(making.attention(address, roles))
        except WeightsError as error:
            unknown[address] = str(error)
    return found, unknown


class _AttentionMaker:
    def __init__(self, checkpoint: ListedCheckpoint) -> None:
        self._config, self._norms = checkpoint.config, Norms(checkpoint)
        self._normed: dict[tuple[str, int | None], set[str]] = {}
        for name in (t.name for t in checkpoint.tensors if len(t.shape) < 3 and ("norm" in t.name or "_ln" in t.name)):
            if place := locate(name):
                kinds = {kind for kind, by in (("qk", _QK_NORM), ("v", _V_NORM)) if by.search(place.path)}
                self._normed.setdefault((place.prefix, place.layer), set()).update(kinds)

    def attention(self, address: str, roles: Mapping[str, Projection]) -> Attention:
        """The attention of one layer.

        Raises:
            WeightsError: it is not known how its matrices are divided into heads.
        """
        is_latent = "key_b" in roles
        names = ("query_b" if "query_b" in roles else "query", "key_b", "value_b") if is_latent else _ROLES
        if missing := [name for name in names if name not in roles]:
            raise WeightsError(f"{address}: it has no {' and no '.join(missing)} of its own")
        query, key, value = (roles[name] for name in names)
        output = roles["output"]
        inner, prefix = self._inner(query)
        count = _head_count(query, inner, prefix)
        if not count or query.rows % count:
            raise WeightsError(f"{address}: it is not known how many heads it has")
        query_dim = query.rows // count
        dim = key.rows // count if is_latent else query_dim
        kv_count = count if is_latent else key.rows // dim
        if not dim or not kv_count or key.rows % dim or count % kv_count or value.rows % kv_count or dim > query_dim:
            raise WeightsError(
                f"{address}: {key.rows} rows of keys do not divide into {count} heads of {query_dim} rows"
            )
        value_dim = value.rows // kv_count
        no_qk, no_ov = self._refusals(address, roles, inner, (prefix, query.layer))
        if not no_ov and output.cols != count * value_dim:
            no_ov = f"{address}: its output takes {output.cols} features, not {count} heads of {value_dim}"
        return Attention(address, query, key, value, output, count, kv_count, query_dim, dim, value_dim, no_qk, no_ov)

    def _inner(self, p: Projection) -> tuple[Mapping[str, Any], str]:
        place = locate(p.tensor)
        prefix = place.prefix if place is not None else ""
        return inner_config(self._config, prefix), prefix

    def _refusals(
        self, address: str, roles: Mapping[str, Projection], inner: Mapping[str, Any], where: tuple[str, int | None]
    ) -> tuple[str, str]:
        """Why the attention has no QK product, and why no OV product; "" if it has one."""
        family, normed = str(inner.get("model_type") or ""), self._normed.get(where, set())
        no_qk = no_ov = ""
        if ("qk" in normed and "query_b" not in roles) or any(_is_set(inner, flag) for flag in _QK_FLAGS):
            no_qk = "queries and keys are normed before they meet (QK norm): no product of the weights gives the scores"
        if "v" in normed or family in _V_NORMED:
            no_ov = "values are normed (v_norm): no product of the weights gives what a head writes"
        elif "gate" in roles:
            no_ov = "each token has a gate between value and output: no product of the weights gives what a head writes"
        elif self._is_fed(roles["output"]):
            no_ov = "there is a norm between value and output: no product of the weights gives what a head writes"
        if _is_set(inner, "clip_qkv") or _is_set(inner, "attn_config.clip_qkv"):
            no_qk = no_ov = (
                "queries, keys and values are clipped (clip_qkv): no product of the weights gives what it does"
            )
        if family in _MIXES:
            no_qk = no_ov = "its attention is the difference of two: no product of the weights gives what it does"
        return tuple(f"{address}: {text}" if text else "" for text in (no_qk, no_ov))  # type: ignore[return-value]

    def _is_fed(self, output: Projection) -> bool:
        """True if a norm is known to be applied before an output projection."""
        try:
            return self._norms.feeding(output) is not None
        except WeightsError:
            return False


_ROLES = ("query", "key", "value")


def _head_count(query: Projection, config: Mapping[str, Any], prefix: str) -> int:
    """The number of query heads by the part of config.json for their tower; 0 if it is not stated."""
    known = sizes(config, query.layer or 0)
    count = _heads_of_side(config, prefix) or known.get("heads", 0)
    head_dim = known.get("head_dim", 0)
    return count or (query.rows // head_dim if head_dim else 0)


def _heads_of_side(config: Mapping[str, Any], prefix: str) -> int:
    """The number of heads of an encoder or decoder, if one config.json states both, as Whisper's does; else 0."""
    side = next((word for word in reversed(prefix.split(".")) if word in ("encoder", "decoder")), "")
    value = config.get(f"{side}_attention_heads")
    return value if type(value) is int and value > 0 else 0


def _is_set(config: Mapping[str, Any], key: str) -> bool:
    """True if a config.json, which may hold anything, sets a key; the key may be dotted."""
    first, _, rest = key.partition(".")
    value = config.get(first)
    if rest:
        return isinstance(value, Mapping) and _is_set(value, rest)
    return bool(value)

"""The layers of a model that keep a cache of keys and values, with their projections: for latent attention (MLA)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import WeightsError
from ..spectrum import Projection
from .layouts import models
from .names import inner_config, locate, modality
from .rope import Rope, rope_of
from .sizes import sizes
from .tree import ListedCheckpoint

_ENCODERS = models(
    "modernbert nomic_bert distilbert gte new esm eurobert mpnet albert vit clip siglip dinov2 "
    "bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3 modern-bert neo-bert eurobert t5encoder"
)
"""Model types without a cache whose layers are not in an `encoder`."""
_DECODER_ENCODERS = models("chatglm")
"""Model types whose decoder is called an encoder."""
_KEY_NORM = re.compile(r"(?:^|\.|_)k(?:ey)?_(?:layer)?norm\b")


@dataclass(frozen=True, slots=True)
class Cache:
    """One layer that keeps keys and values of every token: its projections, by role."""

    address: str
    roles: Mapping[str, Projection]

    @property
    def is_latent(self) -> bool:
        """True for latent attention, whose cache is the output of kv_a and one rotated key."""
        return "kv_a" in self.roles


@dataclass(frozen=True, slots=True)
class Heads:
    """The KV heads of a layer: their number, rows of the key per head, and how these are rotated."""

    count: int
    head_dim: int
    rope: Rope


def caches(checkpoint: ListedCheckpoint, projections: Iterable[Projection]) -> list[Cache]:
    """The layers of a model that own a cache, in its order.

    Left out are encoders, vision and audio, heads that predict further tokens, cross-attention, and layers that
    use the cache of another (num_kv_shared_layers), take their values from their keys, or are stored as factors.
    """
    groups: dict[str, dict[str, Projection]] = {}
    most: dict[tuple[str, str | None], float] = {}  # by tower: there are few towers, but thousands of projections
    for p in projections:
        if p.block != "attention" or p.expert is not None or p.layer is None or p.is_product:
            continue
        place = _prefix(p), p.tower
        if place not in most:
            most[place] = _layers_with_cache(checkpoint.config, *place)
        if p.layer < most[place]:
            groups.setdefault(p.address.rpartition(".")[0], {})[p.role] = p
    found = (Cache(address, roles) for address, roles in groups.items())
    return [c for c in found if {"key", "value"} <= c.roles.keys() or {"kv_a", "key_b", "value_b"} <= c.roles.keys()]


def _layers_with_cache(config: Mapping[str, Any], prefix: str, tower: str | None) -> float:
    """The number of a tower's first layers that own a cache; inf if nothing limits it."""
    inner = inner_config(config, prefix)
    family = str(inner.get("model_type") or "")
    words = set(prefix.split("."))
    if modality(prefix) or tower == "mtp" or family in _ENCODERS:
        return 0
    if words & {"encoder", "enc"} and family not in _DECODER_ENCODERS:
        return 0
    shared, layers = inner.get("num_kv_shared_layers"), sizes(inner).get("layers")
    return layers - shared if type(shared) is int and layers and layers > shared else math.inf


def _prefix(p: Projection) -> str:
    place = locate(p.tensor)
    return place.prefix if place is not None else ""


class HeadsOf:
    """Tells how the keys of a layer are divided into heads, and how these are rotated."""

    def __init__(self, checkpoint: ListedCheckpoint) -> None:
        self._config, self._is_gguf = checkpoint.config, checkpoint.format.stands_alone
        places = ((t.name, locate(t.name)) for t in checkpoint.tensors if len(t.shape) < 3 and "norm" in t.name)
        self._normed = {(place.prefix, place.layer) for _, place in places if place and _KEY_NORM.search(place.path)}

    def of(self, cache: Cache) -> Heads:
        """The heads of a layer that keeps keys and values as they are.

        Raises:
            WeightsError: they are not known, or the keys are normed or clipped before they are rotated.
        """
        key = cache.roles["key"]
        assert key.layer is not None
        prefix = _prefix(key)
        if (prefix, key.layer) in self._normed:
            raise WeightsError(
                f"{key.address}: keys are normed before they are rotated, which mixes with no other rotation: "
                "only --rope recompute can be used"
            )
        inner = inner_config(self._config, prefix)
        if _clips(inner):
            raise WeightsError(f"{key.address}: keys are clipped (clip_qkv): only --rope recompute can be used")
        head_dim = _head_dim(sizes(inner, key.layer), cache)
        try:
            return Heads(key.rows // head_dim, head_dim, rope_of(inner, self._is_gguf, key.tensor, key.layer, head_dim))
        except WeightsError as error:
            raise WeightsError(f"{key.address}: {error}") from None


def _clips(config: Mapping[str, Any]) -> bool:
    inner = config.get("attn_config")
    return any(bool(part.get("clip_qkv")) for part in (config, inner) if isinstance(part, Mapping))


def _head_dim(known: Mapping[str, int], cache: Cache) -> int:
    """Rows of a head of the key, which are as many as those of the query.

    Raises:
        WeightsError: shapes and config.json do not tell.
    """
    key, query, heads = cache.roles["key"], cache.roles.get("query"), known.get("heads", 0)
    found = query.rows // heads if query is not None and heads and query.rows % heads == 0 else 0
    found = found or known.get("head_dim", 0)
    if not found or key.rows % found:
        raise WeightsError(f"{key.address}: it is not known how many heads it has: only --rope recompute can be used")
    return found

"""The angles by which RoPE turns each pair of rows from one position to the next, with scaling for long texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import WeightsError, printable
from ..spectrum import Projection
from .names import inner_config, locate
from .rope import Rope, rope_of
from .tree import ListedCheckpoint

_PLAIN = ("default", "none", "")
_FACTORS = "rope_freqs.weight"
"""The tensor of a GGUF file by which the frequencies are divided."""


def rope_at(checkpoint: ListedCheckpoint, key: Projection, head_dim: int) -> tuple[Rope, tuple[float, ...]]:
    """The rotation of a key's heads, which have `head_dim` rows, and its radians per token for each pair.

    Raises:
        WeightsError: it is not known.
    """
    place, layer, is_gguf = locate(key.tensor), key.layer or 0, checkpoint.format.stands_alone
    config = inner_config(checkpoint.config, place.prefix if place is not None else "")
    try:
        rope = rope_of(config, is_gguf, key.tensor, layer, head_dim)
        if any(t.name == _FACTORS for t in checkpoint.tensors):
            raise WeightsError(f"{_FACTORS} scales RoPE, which is not read: only offset 0 can be used")
        return rope, frequencies(config, rope, layer, is_gguf) if rope.dims else ()
    except WeightsError as error:
        text = str(error).replace("only --rope recompute can", "only offset 0 can")
        raise WeightsError(f"{key.address}: {text}") from None


def frequencies(config: Mapping[str, Any], rope: Rope, layer: int, is_gguf: bool) -> tuple[float, ...]:
    """Radians per position for each pair, the highest first: theta^(-2 i / dims), scaled as `rope_scaling` says.

    `config` is the part for the layer's tower, `rope` the result of rope_of for it.

    Raises:
        WeightsError: the scaling depends on the text's length, or is not known.
    """
    plain = tuple(rope.theta ** (-2 * i / rope.dims) for i in range(rope.dims // 2))
    if config.get("rope_local_base_freq") or (is_gguf and str(config.get("model_type")) == "gemma3"):
        raise WeightsError("RoPE has another base in some layers: only offset 0 can be used")
    stated = _scaling(config, layer)
    kind = str(stated.get("rope_type") or stated.get("type") or "").lower()
    if kind in _PLAIN:
        return plain
    factor = _number(stated, "factor")
    if kind == "linear" and factor:
        return tuple(f / factor for f in plain)
    if kind == "llama3" and factor:
        return _llama3(plain, factor, stated)
    raise WeightsError(f"RoPE is scaled as {printable(kind)} says: only offset 0 can be used")


def _scaling(config: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    """`rope_scaling`, or transformers 5's `rope_parameters`, for all layers or for the layer's type."""
    found, types = config.get("rope_parameters"), config.get("layer_types")
    if isinstance(found, Mapping) and isinstance(types, list) and layer < len(types):
        inner = found.get(str(types[layer]))
        found = inner if isinstance(inner, Mapping) else found
    if not isinstance(found, Mapping):
        found = config.get("rope_scaling")
    return found if isinstance(found, Mapping) else {}


def _llama3(plain: tuple[float, ...], factor: float, stated: Mapping[str, Any]) -> tuple[float, ...]:
    """Low frequencies divided by the factor, high ones unchanged, and a weighted mean between (transformers'
    llama3)."""
    low, high = _number(stated, "low_freq_factor"), _number(stated, "high_freq_factor")
    trained = _number(stated, "original_max_position_embeddings")
    if not (low and high and trained) or low == high:
        raise WeightsError("rope_scaling lacks the frequency bounds of llama3: only offset 0 can be used")
    found = []
    for f in plain:
        turns = trained * f / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(f * share + f / factor * (1 - share))
    return tuple(found)


def _number(config: Mapping[str, Any], key: str) -> float | None:
    value = config.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None

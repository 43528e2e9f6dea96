"""Matrices that are a half, a quarter ... of what config.json states, as in parts of a model cut over several devices.

They are saved under the names of the whole matrices. Their spectra are those of parts, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..spectrum import Projection
from .names import inner_config
from .sizes import sizes

_INNER = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")
_OTHER_HEADS = re.compile(
    r"(qk_\w+|v_head|key|value|global_head|swa_head|kv_lora)_?(dim|size|rank)|(attention_)?head_(size|ratio)"
    r"|\w*block_configs"
)
"""Keys of models in which some heads differ from the size that the other keys state."""
_WORDS = {2: "half", 4: "a quarter", 8: "an eighth"}
_MOST = 64
CUT = ": a part of a cut model"
"""The end of every note."""


class _StatedShape(NamedTuple):
    """The shape (out, in) by config.json, and the axis along which a cut model's parts are shorter."""

    shape: tuple[int, int]
    axis: int


def with_notes(projections: Sequence[Projection], config: Mapping[str, Any]) -> list[Projection]:
    """The projections, with a note on each query, attention output and MLP matrix of the text tower that is smaller
    than config.json states by a whole factor along one axis, and equal along the other.

    Keys and values may have fewer heads, experts and other towers have other sizes: they are not judged. If the
    attention has its full size and all MLPs are short, their stated width counts gate and up together (Qwen-1, Moshi).
    """
    expected = _expected(inner_config(config, ""))
    factors = {p.address: factor for p in projections if (factor := _factor(p, expected))}
    cut = {
        block: [factors[p.address] > 1 for p in projections if p.block == block and p.address in factors]
        for block in ("attention", "mlp")
    }
    by_convention = all(cut["mlp"]) and cut["attention"] and not any(cut["attention"])
    return [
        _noted(p, expected[p.block, p.role].shape, factor)
        if (factor := factors.get(p.address, 1)) > 1 and not (p.block == "mlp" and by_convention)
        else p
        for p in projections
    ]


def _noted(projection: Projection, shape: tuple[int, int], factor: int) -> Projection:
    share = _WORDS.get(factor, f"1/{factor}")
    rows, cols = shape
    return replace(projection, note=f"{share} of the {rows} x {cols} that config.json says{CUT}")


def _factor(projection: Projection, expected: Mapping[tuple[str, str], _StatedShape]) -> int:
    """The power of two by which a matrix is smaller than stated, 1 if it has the stated size; 0 for any other factor,
    and for matrices that are not judged.
    """
    stated = expected.get((projection.block, projection.role))
    if stated is None or projection.tower or projection.expert is not None or projection.problem or projection.note:
        return 0
    shape = projection.rows, projection.cols
    other = 1 - stated.axis
    if not all(shape) or shape[other] != stated.shape[other] or stated.shape[stated.axis] % shape[stated.axis]:
        return 0
    factor = stated.shape[stated.axis] // shape[stated.axis]
    return factor if factor <= _MOST and not factor & (factor - 1) else 0


def _expected(config: Mapping[str, Any]) -> dict[tuple[str, str], _StatedShape]:
    """The stated shapes by block and role; without a block that config.json does not describe, or describes twice."""
    known = sizes(config)
    hidden, heads = known.get("hidden", 0), known.get("heads", 0)
    if not hidden:
        return {}
    found: dict[tuple[str, str], _StatedShape] = {}
    width = heads * known["head_dim"] if "head_dim" in known else hidden if heads and hidden % heads == 0 else 0
    if width and not any(_OTHER_HEADS.fullmatch(key) and value for key, value in config.items()):
        found["attention", "query"] = _StatedShape((width, hidden), 0)
        found["attention", "output"] = _StatedShape((hidden, width), 1)
    inner = next((value for key in _INNER if (value := config.get(key))), None)
    if type(inner) is int and inner > 0:
        found["mlp", "gate"] = found["mlp", "up"] = _StatedShape((inner, hidden), 0)
        found["mlp", "down"] = _StatedShape((hidden, inner), 1)
    return found

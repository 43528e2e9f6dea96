"""Looking up rules in the table of families, and splitting fused tensors by their layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any

from ..spectrum import HEADS, TURNED_HEADS, Slice
from .families import FUSED, KNOWN_FAMILIES, NOT_PROJECTIONS, PLAIN
from .layouts import THREE_AXES, Layout, Rule

__all__ = ["BLOCKS", "KNOWN_FAMILIES", "NOT_PROJECTIONS", "ROLES", "cut", "cut_shape", "find_rules", "put", "split"]

BLOCKS = (
    "attention", "cross_attention", "linear_attention", "ssm", "conv", "mlp", "shared_expert", "expert",
    "lora", "other",
)  # fmt: skip
ROLES = (
    "query", "query_a", "query_b", "query_global", "key", "kv", "kv_a", "key_rope", "key_b", "key_global",
    "value", "value_b", "value_global", "pos_key", "pos_query",
    "indexer_query", "indexer_key", "indexer_query_b", "indexer_weights",
    "x", "y", "z", "a", "b", "B", "C", "dt", "dt_a", "dt_b", "f", "f_a", "f_b", "gate_a", "gate_b",
    "conv_B", "conv_C", "conv_x", "output", "output_a", "output_b", "gate", "up", "down",
)  # fmt: skip
"""The order of blocks and roles on screen and in tables."""


@lru_cache(maxsize=65536)
def find_rules(path: str, family: str, dims: int) -> tuple[Rule, ...]:
    """The rules for a tensor by its path inside the layer, without expert number and `.weight`: the first rule without
    a condition on the shapes, after those with one that come before it in the table.

    Cached: a model of 91,000 tensors has a few dozen paths.
    """
    found: list[Rule] = []
    for text in dict.fromkeys((path, _NUMBER.sub("", path), _ENDING.sub("", path), _INNER_LAYER.sub("", path))):
        for rule in (*FUSED, *PLAIN):
            if rule.block == "mlp" and _NORM.search(text):
                continue
            if not _fits(rule, family, dims) or not re.search(rf"(?:^|\.)(?:{rule.path})$", text):
                continue
            found.append(rule)
            if not rule.when:
                return tuple(found)
    return tuple(found)


_NUMBER = re.compile(r"(?<=\.)\d+\.|^\d+\.")
_INNER_LAYER = re.compile(r".*\b(?:layers?|blocks?)\.\d+\.")  # layers in a stage: MobileViT's transformer.layer.1
_ENDING = re.compile(r"\.(?:linear|proj)$|_weight$")  # `q_proj.linear`, of a wrapper that clips, is `q_proj`
_NORM = re.compile(r"norm\d*\.")  # a gated norm has an up and a down too, but is no MLP


def _fits(rule: Rule, family: str, dims: int) -> bool:
    if dims != (3 if rule.stack in THREE_AXES else 2):
        return False
    return not rule.models or family in rule.models or family.partition("+")[0] in rule.models


def split(shape: tuple[int, int], layout: Layout, known: Mapping[str, int]) -> list[tuple[str, Slice]]:
    """Role and slice of each part of a fused tensor; `known` as from sizes.resolve.

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
        unit = size // (max(1, groups) * len(layout.parts))
        widths = [unit for _ in layout.parts]
    else:
        widths = [known[str(width)] for _, width in layout.parts]
    queries = sum(groups * width for (role, _), width in zip(layout.parts, widths, strict=True) if role == "query")
    parts = " + ".join(f"{role} {width}" for (role, _), width in zip(layout.parts, widths, strict=True))
    if min(widths) < 1 or groups * sum(widths) != size:
        raise ValueError(f"expected {groups} x ({parts}) along axis {layout.axis} of {size}: cannot be split")
    if queries and queries != known.get("attended", queries):
        raise ValueError(
            f"{groups} x ({parts}) has {queries} queries, the output matrix {known['attended']}: cannot be split"
        )
    offsets = [sum(widths[:i]) for i in range(len(widths))]
    return [
        (role, Slice(layout.axis, groups, offset, width))
        for (role, _), offset, width in zip(layout.parts, offsets, widths, strict=True)
    ]


def cut(array: Any, part: Slice) -> Any:
    """The matrix that a slice selects from a 2-D or 3-D array, tensor or weights.Packed."""
    if part.axis in (HEADS, TURNED_HEADS):
        return _heads(array.reshape(*array.shape), part).reshape(-1, part.width)
    if part.index is not None:
        array = array[part.index]
    array = array.reshape(array.shape[0], -1)
    rows, cols = array.shape
    if part.axis == 1:
        return array.reshape(rows, part.groups, -1)[:, :, part.offset : part.offset + part.width].reshape(rows, -1)
    return array.reshape(part.groups, -1, cols)[:, part.offset : part.offset + part.width].reshape(-1, cols)


def put(array: Any, part: Slice, matrix: Any) -> None:
    """Write a matrix to the place that `cut` takes it from, in a row-major 2-D or 3-D numpy array."""
    if part.axis in (HEADS, TURNED_HEADS):
        heads = _heads(array, part)
        heads[...] = matrix.reshape(heads.shape)
        return
    whole = array if part.index is None else array[part.index]
    whole = whole.reshape(whole.shape[0], -1)
    rows, cols = whole.shape
    inner = slice(part.offset, part.offset + part.width)
    if part.axis == 1:
        whole.reshape(rows, part.groups, -1)[:, :, inner] = matrix.reshape(rows, part.groups, -1)
    else:
        whole.reshape(part.groups, -1, cols)[:, inner] = matrix.reshape(part.groups, -1, cols)


def _heads(array: Any, part: Slice) -> Any:
    """A view of a stack with each matrix in the orientation in which they lie below one another."""
    return array.swapaxes(1, 2) if part.axis == TURNED_HEADS else array


def cut_shape(shape: tuple[int, ...], part: Slice | None) -> tuple[int, int]:
    """The shape of the result of `cut`; (0, 0) if a whole tensor is no matrix, or is empty."""
    if part is None:
        return (shape[0], shape[1]) if len(shape) == 2 and 0 not in shape else (0, 0)
    if part.axis in (HEADS, TURNED_HEADS):
        return prod(shape) // part.width, part.width
    rows, *rest = shape if part.index is None else shape[1:]
    kept = part.groups * part.width
    return (kept, prod(rest)) if part.axis == 0 else (rows, kept)

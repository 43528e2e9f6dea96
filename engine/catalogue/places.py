"""Placing factors of matrices and their products: the catalogue's findings, with the stand-ins replaced."""

from __future__ import annotations

from math import prod

from ..errors import printable
from ..formats.tensor import Tensor
from ..spectrum import Slice
from .factor_names import APPLY
from .factored import Factored, FactorPair
from .roles import CheckpointLayers, FoundProjection, other


def placed(layers: CheckpointLayers, factors: Factored) -> list[FoundProjection]:
    """The content of every tensor, as CheckpointLayers.found, with the original names of adapters' factors."""
    made: list[FoundProjection] = []
    stood: set[str] = set()
    planes = {tensor.name: pair.planes for pair in factors.pairs.values() for tensor in (pair.a, *pair.blocks)}
    for item in layers.found():
        name = item.tensor.name
        if (original := factors.originals.get(name)) is not None:
            made += _factors(item, original, name in factors.turned, planes.get(original.name))
        elif name in stood:
            continue
        elif (pair := factors.pairs.get(name)) is None or _can_be_cut(item, pair):
            made.append(item)
        else:
            stood.add(name)
            made += _left_whole(layers, item, factors)
    return made


def _left_whole(layers: CheckpointLayers, item: FoundProjection, factors: Factored) -> list[FoundProjection]:
    """The product as one projection, if the matrix would be fused and cannot be split; [] for a stack, which is dropped
    from the pairs."""
    pair = factors.pairs[item.tensor.name]
    if not pair.planes:
        return [_whole(layers, item, pair)]
    del factors.pairs[item.tensor.name]
    factors.lines.append(
        f"stacks of factors that belong to no stack of experts are not multiplied: {printable(pair.a.name)}"
    )
    return []


def _factors(item: FoundProjection, original: Tensor, is_turned: bool, planes: int | None) -> list[FoundProjection]:
    """A factor of an adapter, or each plane of a stack of factors; `planes` is None if it has no product. A factor of a
    convolution is a matrix with a row for each output."""
    shape = original.shape
    found = item._replace(tensor=original) if item.block == "lora" else other(original, item.place)
    found = found._replace(transposed=is_turned)
    if planes and item.block == "lora":
        return [found._replace(part=Slice(0, 1, 0, shape[1], number), expert=number) for number in range(planes)]
    is_wide = len(shape) > 2 and planes == 0
    return [found._replace(part=Slice(1, 1, 0, prod(shape[1:])))] if is_wide else [found]


def _can_be_cut(item: FoundProjection, pair: FactorPair) -> bool:
    """True if this is a projection: the whole product, or some of its outputs."""
    if item.part is None:
        return item.block != "other"
    axis = 1 if pair.stands_turned else 0
    is_plain = len(pair.blocks) == 1 and len(pair.blocks[0].shape) == (3 if pair.planes else 2)
    return is_plain and (item.part.index is not None) == bool(pair.planes) and item.part.axis == axis


def _whole(layers: CheckpointLayers, item: FoundProjection, pair: FactorPair) -> FoundProjection:
    """The product as one projection, if the matrix would be fused and cannot be split, or is a part of one."""
    tensor = item.tensor
    name, role, number = tensor.name, "", None
    if pair.kind == APPLY:
        name, role, number = _part_of(name)
    found = layers.whole(tensor, name, role, number)
    return found if found is not None else other(tensor, item.place)


def _part_of(name: str) -> tuple[str, str, int | None]:
    """The tensor, the role, and in a stack the number, from a name that `rankscope apply` gives to a part of a tensor:
    `qkv_proj.weight.query` and `experts.gate_up_proj.3.gate`."""
    head, _, role = name.rpartition(".")
    tensor, _, number = head.rpartition(".")
    if number.isdigit() and len(number) < 10:
        return tensor, role, int(number)
    return head, role, None

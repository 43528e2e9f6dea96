"""A quantised matrix, or a stack of them, that stays packed until its numbers are needed.

A layer of gpt-oss-120b holds 128 experts: 2.1 GB as MXFP4, 8.5 GB as bfloat16. On a GPU a float8 matrix that waits for
its batch takes an eighth of the memory of the float64 in which it is solved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from ..formats.tensor import Scheme, Tensor
from ..weights import host_array

if TYPE_CHECKING:
    import torch

    from ..weights import Weights

_BY_EXPERT = frozenset(("fp4", "scaled", "exponents"))
"""Formulas whose parts have the experts as first axis, or are one number for all experts."""


def is_by_expert(tensor: Tensor) -> bool:
    """True if the parts of a quantised tensor, shape (experts, out, in), can be separated by expert."""
    if len(tensor.shape) != 3 or tensor.scheme is None or not tensor.shape[0]:
        return False
    experts, numbers = tensor.shape[0], prod(tensor.shape[1:])
    if tensor.scheme.formula == "codebook":  # blocks of the flattened stack: an expert must begin with a block
        return numbers % tensor.scheme.block[1] == 0 and numbers % 2 == 0
    shapes = (part.shape for _, part in tensor.parts)
    return tensor.scheme.formula in _BY_EXPERT and all(
        prod(shape) == 1 or (shape[0] == experts and len(shape) != 2) for shape in shapes
    )


def stays_packed(tensor: Tensor, *, is_on_gpu: bool) -> bool:
    """True if a quantised tensor is read as a PackedMatrix. On the CPU single matrices are not: there readers convert
    them while others are solved."""
    return is_by_expert(tensor) or (is_on_gpu and len(tensor.shape) == 2)


class PackedMatrix:
    """A weights.Packed of one matrix, or of a stack that is_by_expert. `parts` are those that the scheme's formula
    reads, on one device.

    Raises, when a matrix is taken:
        WeightsError: the parts contradict one another.
    """

    def __init__(self, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, torch.Tensor]) -> None:
        from .dequantisation import unnested

        self.shape = shape
        if scheme.formula == "codebook" and len(shape) == 3:
            parts, scheme = {**parts, "absmax": unnested(scheme, parts)}, replace(scheme, nested=0)
        self._scheme, self._parts = scheme, parts

    def __getitem__(self, index: int) -> Weights:
        """See Packed: in the scheme's type."""
        from .dequantisation import dequantise

        return _as_numpy_on_cpu(dequantise(self._scheme, self.shape[1:], self._parts_of(index)))

    def reshape(self, *shape: int) -> Weights:
        """See Packed."""
        from .dequantisation import dequantise

        return _as_numpy_on_cpu(dequantise(self._scheme, self.shape, self._parts)).reshape(*shape)

    def on_host(self) -> PackedMatrix:
        """See Packed."""
        return PackedMatrix(self._scheme, self.shape, {name: part.cpu() for name, part in self._parts.items()})

    def _parts_of(self, index: int) -> dict[str, torch.Tensor]:
        experts = self.shape[0]
        if self._scheme.formula == "codebook":
            flat = {name: self._parts[name].reshape(experts, -1)[index] for name in ("weight", "absmax")}
            return {**self._parts, **flat}
        return {
            name: part if part.numel() == 1 else _part_of_expert(part, index, experts)
            for name, part in self._parts.items()
        }


def _part_of_expert(part: torch.Tensor, index: int, experts: int) -> torch.Tensor:
    """The part of one expert. Parts flattened by rows, with two 4-bit floats a byte, are cut into one row per
    expert."""
    return part[index] if part.shape[0] == experts else part.reshape(experts, -1)[index]


def _as_numpy_on_cpu(weights: torch.Tensor) -> Weights:
    return weights if weights.is_cuda else host_array(weights)

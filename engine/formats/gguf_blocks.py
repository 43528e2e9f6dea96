"""A quantised GGUF tensor's bytes -> float matrix, where they lie: on the CPU, or on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..weights import host_array, settled
from . import ggml_blocks
from .ggml_types import GGML_TYPES

if TYPE_CHECKING:
    from ..weights import Weights

_BLOCKS = {name: (weights, size) for name, weights, size in GGML_TYPES.values()}
_HOST_SLAB, _DEVICE_SLAB = 1 << 16, 1 << 25
"""Weights that are dequantised together: what a core's cache holds; on a GPU what keeps it busy, with a tenth of a
GB for the bytes between."""


class BlockStack:
    """See weights.Stack: those of a tensor of bytes, shape (matrices, out, bytes of a row).

    A layer's 256 experts are 2 GB as 4-bit blocks and 15 GB as float32.
    """

    def __init__(self, rows: Weights, dtype: str) -> None:
        weights, size = _BLOCKS[dtype]
        self.shape = (*rows.shape[:-1], rows.shape[-1] // size * weights)
        self._rows = rows
        self._dtype = dtype

    def __getitem__(self, index: int) -> Weights:
        """One matrix, float32, (out, in)."""
        return _dequantised(self._rows[index], self._dtype)

    def reshape(self, *shape: int) -> Weights:
        """All of them as one float32 matrix."""
        return _dequantised(self._rows, self._dtype).reshape(*shape)


def is_on_device(dtype: str) -> bool:
    """Whether blocks of a type are dequantised where they lie; the `gguf` package takes those of others on the CPU."""
    return dtype in ggml_blocks.FORMULAS


def gguf_matrix(blocks: Weights, dtype: str, shape: tuple[int, ...]) -> Weights | BlockStack:
    """The weights of a quantised GGUF tensor from its bytes, `shape` = (out, in) or (matrices, out, in); on the CPU
    for types that are not dequantised where they lie.

    Raises:
        NotImplementedError: the `gguf` package dequantises no such type either.
    """
    rows = blocks.reshape(*shape[:-1], -1)
    if len(shape) < 3:
        return settled(_dequantised(rows, dtype))
    _dequantised(rows[:1, :1], dtype)  # what cannot be dequantised is refused here
    return BlockStack(rows, dtype)


def _dequantised(rows: Weights, dtype: str) -> Weights:
    """float32, shape (..., in), of rows of bytes."""
    import numpy as np

    if not is_on_device(dtype):
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        weights: Weights = dequantize(host_array(rows), GGMLQuantizationType[dtype])
        return weights
    width, size = _BLOCKS[dtype]
    blocks = rows.reshape(-1, size)
    of: ggml_blocks.Arrays
    if isinstance(blocks, np.ndarray):
        out: Weights = np.empty((len(blocks), width), np.float32)
        of, slab = ggml_blocks.Host(), _HOST_SLAB
    else:
        import torch

        out = torch.empty((len(blocks), width), dtype=torch.float32, device=blocks.device)
        of, slab = ggml_blocks.OnDevice(blocks.device), _DEVICE_SLAB
    step = slab // width
    for start in range(0, len(blocks), step):
        ggml_blocks.FORMULAS[dtype](of, blocks[start : start + step], out[start : start + step])
    return out.reshape(*rows.shape[:-1], -1)

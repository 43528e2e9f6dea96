"""A quantised GGUF tensor's bytes -> float matrix, on the device where the bytes lie: CPU or GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import ggml_blocks
from .ggml_types import GGML_TYPES

if TYPE_CHECKING:
    from ..weights import Weights

_BLOCKS = {name: (weights, size) for name, weights, size in GGML_TYPES.values()}
_HOST_SLAB, _DEVICE_SLAB = 1 << 16, 1 << 25
"""How many weights are dequantised together: on the CPU as many as a core's cache holds; on a GPU enough to keep it
busy, with a tenth of a GB for intermediate bytes."""


class Blocks:
    """A weights.Packed of rows of bytes, shape (out, bytes of a row) or (matrices, out, bytes of a row).

    A layer's 256 experts are 2 GB as 4-bit blocks and 15 GB as float32.
    """

    def __init__(self, rows: Weights, dtype: str) -> None:
        weights, size = _BLOCKS[dtype]
        self.shape = (*rows.shape[:-1], rows.shape[-1] // size * weights)
        self._rows = rows
        self._dtype = dtype

    def __getitem__(self, index: int) -> Weights:
        """See Packed: float32."""
        return _dequantised(self._rows[index], self._dtype)

    def reshape(self, *shape: int) -> Weights:
        """See Packed: float32."""
        return _dequantised(self._rows, self._dtype).reshape(*shape)

    def on_host(self) -> Blocks:
        """See Packed."""
        import numpy as np

        return Blocks(self._rows if isinstance(self._rows, np.ndarray) else self._rows.cpu().numpy(), self._dtype)


def is_on_device(dtype: str) -> bool:
    """True if blocks of a type are dequantised where they lie; others are left to the `gguf` package on the CPU."""
    return dtype in ggml_blocks.FORMULAS


def gguf_matrix(blocks: Weights, dtype: str, shape: tuple[int, ...]) -> Weights | Blocks:
    """The weights of a quantised GGUF tensor from its bytes, `shape` = (out, in) or (matrices, out, in). Stacks, and
    bytes on a GPU, stay packed.

    Raises:
        NotImplementedError: neither we nor the `gguf` package can dequantise the type.
    """
    import numpy as np

    rows = blocks.reshape(*shape[:-1], -1)
    if len(shape) < 3 and (isinstance(rows, np.ndarray) or not rows.is_cuda):
        return _dequantised(rows, dtype)
    if not is_on_device(dtype):
        _dequantised(rows[:1, :1], dtype)  # raises if the type cannot be dequantised
    return Blocks(rows, dtype)


def _dequantised(rows: Weights, dtype: str) -> Weights:
    """float32, shape (..., in), from rows of bytes. A scale that is infinite or NaN gives such weights without numpy's
    warnings: whoever computes the matrix reports it by its address."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        return _by_formula(rows, dtype) if is_on_device(dtype) else _by_package(rows, dtype)


def _by_package(rows: Weights, dtype: str) -> Weights:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    assert isinstance(rows, np.ndarray)
    weights: Weights = dequantize(rows, GGMLQuantizationType[dtype])
    return weights


def _by_formula(rows: Weights, dtype: str) -> Weights:
    import numpy as np

    width, size = _BLOCKS[dtype]
    blocks = rows.reshape(-1, size)
    ops: ggml_blocks.Arrays
    if isinstance(blocks, np.ndarray):
        out: Weights = np.empty((len(blocks), width), np.float32)
        ops, slab = ggml_blocks.on_host(), _HOST_SLAB
    else:
        import torch

        out = torch.empty((len(blocks), width), dtype=torch.float32, device=blocks.device)
        ops, slab = ggml_blocks.on_device(blocks.device), _DEVICE_SLAB
    step = slab // width
    for start in range(0, len(blocks), step):
        ggml_blocks.FORMULAS[dtype](ops, blocks[start : start + step], out[start : start + step])
    return out.reshape(*rows.shape[:-1], -1)

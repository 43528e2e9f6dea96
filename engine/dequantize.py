"""Stored integers and scales -> float matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


Weights: TypeAlias = "torch.Tensor | BlockStack"
"""What a stored tensor is read as: a stack gives its matrices by index, as a 3-D torch tensor does."""


class BlockStack:
    """The matrices of a quantised 3-D tensor of bytes, shape (matrices, out, bytes of a row), dequantised when taken.

    A layer's 256 experts are 2 GB as 4-bit blocks and 15 GB as float32.
    """

    def __init__(self, rows: NDArray[np.uint8], dtype: str) -> None:
        self._rows = rows
        self._dtype = dtype

    def __getitem__(self, index: int) -> torch.Tensor:
        """One matrix, float32, (out, in)."""
        return _dequantised(self._rows[index], self._dtype)

    def reshape(self, *shape: int) -> torch.Tensor:
        """All of them as one float32 matrix."""
        return _dequantised(self._rows, self._dtype).reshape(*shape)


def gguf_matrix(data: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> Weights:
    """The weights of a GGUF tensor of bytes (uint8), `shape` = (out, in) or (matrices, out, in).

    In its stored float type, else as float32. Blocks must lie on the CPU: the `gguf` package reads them with numpy.

    Raises:
        NotImplementedError: the `gguf` package dequantises no such type.
    """
    import torch

    if dtype in _PLAIN:
        plain: torch.dtype = getattr(torch, _PLAIN[dtype])
        return data.view(plain).reshape(shape)
    rows = data.numpy().reshape(*shape[:-1], -1)
    if len(shape) < 3:
        return _dequantised(rows, dtype)
    _dequantised(rows[:1, :1], dtype)  # what cannot be dequantised is refused here
    return BlockStack(rows, dtype)


def _dequantised(rows: NDArray[np.uint8], dtype: str) -> torch.Tensor:
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(rows, GGMLQuantizationType[dtype]))

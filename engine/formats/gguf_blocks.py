"""GGUF's blocks -> float matrix, by the `gguf` package, in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BlockStack:
    """The matrices of a quantised 3-D tensor of bytes, shape (matrices, out, bytes of a row), dequantised when taken.

    A layer's 256 experts are 2 GB as 4-bit blocks and 15 GB as float32.
    """

    def __init__(self, rows: NDArray[np.uint8], dtype: str) -> None:
        self._rows = rows
        self._dtype = dtype

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """One matrix, float32, (out, in)."""
        return _dequantised(self._rows[index], self._dtype)

    def reshape(self, *shape: int) -> NDArray[np.float32]:
        """All of them as one float32 matrix."""
        return _dequantised(self._rows, self._dtype).reshape(*shape)

    def swapaxes(self, first: int, second: int) -> NDArray[np.float32]:
        """All of them with two axes in each other's place."""
        return _dequantised(self._rows, self._dtype).swapaxes(first, second)


def gguf_matrix(blocks: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[np.float32] | BlockStack:
    """The weights of a quantised GGUF tensor from its bytes, `shape` = (out, in) or (matrices, out, in).

    Raises:
        NotImplementedError: the `gguf` package dequantises no such type.
    """
    rows = blocks.reshape(*shape[:-1], -1)
    if len(shape) < 3:
        return _dequantised(rows, dtype)
    _dequantised(rows[:1, :1], dtype)  # what cannot be dequantised is refused here
    return BlockStack(rows, dtype)


def _dequantised(rows: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weights: NDArray[np.float32] = dequantize(rows, GGMLQuantizationType[dtype])
    return weights

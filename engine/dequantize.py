"""Stored integers and scales -> float matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def gguf_matrix(blocks: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The weights of a quantised GGUF tensor from its bytes, `shape` = (out, in).

    Raises:
        NotImplementedError: the `gguf` package dequantises no such type.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = blocks.reshape(*shape[:-1], -1)
    weights: NDArray[np.float32] = dequantize(rows, GGMLQuantizationType[dtype])
    return weights

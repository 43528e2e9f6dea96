"""Stored integers and scales -> float matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def gguf_matrix(data: bytearray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights of a GGUF tensor, `shape` = (out, in): its stored float type, else float32.

    Raises:
        NotImplementedError: the `gguf` package dequantises no such type.
    """
    import torch

    if dtype in _PLAIN:
        return torch.frombuffer(data, dtype=getattr(torch, _PLAIN[dtype])).reshape(shape)
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = np.frombuffer(data, dtype=np.uint8).reshape(*shape[:-1], -1)
    return torch.from_numpy(dequantize(rows, GGMLQuantizationType[dtype]))

"""Stored integers and scales -> float matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def gguf_matrix(data: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights of a GGUF tensor of bytes (uint8), `shape` = (out, in): its stored float type, else float32.

    Blocks must lie on the CPU: the `gguf` package reads them with numpy.

    Raises:
        NotImplementedError: the `gguf` package dequantises no such type.
    """
    import torch

    if dtype in _PLAIN:
        plain: torch.dtype = getattr(torch, _PLAIN[dtype])
        return data.view(plain).reshape(shape)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = data.numpy().reshape(*shape[:-1], -1)
    return torch.from_numpy(dequantize(rows, GGMLQuantizationType[dtype]))

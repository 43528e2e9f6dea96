"""The weights of a sign-flipped twin."""

from __future__ import annotations

import numpy as np
import torch

_SLAB = 1 << 18  # entries at a time, a multiple of 64: signs of a slab stay in the cache


def flip_signs(matrix: torch.Tensor, key: str) -> torch.Tensor:
    """The absolute values of a matrix under random signs, in a new tensor, shape (m, n).

    `matrix`: on the CPU, of any float type, shape (m, n); `key`: the twin's, 32 hex digits. Entry n,
    counted row by row in the matrix as it is stored, is negative where bit n is 1 of the 64-bit words
    that numpy's PCG64(int(key, 16)) gives, lowest bit first: the same stream in every version of numpy,
    on every machine. float8 comes back as bfloat16, which holds each of its values. 14336 x 4096 in
    bfloat16 take 0.11 s on one core and, beside the result, 3 MB.
    """
    dtype = torch.bfloat16 if matrix.element_size() == 1 else matrix.dtype
    out = torch.empty(matrix.shape, dtype=dtype).copy_(matrix)
    entries = out.view(-1)
    stream = np.random.PCG64(int(key, 16))
    for start in range(0, entries.numel(), _SLAB):
        slab = entries[start : start + _SLAB]
        words = stream.random_raw(-(-slab.numel() // 64)).astype("<u8", copy=False)
        bits = np.unpackbits(words.view(np.uint8), count=slab.numel(), bitorder="little")
        slab.abs_().mul_(torch.from_numpy(1 - 2 * bits.view(np.int8)))
    return out

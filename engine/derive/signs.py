"""The matrix of a sign-flipped twin: absolute weights under random signs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..spectrum import Projection
from ..weights import HostArray, Weights, host_array

_SLAB = 1 << 18  # entries at a time, a multiple of 64, so few that their signs stay in the cache


def flip(twin: Projection, matrices: Sequence[Weights]) -> HostArray:
    """The matrix of a twin: see flip_signs, with the twin's key."""
    return flip_signs(host_array(matrices[0]), twin.key)


def flip_signs(matrix: HostArray, key: str) -> HostArray:
    """The absolute values of a matrix under random signs, in a new array, shape (m, n).

    `matrix`: any float type, shape (m, n); `key`: the twin's, 32 hex digits. Entry n, counted row by row in the matrix
    as it is stored, is negative if bit n is 1 in the 64-bit words of numpy's PCG64(int(key, 16)), lowest bit first. The
    stream is the same in every version of numpy, on every machine.
    """
    out: HostArray = np.abs(np.ascontiguousarray(matrix))
    entries = out.reshape(-1)
    stream = np.random.PCG64(int(key, 16))
    for start in range(0, entries.size, _SLAB):
        slab = entries[start : start + _SLAB]
        words = stream.random_raw(-(-slab.size // 64)).astype("<u8", copy=False)
        bits = np.unpackbits(words.view(np.uint8), count=slab.size, bitorder="little")
        slab *= 1 - 2 * bits.view(np.int8)
    return out

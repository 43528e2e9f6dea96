"""The edge: how large the singular values of a difference of two checkpoints can be by rounding alone.

A fine-tune starts from A as it is stored, so only the rounding of B is noise. In entry ij its variance is
v_ij = ulp(B_ij)^2 / 12, that of a number spread evenly over one step. The spectral norm of such noise is at most about
sqrt(max_i sum_j v_ij) + sqrt(max_j sum_i v_ij) (Latala; Bandeira & van Handel, arXiv 1408.6185). Rows and columns that
changed by less than rounding could, or not at all, count with the change that they have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .slabs import Array

_TYPES = {
    "F16": (10, -14), "BF16": (7, -126),
    "F8_E4M3": (3, -6), "F8_E5M2": (2, -14), "F8_E4M3FNUZ": (3, -7), "F8_E5M2FNUZ": (2, -15),
}  # fmt: skip
"""Bits of the mantissa, and the exponent of the smallest normal number, below which the step stays the same."""


def rounded_to(dtype: str, slabs: Iterable[Array]) -> str:
    """The type to whose steps a matrix was rounded: its dtype, or BF16 for float32 whose low 16 bits are all zero; ""
    for a type so fine that rounding does not matter."""
    if dtype in _TYPES:
        return dtype
    return "BF16" if dtype == "F32" and all(_is_even(slab, "BF16") for slab in slabs) else ""


def variances(slab: Array, kind: str, exponent: int = 0) -> Array:
    """ulp^2 / 12 of each number, as a new array. The numbers, float64, are in units of 2^exponent, the result in units
    of 4^exponent. `kind` is a result of rounded_to."""
    if not kind:
        return slab * 0.0
    step = _steps(slab, kind, exponent)
    return step * step / 12.0


class RoundingSums:
    """Row and column sums of the variances of rounding and of the squared difference, added a slab of rows at a time.

    `weights` is the diagonal of the second moment, None for ones.
    """

    def __init__(self, weights: Array | None = None) -> None:
        self._weights = weights
        self._row = 0.0
        self._noise: Any = 0.0
        self._moved: Any = 0.0

    def add(self, noise: Array, delta: Array, weighed: Array) -> None:
        """Add some rows: variances, differences, and differences under the weighting (the same if there is none)."""
        rows = noise.sum(1) if self._weights is None else noise @ self._weights
        self._row = max(self._row, float(_smaller(rows, (weighed * weighed).sum(1)).max()))
        self._noise = self._noise + noise.sum(0)
        self._moved = self._moved + (delta * delta).sum(0)

    def edge(self, scale: Array | float = 1.0) -> float:
        """The edge, in the units of the weighted differences. `scale` is the factor of a column's variance under the
        weighting, or an upper bound of it."""
        columns = _smaller(self._noise, self._moved) * scale
        return math.sqrt(self._row) + math.sqrt(float(columns.max()))


def _smaller(left: Array, right: Array) -> Array:
    return np.minimum(left, right) if isinstance(left, np.ndarray) else left.minimum(right)


def _is_even(slab: Array, kind: str) -> bool:
    """Return whether all numbers are multiples of the steps of a type."""
    return bool((slab % _steps(slab, kind, 0) == 0).all())


def _steps(slab: Array, kind: str, exponent: int) -> Array:
    """The distance from each number to the next of its type, in units of 2^exponent, as the numbers are."""
    bits, smallest = _TYPES[kind]
    lowest = smallest - exponent
    if isinstance(slab, np.ndarray):
        powers = np.where(slab == 0, lowest, np.frexp(slab)[1] - 1)
        return np.ldexp(1.0, np.maximum(powers, lowest) - bits)
    powers = (slab.frexp().exponent - 1).masked_fill(slab == 0, lowest).clamp(min=lowest)
    return slab.new_ones(()).ldexp((powers - bits).to(slab.dtype))

"""Matrices some rows at a time in float64, and exact scaling by powers of two, for numpy and torch alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..errors import WeightsError
from ..solvers.ladder import NOT_FINITE
from ..spectrum import Values
from ..weights import Weights

Array: TypeAlias = Any
"""A numpy array, or a torch tensor on any device, of float64."""
_SLAB_BYTES = 1 << 28


def exponent_of(matrix: Weights) -> int:
    """The exponent of the power of two next above the largest absolute entry; 0 for a zero matrix.

    Raises:
        WeightsError: it holds NaN or infinite values.
    """
    top = max(float(matrix.max()), -float(matrix.min()))
    if not math.isfinite(top):
        raise WeightsError(NOT_FINITE)
    return math.frexp(top)[1] if top > 0 else 0


def slabs(matrix: Weights, exponent: int = 0) -> Iterator[Array]:
    """Yield some rows at a time, in float64 and divided by 2^exponent."""
    step = max(1, _SLAB_BYTES // (8 * matrix.shape[1]))
    for start in range(0, matrix.shape[0], step):
        rows = matrix[start : start + step]
        yield times_two_to(rows.astype(np.float64) if isinstance(rows, np.ndarray) else rows.double(), -exponent)


def times_two_to(matrix: Array, exponent: int) -> Array:
    """The matrix times 2^exponent, exact but for results outside the normal numbers."""
    return np.ldexp(matrix, exponent) if isinstance(matrix, np.ndarray) else matrix.ldexp(matrix.new_tensor(exponent))


def joined(parts: Sequence[Array]) -> Array:
    """The slabs as one matrix."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))


def placed(numbers: Values, like: Weights) -> Array:
    """float64 numbers on the device of a matrix."""
    if isinstance(like, np.ndarray):
        return numbers
    import torch

    return torch.as_tensor(numbers, device=like.device)

"""Two factors A B in place of a matrix W, and the error of what is written in its place.

Of all matrices of rank r, U_r U_r^T W has the smallest error tr(E C E^T) under the second moments C of its input, where
U_r are the leading left singular vectors of W C^1/2 (Eckart and Young 1936; with C as in ASVD and SVD-LLM). Any S with
S S^T = C gives the same U_r as C^1/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np

from ..derive.slabs import Array, exponent_of, joined, slabs, times_two_to
from ..derive.weigh import factor_of
from ..errors import WeightsError
from ..moment import Moment
from ..weights import Weights, host_array


class TwoFactors(NamedTuple):
    """`a` of shape (m, rank), with orthonormal columns, and `b` of shape (rank, n); float64, on the matrix's device."""

    a: Array
    b: Array


class LazyFactors:
    """Two factors that are computed when the first of them is taken; each is freed when it is taken."""

    def __init__(self, make: Callable[[], TwoFactors]) -> None:
        self._make = make
        self._held: list[Array | None] = [None, None]

    def take(self, number: int) -> Array:
        """Factor A (0) or B (1)."""
        if (found := self._held[number]) is None:
            self._held = list(self._make())
            found = self._held[number]
        self._held[number] = None
        return found


def factors(matrix: Weights, moment: Moment | None, rank: int) -> TwoFactors:
    """A = U_r and B = U_r^T W for a matrix W of shape (m, n) = (output, input features), r = `rank` <= min(m, n).

    U_r are left singular vectors of W S if the input has a `moment` C = S S^T, of W if that is None. Computed on the
    device of the matrix, or on the CPU if the device has no room or does not answer.

    Raises:
        WeightsError: the weights hold NaN or infinite values, or the moment cannot be loaded or is no second moment.
    """
    if isinstance(matrix, np.ndarray):
        return _factors(matrix, moment, rank, np)
    import torch

    try:
        return _factors(matrix, moment, rank, torch)
    except RuntimeError:
        return _factors(host_array(matrix), moment, rank, np)


def weighted_error(matrix: Weights, written: Weights, moment: Moment | None) -> float:
    """sqrt(tr(E C E^T) / tr(W C W^T)), E = W - `written`: the relative error of the output; C = I without a moment.

    0 if W and E both give no output, infinite if only W gives none.

    Raises:
        WeightsError: the weights hold NaN or infinite values, or the moment cannot be loaded or is no second moment.
    """
    exponent = exponent_of(matrix)
    factor = factor_of(moment.form, moment.operands, matrix) if moment is not None else None
    lost = whole = 0.0
    for rows, others in zip(slabs(matrix, exponent), slabs(written, exponent), strict=True):
        error = rows - others
        lost += factor.energy(error) if factor is not None else float((error * error).sum())
        whole += factor.energy(rows) if factor is not None else float((rows * rows).sum())
    if whole <= 0:
        return math.inf if lost > 0 else 0.0
    return math.sqrt(max(lost, 0.0) / whole)


def _factors(matrix: Weights, moment: Moment | None, rank: int, xp: ModuleType) -> TwoFactors:
    exponent = exponent_of(matrix)
    left = _leading_left(_weighted(matrix, moment, exponent), rank, xp)
    right = left.T @ joined(list(slabs(matrix, exponent)))
    return TwoFactors(left, times_two_to(right, exponent))


def _weighted(matrix: Weights, moment: Moment | None, exponent: int) -> Array:
    """W S in float64, scaled by a power of two."""
    if moment is None:
        return joined(list(slabs(matrix, exponent)))
    factor = factor_of(moment.form, moment.operands, matrix)
    return joined([factor.times(rows) for rows in slabs(matrix, exponent)])


def _leading_left(matrix: Array, rank: int, xp: ModuleType) -> Array:
    """The leading left singular vectors, by the eigenvectors of the Gram matrix on the smaller side.

    For a tall matrix A with right vectors V they are the columns of A V, orthonormalised by QR, largest first. Without
    QR those of small singular values would be mere rounding errors, neither orthogonal nor of length 1.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    gram = matrix.T @ matrix if is_tall else matrix @ matrix.T
    try:
        vectors = xp.linalg.eigh(gram)[1]
    except np.linalg.LinAlgError as error:
        raise WeightsError(f"its singular vectors cannot be computed: {error}") from None
    leading = xp.flip(vectors[:, len(gram) - rank :], (1,))
    return xp.linalg.qr(matrix @ leading)[0] if is_tall else leading

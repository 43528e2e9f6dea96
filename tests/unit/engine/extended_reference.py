"""Singular values to 80 bits, for matrices of any size that LAPACK takes.

LAPACK's right singular vectors, made orthonormal to 80 bits, rotate the columns until they are orthogonal to 1e-15. The
singular values are then the lengths of the columns, with an error of that number squared over the gap; columns without
a gap are rotated again, by the eigenvectors of their Gram matrix less its mean. Products are sums of exact ones (Ozaki
and others, Numerical Algorithms 59, 2012).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from rankscope.engine.solvers.ladder import Solution

Array: TypeAlias = NDArray[np.float64]
Extended: TypeAlias = NDArray[np.longdouble]
_NEGLIGIBLE = 1e-19  # relative to the largest


def singular_values(matrix: Array) -> Extended:
    """Singular values of a finite float64 matrix, descending: right to 1e-18 of the largest, those below 1e-14 of it to
    1e-16.

    Raises:
        ArithmeticError: that accuracy cannot be shown.
    """
    shift = int(np.frexp(np.abs(matrix).max())[1])
    matrix = np.ldexp(np.ldexp(matrix, -shift // 2), -shift - -shift // 2)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    triangle = scipy.linalg.qr(tall, mode="r")[0][: tall.shape[1]] if tall.shape[0] > tall.shape[1] else tall
    rows = np.ascontiguousarray(_product(tall, _orthonormal(np.linalg.svd(triangle)[2].T)).T)
    limit = _NEGLIGIBLE * float(_lengths(rows).max())
    for cluster in _clusters(rows, _float_gram(rows), limit / len(rows)):
        for _ in range(2):
            beside = _gram(rows[cluster])
            beside -= np.eye(len(cluster), dtype=np.longdouble) * beside.diagonal().mean()
            vectors = np.linalg.eigh(beside.astype(np.float64))[1]
            rows[cluster] = _product(_orthonormal(vectors).T, rows[cluster])
        if _clusters(rows[cluster], np.abs(_gram(rows[cluster])).astype(np.float64), 10 * limit):
            raise ArithmeticError("singular values that lie too close were not told apart")
    return np.asarray(np.ldexp(np.sort(_lengths(rows))[::-1], shift))


def _orthonormal(vectors: Array) -> Extended:
    """Columns that are orthonormal to 1e-15, made orthonormal to 80 bits by one Newton step."""
    excess = _product(vectors.T, vectors) - np.eye(len(vectors), dtype=np.longdouble)
    return np.asarray(vectors - np.longdouble(0.5) * (vectors @ excess.astype(np.float64)))


def _gram(rows: Extended) -> Extended:
    return _product(rows, np.ascontiguousarray(rows.T))


def _product(a: Array | Extended, b: Array | Extended) -> Extended:
    """a @ b: both are cut into slices of so few bits that products of slices are exact in float64."""
    bits = (53 - int(a.shape[1]).bit_length()) // 2
    total = np.zeros((a.shape[0], b.shape[1]), np.longdouble)
    for i, left in enumerate(lefts := _slices(a, bits, 1)):
        for right in _slices(b, bits, 0)[: len(lefts) - i]:
            total += left @ right
    return total


def _slices(a: Array | Extended, bits: int, axis: int) -> list[Array]:
    """Arrays of `bits` bits that sum to `a`, to 72 bits below the largest of each row (axis 1) or column (0)."""
    slices: list[Array] = []
    rest = np.asarray(a, np.longdouble)
    exponent = np.frexp(np.abs(rest).max(axis=axis, keepdims=True))[1]
    for n in range(-(-72 // bits)):
        unit = np.ldexp(np.longdouble(1), exponent - (n + 1) * bits)
        part = np.rint(rest / unit) * unit
        slices.append(part.astype(np.float64))
        rest = rest - part
    return slices


def _lengths(rows: Extended) -> Extended:
    return np.asarray(np.sqrt((rows * rows).sum(axis=1)))  # numpy adds pairwise along the last axis


def _float_gram(rows: Extended) -> Array:
    """Upper bounds of the absolute inner products of the rows."""
    near, lengths = rows.astype(np.float64), _lengths(rows).astype(np.float64)
    rounding = 4 * np.sqrt(rows.shape[1]) * np.finfo(float).eps
    return np.asarray(np.abs(near @ near.T) + rounding * np.outer(lengths, lengths))


def _clusters(rows: Extended, overlap: Array, limit: float) -> list[NDArray[np.intp]]:
    """Groups of rows whose lengths would move by more than `limit` if they were made orthogonal."""
    lengths = _lengths(rows).astype(np.float64)
    gap = np.abs(lengths[:, None] - lengths) * (lengths[:, None] + lengths)
    spread = (gap + overlap) * np.maximum(lengths[:, None], lengths)
    change = overlap**2 / np.where(spread == 0, 1, spread)
    np.fill_diagonal(change, 0)
    count, labels = connected_components(change > limit, directed=False)
    groups = (np.flatnonzero(labels == label) for label in range(count))
    return [group for group in groups if len(group) > 1]


def assert_bounds_hold(solution: Solution, matrix: Array, exact: Extended | None = None) -> None:
    """Check that every value above the noise floor is within the stated bound of the exact one, and that the others are
    below the floor.

    Where the error at the floor is a twentieth of the floor, the exact value may exceed it by that much.
    """
    exact = singular_values(matrix) if exact is None else exact
    made = solution.provenance
    above = solution.values > made.noise_floor
    assert (np.abs(solution.values - exact)[above] <= made.error_bound).all()
    assert (exact[~above] <= np.longdouble(1.05) * made.noise_floor).all()

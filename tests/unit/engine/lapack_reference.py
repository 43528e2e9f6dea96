"""Independent singular values (LAPACK float64; Jacobi in extended precision) and the product's, end to end."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from rankscope.engine.catalogue.rules import cut
from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.solvers.ladder import Solution, choose, solve
from rankscope.engine.spectrum import Projection

Array: TypeAlias = NDArray[np.float64]
EXTENDED_EPS = float(np.finfo(np.longdouble).eps)


def lapack(matrix: Any) -> Array:
    """Singular values by LAPACK in float64, descending."""
    array = matrix.detach().double().numpy() if hasattr(matrix, "detach") else np.asarray(matrix, np.float64)
    return np.asarray(scipy.linalg.svd(array, compute_uv=False), np.float64)


def compute(checkpoint: Checkpoint, projection: Projection) -> Solution:
    """The singular values that the product computes for a projection: read, cut, solve."""
    tensor = next(t for t in checkpoint.tensors if t.name == projection.tensor)
    weights, _ = checkpoint.read(tensor)
    matrix = weights if projection.slice is None else cut(weights, projection.slice)
    return solve(matrix, choose("cpu"))


def assert_same_spectrum(solution: Solution, matrix: Any, tolerance: float = 1e-10) -> None:
    """Check that every singular value is within `tolerance` of the largest, against LAPACK on `matrix`."""
    wanted = lapack(matrix)
    assert solution.values.shape == wanted.shape
    assert np.abs(solution.values - wanted).max() <= tolerance * wanted[0]


def jacobi(matrix: Array) -> NDArray[np.longdouble]:
    """Singular values by one-sided Jacobi in extended precision, descending, with errors far below float64's eps."""
    columns = np.array(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T, np.longdouble)
    for _ in range(40):
        if not _sweep(columns):
            break
    return np.sort(np.sqrt((columns * columns).sum(axis=0)))[::-1]


def _sweep(columns: NDArray[np.longdouble]) -> bool:
    """Rotate every pair of columns once; return whether any pair was not yet orthogonal."""
    rotated = False
    for i in range(columns.shape[1] - 1):
        for j in range(i + 1, columns.shape[1]):
            a, b = columns[:, i].copy(), columns[:, j].copy()
            alpha, beta, gamma = a @ a, b @ b, a @ b
            if alpha * beta == 0 or abs(gamma) <= EXTENDED_EPS * np.sqrt(alpha * beta):
                continue
            rotated = True
            zeta = (beta - alpha) / (2 * gamma)
            t = (1 if zeta >= 0 else -1) / (abs(zeta) + np.sqrt(1 + zeta * zeta))
            c = 1 / np.sqrt(1 + t * t)
            columns[:, i], columns[:, j] = c * (a - t * b), c * (t * a + b)
    return rotated

"""Singular values by the SVD of LAPACK or cuSOLVER: slower, right to eps sigma_1."""

from __future__ import annotations

import numpy as np

from .. import bounds
from ..spectrum import Values
from ..weights import Weights

NAME = bounds.SVD
VERSION = 2


def singular_values(matrix: Weights, scale: float) -> Weights:
    """Singular values of `matrix * scale`, float64, descending, shape (min(m, n),), on its device.

    Raises:
        numpy.linalg.LinAlgError, torch.linalg.LinAlgError: it does not converge.
    """
    if isinstance(matrix, np.ndarray):
        return np.linalg.svd(matrix.astype(np.float64) * scale, compute_uv=False)
    import torch

    # gesvd: the default, gesvdj, has the largest errors of all drivers (2e-4 sigma_1 in float32).
    driver = "gesvd" if matrix.device.type == "cuda" else None
    return torch.linalg.svdvals(matrix.to(torch.float64) * scale, driver=driver)  # type: ignore[no-any-return]


def accuracy(shape: tuple[int, ...], sigma: Values) -> tuple[float, float]:
    """(error bound, noise floor) of these singular values of a matrix of this shape, in their units."""
    return bounds.of(NAME, shape, sigma)

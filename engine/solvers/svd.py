"""Singular values straight from LAPACK's or cuSOLVER's SVD: slower, right to eps sigma_1."""

from __future__ import annotations

import torch

NAME = "svdvals"
VERSION = 1


def singular_values(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    """Singular values of `matrix * scale`, float64, descending, shape (min(m, n),), on its device.

    Raises:
        torch.linalg.LinAlgError: not converged.
    """
    # gesvd: the default, gesvdj, has the largest errors of all drivers (2e-4 sigma_1 in float32).
    driver = "gesvd" if matrix.device.type == "cuda" else None
    sigma: torch.Tensor = torch.linalg.svdvals(matrix.to(torch.float64) * scale, driver=driver)
    return sigma


def accuracy(large: int, sigma: torch.Tensor) -> tuple[float, float]:
    """(error bound, noise floor) = max(m, n) eps sigma_1: LAPACK's backward error, with room."""
    bound = large * torch.finfo(torch.float64).eps * float(sigma[0])
    return bound, bound

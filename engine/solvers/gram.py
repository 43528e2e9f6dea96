"""Singular values as square roots of the eigenvalues of the Gram matrix on the smaller side."""

from __future__ import annotations

from collections.abc import Iterator

import torch

NAME = "gram-eigvalsh"
VERSION = 1
_CHUNK_BYTES = 1 << 28


def singular_values(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    """Singular values of `matrix * scale`, float64, descending, shape (min(m, n),), on its device.

    The product is taken in float64 over slabs of the longer side, so a vocabulary-sized matrix needs
    no float64 copy of itself. `scale` brings the largest entry near 1: squares cannot overflow.
    """
    small = min(matrix.shape)
    gram = torch.zeros((small, small), dtype=torch.float64, device=matrix.device)
    for slab in slabs(matrix):
        slab = slab.to(torch.float64) * scale
        gram.addmm_(slab, slab.T)
    eigenvalues: torch.Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.flip(0).clamp_(min=0).sqrt_()


def slabs(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """The matrix as wide slabs (small side, at most 256 MiB of float64 at a time)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    step = max(1, _CHUNK_BYTES // (8 * wide.shape[0]))
    for start in range(0, wide.shape[1], step):
        yield wide[:, start : start + step]


def accuracy(small: int, sigma: torch.Tensor) -> tuple[float, float]:
    """(error bound, noise floor) of the values above, in their units.

    Eigenvalues of G carry an error of d * sigma_1^2, so sigma carries d * sigma_1^2 / (2 sigma): measured
    d stays below 1e-15 (n <= 256) and grows no faster than sqrt(n). The floor stands where that error
    is a twentieth of the value, about 1e-7 sigma_1; the bound is the error at the smallest value above it.
    """
    d = 1e-15 * max(1.0, small**0.5 / 16)
    top = float(sigma[0])
    floor = (10 * d) ** 0.5 * top
    above = sigma[sigma > floor]
    return (d * top * top / (2 * float(above[-1])) if len(above) else 0.0), floor

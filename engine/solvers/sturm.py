"""Eigenvalues of symmetric tridiagonal matrices by bisection: stage 3 of the two-stage eigensolver."""

from __future__ import annotations

import torch
from torch import Tensor

_HALVINGS = 55  # an interval of 3 |T| ends 1e-16 |T| wide, its middle half that from the value
_SAFE = torch.finfo(torch.float64).tiny
_EPS = torch.finfo(torch.float64).eps
_UNROLLED = 4


def tridiagonal_eigenvalues(tridiagonal: Tensor, kernels: bool) -> Tensor:
    """Ascending eigenvalues (batch, n) of (batch, 2, n): diagonal, subdiagonal (its last entry unused).

    Each is right to about eps |T|. The entries must be of a size near 1: they are squared.
    """
    diagonal, square, bounds = _prepared(tridiagonal)
    return (_bisect_kernel if kernels else _bisect_twin)(diagonal, square, bounds)


def _prepared(tridiagonal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal, squares of the entries above it, and per matrix Gershgorin's ends and the least pivot (dstebz)."""
    diagonal = tridiagonal[:, 0]
    beside = torch.zeros_like(diagonal)
    beside[:, 1:] = tridiagonal[:, 1, :-1].abs()
    radius = beside.clone()
    radius[:, :-1] += beside[:, 1:]
    low, high = (diagonal - radius).amin(1), (diagonal + radius).amax(1)
    square = beside.square()
    least = _SAFE * square.amax(1).clamp(min=1)
    slack = 8 * _EPS * torch.maximum(low.abs(), high.abs()) + 8 * least
    return diagonal, square, torch.stack([low - slack, high + slack, least], 1)


def _bisect_kernel(diagonal: Tensor, square: Tensor, bounds: Tensor) -> Tensor:
    from . import kernels

    batch, n = diagonal.shape
    padded = -(-n // _UNROLLED) * _UNROLLED
    pairs = diagonal.new_zeros(batch, padded, 2)
    pairs[:, :n, 0] = diagonal
    pairs[:, n:, 0] = 2 * bounds[:, 1:2].abs() + 1  # never a negative pivot
    pairs[:, :n, 1] = square
    out = torch.empty_like(diagonal)
    kernels.bisect[(-(-n // 32), batch)](pairs, bounds, out, n, padded, _HALVINGS, LANES=32, num_warps=1)
    return out


def _bisect_twin(diagonal: Tensor, square: Tensor, bounds: Tensor) -> Tensor:
    lane = torch.arange(diagonal.shape[1], device=diagonal.device)
    low, high = (bounds[:, i : i + 1].expand_as(diagonal) for i in range(2))
    least = bounds[:, 2:]
    for _ in range(_HALVINGS):
        x = 0.5 * (low + high)
        pivot = torch.ones_like(x)
        count = torch.zeros_like(x, dtype=torch.int32)
        for i in range(diagonal.shape[1]):
            pivot = (diagonal[:, i : i + 1] - x) - square[:, i : i + 1] / pivot
            pivot = torch.where(pivot.abs() < least, -least, pivot)
            count += pivot < 0
        above = count > lane
        low, high = torch.where(above, low, x), torch.where(above, x, high)
    return 0.5 * (low + high)

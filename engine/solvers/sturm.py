"""Eigenvalues of symmetric tridiagonal matrices by bisection: stage 3 of the two-stage eigensolver."""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 64  # eigenvalues that a warp of the kernel seeks at once, two for each thread
_HALVINGS = 55  # an interval of 3 |T| ends 1e-16 |T| wide, with the value within half of that from its middle
_LEAST = 2.0**-56  # subdiagonal entries are raised to this times |T|, so that no two minors in a row vanish
_SAFE = torch.finfo(torch.float64).tiny
_EPS = torch.finfo(torch.float64).eps
_UNROLLED = 8  # steps between scalings of the minors: in one step they shrink by 1e-35 or grow by 1e9 at worst


def tridiagonal_eigenvalues(tridiagonal: Tensor, kernels: bool) -> Tensor:
    """Ascending eigenvalues (batch, n) of matrices (batch, 2, n): diagonal, subdiagonal (its last entry is unused).

    Each is right to about eps |T|. The entries must be near 1 in size, as they are squared. The lanes of a matrix use
    the same midpoints until they part, so the values ascend whatever the counts are.
    """
    diagonal, square, bounds = _prepared(tridiagonal)
    return (_bisect_kernel if kernels else _bisect_twin)(diagonal, square, bounds)


def _prepared(tridiagonal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The diagonals, the squares of the entries above them, and the ends of Gershgorin's interval for each matrix."""
    diagonal = tridiagonal[:, 0]
    beside = torch.zeros_like(diagonal)
    beside[:, 1:] = tridiagonal[:, 1, :-1].abs()
    radius = beside.clone()
    radius[:, :-1] += beside[:, 1:]
    low, high = (diagonal - radius).amin(1), (diagonal + radius).amax(1)
    size = torch.maximum(low.abs(), high.abs())
    slack = 8 * _EPS * size + 8 * _SAFE
    square = torch.maximum(beside, _LEAST * size.unsqueeze(-1)).square()
    return diagonal, square, torch.stack([low - slack, high + slack], 1)


def _bisect_kernel(diagonal: Tensor, square: Tensor, bounds: Tensor) -> Tensor:
    from . import kernels

    batch, n = diagonal.shape
    padded = -(-n // _UNROLLED) * _UNROLLED
    pairs = diagonal.new_zeros(batch, padded, 2)
    pairs[:, :n, 0] = diagonal
    pairs[:, n:, 0] = 2 * bounds[:, 1:].abs() + 1  # uncoupled and above all x, so that the sign never changes
    pairs[:, :n, 1] = square
    out = torch.empty_like(diagonal)
    kernels.bisect[(-(-n // LANES), batch)](pairs, bounds, out, n, padded, _HALVINGS, LANES=LANES, num_warps=1)
    return out


def _bisect_twin(diagonal: Tensor, square: Tensor, bounds: Tensor) -> Tensor:
    lane = torch.arange(diagonal.shape[1], device=diagonal.device)
    low, high = (bounds[:, i : i + 1].expand_as(diagonal) for i in range(2))
    for _ in range(_HALVINGS):
        x = 0.5 * (low + high)
        before, minor = torch.zeros_like(x), torch.ones_like(x)
        count = torch.zeros_like(x, dtype=torch.int32)
        for i in range(diagonal.shape[1]):
            after = (diagonal[:, i : i + 1] - x) * minor - square[:, i : i + 1] * before
            count += after.signbit() != minor.signbit()
            before, minor = minor, after
            if i % _UNROLLED == _UNROLLED - 1:
                power = -torch.maximum(minor.abs(), before.abs()).frexp().exponent
                before, minor = before.ldexp(power), minor.ldexp(power)
        above = count > lane
        low, high = torch.where(above, low, x), torch.where(above, x, high)
    return 0.5 * (low + high)

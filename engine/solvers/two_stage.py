"""Eigenvalues of a batch of symmetric matrices in float64: dense -> band -> tridiagonal -> bisection.

The library's one-stage reduction reads the whole matrix for every column; here all but O(n^2 width) of the
work are matrix products.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

from .. import bounds
from ..spectrum import Values
from .band import GROUP, to_band
from .chase import to_tridiagonal
from .sturm import tridiagonal_eigenvalues

NAME = bounds.TWO_STAGE
VERSION = 3
_CHANGE = 1e-12  # of trace and Frobenius norm, relative
_ZERO = 1e-290  # and of those of a zero matrix, whose largest entry else lies in [0.5, 1)


def available(device: torch.device | str) -> bool:
    """Whether the kernels can run there: an NVIDIA GPU with acquire and release, and Triton installed."""
    device = torch.device(device)
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability(device) >= (7, 0)
        and find_spec("triton") is not None
    )


WIDTH = 32
"""Of the intermediate band: with 64 the band is had sooner by a sixth, but what follows takes twice as long."""


def room(n: int) -> int:
    """Bytes that a matrix of size n takes on the device, being overwritten, and what is needed beside it."""
    return 8 * n * (n + (4 * GROUP + 8) * WIDTH)


def accuracy(shape: tuple[int, ...], sigma: Values) -> tuple[float, float]:
    """(error bound, noise floor) of square roots of the eigenvalues of a matrix of this shape, in their units."""
    return bounds.of(NAME, shape, sigma)


def eigenvalues(gram: Tensor, width: int = WIDTH, kernels: bool | None = None) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues (batch, n) of symmetric float64 matrices (batch, n, n), and which of them passed.

    `gram` is overwritten; beside it some 40 n width numbers per matrix are needed. A matrix has passed, in a
    boolean tensor (batch,) on its device, where trace and Frobenius norm came through all three stages.
    Nothing here waits for the device. `kernels`: Triton, or its twins in torch; by default Triton on CUDA.
    """
    n = gram.shape[-1]
    kernels = gram.is_cuda if kernels is None else kernels
    with torch.cuda.device(gram.device) if gram.is_cuda else nullcontext():  # where Triton launches
        scale = scale_of(torch.linalg.vector_norm(gram, ord=torch.inf, dim=(1, 2)))
        gram.mul_(scale.view(-1, 1, 1))
        trace = gram.diagonal(0, 1, 2).sum(1)
        norm = torch.linalg.vector_norm(gram, dim=(1, 2))
        tridiagonal = to_tridiagonal(to_band(gram, width, kernels), n, kernels)
        values = tridiagonal_eigenvalues(tridiagonal, kernels)
        traced = (values.sum(1) - trace).abs() <= _CHANGE * values.abs().sum(1) + _ZERO
        passed = traced & ((values.norm(dim=1) - norm).abs() <= _CHANGE * norm + _ZERO)
        values = values.where(values.abs() > _ZERO, 0.0)
        return values / scale.unsqueeze(-1), passed


def scale_of(top: Tensor) -> Tensor:
    """The powers of two that bring float64 numbers to [0.5, 1), or as near as a normal number does; of 0, 1."""
    exponent = torch.frexp(top).exponent.to(torch.int64).clamp(-1023, 1022)
    return ((1023 - exponent) << 52).view(torch.float64)

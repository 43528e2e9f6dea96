"""Eigenvalues of a batch of symmetric matrices in float64: dense -> band -> tridiagonal -> bisection.

The library's one-stage reduction reads the whole matrix for every column; here all work but O(n^2 width) is in matrix
products.
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
_CHANGE = 1e-12  # how far trace and Frobenius norm may change, relative
_ZERO = 1e-290  # and absolute, for a zero matrix; the largest entry of any other lies in [0.5, 1)


def available(device: torch.device | str) -> bool:
    """Return whether the kernels can run on a device: an NVIDIA GPU with acquire and release, and Triton installed."""
    device = torch.device(device)
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability(device) >= (7, 0)
        and find_spec("triton") is not None
    )


WIDTH = 32
"""The width of the intermediate band. With 64 the band takes a sixth less time, but what follows twice as long."""


def room(n: int) -> int:
    """How many bytes a matrix of size n, which is overwritten, and the working memory for it take on the device."""
    return 8 * n * (n + (4 * GROUP + 8) * WIDTH)


def accuracy(shape: tuple[int, ...], sigma: Values) -> tuple[float, float]:
    """(error bound, noise floor) of these singular values of a matrix of this shape, in their units."""
    return bounds.of(NAME, shape, sigma)


def eigenvalues(gram: Tensor, width: int = WIDTH, kernels: bool | None = None) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues (batch, n) of symmetric float64 matrices (batch, n, n), and which of them passed: a boolean
    tensor (batch,) on their device, true if trace and Frobenius norm are unchanged after all three stages.

    `gram` is overwritten; some 40 n width numbers per matrix are needed in addition. Nothing here waits for the device.
    `kernels`: use Triton's kernels or their twins in torch; by default Triton on CUDA.
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
    """The powers of two that bring float64 numbers to [0.5, 1), or as near as a normal number can; 1 for 0."""
    exponent = torch.frexp(top).exponent.to(torch.int64).clamp(-1023, 1022)
    return ((1023 - exponent) << 52).view(torch.float64)

"""choose() names the routines for a matrix in order; solve() climbs them until a result is proven."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import WeightsError
from ..spectrum import Values
from . import gram, svd

COMPUTE_DTYPE = "float64"
NOT_FINITE = "the weights hold NaN or infinite values"
MAX_RELATIVE_ERROR = 1e-10
_FROBENIUS_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Solution:
    """Singular values (float64, descending) with their provenance; see Spectrum."""

    values: Values
    frobenius_norm: float
    solver: str
    solver_version: int
    error_bound: float
    noise_floor: float
    device: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Rung:
    """A routine on a device; `reach` is the largest error / sigma_1 of any value that is accepted."""

    name: str
    version: int
    device: str
    singular_values: Callable[[torch.Tensor, float], torch.Tensor]
    reach: float


def choose(device: str) -> list[Rung]:
    """The routines to try on a device, first to last.

    Gram and eigvalsh come first: 5 to 6 times faster than svdvals in float64 on an H100, 1.7 to 3
    times on a CPU core at every shape from 192 x 576 to 4096 x 1024 (tests/benchmarks/solvers.py). On a
    CPU an ill-conditioned matrix then goes to LAPACK, whose small values are right too.
    """
    by_gram = (gram.NAME, gram.VERSION)
    by_svd = (svd.NAME, svd.VERSION)
    on_cpu = Rung(*by_svd, "cpu", svd.singular_values, math.inf)
    if device == "cpu":
        return [Rung(*by_gram, "cpu", gram.singular_values, MAX_RELATIVE_ERROR), on_cpu]
    return [
        Rung(*by_gram, device, gram.singular_values, math.inf),
        Rung(*by_svd, device, svd.singular_values, math.inf),
        on_cpu,
    ]


def solve(matrix: torch.Tensor, rungs: list[Rung]) -> Solution:
    """Singular values of a 2-D float matrix on the CPU, computed in float64.

    Every result is checked: finite, and sum sigma^2 equal to the Frobenius norm summed apart.

    Raises:
        WeightsError: NaN or infinite weights, or no routine gave a proven result.
    """
    start = time.perf_counter()
    matrix = readable(matrix)
    placed, scale, norm = place(matrix, rungs[0].device)
    reasons: list[str] = []
    for rung in rungs:
        try:
            if placed.device != torch.device(rung.device):
                placed = matrix.to(rung.device)
            sigma = rung.singular_values(placed, scale).to("cpu")
        except (RuntimeError, MemoryError) as error:  # out of memory, not converged, a lost device
            reasons.append(f"{rung.name} on {rung.device}: {_reason(error)}")
            continue
        accuracy = _accuracy(rung, matrix, sigma)
        if fault := fault_of(sigma, norm, accuracy, rung.reach):
            reasons.append(f"{rung.name} on {rung.device}: {fault}")
            continue
        return solution(
            sigma, scale, norm, accuracy, (rung.name, rung.version, rung.device), time.perf_counter() - start
        )
    raise WeightsError("no singular values: " + "; ".join(reasons))


def readable(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix in a type that torch computes with: it finds no extremes of float8, and bfloat16 holds all of it."""
    return matrix.to(torch.bfloat16) if matrix.element_size() == 1 else matrix


def place(matrix: torch.Tensor, device: str) -> tuple[torch.Tensor, float, float]:
    """The matrix on the device, or where it is if there is no room; its scale and norm (see _scale_and_norm).

    On an H100 the norm of a 14336 x 4096 matrix costs 2 ms, on 8 cores beside it 200.
    """
    try:
        placed = matrix.to(device)
        return placed, *_scale_and_norm(placed)
    except (RuntimeError, MemoryError):
        return matrix, *_scale_and_norm(matrix)


def fault_of(sigma: torch.Tensor, norm: float, accuracy: tuple[float, float], reach: float) -> str:
    """Why a result with that bound and floor is not accepted, "" where it is."""
    bound, floor = accuracy
    error = max(bound, floor if float(sigma[-1]) <= floor else 0.0)
    total = float(sigma.square().sum())
    if not math.isfinite(total) or abs(total - norm * norm) > _FROBENIUS_TOLERANCE * norm * norm:
        return "sum sigma^2 is not the Frobenius norm squared"
    return "error bound too large" if error > reach * float(sigma[0]) else ""


def solution(
    sigma: torch.Tensor,
    scale: float,
    norm: float,
    accuracy: tuple[float, float],
    by: tuple[str, int, str],
    seconds: float,
) -> Solution:
    """An accepted result in the units of the weights; `by` names solver, version and device.

    Raises:
        WeightsError: the values do not fit into float64.
    """
    if not math.isfinite(norm / scale):
        raise WeightsError("the singular values exceed the range of float64")
    values = np.ascontiguousarray(sigma.numpy() / scale)
    bound, floor = (x / scale for x in accuracy)
    name, version, device = by
    return Solution(values, norm / scale, name, version, bound, floor, device, seconds)


def _accuracy(rung: Rung, matrix: torch.Tensor, sigma: torch.Tensor) -> tuple[float, float]:
    if rung.name == gram.NAME:
        return gram.accuracy(min(matrix.shape), sigma)
    return svd.accuracy(max(matrix.shape), sigma)


def _scale_and_norm(matrix: torch.Tensor) -> tuple[float, float]:
    """A power of two that brings the largest entry into [0.5, 1), and the Frobenius norm so scaled."""
    low, high = (float(x) for x in torch.aminmax(matrix))
    top = max(-low, high)
    if not math.isfinite(top):
        raise WeightsError(NOT_FINITE)
    scale = 2.0 ** min(-math.frexp(top)[1], 1023) if top > 0 else 1.0
    squares = sum(float((slab.to(torch.float64) * scale).square().sum()) for slab in gram.slabs(matrix))
    return scale, math.sqrt(squares)


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "out of memory" if "memory" in text.lower() else text[:120]

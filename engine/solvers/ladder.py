"""The ladder: choose() lists the solvers for a device in order; solve() tries them until a result is proven."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import bounds
from ..errors import WeightsError
from ..spectrum import Provenance, Values
from ..weights import Weights, host_array
from . import gram, svd

COMPUTE_DTYPE = "float64"
NOT_FINITE = "the weights hold NaN or infinite values"
MAX_RELATIVE_ERROR = 1e-4
"""The relative error of the smallest value up to which Gram is accepted on a CPU."""
_GRAM_ERROR = 1e-15
"""The error of Gram's eigenvalues on weights, relative to sigma_1^2: a value of 2.2e-6 sigma_1 then has a relative
error of 1e-4. With this limit the values of 600 trained-like and Gaussian square matrices up to 1024 were within 3e-12
sigma_1 of LAPACK's. The relative error of the smallest was within 5e-7, and for 120 matrices that were built to be hard
within 9e-4. The bound that is stated with a result holds for any matrix: at most 1e-8 sigma_1 at 1024."""
_FROBENIUS_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Solution:
    """Singular values (float64, descending) with their provenance."""

    values: Values
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Rung:
    """A solver on a device. `reach` is the largest condition number up to which its result is accepted; `accuracy`
    returns (error bound, noise floor) of its values for a shape.
    """

    name: str
    version: int
    device: str
    singular_values: Callable[[Weights, float], Weights]
    reach: float
    accuracy: Callable[[tuple[int, ...], Values], tuple[float, float]]


def choose(device: str) -> list[Rung]:
    """The solvers to try on a device, in order.

    Gram and eigvalsh come first: in float64 they are 5 to 6 times faster than svdvals on an H100, and 1.7 to 3 times on
    a CPU core at every shape from 192 x 576 to 4096 x 1024 (tests/benchmarks/solvers.py). On a CPU a matrix with a
    condition number above 4.5e5 then goes to LAPACK, which also gets the small values right: see MAX_RELATIVE_ERROR.
    """

    def by_gram(reach: float) -> Rung:
        return Rung(gram.NAME, gram.VERSION, device, gram.singular_values, reach, gram.accuracy)

    if device == "cpu":
        return [by_gram(math.sqrt(2 * MAX_RELATIVE_ERROR / _GRAM_ERROR)), by_svd("cpu")]
    return [by_gram(math.inf), by_svd(device), by_svd("cpu")]


def by_svd(device: str) -> Rung:
    """The SVD on a device, which is accepted at any condition number."""
    return Rung(svd.NAME, svd.VERSION, device, svd.singular_values, math.inf, svd.accuracy)


def solve(matrix: Weights, rungs: list[Rung]) -> Solution:
    """Singular values of a 2-D float matrix, computed in float64.

    Every result is checked: it is finite, and sum sigma^2 equals the separately computed Frobenius norm squared.

    Raises:
        WeightsError: the weights hold NaN or infinite values, or no solver gave a proven result.
    """
    start = time.perf_counter()
    placed, scale, norm = _place(matrix, rungs[0].device)
    reasons: list[str] = []
    for rung in rungs:
        try:
            placed = moved(placed if rung.device != "cpu" else matrix, rung.device)
            sigma = host_array(rung.singular_values(placed, scale))
        except (RuntimeError, MemoryError, np.linalg.LinAlgError) as error:  # no room, not converged, a lost device
            reasons.append(f"{rung.name} on {rung.device}: {_reason(error)}")
            continue
        accuracy = rung.accuracy(matrix.shape, sigma)
        if fault := fault_of(sigma, norm, accuracy[1], rung.reach):
            reasons.append(f"{rung.name} on {rung.device}: {fault}")
            continue
        by = SolvedBy(rung.name, rung.version, rung.device)
        return solution(sigma, scale, norm, accuracy, by, time.perf_counter() - start)
    raise WeightsError("no singular values: " + "; ".join(reasons))


def moved(matrix: Weights, device: str) -> Weights:
    """The matrix on a device; float8 becomes bfloat16, which holds all its values: torch has no max for float8.

    Raises:
        RuntimeError: the device has no room or does not answer.
    """
    if device == "cpu":
        return host_array(matrix)
    import torch

    placed = torch.as_tensor(matrix).to(device)
    return placed.to(torch.bfloat16) if placed.element_size() == 1 else placed


def _place(matrix: Weights, device: str) -> tuple[Weights, float, float]:
    """The matrix on the device, or on the CPU if there is no room; with its scale and norm (see _scale_and_norm).

    The norm of a 14336 x 4096 matrix takes 2 ms on an H100, 200 on 8 cores of its host.
    """
    try:
        placed = moved(matrix, device)
        return placed, *_scale_and_norm(placed)
    except (RuntimeError, MemoryError):
        placed = host_array(matrix)
        return placed, *_scale_and_norm(placed)


def fault_of(sigma: Values, norm: float, floor: float, reach: float) -> str:
    """Why a result with this noise floor is not accepted, "" if it is; see Rung.reach."""
    total = float(sigma @ sigma)
    if not math.isfinite(total) or abs(total - norm * norm) > _FROBENIUS_TOLERANCE * norm * norm:
        return "sum sigma^2 is not the Frobenius norm squared"
    top, smallest = float(sigma[0]), float(sigma[-1])
    is_known = smallest > floor and top <= reach * smallest
    return "ill-conditioned" if top > 0 and not is_known and math.isfinite(reach) else ""


class SolvedBy(NamedTuple):
    """How singular values were found: the solver, its version, and the device."""

    solver: str
    version: int
    device: str


def solution(
    sigma: Values,
    scale: float,
    norm: float,
    accuracy: tuple[float, float],
    by: SolvedBy,
    seconds: float,
) -> Solution:
    """An accepted result in the units of the weights.

    Raises:
        WeightsError: the values do not fit into float64.
    """
    if not math.isfinite(norm / scale):
        raise WeightsError("the singular values exceed the range of float64")
    values = np.ascontiguousarray(sigma / scale)
    bound, floor = bounds.rescaled(accuracy, scale)
    provenance = Provenance(norm / scale, by.solver, by.version, COMPUTE_DTYPE, bound, floor, by.device, seconds)
    return Solution(values, provenance)


def _scale_and_norm(matrix: Weights) -> tuple[float, float]:
    """A power of two that brings the largest absolute entry into [0.5, 1), and the Frobenius norm scaled by it."""
    top = max(-float(matrix.min()), float(matrix.max()))
    if not math.isfinite(top):
        raise WeightsError(NOT_FINITE)
    scale = 2.0 ** min(-math.frexp(top)[1], 1023) if top > 0 else 1.0
    return scale, math.sqrt(_squares(matrix, scale))


def _squares(matrix: Weights, scale: float) -> float:
    """The sum of squares of `matrix * scale`, in float64."""
    if not isinstance(matrix, np.ndarray):
        return sum(float((slab.double() * scale).square().sum()) for slab in gram.slabs(matrix))
    total = 0.0
    for slab in gram.slabs(matrix):
        entries = slab.astype(np.float64).ravel(order="K")
        entries *= scale
        total += float(entries @ entries)
    return total


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "out of memory" if "memory" in text.lower() else text[:120]

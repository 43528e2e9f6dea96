"""The matrix W S of a projection under a weighting, S S^T = C, and the check of its singular values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import WeightsError
from ..spectrum import Operand, Projection, Provenance, Values
from ..weights import Weights, host_array
from .moment_factors import Factor, Factors
from .slabs import Array, exponent_of, joined, slabs, times_two_to
from .weighting import NOISE, WEIGHED

C = 2.0
"""The constant in C n eps |W|^2 |C|, the bound on the error of sigma^2 that forming W S makes.
tests/benchmarks/weighted_bounds.py found .95 at n = 1, .72 at n = 8 and .08 from n = 24 on."""
_LEAST_FLOOR = 1e-8
_TOLERANCE = 1e-10
_EPS = float(np.finfo(np.float64).eps)
_STEPS, _CHANCE = 20, 1e-6

_factors = Factors()


@dataclass(frozen=True, slots=True)
class ValuesCheck:
    """What the singular values of a weighted matrix are checked against, all in their units.

    `norm`: sqrt(tr W C W^T), computed without W S. `reach`: an upper bound of |W| |C|^1/2 in spectral norms; `whole`:
    the same with the Frobenius norm of W. `cols` is n. `clipped`, `is_exact`: see Factor. `added` is a further error of
    each value that making the matrix adds.
    """

    norm: float
    reach: float
    whole: float
    cols: int
    clipped: float
    is_exact: bool
    added: float = 0.0

    def proven(self, values: Values, provenance: Provenance) -> Provenance:
        """The provenance of the values of W C^1/2, from that of the matrix W S that the solver had.

        The errors of C = Q L Q^T and of the product, at most C n eps |W|^2 |C| in sigma^2, are added to those of the
        solver. The noise floor is where they are all of sigma^2, and at least 1e-8 sigma_1.

        Raises:
            WeightsError: sum sigma^2 is not tr(W C W^T).
        """
        rounding = C * self.cols * _EPS
        total = _norm(values)
        if self.whole > 0:
            found, wanted = total / self.whole, self.norm / self.whole
            if not abs(found - wanted) * (found + wanted) <= _TOLERANCE * wanted**2 + rounding:
                raise WeightsError("sum sigma^2 is not the trace of W C W^T")
        elif total > 0:
            raise WeightsError("sum sigma^2 is not the trace of W C W^T")
        bound, low = provenance.error_bound + self.added, max(provenance.noise_floor, self.added)
        known = replace(provenance, frobenius_norm=self.norm, clipped=self.clipped, error_bound=bound, noise_floor=low)
        if self.is_exact or not values.size:
            return known
        least = math.sqrt(rounding) * self.reach
        floor = max(_LEAST_FLOOR * float(values[0]), least, low)
        above = values[values > floor]
        added = least * (least / float(above[-1])) if above.size else 0.0
        return replace(known, error_bound=bound + added, noise_floor=floor)


@dataclass(frozen=True, slots=True)
class Weighed:
    """W S, float64, shape (m, n), and the check of its singular values."""

    matrix: Weights
    check: ValuesCheck


@dataclass(frozen=True, slots=True)
class NotedMatrix:
    """A matrix, and a note for its label on what was found while it was made; "" for nothing."""

    matrix: Weights | Weighed
    note: str


def weigh(projection: Projection, matrices: Sequence[Weights]) -> Weighed:
    """The matrix of a projection under a weighting."""
    return _weighed(projection, WEIGHED, matrices[0])


def noise(projection: Projection, matrices: Sequence[Weights]) -> Weighed:
    """Gaussian noise under a weighting, on the device of the matrix; a key always gives the same numbers there."""
    return _weighed(projection, NOISE, _gaussian(projection, matrices[0]))


def _weighed(projection: Projection, kind: str, matrix: Weights) -> Weighed:
    """The matrix under the weighting, made on its device, or on the CPU if that has no room or does not answer.

    Raises:
        WeightsError: see Factors.get.
    """
    made = projection.derived
    assert made is not None
    form = made.formula.removeprefix(kind)
    try:
        return _product(matrix, factor_of(form, made.operands, matrix))
    except RuntimeError:
        if isinstance(matrix, np.ndarray):
            raise
        return _weighed(projection, kind, host_array(matrix))


def factor_of(form: str, operands: Sequence[Operand], matrix: Weights) -> Factor:
    """The factor of a moment, on the device of the matrix that is to be multiplied with it.

    Raises:
        WeightsError, RuntimeError: see Factors.get.
    """
    if isinstance(matrix, np.ndarray):
        return _factors.get(form, operands, "numpy", np.asarray)
    import torch

    device = matrix.device
    held = f"torch on {device}"
    return _factors.get(form, operands, held, lambda numbers: torch.as_tensor(numbers, device=device))


def _product(matrix: Weights, factor: Factor) -> Weighed:
    if 0 in matrix.shape:
        return Weighed(matrix, ValuesCheck(0.0, 0.0, 0.0, matrix.shape[1], factor.clipped, factor.is_exact))
    exponent = exponent_of(matrix)
    parts, energy, squares = [], 0.0, 0.0
    for slab in slabs(matrix, exponent):
        parts.append(factor.times(slab))
        energy += factor.energy(slab)
        squares += float((slab * slab).sum())
    whole, root = math.sqrt(squares), math.sqrt(factor.norm)
    reach = min(whole, _spectral_norm(matrix, exponent))
    back = exponent + factor.exponent  # undoes the scaling of W and S
    check = ValuesCheck(
        norm=_unscaled(math.sqrt(max(energy, 0.0)), back),
        reach=_unscaled(reach * root, back),
        whole=_unscaled(whole * root, back),
        cols=matrix.shape[1],
        clipped=factor.clipped,
        is_exact=factor.is_exact,
    )
    return Weighed(times_two_to(joined(parts), back), check)


def _spectral_norm(matrix: Weights, exponent: int) -> float:
    """An upper bound of the spectral norm of W / 2^exponent, at most some 1.5 times as large, that fails for one random
    start in a million.

    |A^p x| >= sigma_1^2p |<v, x>|, A = W^T W and v its leading direction, and for a Gaussian x the chance that
    |<v, x>| < d is at most 0.8 d.
    """
    start = np.random.default_rng(0).standard_normal(matrix.shape[1])
    if isinstance(matrix, np.ndarray):
        wide = times_two_to(matrix if matrix.dtype == np.float64 else matrix.astype(np.float32), -exponent)
        x: Array = start.astype(wide.dtype)
    else:
        wide = times_two_to(matrix if matrix.element_size() == 8 else matrix.float(), -exponent)
        x = wide.new_tensor(start)
    log = 0.0
    for _ in range(_STEPS):
        x = wide.T @ (wide @ x)
        size = math.sqrt(float(x @ x))
        if size == 0:
            return 0.0
        log += math.log(size)
        x = x / size
    return math.exp((log - math.log(_CHANCE)) / (2 * _STEPS)) * 1.001  # float32


def _gaussian(projection: Projection, like: Weights) -> Weights:
    shape = projection.rows, projection.cols
    if isinstance(like, np.ndarray):
        return np.random.Generator(np.random.PCG64(int(projection.key, 16))).standard_normal(shape)
    import torch

    seed = torch.Generator(like.device).manual_seed(int(projection.key[:15], 16))
    return torch.randn(shape, generator=seed, dtype=torch.float64, device=like.device)


def _norm(values: Values) -> float:
    top = float(values[0]) if values.size else 0.0
    return top * math.sqrt(float(((values / top) ** 2).sum())) if top > 0 else 0.0


def _unscaled(x: float, exponent: int) -> float:
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return math.inf

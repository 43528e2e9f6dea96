"""How far the singular values of each solver can be off: error bound and noise floor, from the shape and the values.

Solvers state them with their results. Results of versions before HOLD_SINCE carry bounds that were too small; a store
that reads such a result recomputes them. The figures are measured by tests/benchmarks/bounds.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .spectrum import Values

GRAM = "gram-eigvalsh"
TWO_STAGE = "gram-two-stage"
SVD = "svdvals"

HOLD_SINCE = {GRAM: 2, TWO_STAGE: 2, SVD: 2}
"""The first version of each solver whose stored bounds were computed as in this file."""

GRAM_COLUMNS = 2048
"""The largest number of columns of the longer side that are summed into a Gram matrix in one go.

A GPU adds all that it is given in one go: with 16384 equal terms, an H100's relative error was up to 3.5e-13.
"""

_SMALLEST = math.ulp(0.0)
_EPS = math.ulp(1.0)
_VERSION_1_COLUMNS = 16384  # measured on an H100, where slabs of 256 MiB were summed in one go


def of(solver: str, shape: tuple[int, ...], values: Values) -> tuple[float, float]:
    """(error bound, noise floor) of the singular values that a solver gives for a matrix of this shape, in their units.

    `values`: float64, descending, not empty. Both are 0 for a zero matrix, and NaN if the largest value is.

    Raises:
        KeyError: no solver has that name.
    """
    top = float(values[0])
    if top == 0:
        return 0.0, 0.0
    if solver == SVD:
        return (_svd(shape) * top,) * 2
    relative = values / top
    errors = _gram_errors(HOLD_SINCE[solver], shape, float(relative[-1]), float(relative @ relative))
    above = relative[relative > errors.floor]
    return errors.largest(float(above[-1]) if len(above) else 1.0) * top, errors.floor * top


def anew(
    solver: str, version: int, shape: tuple[int, ...], ends: tuple[float, float], norm: float
) -> tuple[float, float] | None:
    """(error bound, noise floor) to replace those of a stored result; None if those hold, or the solver is unknown.

    `ends` are the largest and smallest singular value, NaN if there is none; `norm` is the Frobenius norm; all in the
    same units. If the smallest value is not above the floor, the bound is the error at the floor.
    """
    if version >= HOLD_SINCE.get(solver, version):
        return None
    top, low = ends
    if not top > 0:
        return 0.0, 0.0
    if solver == SVD:
        error = floor = _svd(shape)
    else:
        errors = _gram_errors(version, shape, low / top, norm / top * (norm / top))
        error, floor = errors.largest(max(low / top, errors.floor)), errors.floor
    return error * top + _SMALLEST, floor * top + _SMALLEST


def rescaled(accuracy: tuple[float, float], scale: float) -> tuple[float, float]:
    """(error bound, noise floor) of values that were divided by `scale`, a power of two.

    The division is exact unless a result is below 2.2e-308: those are rounded to a multiple of 5e-324.
    """
    bound, floor = (x / scale + _SMALLEST if x else 0.0 for x in accuracy)
    return bound, floor


def _svd(shape: tuple[int, ...]) -> float:
    """Error of a singular value / sigma_1: the backward error of LAPACK and cuSOLVER, with a margin."""
    return max(shape) * _EPS


class _GramErrors(NamedTuple):
    """Errors of the eigenvalues of a Gram matrix / sigma_1^2: `each` + `alike` times the larger of `share` and the
    eigenvalue.

    `each` is the sum of the eigensolver's errors and of rounding errors that are independent, as with random weights.
    Sums of equal terms have correlated rounding errors: in the second half of such a sum all errors have one sign, each
    up to eps / 8 of the sum. Matrices with few different values have such sums. With entries 0.1 and -0.1 only those on
    the Gram matrix's diagonal are such; the diagonal's mean is `share`. If blocks of a matrix are constant, there are
    more such sums, and the smaller eigenvalues are as far off as the largest; but such a matrix is singular.
    """

    each: float
    alike: float
    share: float

    @property
    def floor(self) -> float:
        """The singular value / sigma_1 whose error is a twentieth of it, about 5e-7."""
        return math.sqrt(10 * (self.each + self.alike * self.share))

    def largest(self, low: float) -> float:
        """The largest error of singular values / sigma_1 between 1 and `low`, which is not below the floor.

        If an eigenvalue is off by d, its square root is off by at most value - sqrt(value^2 - d), which is convex.
        """
        pairs = ((x, self.each + self.alike * max(self.share, x * x)) for x in (1.0, low))
        return max(d / (x + math.sqrt(x * x - d)) for x, d in pairs)


def _gram_errors(version: int, shape: tuple[int, ...], low: float, squares: float) -> _GramErrors:
    """Errors for a matrix of this shape; `low` is its smallest singular value / sigma_1, `squares` the sum of all
    (singular value / sigma_1)^2."""
    small, long = max(1, min(shape)), max(shape)
    columns = GRAM_COLUMNS if version >= 2 else _VERSION_1_COLUMNS
    alike = _EPS / 8 * (min(long, columns) + long / columns)
    errors = _GramErrors(1e-15 + 4e-16 * math.sqrt(small), alike, min(1.0, squares / small))
    return errors if low > errors.floor else errors._replace(share=1.0)

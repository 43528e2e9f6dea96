"""How far the singular values of each solver can be off: error bound and noise floor, from the shape and the values.

A solver states them of its result. Results of an earlier version than HOLD_SINCE carry bounds that were too small;
a store that reads them works theirs out anew. The figures are measured: tests/benchmarks/bounds.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .spectrum import Values

GRAM = "gram-eigvalsh"
TWO_STAGE = "gram-two-stage"
SVD = "svdvals"

HOLD_SINCE = {GRAM: 2, TWO_STAGE: 2, SVD: 2}
"""The first version of each solver whose results were stored with the bounds of this file."""

GRAM_COLUMNS = 2048
"""So many columns of the longer side are summed into a Gram matrix without a break, at most.

A GPU sums all that it is given in one go: of 16384 equal terms, on an H100, the sum was off by up to 3.5e-13 of itself.
"""

_SMALLEST = math.ulp(0.0)
_EPS = math.ulp(1.0)
_VERSION_1_COLUMNS = 16384  # as measured on an H100, where a slab of 256 MiB was summed without a break


def of(solver: str, shape: tuple[int, ...], values: Values) -> tuple[float, float]:
    """(error bound, noise floor) of the singular values of a matrix of this shape by this solver, in their units.

    `values`: float64, descending, not empty. Both are 0 for a zero matrix, NaN where the largest value is.

    Raises:
        KeyError: no solver has that name.
    """
    top = float(values[0])
    if top == 0:
        return 0.0, 0.0
    if solver == SVD:
        return (_svd(shape) * top,) * 2
    relative = values / top
    spread = _spread(HOLD_SINCE[solver], shape, float(relative[-1]), float(relative @ relative))
    above = relative[relative > spread.floor]
    return spread.error(float(above[-1]) if len(above) else 1.0) * top, spread.floor * top


def anew(
    solver: str, version: int, shape: tuple[int, ...], ends: tuple[float, float], norm: float
) -> tuple[float, float] | None:
    """(error bound, noise floor) of a stored result whose own do not hold, None where they do or the solver is unknown.

    `ends` are its largest and smallest singular value, NaN where there is none, and `norm` is the Frobenius norm; in
    their units. Where the smallest is not above the floor the bound is the error at the floor.
    """
    if version >= HOLD_SINCE.get(solver, version):
        return None
    top, low = ends
    if not top > 0:
        return 0.0, 0.0
    if solver == SVD:
        error = floor = _svd(shape)
    else:
        spread = _spread(version, shape, low / top, norm / top * (norm / top))
        error, floor = spread.error(max(low / top, spread.floor)), spread.floor
    return error * top + _SMALLEST, floor * top + _SMALLEST


def rescaled(accuracy: tuple[float, float], scale: float) -> tuple[float, float]:
    """(error bound, noise floor) of values that were divided by `scale`, a power of two.

    That is exact but where it leaves numbers smaller than 2.2e-308, which are rounded to a multiple of 5e-324.
    """
    bound, floor = (x / scale + _SMALLEST if x else 0.0 for x in accuracy)
    return bound, floor


def _svd(shape: tuple[int, ...]) -> float:
    """Error of a singular value / sigma_1: the backward error of LAPACK and cuSOLVER, with room."""
    return max(shape) * _EPS


class _Spread(NamedTuple):
    """Errors of the eigenvalues of a Gram matrix / sigma_1^2: of each, and `alike` times the larger of `share` and its
    own size.

    Roundings that differ, as those of random weights do, and the eigensolver's add up to `each`. Those of equal terms
    are alike: in the second half of a sum all of them go one way, by up to eps / 8 of it a term. Matrices of few values
    have such sums, those of 0.1 and -0.1 on the diagonal alone: its mean is `share`. Where blocks of a matrix are
    constant more of the sums are, and the smaller eigenvalues are off as the largest is; but such a matrix is singular.
    """

    each: float
    alike: float
    share: float

    @property
    def floor(self) -> float:
        """Where the error is a twentieth of the value, some 5e-7."""
        return math.sqrt(10 * (self.each + self.alike * self.share))

    def error(self, low: float) -> float:
        """The largest error of singular values / sigma_1 from 1 down to `low`, which is not below the floor.

        A square root of an eigenvalue that is off by d is off by value - sqrt(value^2 - d) at most. That is convex.
        """
        pairs = ((x, self.each + self.alike * max(self.share, x * x)) for x in (1.0, low))
        return max(d / (x + math.sqrt(x * x - d)) for x, d in pairs)


def _spread(version: int, shape: tuple[int, ...], low: float, squares: float) -> _Spread:
    """`low` is the smallest singular value / sigma_1, `squares` the sum of squares of all of them so divided."""
    small, long = max(1, min(shape)), max(shape)
    columns = GRAM_COLUMNS if version >= 2 else _VERSION_1_COLUMNS
    alike = _EPS / 8 * (min(long, columns) + long / columns)
    spread = _Spread(1e-15 + 4e-16 * math.sqrt(small), alike, min(1.0, squares / small))
    return spread if low > spread.floor else spread._replace(share=1.0)

"""How far the singular values of each solver can be off: error bound and noise floor, from the shape and the values.

A solver states them of its result. Results of an earlier version than HOLD_SINCE carry bounds that were too small;
a store that reads them works theirs out anew. The figures are measured: tests/benchmarks/bounds.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .spectrum import Values

GRAM = "gram-eigvalsh"
TWO_STAGE = "gram-two-stage"
SVD = "svdvals"

HOLD_SINCE = {GRAM: 2, TWO_STAGE: 2, SVD: 2}
"""The first version of each solver whose results were stored with the bounds of this file."""

_SMALLEST = math.ulp(0.0)
_EPS = math.ulp(1.0)


def of(solver: str, shape: tuple[int, ...], values: Values) -> tuple[float, float]:
    """(error bound, noise floor) of the singular values of a matrix of this shape by this solver, in their units.

    `values`: float64, descending, not empty. The bound is the error of the smallest value above the floor, and so of
    every one. Both are 0 for a zero matrix, NaN where the largest value is.

    Raises:
        KeyError: no solver has that name.
    """
    top = float(values[0])
    if top == 0:
        return 0.0, 0.0
    floor = _floor(solver, shape) * top
    above = values[values > floor]
    return _error(solver, shape, top, float(above[-1]) if len(above) else top), floor


def anew(solver: str, version: int, shape: tuple[int, ...], top: float, low: float) -> tuple[float, float] | None:
    """(error bound, noise floor) of a stored result whose own do not hold, None where they do or the solver is unknown.

    `top` and `low` are its largest and smallest singular value; in their units. Where `low` is not above the floor
    the bound is the error at the floor: which value is the smallest above it cannot be told of these two.
    """
    if version >= HOLD_SINCE.get(solver, version):
        return None
    if top == 0:
        return 0.0, 0.0
    floor = _floor(solver, shape) * top
    return rescaled((_error(solver, shape, top, max(low, floor)), floor), 1.0)


def rescaled(accuracy: tuple[float, float], scale: float) -> tuple[float, float]:
    """(error bound, noise floor) of values that were divided by `scale`, a power of two.

    That is exact but where it leaves numbers smaller than 2.2e-308, which are rounded to a multiple of 5e-324.
    """
    bound, floor = (x / scale + _SMALLEST if x else 0.0 for x in accuracy)
    return bound, floor


def _floor(solver: str, shape: tuple[int, ...]) -> float:
    """Noise floor / sigma_1.

    Of a Gram matrix it stands where the error is a twentieth of the value, some 1e-7.
    """
    if solver == SVD:
        return max(shape) * _EPS
    return math.sqrt(10 * _EIGENVALUES[solver](shape))


def _error(solver: str, shape: tuple[int, ...], top: float, value: float) -> float:
    """The error of a value that is not below the floor, where the largest is `top`.

    A square root of an eigenvalue that is off by d sigma_1^2 at most is off by value - sqrt(value^2 - d sigma_1^2).
    """
    if solver == SVD:
        return _floor(solver, shape) * top
    d, ratio = _EIGENVALUES[solver](shape), value / top
    return top * d / (ratio + math.sqrt(ratio * ratio - d))


def _gram(shape: tuple[int, ...]) -> float:
    return max(1e-15, 4e-16 * math.sqrt(min(shape))) + 1e-18 * max(shape)


def _two_stage(shape: tuple[int, ...]) -> float:
    return 4e-16 * max(10.0, math.sqrt(min(shape))) + 1e-18 * max(shape)


_EIGENVALUES: dict[str, Callable[[tuple[int, ...]], float]] = {GRAM: _gram, TWO_STAGE: _two_stage}
"""The largest error of an eigenvalue / sigma_1^2."""

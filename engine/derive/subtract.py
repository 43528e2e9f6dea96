"""The matrix W_B - W_A of two checkpoints, and the facts that are noted with it (difference.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import WeightsError
from ..spectrum import Projection
from ..weights import Weights, host_array
from . import difference
from .moment_factors import Factor
from .rounding import RoundingSums, rounded_to, variances
from .slabs import Array, exponent_of, joined, slabs, times_two_to
from .stack import norm_as, weighed_as
from .weigh import NotedMatrix, factor_of
from .weighting import WEIGHED, by_moment


def subtract(projection: Projection, matrices: Sequence[Weights]) -> NotedMatrix:
    """B's matrix minus A's in float64, under the moment of the projection if it has one.

    Raises:
        WeightsError: one holds NaN or infinite values; the message names it.
    """
    half = len(matrices) // 2
    pairs = [_side_by_side(*pair) for pair in zip(matrices[:half], matrices[half:], strict=True)]
    exponent = max(_exponent(*both) for both in zip(difference.pairs_of(projection), pairs, strict=True))
    factor = _factor(projection, pairs[0][0])
    found = _Difference(factor, exponent)
    for parents, pair in zip(difference.pairs_of(projection), pairs, strict=True):
        found.add(parents, pair)
    norm = math.hypot(*(norm_as(projection, ours) for ours, _ in pairs))
    back = exponent + (0 if factor is None else factor.exponent)
    scale = 1.0 if factor is None else _scale(factor)
    edges = (math.ldexp(sums.edge(scale), back) for sums in (found.of_one, found.of_two))
    matrix = times_two_to(joined(found.parts), exponent)
    return NotedMatrix(weighed_as(projection, matrix), difference.DifferenceFacts(norm, found.unchanged, *edges).text)


class _Difference:
    """The difference, in units of 2^exponent, and the sums for its edges, one pair of matrices after the other."""

    def __init__(self, factor: Factor | None, exponent: int) -> None:
        self._factor, self._exponent = factor, exponent
        diagonal = None if factor is None else factor.diagonal
        self.of_one, self.of_two = RoundingSums(diagonal), RoundingSums(diagonal)
        self.unchanged = 0
        self.parts: list[Array] = []

    def add(self, parents: tuple[Projection, Projection], pair: tuple[Weights, Weights]) -> None:
        kinds = [
            "" if parent.dequantisation else rounded_to(parent.dtype, slabs(matrix))
            for parent, matrix in zip(parents, pair, strict=True)
        ]
        for a, b in zip(*(slabs(matrix, self._exponent) for matrix in pair), strict=True):
            delta = b - a
            self.unchanged += int((delta == 0).sum())
            noise = variances(b, kinds[1], self._exponent)
            weighed = delta if self._factor is None else self._factor.times(delta)
            self.of_one.add(noise, delta, weighed)
            self.of_two.add(noise + variances(a, kinds[0], self._exponent), delta, weighed)
            self.parts.append(delta)


def _side_by_side(ours: Weights, theirs: Weights) -> tuple[Weights, Weights]:
    """Both matrices on one device: the CPU if either is there. float8 becomes float32, as torch has no max for it."""
    if isinstance(ours, np.ndarray) or isinstance(theirs, np.ndarray):
        return host_array(ours), host_array(theirs)
    first, second = (m.float() if m.element_size() == 1 else m for m in (ours, theirs))
    return first, second


def _exponent(parents: tuple[Projection, Projection], pair: tuple[Weights, Weights]) -> int:
    found = []
    for name, parent, matrix in zip("AB", parents, pair, strict=True):
        try:
            found.append(exponent_of(matrix))
        except WeightsError as error:
            raise WeightsError(f"{parent.address} of {name}: {error}") from None
    return max(found)


def _factor(projection: Projection, matrix: Weights) -> Factor | None:
    made = projection.derived
    assert made is not None
    if not made.weighting:
        return None
    moment = by_moment(projection).derived
    assert moment is not None
    return factor_of(moment.formula.removeprefix(WEIGHED), moment.operands, matrix)


def _scale(factor: Factor) -> Array | float:
    """The factor of a column's variance under a moment: its diagonal entry if C is diagonal; else, as C mixes columns,
    the norm of C as an upper bound."""
    return factor.diagonal if factor.is_exact else factor.norm

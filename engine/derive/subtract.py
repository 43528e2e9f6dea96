"""The matrix W_B - W_A of difference.py, and what is noted as it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import WeightsError
from ..spectrum import Projection
from ..weights import Weights, host_array
from . import difference
from .factors import Factor
from .rounding import Sums, rounded_to, variances
from .slabs import Array, exponent_of, joined, slabs, times_two_to
from .stack import norm_as, weighed_as
from .weigh import Noted, factor_of
from .weighting import WEIGHED, by_moment


def subtract(projection: Projection, matrices: Sequence[Weights]) -> Noted:
    """B's matrix less A's in float64, under the moment of the projection where it has one.

    Raises:
        WeightsError: either holds NaN or infinite values, and is named.
    """
    ours, theirs = _side_by_side(matrices)
    exponent = _exponent(projection, ours, theirs)
    factor = _factor(projection, ours)
    types = [
        "" if parent.dequantisation else rounded_to(parent.dtype, slabs(matrix))
        for parent, matrix in zip(projection.parents, (ours, theirs), strict=True)
    ]
    diagonal = None if factor is None else factor.diagonal
    of_one, of_two, unchanged, parts = Sums(diagonal), Sums(diagonal), 0, []
    for a, b in zip(slabs(ours, exponent), slabs(theirs, exponent), strict=True):
        delta = b - a
        unchanged += int((delta == 0).sum())
        noise = variances(b, types[1], exponent)
        weighed = delta if factor is None else factor.times(delta)
        of_one.add(noise, delta, weighed)
        of_two.add(noise + variances(a, types[0], exponent), delta, weighed)
        parts.append(delta)
    back = exponent + (0 if factor is None else factor.exponent)
    scale = 1.0 if factor is None else _scale(factor)
    edges = (math.ldexp(sums.edge(scale), back) for sums in (of_one, of_two))
    matrix = times_two_to(joined(parts), exponent)
    note = difference.Noted(norm_as(projection, ours), unchanged, *edges)
    return Noted(weighed_as(projection, matrix), note.text)


def _side_by_side(matrices: Sequence[Weights]) -> tuple[Weights, Weights]:
    """Both where the first lies; on the CPU where only one of them found room elsewhere."""
    ours, theirs = matrices
    if isinstance(ours, np.ndarray) or isinstance(theirs, np.ndarray):
        return host_array(ours), host_array(theirs)
    return ours, theirs


def _exponent(projection: Projection, *matrices: Weights) -> int:
    found = []
    for name, matrix in zip("AB", matrices, strict=True):
        try:
            found.append(exponent_of(matrix))
        except WeightsError as error:
            raise WeightsError(f"{projection.address} of {name}: {error}") from None
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
    """What a column of noise is multiplied with under a moment: by its own of a diagonal one, by at most its norm of
    any other, whose columns are mixed."""
    return factor.diagonal if factor.is_exact else factor.norm

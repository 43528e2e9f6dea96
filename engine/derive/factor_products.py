"""The product of two factors that a checkpoint holds in place of a matrix: by QR of both, it is never formed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import WeightsError
from ..spectrum import FACTORS_ALPHA, Projection, Values
from ..weights import Weights, host_array
from .slabs import exponent_of, joined, placed, slabs
from .stack import triangle
from .weigh import NotedMatrix, ValuesCheck, Weighed

_EPS = float(np.finfo(np.float64).eps)


def multiply_factors(projection: Projection, matrices: Sequence[Weights]) -> Weighed | NotedMatrix:
    """scale R_B R_A^T, which has the singular values of scale B A, on the device of the first factor.

    Several factors B are the diagonal blocks of one. The norm is computed separately, as tr(B^T B A A^T). QR and
    product each have an error of at most (m + n + k) eps |B| |A|, where k is the inner size: it is added to the bound.
    """
    made = projection.derived
    assert made is not None
    scale, note, factors = float(made.operands[0].digest), "", list(matrices)
    if made.formula == FACTORS_ALPHA:
        alpha = float(host_array(factors.pop()).reshape(-1)[0])
        if not math.isfinite(alpha):
            raise WeightsError(f"{projection.parents[-1].address}: alpha is {alpha}")
        scale, note = scale * alpha, f"scale {scale * alpha:.4g}"
    scale = abs(scale)
    *blocks, a = (_double(projection.parents[number].address, factor) for number, factor in enumerate(factors))
    b = _diagonal(blocks)
    back = exponent_of(a) + exponent_of(b)
    a, b = (np.ldexp(m, -exponent_of(m)) for m in (a, b))
    left, right = triangle(b), triangle(a.T)
    energy = max(float(((a @ a.T) * (b.T @ b)).sum()), 0.0)
    reach = _unscaled(float(np.linalg.norm(left, 2) * np.linalg.norm(right, 2)), back, scale)
    size = sum(b.shape) + a.shape[1]
    check = ValuesCheck(
        norm=_unscaled(math.sqrt(energy), back, scale),
        reach=reach,
        whole=_unscaled(float(np.linalg.norm(a) * np.linalg.norm(b)), back, scale),
        cols=size,
        clipped=0.0,
        is_exact=True,
        added=2 * size * _EPS * reach,
    )
    product = Weighed(placed(np.ldexp(left @ right.T, back) * scale, matrices[0]), check)
    return NotedMatrix(product, note) if note else product


def _double(address: str, factor: Weights) -> Values:
    """A factor in float64.

    Raises:
        WeightsError: it has values that are not finite.
    """
    try:
        exponent_of(factor)
    except WeightsError as error:
        raise WeightsError(f"{address}: {error}") from None
    return np.asarray(joined(list(slabs(host_array(factor)))))


def _diagonal(blocks: Sequence[Values]) -> Values:
    """One matrix with these blocks along its diagonal."""
    if len(blocks) == 1:
        return blocks[0]
    whole = np.zeros((sum(len(block) for block in blocks), sum(block.shape[1] for block in blocks)))
    row = column = 0
    for block in blocks:
        rows, columns = block.shape
        whole[row : row + rows, column : column + columns] = block
        row, column = row + rows, column + columns
    return whole


def _unscaled(size: float, exponent: int, scale: float) -> float:
    return math.ldexp(size, exponent) * scale

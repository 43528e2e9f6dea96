"""The matrices of a fixed gauge: the means of a norm folded in, and the neurons of an MLP scaled to one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from ..errors import WeightsError
from ..spectrum import Projection, Values
from ..weights import Weights, host_array
from .gauge import BALANCED, NOTHING
from .moment_factors import numbers_of
from .slabs import Array, exponent_of, joined, placed, slabs
from .weigh import NotedMatrix, weigh
from .weighting import WEIGHED, by_moment

_Fold: TypeAlias = Callable[[Array], Array]
"""Takes some rows of a matrix, float64, and returns them as a norm's gains leave them, in a new array."""


def centre(projection: Projection, matrices: Sequence[Weights]) -> Weights:
    """W diag(gain) (I - 1 1^T / n) of a projection behind a LayerNorm, without its bias."""
    made = projection.derived
    assert made is not None
    (gain,) = numbers_of(made.operands)
    centred: Weights = _folded(matrices[0], "layer_norm", gain)
    return centred


def balance(projection: Projection, matrices: Sequence[Weights]) -> NotedMatrix:
    """The up or the down of an MLP, float64 or under a weighting, where the first matrix lies, or on the CPU where that
    has no room; with how many neurons could not be scaled: their row of up or their column of down is zero, c is 1."""
    try:
        return _balanced(projection, matrices)
    except RuntimeError:
        return _balanced(projection, [host_array(m) for m in matrices])


def neuron_scales(up: Values, down: Values, degree: int) -> tuple[Values, int]:
    """By what the rows of up are multiplied, shape (n,), float64, and how many neurons have none.

    `up` are the logarithms to base 2 of the lengths of the rows of up, `down` of the columns of down, -inf of zeros.
    c_i = (|down_i| / |up_i|)^(1 / (degree + 1)): times c_i the row of up is as long as the column over c_i^degree. 1
    where either is zero.
    """
    known = np.isfinite(up) & np.isfinite(down)
    scales = np.ones(len(up))
    scales[known] = np.exp2((down[known] - up[known]) / (degree + 1))
    return scales, int((~known).sum())


def _balanced(projection: Projection, matrices: Sequence[Weights]) -> NotedMatrix:
    made = projection.derived
    assert made is not None
    role, degree, folding, weighing = _parts_of(made.formula)
    own, gain = matrices[0], None if folding == NOTHING else numbers_of(made.operands[:1])[0]
    lengths: dict[str, Values] = {}
    for parent, matrix in zip(made.parents, matrices, strict=True):
        try:
            is_up = parent.role == "up"
            lengths[parent.role] = _row_lengths(matrix, folding, gain) if is_up else _column_lengths(matrix)
        except WeightsError as error:
            raise WeightsError(f"{parent.address}: {error}") from None
    scales, zero = neuron_scales(lengths["up"], lengths["down"], degree)
    note = f"{zero} zero neuron{'s' * (zero != 1)}" if zero else ""
    if role == "down":
        return NotedMatrix(_scaled(own, placed(scales**-degree, own)), note)
    scaled = placed(scales, own)[:, None]
    if weighing:  # its moments are of what leaves the norm, with the gains
        return NotedMatrix(weigh(by_moment(projection), [_scaled(own, scaled)]), note)
    return NotedMatrix(_folded(own, folding, gain) * scaled, note)


def _parts_of(formula: str) -> tuple[str, int, str, bool]:
    """Role, degree and folding of a formula's name, and whether its matrix is weighted."""
    plain, weighed, _ = formula.removeprefix(BALANCED).partition(f"_{WEIGHED}")
    role, degree, folding = plain.split("_", 2)
    return role, int(degree), folding, bool(weighed)


def _folded(matrix: Weights, folding: str, gain: Values | None) -> Array:
    fold = _fold_of(matrix, folding, gain)
    return joined([fold(rows) for rows in slabs(matrix)])


def _fold_of(matrix: Weights, folding: str, gain: Values | None) -> _Fold:
    """`gain`: of an RMS norm its square, as in its moment, of a LayerNorm itself; None for no norm. The sign of an RMS
    norm's gain is left aside: no singular value depends on it."""
    if gain is None:
        return lambda rows: rows
    there = placed(np.sqrt(gain) if folding == "diagonal" else gain, matrix)
    return partial(_centred, there) if folding == "layer_norm" else lambda rows: rows * there


def _centred(gain: Array, rows: Array) -> Array:
    made = rows * gain
    made -= made.mean(1)[:, None]
    return made


def _scaled(matrix: Weights, scales: Array) -> Array:
    """In float64, a new array; the scales of rows, shape (m, 1), or of columns, (n,)."""
    made = joined(list(slabs(matrix)))
    made *= scales
    return made


def _row_lengths(matrix: Weights, folding: str, gain: Values | None) -> Values:
    """See neuron_scales: of the rows of up, folded."""
    exponent = exponent_of(matrix)
    fold = _fold_of(matrix, folding, gain)
    return _logarithms([(fold(rows) ** 2).sum(1) for rows in slabs(matrix, exponent)], exponent)


def _column_lengths(matrix: Weights) -> Values:
    """See neuron_scales: of the columns of down."""
    exponent = exponent_of(matrix)
    total: Array = sum((rows**2).sum(0) for rows in slabs(matrix, exponent))
    return _logarithms([total], exponent)


def _logarithms(squares: list[Array], exponent: int) -> Values:
    found = host_array(joined(squares)).astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(found) / 2 + exponent)

"""The matrices of the fixed gauge: the mean of a LayerNorm folded in, and the neurons of an MLP balanced."""

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
"""Takes some rows of a matrix, float64, and returns them with a norm folded in, as a new array."""


def centre(projection: Projection, matrices: Sequence[Weights]) -> Weights:
    """W diag(gain) (I - 1 1^T / n) for a projection W behind a LayerNorm, without the bias of the norm."""
    made = projection.derived
    assert made is not None
    (gain,) = numbers_of(made.operands)
    centred: Weights = _folded(matrices[0], "layer_norm", gain)
    return centred


def balance(projection: Projection, matrices: Sequence[Weights]) -> NotedMatrix:
    """The balanced up or down of an MLP, float64 or under a weighting, noted with how many neurons were not scaled
    because their row of up or their column of down is zero.

    It is made where the first matrix lies, or on the CPU if there is no room.
    """
    try:
        return _balanced(projection, matrices)
    except RuntimeError:
        return _balanced(projection, [host_array(m) for m in matrices])


def neuron_scales(up: Values, down: Values, degree: int) -> tuple[Values, int]:
    """The factors c of the rows of up, shape (n,), float64, and the number of neurons that are not scaled.

    `up` are the base-2 logarithms of the lengths of the rows of up, `down` of the columns of down; -inf for a zero one.
    c_i = (|down_i| / |up_i|)^(1 / (degree + 1)) makes the row of up times c_i as long as the column of down over
    c_i^degree; c_i is 1 if either is zero.
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
    if weighing:  # its moments are those of the norm's output, gains included
        return NotedMatrix(weigh(by_moment(projection), [_scaled(own, scaled)]), note)
    return NotedMatrix(_folded(own, folding, gain) * scaled, note)


def _parts_of(formula: str) -> tuple[str, int, str, bool]:
    """The role, degree and folding in a formula's name, and whether its matrix is weighted."""
    plain, weighed, _ = formula.removeprefix(BALANCED).partition(f"_{WEIGHED}")
    role, degree, folding = plain.split("_", 2)
    return role, int(degree), folding, bool(weighed)


def _folded(matrix: Weights, folding: str, gain: Values | None) -> Array:
    fold = _fold_of(matrix, folding, gain)
    return joined([fold(rows) for rows in slabs(matrix)])


def _fold_of(matrix: Weights, folding: str, gain: Values | None) -> _Fold:
    """The function that folds a norm into rows of a matrix.

    `gain` is the gain of a LayerNorm, or the square of an RMS norm's, as in its moment; None for no norm. The sign of
    an RMS norm's gain is ignored: no singular value depends on it.
    """
    if gain is None:
        return lambda rows: rows
    there = placed(np.sqrt(gain) if folding == "diagonal" else gain, matrix)
    return partial(_centred, there) if folding == "layer_norm" else lambda rows: rows * there


def _centred(gain: Array, rows: Array) -> Array:
    made = rows * gain
    made -= made.mean(1)[:, None]
    return made


def _scaled(matrix: Weights, scales: Array) -> Array:
    """The matrix times scales of its rows, shape (m, 1), or of its columns, (n,); a new array of float64."""
    made = joined(list(slabs(matrix)))
    made *= scales
    return made


def _row_lengths(matrix: Weights, folding: str, gain: Values | None) -> Values:
    """Base-2 logarithms of the lengths of the rows of up, with the norm folded in."""
    exponent = exponent_of(matrix)
    fold = _fold_of(matrix, folding, gain)
    return _logarithms([(fold(rows) ** 2).sum(1) for rows in slabs(matrix, exponent)], exponent)


def _column_lengths(matrix: Weights) -> Values:
    """Base-2 logarithms of the lengths of the columns of down."""
    exponent = exponent_of(matrix)
    total: Array = sum((rows**2).sum(0) for rows in slabs(matrix, exponent))
    return _logarithms([total], exponent)


def _logarithms(squares: list[Array], exponent: int) -> Values:
    found = host_array(joined(squares)).astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(found) / 2 + exponent)

"""The leading directions of a projection: the singular vectors of its largest singular values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError
from ..solvers.leading import Triplets
from ..spectrum import DIRECTIONS, LEADING, Derived, Projection, Values
from .derived import derive

PackedTriplets = NDArray[np.float32]

READS, WRITES = ("query", "key", "value", "gate", "up"), ("output", "down")
"""Roles whose inputs, and whose outputs, are channels of the residual stream."""
_VERSION = 1
_SMALLEST, _LARGEST = 1e-30, 1e30


@dataclass(frozen=True, slots=True)
class Directions:
    """The k = min(8, m, n) largest singular values of a matrix of shape (m, n), descending, with their vectors `left`,
    shape (m, k), and `right`, (n, k); and the norms of its rows, (m,), and columns, (n,). float64 arrays of numbers
    that were stored as float32."""

    values: Values
    left: Values
    right: Values
    row_norms: Values
    column_norms: Values


def directions_of(projection: Projection) -> Projection:
    """The leading directions of a projection, as it is stored or in the fixed gauge: a further row at its address."""
    label, state = f"first {LEADING} directions", projection.derived
    if state is None:
        return derive(projection, Derived(DIRECTIONS, _VERSION, label, is_further=True, parents=(projection,)))
    formula, label = f"{DIRECTIONS}_{state.formula}", f"{label} in the {state.gauge} gauge"
    made = Derived(formula, _VERSION, label, True, state.parents, state.operands, "", state.gauge)
    return derive(projection, made)


def matrix_behind(directions: Projection) -> Projection:
    """The projection whose directions these are."""
    made = directions.derived
    assert made is not None
    if made.formula == DIRECTIONS:
        return made.parents[0]
    return replace(directions, derived=replace(made, formula=made.formula.removeprefix(f"{DIRECTIONS}_")))


def packed(found: Triplets) -> PackedTriplets:
    """All numbers of the leading directions in one float32 array of Projection.stored_count numbers.

    Raises:
        WeightsError: they are out of float32's range.
    """
    top = float(found.values[0])
    if top and not _SMALLEST < top < _LARGEST:
        raise WeightsError(f"sigma_1 is {top:.3g}: directions are kept in float32, which does not hold that")
    parts = (found.values, found.left.T, found.right.T, found.row_norms, found.column_norms)
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def unpacked(projection: Projection, numbers: PackedTriplets | Values) -> Directions:
    """The leading directions in an array that `packed` made, for a projection of this shape."""
    rows, cols = projection.rows, projection.cols
    k = min(LEADING, rows, cols)
    ends = np.cumsum([k, k * rows, k * cols, rows])
    values, left, right, row_norms, column_norms = np.split(np.asarray(numbers, np.float64), ends)
    return Directions(values, left.reshape(k, rows).T, right.reshape(k, cols).T, row_norms, column_norms)

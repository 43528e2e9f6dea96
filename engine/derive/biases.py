"""Biases as one more column of a matrix, whose input then has a last feature that is always 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from ..catalogue.rules import cut
from ..errors import WeightsError, printable
from ..moment import Moment, operand
from ..spectrum import Operand, Projection, Values, digest
from ..weights import host_array

if TYPE_CHECKING:
    from ..checkpoint.open import Checkpoint
    from ..formats.tensor import Tensor
    from ..weights import Weights


class Biases:
    """The biases of a checkpoint's projections."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._vectors = {tensor.name: tensor for tensor in checkpoint.tensors if len(tensor.shape) == 1}

    def has(self, projection: Projection) -> bool:
        """Return whether the model adds a bias to the output of the projection."""
        return self._tensor(projection) is not None

    def of(self, projection: Projection) -> Values:
        """Read the bias of a projection: float64, shape (rows,), zeros if it has none.

        Raises:
            WeightsError: the bias cannot be read, or does not fit the projection.
        """
        tensor, part = self._tensor(projection), projection.slice
        if tensor is None:
            return np.zeros(projection.rows)
        read, _ = self._checkpoint.read(tensor)
        numbers = host_array(cast("Weights", read)).astype(np.float64)
        if part is not None:
            column = numbers[None] if part.axis == 1 else numbers[:, None]
            numbers = np.asarray(cut(column, part)).reshape(-1)
        if numbers.shape != (projection.rows,) or not np.isfinite(numbers).all():
            raise WeightsError(f"{printable(tensor.name)} is not a bias of {projection.rows} finite numbers")
        return numbers

    def operand(self, projection: Projection) -> Operand:
        """Read the bias of a projection as an operand of a formula.

        Raises:
            WeightsError: see `of`.
        """
        return operand(self.of(projection))

    def _tensor(self, projection: Projection) -> Tensor | None:
        stem, found, word = projection.tensor.rpartition("weight")
        return self._vectors.get(f"{stem}bias{word}") if found else None


def appended(moment: Moment, mean: Values) -> Moment:
    """The second moment of an input x with a last feature 1: [[C, mean], [mean^T, 1]].

    If only the diagonal of C is known, the features are taken to be uncorrelated: off the diagonal C is mean mean^T.

    Raises:
        WeightsError: the moment is that of a norm, which has no mean.
    """
    if moment.form == "layer_norm":
        raise WeightsError("gains of norms give no mean of a projection's inputs")
    (numbers,) = moment.operands
    load = numbers.load
    if load is None:
        raise WeightsError("only the digest of its second moments is known: name their file with --weight FILE")

    def made() -> Values:
        held = load()
        if moment.form == "diagonal":
            held = np.outer(mean, mean) + np.diag((held - mean**2).clip(min=0))
        return np.block([[held, mean[:, None]], [mean[None], np.ones((1, 1))]])

    seen = digest("appended", moment.form, numbers.digest, np.ascontiguousarray(mean, "<f8").tobytes())
    return Moment("full", moment.cols + 1, (Operand(seen, made),))

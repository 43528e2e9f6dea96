"""The energy of a matrix's output under the second moment of its input: tr(W C W^T)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from ..catalogue.rules import cut
from ..spectrum import Projection, Values
from ..weights import Weights, host_array
from .slabs import exponent_of, slabs

if TYPE_CHECKING:
    from ..checkpoint.open import Checkpoint


def energy(form: str, numbers: Sequence[Values], rows: Values) -> float:
    """tr(R C R^T) for some rows R, float64, (k, n). C is given by its form (engine/moment.py) and its numbers."""
    if form == "diagonal":
        return float((rows**2 @ numbers[0]).sum())
    if form == "full":
        return float(((rows @ numbers[0]) * rows).sum())
    gain, bias = numbers
    scaled = rows * gain
    scaled -= scaled.mean(1)[:, None]
    return float((scaled**2).sum() + ((rows @ bias) ** 2).sum())


def output_energy(checkpoint: Checkpoint, projection: Projection, form: str, numbers: Sequence[Values]) -> float:
    """tr(W C W^T) for a projection of the checkpoint, read and multiplied on the CPU some rows at a time.

    Raises:
        WeightsError: its weights cannot be read, or are not finite.
    """
    tensor = next(tensor for tensor in checkpoint.tensors if tensor.name == projection.tensor)
    read, _ = checkpoint.read(tensor)
    whole = host_array(cut(read, projection.slice) if projection.slice is not None else cast("Weights", read))
    matrix = whole.T if projection.transposed else whole
    exponent = exponent_of(matrix)
    return math.ldexp(sum(energy(form, numbers, rows) for rows in slabs(matrix, exponent)), 2 * exponent)

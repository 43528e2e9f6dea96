"""Second moments about the mean, C - mu mu^T with mu = E[x]. Only for display: what factors cost is uncentred."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..errors import WeightsError, printable
from ..moment import Moment
from ..spectrum import Operand, Values, digest
from .moment_reader import FeatureOrder, MomentReader, StackedMatrix

_ROUNDING = 1e-3
"""How far mu^2 of a feature may lie above its E[x^2], relative to that: sums in float32 round, and one of them may
include a token that the other does not."""


def centred_moment(
    held: MomentReader, name: str, cols: int, matrix: StackedMatrix | None, order: FeatureOrder | None
) -> Moment:
    """As MomentReader.moment, but about the mean. Its digest differs from that of the moment about 0.

    Raises:
        UnseenError, WeightsError: as MomentReader.moment and MomentReader.mean, or these are from different tokens.
    """
    moment = held.moment(name, cols, matrix, order)
    (whole,) = moment.operands
    assert whole.load is not None
    mean = held.mean(name, cols, matrix, order)
    load = partial(_less, whole.load, mean, printable(name))
    if moment.form == "diagonal":
        load()  # small, so errors can be raised before anything is computed
    return Moment(moment.form, cols, (Operand(digest("centred", whole.digest, mean.tobytes()), load),))


def _less(load: Callable[[], Values], mean: Values, shown: str) -> Values:
    """C or its diagonal, which `load` returns, minus mu mu^T or its diagonal."""
    whole = load()
    squares, means = (whole if whole.ndim == 1 else whole.diagonal()), mean * mean
    if (means > squares * (1 + _ROUNDING)).any():
        raise WeightsError(f"{shown} cannot be centred: its mean is larger than its second moments allow")
    if whole.ndim == 1:
        return np.maximum(squares - means, 0.0)
    product: Values = np.outer(mean, mean)
    return np.subtract(whole, product, out=product)

"""The weighting `norm`: the second moment that a projection's input has by the gain of the norm before it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from ..catalogue.norms import Norm, Norms
from ..errors import WeightsError, printable
from ..moment import Moment, diagonal, layer_norm
from ..spectrum import Projection, Values
from ..weights import host_array
from .weighting import NORM, NORM_LABEL

if TYPE_CHECKING:
    from ..checkpoint.open import Checkpoint
    from ..formats.tensor import Tensor
    from ..weights import Weights


class NormWeighting:
    """Second moments C from the gains of a model's norms, if normalised values are uncorrelated and have variance 1.

    diag(gain^2) after an RMS norm, diag(gain) (I - 1 1^T / n) diag(gain) + bias bias^T after a LayerNorm. If it is
    known that no norm feeds a projection, C is I and the spectrum the raw one; `says` tells which. Constant factors are
    left out.
    """

    name, label = NORM, NORM_LABEL
    is_centred = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.norms = Norms(checkpoint)
        self._moments: dict[tuple[str, int], Moment] = {}
        self._lock = threading.Lock()

    def moment(self, projection: Projection) -> Moment:
        """See Weighting.

        Raises:
            WeightsError: it is not known which norm feeds the projection, or its numbers cannot be read.
        """
        norm, cols = self.norms.feeding(projection), projection.cols
        if norm is None:
            return diagonal(np.ones(cols))
        key = (norm.path, cols)
        with self._lock:
            if key not in self._moments:
                self._moments[key] = self._made(norm, projection)
            return self._moments[key]

    def says(self, projection: Projection) -> str:
        """The words for a title on which norm feeds this projection, or that none does.

        Raises:
            WeightsError: it is not known which.
        """
        norm = self.norms.feeding(projection)
        if norm is None:
            return "no norm feeds it: as raw"
        return f"gain of {printable(norm.path)}" if norm.path else "a norm without gains"

    def folded(self, projection: Projection, inputs: Values) -> Values:
        """Input directions of a projection, (cols, k), as directions of the normalised residual stream that they read:
        times the gain and then, for a LayerNorm, without their mean.

        Raises:
            WeightsError: as `moment`.
        """
        norm = self.norms.feeding(projection)
        if norm is None:
            return inputs
        through: Values = self._gain(norm, projection)[:, None] * inputs
        return through - through.mean(axis=0) if norm.centred else through

    def signed(self, projection: Projection, inputs: Values) -> Values:
        """The same for directions in the fixed gauge. There the gain of an RMS norm is folded in without its sign, so
        the sign is applied here; that of a LayerNorm is folded in whole, and nothing is left to do.

        Raises:
            WeightsError: as `moment`.
        """
        norm = self.norms.feeding(projection)
        if norm is None or norm.centred:
            return inputs
        turned: Values = np.sign(self._gain(norm, projection))[:, None] * inputs
        return turned

    def unfolded(self, projection: Projection, outputs: Values) -> Values:
        """Output directions of a projection, (rows, k), as the final norm passes them to the unembedding, apart from
        their length: for a LayerNorm without their mean, then times the gain.

        Raises:
            WeightsError: it is not known which norm is the final one, or its numbers do not fit.
        """
        norm = self.norms.final(projection)
        gain = self._gain(norm, replace(projection, cols=len(outputs)))
        through: Values = gain[:, None] * (outputs - outputs.mean(axis=0) if norm.centred else outputs)
        return through

    def _gain(self, norm: Norm, projection: Projection) -> Values:
        return self._read(norm.gain, projection, 1.0) + norm.plus_one * (norm.gain is not None)

    def _made(self, norm: Norm, projection: Projection) -> Moment:
        gain = self._read(norm.gain, projection, 1.0)
        if norm.centred and norm.gain and norm.gain.shape != (projection.cols,):
            # The mean of each head is subtracted, and a Moment has no form for that C.
            raise WeightsError(f"{projection.address}: {printable(norm.path)} is a LayerNorm of each head")
        if norm.plus_one:
            gain = gain + 1.0
        return layer_norm(gain, self._read(norm.bias, projection, 0.0)) if norm.centred else diagonal(gain * gain)

    def _read(self, tensor: Tensor | None, projection: Projection, absent: float) -> Values:
        """The numbers of a norm as float64, shape (cols,), repeated if they are those of one head.

        Raises:
            WeightsError: they cannot be read, are not finite, or do not fit the projection.
        """
        cols = projection.cols
        if tensor is None:
            return np.full(cols, absent)
        read, _ = self._checkpoint.read(tensor)
        values = host_array(cast("Weights", read)).astype(np.float64)
        name = printable(tensor.name)
        if not len(values) or cols % len(values):
            raise WeightsError(f"{projection.address}: {name} has {len(values)} numbers for {cols} inputs")
        if not np.isfinite(values).all():
            raise WeightsError(f"{projection.address}: {name} has values that are not finite")
        return np.tile(values, cols // len(values))

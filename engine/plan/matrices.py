"""The matrices of projections, read from a checkpoint one stored tensor after the other."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..catalogue.rules import cut
from ..checkpoint.open import Checkpoint
from ..formats.tensor import Tensor
from ..spectrum import Projection
from ..weights import HostArray, host_array


class Source(Protocol):
    """Where the matrices come from that are factored."""

    def matrix(self, projection: Projection) -> HostArray:
        """Of shape (rows, cols) = (output, input features).

        Raises:
            WeightsError: it cannot be read.
        """
        ...


class Matrices:
    """See Source: those of a checkpoint. The tensor that was read last is kept."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
        self._last: tuple[str, Any] = ("", None)

    def whole(self, tensor: Tensor) -> HostArray:
        """A stored tensor as numbers, of its shape.

        Raises:
            WeightsError: see Checkpoint.read.
        """
        return np.asarray(host_array(self._read(tensor.name))).reshape(tensor.shape)

    def matrix(self, projection: Projection) -> HostArray:
        """See Source."""
        held = self._read(projection.tensor)
        matrix = held if projection.slice is None else cut(held, projection.slice)
        return host_array(matrix.T if projection.transposed else matrix)

    def _read(self, name: str) -> Any:
        if self._last[0] != name:
            self._last = ("", None)
            self._last = (name, self._checkpoint.read(self._tensors[name])[0])
        return self._last[1]

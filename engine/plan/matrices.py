"""Reading the matrices of projections from a checkpoint, one stored tensor after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from xxhash import xxh3_128_digest

from ..catalogue.rules import cut
from ..checkpoint.open import Checkpoint
from ..errors import WeightsError, printable
from ..formats.tensor import Tensor
from ..spectrum import Projection
from ..weights import TORCH_NAMES, HostArray, encoded, host_array


class MatrixSource(Protocol):
    """A source of the matrices that are factored."""

    def matrix(self, projection: Projection) -> HostArray:
        """The matrix of a projection, shape (rows, cols) = (output, input features).

        Raises:
            WeightsError: it cannot be read.
        """
        ...


_KEPT = 3
"""How many tensors that were read last are kept: an expert's gate, up and down may lie in three stacks."""


class Matrices:
    """The MatrixSource that reads a checkpoint. It keeps the tensors that were read last."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
        self._kept: dict[str, Any] = {}

    def whole(self, tensor: Tensor) -> HostArray:
        """A stored tensor as numbers, in its shape.

        Raises:
            WeightsError: see Checkpoint.read.
        """
        return _shaped(self._read(tensor.name), tensor)

    def matrix(self, projection: Projection) -> HostArray:
        """See MatrixSource."""
        held = self._read(projection.tensor)
        matrix = held if projection.slice is None else cut(held, projection.slice)
        return host_array(matrix.T if projection.transposed else matrix)

    def _read(self, name: str) -> Any:
        if name not in self._kept:
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[name] = self._checkpoint.read(self._tensors[name])[0]
        return self._kept[name]


def single(checkpoint: Checkpoint, tensor: Tensor, number: int | None = None) -> HostArray:
    """A stored tensor as numbers, in its shape; with a `number` only that matrix of a stack, as a stack of one, of
    which only the bytes are read if it is stored as plain numbers.

    Raises:
        WeightsError: see Checkpoint.read.
    """
    if number is not None and not (tensor.parts or tensor.strides) and tensor.dtype in TORCH_NAMES:
        size = (tensor.end - tensor.begin) // tensor.shape[0]
        begin = tensor.begin + number * size
        tensor = tensor._replace(shape=(1, *tensor.shape[1:]), begin=begin, end=begin + size)
        number = None
    held: Any = checkpoint.read(tensor)[0]
    if number is not None:
        return np.asarray(host_array(held[number]))[None]
    return _shaped(held, tensor)


def _shaped(held: Any, tensor: Tensor) -> HostArray:
    """What was read of a tensor as an array of its shape. A stack may have stayed packed."""
    numbers = held.reshape(*tensor.shape) if len(tensor.shape) == 3 else held
    return np.asarray(host_array(numbers)).reshape(tensor.shape)


class Reordered:
    """The MatrixSource of a model's `exact` matrices, with their rows in the order of the `written` ones.

    transformers puts the rows of queries and keys of a GGUF file back into the order that its modules expect. Rows are
    recognised by their numbers rounded to `dtype`.
    """

    def __init__(self, exact: MatrixSource, of: Mapping[str, Projection], written: MatrixSource, dtype: str) -> None:
        """`of`: the projections of `exact` by their addresses, which both models have."""
        self._exact, self._of, self._written, self._dtype = exact, of, written, dtype

    def matrix(self, projection: Projection) -> HostArray:
        """See MatrixSource. WeightsError is also raised if the two models have different rows."""
        own, other = self._exact.matrix(self._of[projection.address]), self._written.matrix(projection)
        places: dict[bytes, list[int]] = defaultdict(list)
        for place, row in enumerate(_rows(own, self._dtype)):
            places[row].append(place)
        try:
            return own[[places[row].pop() for row in _rows(other, self._dtype)]]
        except IndexError:
            shown = printable(projection.address, 80)
            raise WeightsError(f"{shown} has other rows in the file than transformers loads") from None


def _rows(matrix: HostArray, dtype: str) -> list[bytes]:
    """A digest of each row as it is stored in this type."""
    try:
        stored = encoded(matrix, dtype).reshape(len(matrix), -1)
    except OverflowError as error:
        raise WeightsError(f"{error}: name another --dtype") from None
    return [xxh3_128_digest(row.data) for row in stored]

"""Derived matrices that are not part of the product: a stack of two, and a projection under weights of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.engine.derive.derived import derive
from rankscope.engine.spectrum import Derived, Operand, Projection
from rankscope.engine.weights import Weights, host_array


def stack(_: Projection, matrices: Sequence[Weights]) -> NDArray[Any]:
    """The matrices stacked above one another."""
    return np.vstack([host_array(matrix) for matrix in matrices])


def scale_columns(weighted: Projection, matrices: Sequence[Weights]) -> NDArray[Any]:
    """The matrix with each column multiplied by the operand's number for it."""
    assert weighted.derived is not None
    (operand,) = weighted.derived.operands
    assert operand.load is not None
    return host_array(matrices[0]) * operand.load()


FORMULAS = {"stack": stack, "scale columns": scale_columns}


def stacked(key: Projection, value: Projection) -> Projection:
    """The further row [K; V], beside the key."""
    address = key.address.replace("key", "key_value")
    beside = replace(key, address=address, tensor="", slice=None, role="key_value", rows=key.rows + value.rows)
    return derive(beside, Derived("stack", 3, "[K; V]", is_further=True, parents=(key, value)))


def weighted(projection: Projection, numbers: NDArray[np.float64], name: str) -> Projection:
    """The projection under a weighting of this name."""
    operand = Operand(blake2b(numbers.tobytes(), digest_size=16).hexdigest(), lambda: numbers)
    made = Derived("scale columns", 1, f"under {name}", False, (projection,), (operand,), weighting=name)
    return derive(projection, made)

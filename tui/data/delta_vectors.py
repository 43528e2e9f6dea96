"""Norms, biases and other tensors that are no matrices, in two checkpoints: which of them differ, and by how much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankscope.engine.errors import WeightsError

from .deltas import WithoutDifference
from .model import Model

if TYPE_CHECKING:
    from rankscope.engine.checkpoint.open import Checkpoint
    from rankscope.engine.formats.tensor import Tensor
    from rankscope.engine.weights import HostArray


@dataclass(frozen=True, slots=True)
class VectorChange:
    """The change of one tensor: |B - A| / |A|, 0 if they are equal, None with the reason if it cannot be computed."""

    listed: WithoutDifference
    relative: float | None
    reason: str = ""


def vector_changes(first: Model, second: Model, vectors: Iterable[WithoutDifference]) -> Iterator[VectorChange]:
    """Compare what `matched` lists as vectors. Reads their weights."""
    assert first.checkpoint is not None
    assert second.checkpoint is not None
    ours, theirs = ({t.name: t for t in held.tensors} for held in (first.checkpoint, second.checkpoint))
    for listed in vectors:
        assert listed.ours is not None
        assert listed.theirs is not None
        a, b = ours[listed.ours.tensor], theirs[listed.theirs.tensor]
        if a.shape != b.shape:
            yield VectorChange(listed, None, f"of {_size(a)} numbers in A, of {_size(b)} in B")
            continue
        try:
            yield VectorChange(listed, _relative(_numbers(first.checkpoint, a), _numbers(second.checkpoint, b)))
        except WeightsError as error:
            yield VectorChange(listed, None, str(error))


def _numbers(checkpoint: Checkpoint, tensor: Tensor) -> HostArray:
    import numpy as np

    from rankscope.engine.weights import host_array

    held = checkpoint.read(tensor)[0]
    return host_array(held.reshape(-1)).astype(np.float64)


def _relative(a: HostArray, b: HostArray) -> float | None:
    import numpy as np

    size, moved = float(np.linalg.norm(a)), float(np.linalg.norm(b - a))
    if not np.isfinite((size, moved)).all():
        raise WeightsError("holds NaN or infinite values")
    return moved / size if size else 0.0 if moved == 0 else float("inf")


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "1"

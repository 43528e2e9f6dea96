"""A plan applied to a running model: each matrix is replaced by the product of two factors, in memory only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ..calibration.replacing import RunningMatrices
from ..checkpoint.open import Checkpoint
from ..errors import InputError, WeightsError, printable
from .factors import factors
from .matrices import Matrices
from .works import Work

if TYPE_CHECKING:
    from torch import nn


def put_into(
    model: nn.Module, checkpoint: Checkpoint, works: Sequence[Work], device: str, tell: Callable[[int, int], None]
) -> None:
    """Replace the projections of the works in a running model, one after the other, computed in float64 on a device.
    `tell` is called with how many are done, and how many there are.

    Raises:
        InputError: the model does not hold one of the matrices, or it cannot be read or factored.
    """
    running = RunningMatrices(model, [work.projection for work in works], checkpoint)
    stored = Matrices(checkpoint)
    for done, work in enumerate(works, 1):
        try:
            before = torch.as_tensor(stored.matrix(work.projection), device=device)
            a, b = factors(before, work.moment, work.rank)
            running.replace(work.projection, before, a @ b)
        except WeightsError as error:
            raise InputError(f"{printable(work.projection.address)}: {error}") from None
        tell(done, len(works))

"""Finding the matrices of projections in a running model, and replacing them in memory.

transformers fuses, stacks, transposes and permutes what a checkpoint holds. The module of a projection is found by
names (see fed_of), its rows in that module by their numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.open import Checkpoint
from ..errors import InputError, WeightsError, printable
from ..spectrum import Projection
from .channels import order_of
from .running import Fed, fed_of

if TYPE_CHECKING:
    import torch

_SAME = 0.01
"""How far a module's matrix may be from the stored one, relative in Frobenius norm: a model may run in a coarser type.
"""
_ADVICE = "write the model with  rankscope apply --merge  and name it with --against"


class RunningMatrices:
    """The matrices of some projections in a running model. Modules may share one: it is replaced only once."""

    def __init__(self, model: torch.nn.Module, projections: Sequence[Projection], checkpoint: Checkpoint) -> None:
        """
        Raises:
            InputError: for some of them no module is known to multiply with them.
        """
        fed, lost = fed_of(model, projections, checkpoint)
        if lost:
            raise InputError(
                f"{len(lost)} of {len(projections)} projections are in no module that is known to multiply with them, "
                f"e.g. {printable(lost[0].address)}: {_ADVICE}"
            )
        self._fed = {p.address: one for one in fed for p in one.projections}
        self._config = checkpoint.config
        self._done: set[tuple[int, str]] = set()

    def replace(self, projection: Projection, before: torch.Tensor, after: torch.Tensor) -> None:
        """Replace `before` by `after`, both of shape (output, input features), in the module that multiplies with it.

        Raises:
            WeightsError: the module does not hold `before`, so `after` would mean something else there.
        """
        import torch

        fed = self._fed[projection.address]
        held = _matrix(fed, projection)
        if (place := (held.data_ptr(), projection.key)) in self._done:
            return
        self._done.add(place)
        order = order_of(projection, self._config, fed.names[0])
        columns = torch.arange(held.shape[1]) if order is None else torch.as_tensor(order)
        columns = columns.to(held.device)
        rows = _rows(projection, held[:, columns], before.to(held))
        held[rows[:, None], columns] = after.to(held)


def _matrix(fed: Fed, projection: Projection) -> torch.Tensor:
    """The matrix with which a module multiplies, as a view of shape (output, input features)."""
    found = dict(fed.module.named_parameters(recurse=False)).get(fed.parameter or "weight")
    if found is None or not found.is_floating_point():
        raise _not_there()
    held = found.detach()
    if fed.expert is not None:
        held = held[fed.expert]
    is_transposed = getattr(fed.module, "is_transposed", type(fed.module).__name__ == "Conv1D")
    held = held.T if is_transposed else held
    if held.dim() != 2 or held.shape[1] != projection.cols:
        raise _not_there()
    return held


def _rows(projection: Projection, held: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The numbers of the projection's rows in a module's matrix, in its order.

    If they are where the stored matrix has them, they may differ by rounding; else each row is found by its numbers.
    """
    import torch

    stored = _stored_rows(projection, len(held))
    if len(stored) == len(before):
        rows = torch.as_tensor(stored, device=held.device)
        if float((held[rows] - before).float().norm()) <= _SAME * float(before.float().norm()):
            return rows
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, row in enumerate(_bytes_of(held)):
        places[row].append(place)
    try:
        found = [places[row].pop(0) for row in _bytes_of(before)]
    except IndexError:
        raise _not_there() from None
    return torch.tensor(found, device=held.device)


def _stored_rows(projection: Projection, count: int) -> NDArray[np.intp]:
    """The places of a projection's rows if a matrix of `count` rows is the stored one; none if it cannot be."""
    part, places = projection.slice, np.arange(count)
    if part is None or part.axis != int(projection.transposed):
        return places
    if count % part.groups:
        return places[:0]
    return places.reshape(part.groups, -1)[:, part.offset : part.offset + part.width].reshape(-1)


def _bytes_of(matrix: torch.Tensor) -> list[bytes]:
    """The numbers of each row as bytes; -0 counts as 0."""
    rows = (matrix + 0.0).float().cpu().numpy()
    return [row.tobytes() for row in np.ascontiguousarray(rows)]


def _not_there() -> WeightsError:
    return WeightsError(f"the running model does not hold it as it is stored: {_ADVICE}")

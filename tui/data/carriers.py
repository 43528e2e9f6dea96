"""The channels that carry the two ends of a first direction: how many there are, and which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankscope.engine.derive.directions import Directions, unpacked
from rankscope.engine.spectrum import Projection, Values

PLANE = 1.05
"""Below this sigma_1 / sigma_2 the first two directions can hardly be told apart: texts then describe their plane."""
_CARRIERS = 5


@dataclass(frozen=True, slots=True)
class Carrier:
    """A channel that carries a direction: its number, its share u_i^2 of the direction, and the norm of its row or
    column, also as a multiple of the median norm (None if that median is 0)."""

    channel: int
    share: float
    norm: float
    over_median: float | None


@dataclass(frozen=True, slots=True)
class DirectionSide:
    """One end of a direction, of `size` outputs or inputs. `participation` is 1 / sum u^4: 1 if one channel holds
    everything, `size` if all channels hold the same. `carriers` are the channels with the largest shares,
    descending."""

    size: int
    participation: float
    carriers: tuple[Carrier, ...]


def outputs_of(projection: Projection, numbers: Values) -> DirectionSide:
    """The output side of a first direction, from the stored directions of a projection."""
    found = unpacked(projection, numbers)
    return side_of(found.left[:, : 2 if is_plane(found) else 1], found.row_norms)


def is_plane(found: Directions) -> bool:
    """Whether sigma_1 and sigma_2 are so close that only the plane of both directions is meaningful."""
    return len(found.values) > 1 and 0 < found.values[0] < PLANE * found.values[1]


def side_of(vectors: Values, norms: Values) -> DirectionSide:
    """The side of one direction or of two, given as columns, with the norms of the matrix's rows, or columns."""
    shares = (vectors**2).mean(axis=1)
    median = float(np.median(norms))
    best = np.argsort(-shares, kind="stable")[:_CARRIERS].tolist()
    carriers = [
        Carrier(n, float(shares[n]), float(norms[n]), float(norms[n]) / median if median else None) for n in best
    ]
    return DirectionSide(len(shares), float(1 / (shares**2).sum()), tuple(carriers))

"""How many of the waiting jobs go into one batch for a worker process."""

from __future__ import annotations

import math

from ..solvers.gpus import batch_of
from .job import Job

_LEAST, _MOST = {"cpu": 1e9, "cuda": 3e11}, {"cpu": 2e10, "cuda": math.inf}
"""Projection.cost of the smallest and of the largest batch. On a CPU the largest takes a core half a second; on a GPU
the number of matrices is the bound."""
_LEAST_FULL = 1 / 2
"""A batch for a GPU has at least this share of the matrices that it solves together: fewer take nearly as long."""
_MOST_FETCHED = 1 << 28
"""The most bytes from a server in one batch: a batch that has begun cannot be stopped."""


def kind_of(worker: str) -> str:
    """The kind of device that a worker of this name has: "cuda" or "cpu"."""
    return "cuda" if "cuda" in worker else "cpu"


def part_of(kind: str, waiting: float, under_way: float, own: float, count: int) -> float:
    """The cost of the next batch for one of `count` workers, which already has `own` of the cost under way.

    The waiting cost is divided anew for each batch, so that the last batches are small and all workers end together. 0
    if the other workers will need the work sooner. A GPU without work gets an equal part of all that is not solved:
    full batches from the beginning keep their number small.
    """
    equal = (waiting + under_way) / count
    if own >= equal:
        return 0.0
    if kind == "cpu":
        return waiting / (2 * count)
    return min(waiting / count, equal - own) if own else equal


class Share:
    """One batch for a worker: `takes` is called with job after job, and always takes the first.

    On a CPU a batch goes up to a cost of `part`. On a GPU it has at least half and at most all of the matrices that the
    GPU solves together, and in between it goes up to `part`.
    """

    def __init__(self, kind: str, part: float) -> None:
        self._is_gpu, self._least = kind == "cuda", _LEAST[kind]
        self._part = min(_MOST[kind], max(_LEAST[kind], part))
        self._cost = self._full = 0.0
        self._fetched = 0

    def takes(self, job: Job) -> bool:
        """Add a job to the batch if it fits; return whether it does."""
        cost = self._cost + job.cost
        full = self._full + sum(1 / batch_of(side) for side in job.sides)
        fetched = self._fetched + job.bytes_to_fetch
        is_first = self._cost == 0
        if not is_first and (fetched > _MOST_FETCHED or not self._has_room(cost, full)):
            return False
        self._cost, self._full, self._fetched = cost, full, fetched
        return True

    def _has_room(self, cost: float, full: float) -> bool:
        if not self._is_gpu:
            return cost <= self._part
        return cost <= self._least or full <= _LEAST_FULL or (full <= 1 and cost <= self._part)

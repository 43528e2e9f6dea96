"""How much of what waits goes into one batch for a worker process."""

from __future__ import annotations

import math

from ..solvers.gpus import batch_of
from .job import Job

_LEAST, _MOST = {"cpu": 1e9, "cuda": 3e11}, {"cpu": 2e10, "cuda": math.inf}
"""Projection.cost of the smallest and of the largest batch, the latter half a second of a core: a GPU's is bounded by
the number of its matrices."""
_LEAST_FULL = 1 / 2
"""Of the matrices that a GPU solves together, the share that makes a batch at least: fewer take nearly as long."""
_MOST_FETCHED = 1 << 28
"""Bytes of a batch that come from a server: a batch that has begun is not stopped."""


def kind_of(worker: str) -> str:
    """Which kind of device a worker of this name has: "cuda" or "cpu"."""
    return "cuda" if "cuda" in worker else "cpu"


def part_of(kind: str, waiting: float, under_way: float, own: float, count: int) -> float:
    """The cost that one of `count` workers gets of what waits, where it has `own` of what is under way: shared again
    and again, so that the last batches are small and all end together; 0 where others will need it sooner.

    A GPU that has nothing gets an equal part of all that is not solved: with full batches from the beginning there are
    few.
    """
    equal = (waiting + under_way) / count
    if own >= equal:
        return 0.0
    if kind == "cpu":
        return waiting / (2 * count)
    return min(waiting / count, equal - own) if own else equal


class Share:
    """One batch for a worker: `takes` is asked of job after job, the first of which it has in any case.

    On a GPU a batch has at most as many matrices as are solved together there, half of them at least, and up to
    `part` of the cost; on a CPU `part` alone counts.
    """

    def __init__(self, kind: str, part: float) -> None:
        self._is_gpu, self._least = kind == "cuda", _LEAST[kind]
        self._part = min(_MOST[kind], max(_LEAST[kind], part))
        self._cost = self._full = 0.0
        self._fetched = 0

    def takes(self, job: Job) -> bool:
        """Whether a job still goes into the batch; it is then in it."""
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

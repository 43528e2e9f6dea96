"""Choosing the next batch from a device's ready jobs: equal smaller sides, and as full as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .job import URGENT, Job


def choose_batch(ready: Iterable[Job], limit_of: Callable[[int], int], is_more_coming: Callable[[], bool]) -> list[Job]:
    """The jobs to solve now, of the highest priority there is and with the same smaller sides; [] to wait.

    A batch has at most `limit_of(side)` projections of each side, and at least one job. Urgent jobs wait for nothing.
    Of the others the first full batch goes; while none is full and more is coming, wait; then take the fullest.
    """
    by_rank = sorted(ready, key=lambda job: job.rank)
    if not by_rank:
        return []
    first = by_rank[0]
    groups: dict[tuple[int, ...], list[Job]] = {}
    for job in by_rank:
        if job.priority == first.priority:
            groups.setdefault(job.sides, []).append(job)
    limits = {sides: _jobs_of(sides, limit_of) for sides in groups}
    if first.priority == URGENT:
        return groups[first.sides][: limits[first.sides]]
    fullest = max(groups, key=lambda sides: min(1.0, len(groups[sides]) / limits[sides]))
    if len(groups[fullest]) < limits[fullest] and is_more_coming():
        return []
    return groups[fullest][: limits[fullest]]


def _jobs_of(sides: tuple[int, ...], limit_of: Callable[[int], int]) -> int:
    """How many jobs with these sides make a full batch."""
    return max(1, min(limit_of(side) // sides.count(side) for side in set(sides)))

"""The engine's queue: jobs by priority, one for each stored tensor, with a bounded number of bytes read ahead."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ..checkpoint.open import Checkpoint
from ..spectrum import Projection
from .full_batch import choose_batch
from .job import SCAN, SECOND, URGENT, Job, beside_of, find, grouped

_MAX_READY = 64
MOST_UNSAVED = 64 * 2**20
"""How many bytes of spectra may wait to be saved. With more, nothing is solved: the disk is full or slow."""


class JobQueue:
    """Waiting jobs -> read -> ready jobs -> solved. Thread-safe, for any number of threads that read and solve;
    `close` ends all `next_` calls.

    `budgets`: how many bytes of weights may lie in each device's memory, read or being solved. A key is in one job
    only. If it is added again as urgent, it moves into a new urgent job while it waits; if it is read already, or being
    read, its job becomes urgent.
    """

    def __init__(self, budgets: Mapping[str, int] | None = None) -> None:
        self._budgets = dict(budgets or {})
        self._changed = threading.Condition()
        self._waiting: list[tuple[tuple[int, ...], Job]] = []
        self._largest_first = False
        self._ready: list[Job] = []
        self._reading: list[Job] = []
        self._solving: list[Job] = []
        self._second: list[tuple[float, int, Job]] = []  # the least to do first
        self._takes_second = True
        self._owner: dict[str, Job] = {}
        self._numbers = itertools.count()
        self._unsaved = 0
        self._is_ordered = True
        self._closed = False

    def add(
        self,
        checkpoint: Checkpoint,
        projections: Iterable[Projection],
        urgent: bool,
        others: Sequence[Checkpoint] = (),
    ) -> list[Projection]:
        """Queue projections, grouped by the tensors that they need; return those that were not queued before.

        Raises:
            KeyError: a parent lies neither in `checkpoint` nor in one of `others`.
        """
        opened = [(held, {tensor.name: tensor for tensor in held.tensors}) for held in (checkpoint, *others)]
        wanted: list[Projection] = []
        fresh: list[Projection] = []
        with self._changed:
            self._takes_second = True
            for projection in projections:
                owner = self._owner.get(projection.key)
                if owner is None:
                    fresh.append(projection)
                elif not urgent or not self._release(owner, projection):
                    continue
                wanted.append(projection)
                self._owner[projection.key] = _RESERVED
            for places, members in grouped(wanted):
                job = Job(URGENT if urgent else SCAN, next(self._numbers), *find(places[0], opened), members)
                job.beside = tuple(beside_of(job, *find(place, opened)) for place in places[1:])
                for projection in members:
                    self._owner[projection.key] = job
                heapq.heappush(self._waiting, (self._rank(job), job))
                self._is_ordered = True
            self._changed.notify_all()
        return fresh

    def add_second(self, solved: Job, projection: Projection) -> bool:
        """Queue a projection of a solved job again, for when nothing else is queued or under way.

        Return False, and do nothing, after `clear_second` until `add` is called.
        """
        opened = [(job.checkpoint, {job.tensor.name: job.tensor}) for job in (solved, *solved.beside)]
        with self._changed:
            if not self._takes_second:
                return False
            ((places, members),) = grouped([projection])
            job = Job(SECOND, next(self._numbers), *find(places[0], opened), members)
            job.beside = tuple(beside_of(job, *find(place, opened)) for place in places[1:])
            heapq.heappush(self._second, (job.cost, job.number, job))
            self._changed.notify_all()
            return True

    def clear_second(self) -> list[Projection]:
        """Withdraw and return what waits to be solved a second time."""
        with self._changed:
            self._takes_second = False
            begun = [job for job in (*self._reading, *self._ready) if job.priority == SECOND]
            dropped = [p for job in (*begun, *(job for _, _, job in self._second)) for p in job.projections]
            for job in begun:
                job.projections = []
                job.withdrawn.set()
            self._ready = [job for job in self._ready if job.priority != SECOND]
            self._second.clear()
            self._changed.notify_all()
        return dropped

    def holds(self, key: str) -> bool:
        """Return whether a key waits, is being read, or is ready."""
        with self._changed:
            return key in self._owner

    def open(self, budgets: Mapping[str, int]) -> None:
        """Set the devices that will solve, with their budgets: reading can begin."""
        with self._changed:
            self._budgets = dict(budgets)
            self._changed.notify_all()

    def next_to_read(self) -> Job | None:
        """The most urgent waiting job, once a device has room for its bytes; None when closed.

        Of several such devices it goes to the one with the least to do. The first urgent job does not wait for room,
        nor does any job while nothing else is in a device's memory. What is solved a second time comes when there is
        nothing else to do, one after the other.
        """
        with self._changed:
            while not self._closed:
                if roomy := [device for device in self._budgets if self._can_read(device)]:
                    device = min(roomy, key=lambda device: sum(j.cost for j in self._held(device)))
                    return self._begin_reading(heapq.heappop(self._waiting)[1], device)
                if self._second and self._budgets and not (self._ready or self._reading or self._solving):
                    return self._begin_reading(heapq.heappop(self._second)[2], next(iter(self._budgets)))
                self._changed.wait()
        return None

    def elsewhere(self, is_so: bool) -> None:
        """Say whether other processes solve what waits: then the largest matrices go first, equal ones together."""
        with self._changed:
            self._largest_first = is_so
            self._order([job for _, job in self._waiting])

    def next_share(
        self,
        is_free: Callable[[Job], bool],
        cut: Callable[[Job, float, float], Callable[[Job], bool] | None],
        timeout: float,
    ) -> list[Job] | None:
        """Waiting jobs of one priority and the same models, for a worker process; [] after `timeout`, None when closed.

        `is_free(job)` says whether a worker can take the first job. Then `cut(job, waiting cost, cost being solved)`
        returns a function that says of job after job whether it joins the batch, or None for no batch yet. Nothing is
        handed out while MOST_UNSAVED bytes wait to be saved.
        """
        until = time.monotonic() + timeout
        with self._changed:
            while not self._closed:
                while self._waiting and not self._waiting[0][1].projections:
                    heapq.heappop(self._waiting)
                if self._unsaved < MOST_UNSAVED:
                    if self._waiting and is_free(first := self._waiting[0][1]):
                        waiting = sum(job.cost for _, job in self._waiting)
                        if takes := cut(first, waiting, sum(job.cost for job in self._solving)):
                            return self._take(takes)
                    idle = not (self._waiting or self._solving)
                    if idle and self._second and is_free(self._second[0][2]):
                        job = heapq.heappop(self._second)[2]
                        self._solving.append(job)
                        return [job]
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    return []
        return None

    def wake(self) -> None:
        """Have `next_share` check again whether a worker is free."""
        with self._changed:
            self._changed.notify_all()

    def waiting_cost(self) -> float:
        """The sum of Projection.cost over what waits."""
        with self._changed:
            return sum(job.cost for _, job in self._waiting)

    def is_over(self) -> bool:
        """Return whether it is closed or has nothing to do."""
        with self._changed:
            if self._closed:
                return True
        return self.is_idle()

    def is_idle(self) -> bool:
        """Return whether nothing waits, is being read, is ready, is being solved, or will be solved again."""
        with self._changed:
            waiting = any(job.projections for _, job in self._waiting)
            return not (waiting or self._reading or self._ready or self._solving or self._second)

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait again that were handed out and not solved."""
        with self._changed:
            for job in jobs:
                self._solving.remove(job)
                if job.priority == SECOND:
                    heapq.heappush(self._second, (job.cost, job.number, job))
                    continue
                for projection in job.projections:
                    self._owner[projection.key] = job
                heapq.heappush(self._waiting, (self._rank(job), job))
            self._changed.notify_all()

    def add_again(self, solved: Job, projections: list[Projection], no_room: set[str]) -> None:
        """Queue projections of a job that was tried again, for workers that are not in `no_room`."""
        with self._changed:
            job = replace(solved, projections=projections, no_room=no_room)
            for projection in projections:
                self._owner[projection.key] = job
            heapq.heappush(self._waiting, (self._rank(job), job))

    def _take(self, takes: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the first waiting jobs, of one priority and the same models, as long as `takes` them."""
        taken: list[Job] = []
        while self._waiting:
            job = self._waiting[0][1]
            if taken and (job.priority, job.needs) != (taken[0].priority, taken[0].needs):
                break
            if taken and (job.is_doubtful or taken[0].is_doubtful):
                break
            if job.projections:
                if not takes(job):
                    break
                self._forget(job, job.projections)
                self._solving.append(job)
                taken.append(job)
            heapq.heappop(self._waiting)
        return taken

    def _rank(self, job: Job) -> tuple[int, ...]:
        if not self._largest_first:
            return job.rank
        return job.priority, -max(job.sides, default=0), job.number

    def _order(self, waiting: Iterable[Job]) -> None:
        self._waiting = [(self._rank(job), job) for job in waiting]
        heapq.heapify(self._waiting)

    def _begin_reading(self, job: Job, device: str) -> Job:
        job.withdrawn = threading.Event()
        for part in (job, *job.beside):
            part.device = device
        self._reading.append(job)
        return job

    def loaded(self, job: Job, weights: object, seen: str) -> None:
        """Make a job ready whose weights are in memory, or free it if none of its projections is wanted any more."""
        with self._changed:
            self._reading.remove(job)
            job.weights, job.seen = weights, seen
            if job.projections:
                self._ready.append(job)
            else:
                job.let_go()
            self._changed.notify_all()

    def drop_faulty(self, job: Job) -> list[Projection]:
        """Remove and return the projections of a job for which one of its tensors could not be read."""
        with self._changed:
            lost = [p for p in job.projections if job.fault_of(p)]
            job.projections = [p for p in job.projections if not job.fault_of(p)]
            self._forget(job, lost)
            return lost

    def next_batch(self, device: str, limit_of: Callable[[int], int]) -> list[Job]:
        """The ready jobs of a device to solve next (see full_batch), once there are any; [] when closed.

        Nothing is handed out while MOST_UNSAVED bytes wait to be saved.
        """
        with self._changed:
            while not self._closed:
                if self._unsaved < MOST_UNSAVED and (batch := self._choose(device, limit_of)):
                    for job in batch:
                        self._ready.remove(job)
                        self._solving.append(job)
                        self._forget(job, job.projections)
                    self._changed.notify_all()
                    return batch
                self._changed.wait()
        return []

    def _choose(self, device: str, limit_of: Callable[[int], int]) -> list[Job]:
        """The batch to solve now; [] to wait."""
        ready = [job for job in self._ready if job.device == device]
        return choose_batch(ready, limit_of, partial(self._is_more_coming, device))

    def _is_more_coming(self, device: str) -> bool:
        """Whether a job is being read to a device, or has room to be."""
        return any(job.device == device for job in self._reading) or self._can_read(device)

    def count_unsaved(self, size: int) -> None:
        """Count `size` more bytes of spectra that wait to be saved; a negative size for saved ones."""
        with self._changed:
            was_much = self._unsaved >= MOST_UNSAVED
            self._unsaved += size
            if was_much:
                self._changed.notify_all()

    def scatter(self) -> None:
        """Shuffle what is queued of a scan, so that processes that scan the same seldom solve the same at once."""
        with self._changed:
            if not self._is_ordered:
                return
            self._is_ordered = False
            waiting = [job for _, job in self._waiting]
            scanned = [job for job in (*waiting, *self._reading, *self._ready) if job.priority == SCAN]
            numbers = [job.number for job in scanned]
            random.shuffle(numbers)
            for job, number in zip(scanned, numbers, strict=True):
                job.number = number
            self._order(waiting)

    def is_all(self, jobs: list[Job]) -> bool:
        """Return whether nothing but these jobs waits, is being read, is ready, or is being solved."""
        with self._changed:
            waiting = any(job.projections for _, job in self._waiting)
            return not waiting and not self._ready and not self._reading and len(self._solving) == len(jobs)

    def solved(self, job: Job) -> None:
        """Count a job as done and free its memory."""
        with self._changed:
            self._solving.remove(job)
            job.let_go()
            self._changed.notify_all()

    def drop(self, job: Job) -> list[Projection]:
        """Remove a job that is being read; return its projections."""
        with self._changed:
            self._reading.remove(job)
            self._forget(job, job.projections)
            self._changed.notify_all()
            return job.projections

    def clear(self) -> list[Projection]:
        """Withdraw and return everything that no device solves yet."""
        with self._changed:
            jobs = {id(job): job for job in self._owner.values()}.values()
            dropped = [projection for job in jobs for projection in job.projections]
            for job in jobs:
                job.projections = []
            for job in self._reading:
                job.withdrawn.set()
            self._owner.clear()
            self._waiting.clear()
            self._ready.clear()
            self._changed.notify_all()
        return dropped

    def close(self) -> None:
        """Hand out no more jobs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _can_read(self, device: str) -> bool:
        """Whether a job waits and the device has room for it. Removes withdrawn jobs that come before it."""
        while self._waiting and not self._waiting[0][1].projections:
            heapq.heappop(self._waiting)
        return bool(self._waiting) and self._has_room(device, self._waiting[0][1])

    def _has_room(self, device: str, job: Job) -> bool:
        held = self._held(device)
        if not held or (job.priority == URGENT and all(j.priority != URGENT for j in held)):
            return True
        ready = sum(j.device == device for j in self._ready)
        return ready < _MAX_READY and sum(j.room_on(device) for j in [*held, job]) <= self._budgets[device]

    def _held(self, device: str) -> list[Job]:
        """The jobs whose weights lie in a device's memory, or will."""
        return [job for job in (*self._ready, *self._reading, *self._solving) if job.device == device]

    def _release(self, owner: Job, projection: Projection) -> bool:
        """Take a projection out of a waiting job and return True; a job that is read, or being read, becomes urgent."""
        if owner is _RESERVED or owner.priority == URGENT:
            return False
        if owner in self._ready or owner in self._reading:
            owner.priority = URGENT
            return False
        owner.projections = [p for p in owner.projections if p.key != projection.key]
        return True

    def _forget(self, job: Job, projections: Iterable[Projection]) -> None:
        """Count these projections of a job as no longer queued: if they are added again, they make another job."""
        for projection in projections:
            if self._owner.get(projection.key) is job:
                del self._owner[projection.key]


_RESERVED = Job(URGENT, -1, None, None, [])  # type: ignore[arg-type]

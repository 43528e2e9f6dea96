"""Sending the queue's jobs to worker processes: which worker has which batch, and what became of it."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..spectrum import Projection
from .cluster import IN_FLIGHT, Cluster
from .events import SolvingAgain, Started, StayBounds
from .job import SECOND, URGENT, Job
from .outcomes import Outcomes
from .queue import JobQueue
from .remote_batch import Batch, BatchResult, had_no_room, light, returned_to
from .reporter import Reporter
from .share import Share, kind_of, part_of

if TYPE_CHECKING:
    from distributed import Future

IDLE_SECONDS = 300.0
"""After this long without work, the processes that were started here end and free the memory of their GPUs."""
GONE_SECONDS, FIRST_SECONDS = 10.0, 120.0
"""After this long without a worker the scan goes on in this process: GONE_SECONDS if there was one, as a restart takes
about two seconds; FIRST_SECONDS if none has come yet, as somebody may be about to start them."""
MOST_KILLS = 3
_DEADLY = {
    "cpu": "it may need more memory than they have",
    "cuda": "a GPU may fail at it (dmesg has what the driver says), or it may need more memory than they have",
}
_TICK = 1.0

Needs: TypeAlias = tuple[str, ...]
"""See Job.needs."""


@dataclass(eq=False, slots=True)
class Flight:
    """A batch that a worker was sent and has not answered yet."""

    worker: Worker
    jobs: list[Job]
    batch: Batch
    needs: Needs
    cost: float
    future: Future[Any] | None = None
    has_begun: bool = False

    @property
    def projections(self) -> list[Projection]:
        return [projection for job in self.jobs for projection in job.projections]


@dataclass(eq=False, slots=True)
class Worker:
    """A worker process, its batches in the order in which it solves them, and the files that it refuses and why.

    It is `warming` until it has loaded what its first batch needs.
    """

    address: str
    name: str
    flights: list[Flight] = field(default_factory=list)
    refuses: dict[Needs, str] = field(default_factory=dict)
    warming: Future[None] | None = None

    @property
    def cost(self) -> float:
        """The sum of Projection.cost over its batches."""
        return sum(flight.cost for flight in self.flights)

    def takes(self, job: Job) -> bool:
        """Return whether it may be sent this job now. A job that workers died with is solved without any other."""
        if any(j.kills for flight in self.flights for j in flight.jobs):
            return False
        if job.kills:
            return not self.flights
        return len(self.flights) < IN_FLIGHT + (job.priority == URGENT)


class Far:
    """Keeps the workers of a cluster busy with what waits in the queue, from one thread: `run`."""

    def __init__(self, cluster: Cluster, queue: JobQueue, reporter: Reporter, outcomes: Outcomes) -> None:
        self._cluster, self._queue, self._reporter, self._outcomes = cluster, queue, reporter, outcomes
        self._command = tuple(sys.argv)
        self._changed = threading.Condition()
        self._workers: dict[str, Worker] = {}
        self._is_stale = self._has_scheduler = True
        self._given_up = self._had_any = False
        self._handling = 0
        self._last_seen = self._last_busy = time.monotonic()

    def run(self) -> str:
        """Serve the queue until it is closed or had no work for IDLE_SECONDS, then return "".

        If no worker can be had any more, return the reason: this process has to go on alone. Batches that were sent and
        not answered wait in the queue again.
        """
        self._cluster.on_change(self._call_stale)
        self._queue.elsewhere(True)
        try:
            while True:
                self._update_workers()
                if reason := self._why_no_workers():
                    return reason
                jobs = self._queue.next_share(self._is_free, self._cut, _TICK)
                if jobs is None:
                    self._wait_for_what_runs()
                    return ""
                if jobs:
                    self._send(jobs)
                elif self._is_idle_too_long():
                    return ""
        finally:
            self._bring_back(flight for worker in self._workers.values() for flight in list(worker.flights))
            self._queue.elsewhere(False)
            self._cluster.no_more(self._call_stale)

    def withdraw(self) -> list[Projection]:
        """Take back and return what no worker has begun."""
        with self._changed:
            waiting = [f for worker in self._workers.values() for f in worker.flights if not f.has_begun]
        waiting = [flight for flight in waiting if self._claim(flight)]
        dropped = [projection for flight in waiting for projection in flight.projections]
        for flight in waiting:
            for job in flight.jobs:
                self._queue.solved(job)
        return dropped

    def give_up(self) -> None:
        """Stop waiting for running batches."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def _call_stale(self) -> None:
        self._is_stale = True
        self._queue.wake()

    def _update_workers(self) -> None:
        """Look which workers came and went, if any may have or there are none."""
        if self._workers and not self._is_stale:
            return
        self._is_stale = False
        found = self._cluster.workers()
        self._has_scheduler = found is not None
        if found is None:
            return
        with self._changed:
            gone = [self._workers.pop(address) for address in self._workers.keys() - found.keys()]
            for address in found.keys() - self._workers.keys():
                self._workers[address] = Worker(address, found[address])
                self._warm(self._workers[address])
            self._reporter.devices = tuple(sorted(worker.name for worker in self._workers.values()))
            self._say_what_starts()
        for worker in gone:
            self._mourn(worker)

    def _why_no_workers(self) -> str:
        """Why no worker can be had any more, "" as long as there is one or one may come."""
        if not self._has_scheduler:
            return "the Dask scheduler is gone"
        now = time.monotonic()
        if self._workers:
            self._last_seen, self._had_any = now, True
            return self._why_refused()
        if not self._had_any:
            self._outcomes.note(f"the scheduler has no worker yet: waiting {FIRST_SECONDS:.0f} s for one")
        if now - self._last_seen <= (GONE_SECONDS if self._had_any else FIRST_SECONDS):
            return ""
        return "all worker processes are gone" if self._had_any else "the scheduler has no worker"

    def _why_refused(self) -> str:
        """Why files that are needed are refused by every worker, "" if there are none."""
        with self._changed:
            refused = set.intersection(*(set(worker.refuses) for worker in self._workers.values()))
            reasons = {worker.refuses[needs] for worker in self._workers.values() for needs in refused}
        return f"no worker can take {', '.join(next(iter(refused)))} ({'; '.join(sorted(reasons))})" if refused else ""

    def _warm(self, worker: Worker) -> None:
        """Have a new worker load what it needs, before its first batch or during it."""
        worker.warming = self._cluster.warm(worker.address)
        worker.warming.add_done_callback(partial(self._warmed, worker))

    def _warmed(self, worker: Worker, _future: Future[None]) -> None:
        with self._changed:
            worker.warming = None
            self._say_what_starts()

    def _say_what_starts(self) -> None:
        """Report what the workers load, as long as none can solve yet."""
        cold = [
            worker.name for worker in self._workers.values() if worker.warming is not None and "cuda" in worker.name
        ]
        is_all = len(cold) == len(self._workers)
        self._reporter.starts(f"{', '.join(cold)}: torch, CUDA and kernels are loaded" if cold and is_all else "")

    def _mourn(self, worker: Worker) -> None:
        """Let the jobs of a dead worker wait again, each in a batch without others; fail those that MOST_KILLS had."""
        for flight in list(worker.flights):
            if not self._claim(flight):
                continue
            for job in flight.jobs:
                job.kills += 1
            for job in [job for job in flight.jobs if job.kills >= MOST_KILLS]:
                flight.jobs.remove(job)
                self._give_up_on(
                    job, f"{MOST_KILLS} worker processes died while it was computed: {_DEADLY[kind_of(worker.name)]}"
                )
            self._queue.put_back(flight.jobs)

    def _give_up_on(self, job: Job, reason: str) -> None:
        if job.priority == SECOND:
            self._reporter.tell(StayBounds(tuple(job.projections)))
        else:
            self._outcomes.fail(job.projections, reason)
        self._queue.solved(job)

    def _is_free(self, job: Job) -> bool:
        return self._worker_for(job) is not None

    def _worker_for(self, job: Job) -> Worker | None:
        """The worker with the least to do among those that take this job, None if there is none."""
        needs = job.needs
        with self._changed:
            able = [worker for worker in self._workers.values() if needs not in worker.refuses]
            roomy = [worker for worker in able if worker.name not in job.no_room] or able
            able = [worker for worker in roomy if worker.takes(job)]
            return min(able, key=lambda w: (len(w.flights), w.cost, w.name), default=None)

    def _cut(self, first: Job, waiting: float, under_way: float) -> Callable[[Job], bool] | None:
        """The function that JobQueue.next_share calls to fill a batch that begins with `first`; None if there shall be
        no batch before another one is done."""
        worker = self._worker_for(first)
        if worker is None:  # see _send
            return None
        with self._changed:
            count = sum(first.needs not in other.refuses for other in self._workers.values())
        kind = kind_of(worker.name)
        part = part_of(kind, waiting, under_way, worker.cost, count)
        return Share(kind, part).takes if part or first.priority == URGENT else None

    def _send(self, jobs: list[Job]) -> None:
        self._last_busy = time.monotonic()
        is_again = jobs[0].priority == SECOND
        if is_again and not self._outcomes.budget.take(jobs[0].cost):
            self._give_up_on(jobs[0], "")
            return
        if not is_again:
            self._outcomes.look(jobs)
        for job in [job for job in jobs if not job.projections]:
            jobs.remove(job)
            self._queue.solved(job)
        if not jobs:
            return
        worker = self._worker_for(jobs[0])
        if worker is None:  # the free one has meanwhile refused another batch
            self._queue.put_back(jobs)
            return
        models = tuple(checkpoint.elsewhere for checkpoint in jobs[0].checkpoints)
        projections = tuple(light(projection) for job in jobs for projection in job.projections)
        is_last = worker.name in jobs[0].no_room
        batch = Batch(models, projections, self._command, jobs[0].priority == URGENT, is_again, is_last)
        flight = Flight(worker, jobs, batch, jobs[0].needs, sum(job.cost for job in jobs))
        with self._changed:
            worker.flights.append(flight)
        self._begin(worker)
        flight.future = self._cluster.submit(batch, worker.address, f"rankscope-{uuid.uuid4().hex}")
        flight.future.add_done_callback(partial(self._answered, flight))

    def _begin(self, worker: Worker) -> None:
        """Report that the first of a worker's batches is being solved."""
        with self._changed:
            if not worker.flights or worker.flights[0].has_begun:
                return
            flight = worker.flights[0]
            flight.has_begun = True
        told = SolvingAgain if flight.batch.is_again else Started
        for projection in flight.projections:
            self._reporter.tell(told(projection, worker.name))

    def _answered(self, flight: Flight, future: Future[Any]) -> None:
        """Handle an answered batch. Dask calls this from one of its threads."""
        try:
            answer: BatchResult | None = future.result()
        except Exception as error:  # noqa: BLE001 - whatever the worker or the connection raised
            if future.cancelled() or future.status in ("cancelled", "lost"):
                answer = None
            else:
                answer = BatchResult(refused=f"{type(error).__name__}: {error}")
        with self._changed:
            self._handling += 1
        try:
            if self._claim(flight):
                self._handle_answer(flight, answer)
        finally:
            with self._changed:
                self._handling -= 1
                self._changed.notify_all()

    def _handle_answer(self, flight: Flight, answer: BatchResult | None) -> None:
        """Let the worker begin its next batch, then process the answer, None if the batch was lost."""
        if answer is not None and answer.refused:
            self._refused(flight, answer.refused)
        self._begin(flight.worker)
        self._queue.wake()
        if answer is None:
            self._queue.put_back(flight.jobs)
        elif not answer.refused:
            self._keep_results(flight, answer)

    def _refused(self, flight: Flight, reason: str) -> None:
        with self._changed:
            flight.worker.refuses[flight.needs] = reason
        self._outcomes.note(f"{flight.worker.name} is not used for this: {reason}")
        self._queue.put_back(flight.jobs)

    def _keep_results(self, flight: Flight, answer: BatchResult) -> None:
        spectra = {spectrum.projection.key: spectrum for spectrum in answer.spectra}
        failures = dict(answer.failures)
        for notice in answer.notices:
            self._outcomes.note(f"{flight.worker.name}: {notice}")
        if not flight.batch.is_again:
            self._outcomes.budget.took(flight.worker.name, answer.seconds)
        for job in flight.jobs:
            if not flight.batch.is_again and not flight.batch.is_last:
                self._requeue_without_room(flight, job, failures)
            for projection in job.projections:
                found = spectra.get(projection.key)
                kept = None if found is None else returned_to(projection, found)
                if flight.batch.is_again:
                    self._outcomes.keep_again(projection, kept, job.cost, answer.seconds)
                elif kept is not None:
                    self._outcomes.keep(kept, job)
                else:
                    self._outcomes.fail([projection], failures.get(projection.key, "the worker process gave no result"))
            if job.checkpoint.is_remote:
                self._reporter.fetched(sum(part.tensor.stored_bytes for part in job.parts))
            self._queue.solved(job)

    def _requeue_without_room(self, flight: Flight, job: Job, failures: dict[str, str]) -> None:
        """Queue for other workers what this one had too little memory for."""
        lost = [p for p in job.projections if had_no_room(failures.get(p.key, ""))]
        if lost:
            self._queue.add_again(job, lost, job.no_room | {flight.worker.name})
            job.projections = [p for p in job.projections if p not in lost]

    def _claim(self, flight: Flight) -> bool:
        """Remove a batch from its worker; return whether it was still there, so that only one caller handles it."""
        with self._changed:
            is_there = flight in flight.worker.flights
            if is_there:
                flight.worker.flights.remove(flight)
            self._changed.notify_all()
        if is_there and flight.future is not None and not flight.future.done():
            flight.future.cancel()
        return is_there

    def _bring_back(self, flights: Iterable[Flight]) -> None:
        for flight in flights:
            if self._claim(flight):
                self._queue.put_back(flight.jobs)

    def _wait_for_what_runs(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._given_up or self._is_quiet())

    def _is_quiet(self) -> bool:
        """Return whether no batch is out, and no answer is being processed."""
        return not self._handling and not any(worker.flights for worker in self._workers.values())

    def _is_idle_too_long(self) -> bool:
        if not self._queue.is_idle():
            self._last_busy = time.monotonic()
        return time.monotonic() - self._last_busy > IDLE_SECONDS

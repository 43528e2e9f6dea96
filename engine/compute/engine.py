"""The Engine: what is asked for goes in, events come out; threads read, solve and hand to a sink."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from ..checkpoint.open import Checkpoint
from ..checkpoint.ranges import Watch
from ..errors import WeightsError
from ..spectrum import Projection, Run, Spectrum
from . import devices
from .devices import Device
from .events import (
    Computed,
    Failed,
    Found,
    Listener,
    Notice,
    Saved,
    SavedAgain,
    SolvingAgain,
    Started,
    StayBounds,
    Stopped,
)
from .job import SECOND, Job
from .queue import JobQueue
from .reader import Reader
from .reporter import Reporter
from .second_pass import Budget, is_ill_conditioned
from .worker import Solver, groups, own_stream

_BESIDE_VALUES = 2048
"""Bytes that a spectrum takes in memory beside its values."""


class Sink(Protocol):
    """Where spectra go. `put` resolves once the spectrum is safe on disk."""

    def has(self, key: str) -> bool:
        """Whether a valid spectrum of this content key is saved."""
        ...

    def put(self, spectrum: Spectrum) -> Future[None]:
        """Save a spectrum; the future resolves after fsync, with an OSError where that failed."""
        ...

    def listen(self, tell: Callable[[str], None]) -> None:
        """Have `tell` called with a line that says why nothing can be saved for now, and with "" once it can."""
        ...

    def look(self) -> bool:
        """See what other processes have saved; whether any has while this sink was open."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """`device` as in devices.check_spec; `threads` as in devices.thread_count.

    `prefetch_bytes` of weights may lie in each device's memory, read or being solved; None for what suits it.
    """

    device: str = "auto"
    threads: int | None = None
    prefetch_bytes: int | None = None


class Engine:
    """Computes spectra in worker threads (devices.workers), fed by reader threads (devices.readers).

    A GPU's ill-conditioned matrices are saved as they are and, when all else is done, solved again by the SVD, as far
    as the Budget goes.

    `listener` is called from a thread of the engine, never twice at once. Nothing starts, and torch
    is not imported, before the first `submit`.
    """

    def __init__(self, sink: Sink, listener: Listener, settings: Settings | None = None) -> None:
        self._sink = sink
        self._settings = settings or Settings()
        self._queue = JobQueue()
        self._reporter = Reporter(listener)
        self._budget = Budget()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._noted: set[str] = set()
        self._again: set[str] = set()  # asked for although it is saved
        self._started = False

    def submit(
        self,
        checkpoint: Checkpoint,
        projections: Iterable[Projection],
        *,
        others: Sequence[Checkpoint] = (),
        urgent: bool = False,
        recompute: bool = False,
    ) -> list[Projection]:
        """Queue what is neither stored (unless `recompute`) nor under way; returns what was accepted.

        Parents of derived projections may lie in `others`, too. An urgent request overtakes everything that waits.
        A projection with a `problem` fails at once.
        """
        opened = (checkpoint, *others)
        wanted = [p for p in projections if recompute or not self._sink.has(p.key)]
        sound = [p for p in wanted if p.problem is None and not self._is_under_way(p.key)]
        refused = [Failed(p, p.problem) for p in wanted if p.problem is not None]
        to_fetch = sum(held.bytes_to_fetch(_tensors_in(held, sound)) for held in opened if held.is_remote)
        expected = [*sound, *(f.projection for f in refused)]
        if self._reporter.expect(expected, to_fetch):  # before a worker can finish one
            self._budget.reset()
            self._reporter.seconds_again = 0.0
        if recompute:
            self._again.update(p.key for p in sound)
        accepted = self._queue.add(checkpoint, sound, urgent, others)
        for failure in refused:
            self._reporter.tell(failure)
        if accepted:
            self._start(any(held.is_remote for held in opened))
        return accepted

    def _is_under_way(self, key: str) -> bool:
        """Being solved or saved: neither waiting nor done."""
        return self._reporter.is_open(key) and not self._queue.holds(key)

    def stop(self) -> None:
        """Drop what waits; the running batch is finished and saved."""
        if bounds := self._queue.clear_second():
            self._reporter.tell(StayBounds(tuple(bounds)))
        if dropped := self._queue.clear():
            self._reporter.tell(Stopped(tuple(dropped)))

    def close(self, timeout: float | None = None) -> bool:
        """Stop, and wait for the running batch up to `timeout` seconds; True if every thread ended."""
        self.stop()
        self._queue.close()
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self._reporter.close()
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self, is_remote: bool) -> None:
        with self._lock:
            if not self._started:
                self._started = True
                self._sink.listen(self._reporter.waits)
                self._spawn(self._open_devices, "rankscope-devices", is_remote)

    def _spawn(self, target: Callable[..., None], name: str, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _open_devices(self, is_remote: bool) -> None:
        """Import torch (seconds) off the caller's thread, then start the reader and the workers."""
        try:
            found, notes = devices.pick(self._settings.device)
            run = devices.make_run(found)
        except Exception as error:  # noqa: BLE001 - InputError, or whatever a broken torch or driver raises
            self._started = False  # the next request tries again
            self._reporter.tell(Notice(str(error), fatal=True))
            for projection in self._queue.clear():
                self._reporter.tell(Failed(projection, str(error)))
            return
        for note in notes:
            self._note(note)
        self._reporter.devices = tuple(device.name for device in found)
        bounded = self._settings.prefetch_bytes
        self._queue.open({device.name: bounded or devices.prefetch_bytes(device) for device in found})
        with self._lock:
            for number in range(devices.READERS if is_remote else devices.readers(found)):
                self._spawn(self._read, f"rankscope-reader-{number}")
            for device in found:
                threads = devices.thread_count(self._settings.threads)
                for number in range(devices.workers(device, threads)[0]):
                    self._spawn(self._work, f"rankscope-{device.name}-{number}", device, threads, run)

    def _note(self, text: str) -> None:
        """Say it once: the workers of a device find the same."""
        with self._lock:
            new = text not in self._noted
            self._noted.add(text)
        if new:
            self._reporter.tell(Notice(text))

    def _read(self) -> None:
        reader = Reader()
        while (job := self._queue.next_to_read()) is not None:
            # A call of its own: nothing here keeps the weights while it waits.
            if job.priority == SECOND:
                self._read_again(reader, job)
            else:
                self._read_one(reader, job)

    def _is_found(self, projection: Projection) -> bool:
        """Whether another process has saved it since it was asked for."""
        return projection.key not in self._again and self._sink.has(projection.key)

    def _read_one(self, reader: Reader, job: Job) -> None:
        if all(self._is_found(p) for p in job.projections):
            for projection in self._queue.drop(job):
                self._reporter.tell(Found(projection))
            return
        for projection in self._load(reader, job):
            self._fail([projection], job.fault_of(projection))

    def _load(self, reader: Reader, job: Job) -> list[Projection]:
        """Read what a job needs; returns its projections for which that cannot be read."""
        watch = Watch(self._reporter.fetched, lambda text: self._reporter.tell(Notice(text)), job.withdrawn)
        parts = job.parts
        for part in parts:
            try:
                part.weights, part.seen = reader.read(part, watch)
            except WeightsError as error:
                part.fault = str(error)
            except Exception as error:  # noqa: BLE001 - whatever a file holds, the scan goes on
                part.fault = f"cannot be read: {type(error).__name__}: {error}"
        if all(part.fault for part in parts):
            return self._queue.drop(job)
        lost = self._queue.drop_faulty(job)
        self._queue.loaded(job, job.weights, job.seen)
        return lost

    def _read_again(self, reader: Reader, job: Job) -> None:
        if not self._budget.take(job.cost):
            self._reporter.tell(StayBounds(tuple(self._queue.drop(job))))
            return
        remote = [part for part in job.parts if part.checkpoint.is_remote]
        self._reporter.expect_bytes(sum(part.checkpoint.bytes_to_fetch({part.tensor.name}) for part in remote))
        if lost := self._load(reader, job):
            self._reporter.tell(StayBounds(tuple(lost)))

    def _work(self, device: Device, threads: int, run: Run) -> None:
        with own_stream(device.name):
            solver = Solver(device.name, run, self._note)
            while jobs := self._queue.next_batch(device.name, solver.limit_of):
                cost, alone = sum(job.cost for job in jobs), self._queue.is_all(jobs)
                devices.set_blas_threads(device, devices.blas_threads(device, threads, cost, alone))
                if jobs[0].priority == SECOND:
                    self._solve_again(solver, jobs[0])
                    continue
                self._look(jobs)
                with self._budget.scanning(device.name):
                    self._solve(solver, jobs)

    def _look(self, jobs: list[Job]) -> None:
        """Leave out what other processes have saved; where there are any, go on in another order than they."""
        if self._sink.look():
            self._queue.scatter()
        for job in jobs:
            found = [p for p in job.projections if self._is_found(p)]
            job.projections = [p for p in job.projections if p not in found]
            for projection in found:
                self._reporter.tell(Found(projection))

    def _solve(self, solver: Solver, jobs: list[Job]) -> None:
        for group in groups(jobs, solver.limit_of):
            for projection, _ in group:
                self._reporter.tell(Started(projection, solver.device))
            for (projection, job), found in zip(group, solver.solve(group), strict=True):
                if isinstance(found, str):
                    self._fail([projection], found)
                else:
                    self._keep(found, job)
        for job in jobs:
            self._queue.solved(job)

    def _solve_again(self, solver: Solver, job: Job) -> None:
        (projection,) = job.projections
        self._reporter.tell(SolvingAgain(projection, solver.device))
        start = time.monotonic()
        found = solver.solve_again(projection, job)
        self._budget.spend(job.cost, time.monotonic() - start)
        self._reporter.seconds_again = self._budget.spent
        if found is None:
            self._reporter.tell(StayBounds((projection,)))
        else:
            self._put(
                found,
                lambda: self._reporter.tell(SavedAgain(found)),
                lambda _error: self._reporter.tell(StayBounds((projection,))),
            )
        self._queue.solved(job)

    def _keep(self, spectrum: Spectrum, job: Job) -> None:
        projection = spectrum.projection
        self._reporter.tell(Computed(spectrum))
        self._again.discard(projection.key)

        def saved() -> None:
            again = is_ill_conditioned(spectrum)
            self._reporter.tell(Saved(spectrum, again))
            if again and not self._queue.add_second(job, projection):
                self._reporter.tell(StayBounds((projection,)))

        self._put(spectrum, saved, lambda error: self._fail([projection], _unsaved(error)))

    def _put(self, spectrum: Spectrum, saved: Callable[[], None], unsaved: Callable[[BaseException], None]) -> None:
        """Hand to the sink; one of the two is called when it is on the disk, or cannot be."""
        size = spectrum.values.nbytes + _BESIDE_VALUES

        def done(future: Future[None]) -> None:
            error = future.exception()
            if error is None:
                saved()
            else:
                unsaved(error)
            self._queue.count_unsaved(-size)

        self._queue.count_unsaved(size)
        try:
            future = self._sink.put(spectrum)
        except Exception as error:  # noqa: BLE001 - a sink that refuses must not end the scan
            self._queue.count_unsaved(-size)
            unsaved(error)
        else:
            future.add_done_callback(done)

    def _fail(self, projections: Iterable[Projection], reason: str) -> None:
        for projection in projections:
            self._reporter.tell(Failed(projection, reason))


def _unsaved(error: BaseException) -> str:
    """Why a spectrum cannot be saved: the same words for all that share the reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be saved: {error.strerror}" + (f" ({error.filename})" if error.filename else "")
    return f"cannot be saved: {error}"


def _tensors_in(checkpoint: Checkpoint, projections: Iterable[Projection]) -> set[str]:
    """The names of its tensors that are read for these projections."""
    files = {tensor.source.identity for tensor in checkpoint.tensors}
    return {p.tensor for projection in projections for p in projection.parents if p.source.identity in files}

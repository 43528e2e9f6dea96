"""The Engine: projections go in, events come out; threads read weights, solve, and hand spectra to a sink."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..checkpoint.open import Checkpoint
from ..checkpoint.retries import Watch
from ..errors import WeightsError
from ..spectrum import Projection, Run
from . import devices
from .devices import Device
from .events import (
    AlreadyStored,
    Failed,
    Listener,
    Notice,
    SolvingAgain,
    Started,
    StayBounds,
    Stopped,
)

if TYPE_CHECKING:
    from .job import Job
    from .outcomes import Sink
    from .reader import Reader
    from .worker_thread import Solver


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """`device` as in devices.check_spec; `threads` as in devices.thread_count.

    `prefetch_bytes`: how many bytes of weights may lie in each device's memory, read or being solved; None for what
    suits the device. `is_worker`: the engine of a worker process, which fails what has no room on its device, so that
    others take it, and leaves second passes to the process that sent the batch. `scheduler`: see Cluster.connect.
    `is_small`: there are a few matrices, so one device is enough. `is_apart`: even a single GPU is used from a separate
    process, so that this one imports no torch and survives a CUDA fault. `gives_way`: see devices.give_way.
    """

    device: str = "auto"
    threads: int | None = None
    prefetch_bytes: int | None = None
    is_worker: bool = False
    scheduler: str | None = None
    is_small: bool = False
    is_apart: bool = False
    gives_way: bool = False


class Engine:
    """Computes spectra in worker threads (devices.workers), fed by reader threads (devices.readers).

    Ill-conditioned matrices that a GPU solved are saved as they are and, when all else is done, solved again by the SVD
    as far as the Budget goes.

    `listener` is called from a thread of the engine, never twice at once. Before the first `submit` or `warm` nothing
    starts, and torch is not imported.
    """

    def __init__(self, sink: Sink, listener: Listener, settings: ComputeSettings | None = None) -> None:
        # These take 60 ms, and importing this module should not: it is needed for the first screen.
        from .elsewhere import Elsewhere
        from .outcomes import Outcomes
        from .queue import JobQueue
        from .reporter import Reporter

        self._sink = sink
        self._settings = settings or ComputeSettings()
        self._queue = JobQueue()
        self._reporter = Reporter(listener)
        self._outcomes = Outcomes(sink, self._queue, self._reporter, not self._settings.is_worker)
        self._elsewhere = Elsewhere(
            self._settings.device,
            self._settings.threads,
            self._settings.scheduler,
            self._settings.is_small,
            self._settings.is_apart,
            self._queue,
            self._reporter,
            self._outcomes,
        )
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._started = self._is_closed = False

    def submit(
        self,
        checkpoint: Checkpoint,
        projections: Iterable[Projection],
        *,
        others: Sequence[Checkpoint] = (),
        urgent: bool = False,
        recompute: bool = False,
    ) -> list[Projection]:
        """Queue the projections that are neither stored (unless `recompute`) nor under way; return those.

        Parents of derived projections may also lie in `others`. An urgent request overtakes everything that waits.
        A projection with a `problem` fails at once. After `close` nothing is queued.
        """
        if self._is_closed:
            return []
        opened = (checkpoint, *others)
        wanted = [p for p in projections if recompute or not self._sink.has(p.key)]
        sound = [p for p in wanted if p.problem is None and not self._is_under_way(p.key)]
        refused = [Failed(p, p.problem) for p in wanted if p.problem is not None]
        to_fetch = sum(held.bytes_to_fetch(_tensors_in(held, sound)) for held in opened if held.is_remote)
        expected = [*sound, *(f.projection for f in refused)]
        if self._reporter.expect(expected, to_fetch):  # announced before a worker can finish one
            self._outcomes.budget.reset()
            self._reporter.seconds_again = 0.0
        if recompute:
            self._outcomes.again.update(p.key for p in sound)
        accepted = self._queue.add(checkpoint, sound, urgent, others)
        for failure in refused:
            self._reporter.tell(failure)
        if accepted:
            self._start(any(held.is_remote for held in opened))
        return accepted

    def warm(self, projections: Iterable[Projection] = ()) -> None:
        """Begin to make the GPUs ready before the first `submit`, and return at once. Does nothing without GPUs, or if
        they need worker processes and Dask is not installed. `projections` are those that will be submitted."""
        self._elsewhere.expect(projections)
        with self._lock:
            self._spawn(self._warm, "rankscope-warm")

    def _warm(self) -> None:
        """Start if there are GPUs to make ready; the driver may take half a second to answer."""
        if self._elsewhere.can_warm():
            self._start(False)

    def _is_under_way(self, key: str) -> bool:
        """Return whether a projection is being solved or saved: it neither waits nor is done."""
        return self._reporter.is_open(key) and not self._queue.holds(key)

    def stop(self) -> None:
        """Drop what waits. The running batch is still finished and saved."""
        if bounds := self._queue.clear_second():
            self._reporter.tell(StayBounds(tuple(bounds)))
        if dropped := [*self._queue.clear(), *self._elsewhere.withdraw()]:
            self._reporter.tell(Stopped(tuple(dropped)))

    def close(self, timeout: float | None = None) -> bool:
        """Stop, and wait up to `timeout` seconds for the running batch; return whether every thread ended."""
        with self._lock:  # a thread that is just being started cannot be joined yet; from now on none is started
            self._is_closed = True
        self.stop()
        self._queue.close()
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self._elsewhere.give_up()
        self._reporter.close()
        return not any(thread.is_alive() for thread in self._threads)

    def pause(self, is_paused: bool) -> None:
        """Pause or resume the worker processes that were started here for this engine."""
        self._elsewhere.pause(is_paused)

    def _start(self, is_remote: bool) -> None:
        with self._lock:
            if not (self._started or self._is_closed):
                self._started = True
                self._sink.listen(self._reporter.waits)
                self._spawn(self._open_devices, "rankscope-devices", is_remote)

    def _spawn(self, target: Callable[..., None], name: str, *args: object) -> None:
        """Start a thread that `close` waits for, and none after `close`; the caller holds the lock."""
        if self._is_closed:
            return
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _open_devices(self, is_remote: bool) -> None:
        """Import torch (seconds) off the caller's thread, then let worker processes or threads of this one solve."""
        try:
            while self._elsewhere.run():
                with self._lock:
                    if self._queue.is_over():
                        self._started = False
                        return
            self._open_here(is_remote)
        except Exception as error:  # noqa: BLE001 - InputError, or whatever a broken torch or driver raises
            with self._lock:  # what is submitted from now on starts anew and is not dropped
                dropped = self._queue.clear()
                self._started = False
            self._reporter.tell(Notice(str(error), fatal=True))
            for projection in dropped:
                self._reporter.tell(Failed(projection, str(error)))

    def _open_here(self, is_remote: bool) -> None:
        """Start the reader and worker threads of this process."""
        found = self._elsewhere.devices
        for device in found:
            if taken := devices.used_by_others(device):
                self._outcomes.note(taken)
        run = devices.make_run(found)
        self._reporter.devices = tuple(device.name for device in found)
        bounded = self._settings.prefetch_bytes
        self._queue.open({device.name: bounded or devices.prefetch_bytes(device) for device in found})
        with self._lock:
            for number in range(devices.READERS if is_remote else devices.readers(found)):
                self._spawn(self._read, f"rankscope-reader-{number}", found)
            for device in found:
                threads = devices.thread_count(self._settings.threads)
                for number in range(devices.workers(device, threads)[0]):
                    self._spawn(self._work, f"rankscope-{device.name}-{number}", device, threads, run)

    def _read(self, found: Sequence[Device]) -> None:
        from .job import SECOND
        from .reader import Reader

        if self._settings.gives_way:
            devices.give_way()
        reader = Reader()
        for device in found:
            reader.prepare(device.name)
        while (job := self._queue.next_to_read()) is not None:
            # In a function, so that no local variable here keeps the weights while this thread waits.
            if job.priority == SECOND:
                self._read_again(reader, job)
            else:
                self._read_one(reader, job)

    def _read_one(self, reader: Reader, job: Job) -> None:
        if all(self._outcomes.is_found(p) for p in job.projections):
            for projection in self._queue.drop(job):
                self._reporter.tell(AlreadyStored(projection))
            return
        for projection in self._load(reader, job):
            self._outcomes.fail([projection], job.fault_of(projection))

    def _load(self, reader: Reader, job: Job) -> list[Projection]:
        """Read the tensors that a job needs; return its projections for which one cannot be read."""
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
        if not self._outcomes.budget.take(job.cost):
            self._reporter.tell(StayBounds(tuple(self._queue.drop(job))))
            return
        self._reporter.expect_bytes(job.bytes_to_fetch)
        if lost := self._load(reader, job):
            self._reporter.tell(StayBounds(tuple(lost)))

    def _work(self, device: Device, threads: int, run: Run) -> None:
        from .job import SECOND
        from .worker_thread import Solver, own_stream

        if self._settings.gives_way:
            devices.give_way()
        if devices.is_gpu(device.name):
            from ..solvers.warm import load_kernels

            load_kernels(device.name)  # while the first tensors are read
        with own_stream(device.name):
            solver = Solver(device.name, run, self._outcomes.note, self._settings.is_worker)
            while jobs := self._queue.next_batch(device.name, solver.limit_of):
                cost, alone = sum(job.cost for job in jobs), self._queue.is_all(jobs)
                devices.set_blas_threads(device, devices.blas_threads(device, threads, cost, alone))
                if jobs[0].priority == SECOND:
                    self._solve_again(solver, jobs[0])
                    continue
                self._outcomes.look(jobs)
                with self._outcomes.budget.scanning(device.name):
                    self._solve(solver, jobs)

    def _solve(self, solver: Solver, jobs: list[Job]) -> None:
        from .worker_thread import groups

        for group in groups(jobs, solver.limit_of):
            for projection, _ in group:
                self._reporter.tell(Started(projection, solver.device))
            for (projection, job), found in zip(group, solver.solve(group), strict=True):
                if isinstance(found, str):
                    self._outcomes.fail([projection], found)
                else:
                    self._outcomes.keep(found, job)
        for job in jobs:
            self._queue.solved(job)

    def _solve_again(self, solver: Solver, job: Job) -> None:
        (projection,) = job.projections
        self._reporter.tell(SolvingAgain(projection, solver.device))
        start = time.monotonic()
        found = solver.solve_again(projection, job)
        self._outcomes.keep_again(projection, found, job.cost, time.monotonic() - start)
        self._queue.solved(job)


def _tensors_in(checkpoint: Checkpoint, projections: Iterable[Projection]) -> set[str]:
    """The names of the tensors of a checkpoint that these projections need."""
    files = {tensor.source.identity for tensor in checkpoint.tensors}
    return {p.tensor for projection in projections for p in projection.parents if p.source.identity in files}

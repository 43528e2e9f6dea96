"""The inside of a worker process: an engine for one device, and the checkpoints that it has opened.

Dask imports this when a worker begins, and calls `dask_setup`.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ..checkpoint.open import open_checkpoint
from ..errors import InputError, WeightsError, without_secrets
from ..spectrum import Projection, Run, Spectrum, digest
from . import devices, driver
from .cluster import DEVICE, PARENT, THREADS
from .engine import ComputeSettings, Engine
from .events import Event, Failed, Notice
from .opened import OpenedCheckpoints, RefusedError
from .queue import JobQueue
from .reader import Reader
from .remote_batch import SERVICE, SOFTWARE, Batch, BatchResult, light
from .worker_thread import Solver, own_stream

if TYPE_CHECKING:
    from distributed import Worker

_PR_SET_PDEATHSIG = 1


def dask_setup(worker: Worker) -> None:
    """Give a Dask worker the Service that solves batches."""
    if parent := os.environ.get(PARENT):
        _belong_to(int(parent))
    threads = os.environ.get(THREADS)
    setattr(worker, SERVICE, Service(os.environ.get(DEVICE, "cpu"), int(threads) if threads else None))


def _belong_to(parent: int) -> None:
    """End with the process that started this one, even if it is killed; write nothing to its terminal, and ignore the
    interrupts typed there."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, AttributeError):  # only Linux has it; elsewhere Dask's pipe ends the process
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)


class _Kept(Future[None]):
    """The future of a spectrum that is kept at once: `then` is called after the engine's callback, which counts the
    spectrum as done. Before that the engine would not take the same projection again, and whoever waits would wait for
    ever."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.set_result(None)
        self._then = then

    def add_done_callback(self, fn: Callable[[Future[None]], object]) -> None:
        super().add_done_callback(fn)  # calls it
        self._then()


class _PassingSink:
    """A sink that keeps nothing: it hands each spectrum to the Service once the engine counts it as done.

    What is submitted again is solved again.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def has(self, _key: str) -> bool:
        return False

    def look(self) -> bool:
        return False

    def listen(self, _tell: object) -> None:
        return

    def put(self, spectrum: Spectrum) -> Future[None]:
        return _Kept(partial(self._service.settle, spectrum.projection.key, spectrum))


class Service:
    """Solves batches, several at once, on one device: "cpu", or the one GPU that this process sees."""

    def __init__(self, device: str, threads: int | None) -> None:
        self._shown, self._device = device, "cuda:0" if device.startswith("cuda") else "cpu"
        self._engine = Engine(_PassingSink(self), self._hear, ComputeSettings(self._device, threads, is_worker=True))
        self._lock, self._device_lock = threading.Lock(), threading.Lock()
        self._is_checked = False
        self._waiting: defaultdict[str, list[Future[Spectrum | str]]] = defaultdict(list)
        self._opened: dict[tuple[str, ...], OpenedCheckpoints] = {}
        self._notices: list[str] = []

    def solve(self, batch: Batch) -> BatchResult:
        """The spectra and failures of a batch, or why none of it can be done here."""
        start = time.monotonic()
        if batch.software != SOFTWARE:
            return BatchResult(refused=f"it runs {SOFTWARE}, and this is {batch.software}")
        try:
            self._check_device()
            opened, wanted = self._open_for(batch)
        except (InputError, RefusedError) as error:
            return BatchResult(refused=str(error))
        if batch.is_again or batch.is_last:
            found: dict[str, Spectrum | str | None] = {
                p.key: self._solve_alone(opened, p, batch.is_again) for p in wanted
            }
        else:
            found = self._solve_together(opened, wanted, batch.is_urgent)
        if any(isinstance(each, str) for each in found.values()) and not devices.answers(self._device):
            os.kill(os.getpid(), signal.SIGKILL)  # only a new process gets over a CUDA fault; batches are sent again
        spectra = [self._sent(s, batch.command) for s in found.values() if isinstance(s, Spectrum)]
        failures = {key: reason for key, reason in found.items() if isinstance(reason, str)}
        with self._lock:
            notices, self._notices = tuple(self._notices), []
        return BatchResult(tuple(spectra), tuple(failures.items()), notices, time.monotonic() - start)

    def warm(self) -> None:
        """Load what the first batch on a GPU needs: torch, a context, kernels, page-locked memory."""
        if not devices.is_gpu(self._device):
            return
        with suppress(InputError):  # no such GPU: the first batch is refused
            self._check_device()
            self._engine.warm()
            from ..solvers.warm import load_kernels, load_libraries

            load_kernels(self._device)
            load_libraries(self._device)

    def _check_device(self) -> None:
        """Check that torch can use the device; a GPU's context is made while torch is imported.

        Raises:
            InputError: torch cannot use it.
        """
        with self._device_lock:
            if not self._is_checked:
                if devices.is_gpu(self._device):
                    driver.begin_context(self._device)
                devices.pick(self._device)
                self._is_checked = True

    def settle(self, key: str, found: Spectrum | str) -> None:
        """Hand a spectrum, or the sentence of a failure, to all that wait for this key."""
        with self._lock:
            waiting = self._waiting.pop(key, [])
        for future in waiting:
            future.set_result(found)

    def _open_for(self, batch: Batch) -> tuple[OpenedCheckpoints, list[Projection]]:
        """The checkpoints of a batch, and its projections with operands that load here. Checkpoints stay open, and are
        opened again if a projection is not in them: a file may have changed.

        Raises:
            InputError: there is no checkpoint of that name.
            RefusedError: see OpenedCheckpoints.
        """
        with self._lock:
            known = self._opened.get(batch.models)
        if known is not None:
            with suppress(RefusedError):
                return known, [known.whole(p) for p in batch.projections]
        opened = OpenedCheckpoints([open_checkpoint(name) for name in batch.models])
        wanted = [opened.whole(p) for p in batch.projections]
        with self._lock:
            self._opened[batch.models] = opened
        return opened, wanted

    def _solve_together(
        self, opened: OpenedCheckpoints, wanted: list[Projection], is_urgent: bool
    ) -> dict[str, Spectrum | str | None]:
        futures: dict[str, Future[Spectrum | str]] = {p.key: Future() for p in wanted}
        with self._lock:
            for key, future in futures.items():
                self._waiting[key].append(future)
        first, *others = opened.checkpoints
        self._engine.submit(first, wanted, others=others, urgent=is_urgent)
        return {key: future.result() for key, future in futures.items()}

    def _solve_alone(self, opened: OpenedCheckpoints, projection: Projection, is_again: bool) -> Spectrum | str | None:
        """Solve one projection without the engine: with `is_again` by the SVD, None if that gives nothing; else on the
        CPU, whichever device this worker has."""
        device = self._device if is_again else "cpu"
        jobs = JobQueue({device: 0})
        first, *others = opened.checkpoints
        jobs.add(first, [projection], False, others)
        job, reader = jobs.next_to_read(), Reader()
        assert job is not None
        with own_stream(device):
            try:
                for part in job.parts:
                    part.weights, part.seen = reader.read(part)
            except (WeightsError, OSError, RuntimeError, MemoryError) as error:
                return None if is_again else str(error)
            solver = Solver(device, self._run, self._notices.append)
            return solver.solve_again(projection, job) if is_again else next(solver.solve([(projection, job)]))

    @cached_property
    def _run(self) -> Run:
        return devices.make_run(devices.pick(self._device)[0])

    def _hear(self, events: tuple[Event, ...]) -> None:
        for event in events:
            match event:
                case Failed(projection, reason):
                    self.settle(projection.key, reason)
                case Notice(text):
                    with self._lock:
                        self._notices.append(text)

    def _sent(self, spectrum: Spectrum, command: tuple[str, ...]) -> Spectrum:
        """A spectrum as it is sent: with the command line and the device name of the process that sent the batch.

        The run gets an id for each command line: one worker may work for several.
        """
        line = shlex.join(map(without_secrets, command))
        run = replace(spectrum.run, run_id=digest(spectrum.run.run_id, line), command=line)
        made = spectrum.provenance
        made = replace(made, device=self._shown) if devices.is_gpu(made.device) else made
        return replace(spectrum, projection=light(spectrum.projection), provenance=made, run=run)

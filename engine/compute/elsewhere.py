"""The worker processes of an engine: whether it needs any, which ones, and what happens when they are lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Sequence

from ..errors import install_line, printable
from ..solvers.gpus import costs_a_second
from ..spectrum import Projection
from . import devices, driver
from .cluster import Cluster, is_installed
from .devices import Device
from .far import Far
from .outcomes import Outcomes
from .queue import JobQueue
from .reporter import Reporter

_WITHOUT = 2
"""The most GPUs that threads of one process use: four were slower than one, see tests/benchmarks/gpu_scan.py."""

_WORTH_SECONDS = 15.0
"""How much work one GPU must have before others are started as well: a process begins to compute some 4.5 s later than
this one would, and two GPUs were 1.43 times as fast as one, four 1.82 times."""

_lock = threading.Lock()
_open: dict[tuple[str, ...], tuple[Cluster, int]] = {}
"""The clusters of this process, and how many engines use each: two open models share one."""


class Elsewhere:
    """The worker processes of one engine. It has none with one device and no `scheduler`, unless that device is a GPU
    and `is_apart` is set, see ComputeSettings.

    `spec`: see devices.check_spec; `scheduler`: see Cluster.connect. Only the first device is used with `is_small`, and
    with `auto` if there is little to do and `is_apart` is not set. `devices` are those on which this process would
    solve without worker processes.
    """

    def __init__(
        self,
        spec: str,
        threads: int | None,
        scheduler: str | None,
        is_small: bool,
        is_apart: bool,
        queue: JobQueue,
        reporter: Reporter,
        told: Outcomes,
    ) -> None:
        self.devices: list[Device] = []
        self._processes: list[Device] = []
        self._spec, self._threads, self._scheduler = spec, threads, scheduler
        self._is_small, self._is_apart = is_small, is_apart
        self._expected = 0.0
        self._queue, self._reporter, self._told = queue, reporter, told
        self._far: Far | None = None
        self._cluster: Cluster | None = None
        self._is_lost = False

    def run(self) -> bool:
        """Have workers solve what waits until the queue is closed or has long been empty; then return True.

        Return False if this process has to solve: from the start, or what lost workers left.

        Raises:
            InputError: a device or the scheduler is not there.
        """
        key = self._key()
        cluster = _used(key, self._begin) if key else None
        self._reporter.starts("")
        if cluster is None:
            if key:
                self._pick()
            return False
        self._cluster, self._far = cluster, Far(cluster, self._queue, self._reporter, self._told)
        try:
            lost = self._far.run()
        finally:
            self._cluster = self._far = None
            _left(key)
        if lost:
            self._is_lost = True
            self._told.note(f"{printable(lost)}: this process continues alone")
            self._pick()
        return not lost

    def expect(self, projections: Iterable[Projection]) -> None:
        """Note what will soon be submitted: unless `is_apart`, devices are chosen by its cost."""
        if not self._is_apart:
            self._expected = sum(projection.cost for projection in projections)

    def pause(self, is_paused: bool) -> None:
        """Pause or resume the processes that were started here."""
        if (cluster := self._cluster) is not None:  # the thread in `run` may take it away
            cluster.signal(signal.SIGSTOP if is_paused else signal.SIGCONT)

    def withdraw(self) -> list[Projection]:
        """Take back and return what no worker has begun."""
        return far.withdraw() if (far := self._far) is not None else []

    def give_up(self) -> None:
        """Stop waiting for running batches."""
        if (far := self._far) is not None:
            far.give_up()

    def can_warm(self) -> bool:
        """Return whether GPUs of this host can be made ready, by worker processes or (one, not apart) in this one."""
        found = [] if self._scheduler else self._used_gpus()
        return bool(found) and (is_installed() or (len(found) == 1 and not self._is_apart))

    def _key(self) -> tuple[str, ...]:
        """The key by which engines share a cluster; () if this process solves."""
        if self._scheduler and not self._is_lost:
            return (self._scheduler,)
        self._processes = [] if self._is_lost else self._for_processes()
        if not self._processes:
            self._pick()
            if self._is_lost or len(self.devices) < 2:
                return ()
            if is_installed():
                self._processes = self.devices
        if self._processes:
            return (*(device.name for device in self._processes), str(self._threads or ""))
        if self._spec == "auto" and len(self.devices) > _WITHOUT:
            self._told.note(
                f"{_WITHOUT} of {len(self.devices)} GPUs are used; for a process each:  {install_line('cluster')}"
            )
            self.devices = self.devices[:_WITHOUT]
        return ()

    def _for_processes(self) -> list[Device]:
        """The GPUs that get a process each, found without importing torch; [] if there are none."""
        found = self._used_gpus()
        return found if (len(found) > 1 or (found and self._is_apart)) and is_installed() else []

    def _named_gpus(self) -> list[Device]:
        """The GPUs that `spec` names, in its order; [] if the driver does not know all of them."""
        found = [] if self._spec == "cpu" else driver.gpus()
        if self._spec not in ("auto", "cuda"):
            wanted = self._spec.split(",")
            found = [device for device in found if device.name in wanted]
            found = sorted(found, key=lambda device: wanted.index(device.name)) if len(found) == len(wanted) else []
        return found

    def _used_gpus(self) -> list[Device]:
        """The named GPUs; only the first if more would gain nothing."""
        found = self._named_gpus()
        return found[:1] if self._is_small or self._is_little(found) else found

    def _is_little(self, found: Sequence[Device]) -> bool:
        """Return whether, with `auto`, one of these GPUs would be done before several: starting them takes seconds."""
        if self._spec != "auto" or self._is_apart or self._is_small or len(found) < 2:
            return False
        cost = max(self._expected, self._queue.waiting_cost())
        return cost / costs_a_second(driver.capability(found[0].name)) < _WORTH_SECONDS

    def _pick(self) -> None:
        if len(found := self._used_gpus()) == 1:
            driver.begin_context(found[0].name)
        self.devices, notes = devices.pick(self._spec)
        if is_little := self._is_little(self.devices):
            said = f"1 of {len(self.devices)} GPUs is used: others would start too late to help; --device cuda uses all"
            notes = [*notes, said]
        if self._is_small or is_little:
            self.devices = self.devices[:1]
        for note in notes:
            self._told.note(note)

    def _begin(self) -> Cluster | None:
        if self._scheduler and not self._is_lost:
            return Cluster.connect(self._scheduler)
        self._reporter.starts(f"starting a process for {', '.join(device.name for device in self._processes)}")
        try:
            return Cluster.local(self._processes, self._threads)
        except Exception as error:  # noqa: BLE001 - no port, no process, no credentials: threads still solve
            reason = printable(f"{type(error).__name__}: {error}", 120)
            self._told.note(f"no worker processes can be started: this process computes alone ({reason})")
            return None


def _used(key: tuple[str, ...], begin: Callable[[], Cluster | None]) -> Cluster | None:
    with _lock:
        cluster, users = _open.get(key) or (begin(), 0)
        if cluster is not None:
            _open[key] = cluster, users + 1
        return cluster


def _left(key: tuple[str, ...]) -> None:
    with _lock:
        cluster, users = _open.pop(key)
        if users > 1:
            _open[key] = cluster, users - 1
            return
    cluster.close()

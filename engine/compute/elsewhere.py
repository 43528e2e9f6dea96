"""Whether worker processes solve what an engine is asked for, which they are, and what happens when they are lost."""

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
"""GPUs that threads of one process use: with four they were slower than with one, see tests/benchmarks/gpu_scan.py."""

_WORTH_SECONDS = 15.0
"""What one GPU has to have to do before others are started for it: a process computes some 4.5 s later than this one
would, and two GPUs were 1.43 times as fast as one, four 1.82 times."""

_lock = threading.Lock()
_open: dict[tuple[str, ...], tuple[Cluster, int]] = {}
"""The clusters of this process, and how many engines use each: two models that are open share one."""


class Elsewhere:
    """The worker processes of one engine: none where it has one device and no `scheduler`, unless that is a GPU and
    `is_apart`, see ComputeSettings.

    `spec`: see devices.check_spec; `scheduler`: see Cluster.connect. With `is_small` one device is used, the first; and
    so with `auto` where there is little to do and nothing has to be `is_apart`. `devices` are those that this process
    itself would solve on.
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
        """Have workers solve what waits until the queue is closed, or there is nothing to do for a long time; False
        where this process has to solve, at once or what is left.

        Raises:
            InputError: a device or a scheduler that is not there.
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
        """These will be asked for before long: by what they cost devices are chosen, and of a GPU that has a process in
        any case none has to be known."""
        if not self._is_apart:
            self._expected = sum(projection.cost for projection in projections)

    def pause(self, is_paused: bool) -> None:
        """Have the processes that were started here stand still, or go on."""
        if self._cluster is not None:
            self._cluster.signal(signal.SIGSTOP if is_paused else signal.SIGCONT)

    def withdraw(self) -> list[Projection]:
        """Take back what no worker has begun; returns it."""
        return self._far.withdraw() if self._far is not None else []

    def give_up(self) -> None:
        """Wait no longer for what runs."""
        if self._far is not None:
            self._far.give_up()

    def can_warm(self) -> bool:
        """Whether there are GPUs on this host that can be made ready: in this process one that need not be apart."""
        found = [] if self._scheduler else self._used_gpus()
        return bool(found) and (is_installed() or (len(found) == 1 and not self._is_apart))

    def _key(self) -> tuple[str, ...]:
        """What tells clusters apart; () where this process solves itself."""
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
        """The GPUs that get a process each, [] where there are none: known without torch, of no use here."""
        found = self._used_gpus()
        return found if (len(found) > 1 or (found and self._is_apart)) and is_installed() else []

    def _named_gpus(self) -> list[Device]:
        """The GPUs that are to be used, as far as the driver knows them; all that are named, or none."""
        found = [] if self._spec == "cpu" else driver.gpus()
        if self._spec not in ("auto", "cuda"):
            wanted = self._spec.split(",")
            found = [device for device in found if device.name in wanted]
            found = sorted(found, key=lambda device: wanted.index(device.name)) if len(found) == len(wanted) else []
        return found

    def _used_gpus(self) -> list[Device]:
        """Of these, the first alone where others would gain nothing."""
        found = self._named_gpus()
        return found[:1] if self._is_small or self._is_little(found) else found

    def _is_little(self, found: Sequence[Device]) -> bool:
        """Whether `auto` would be later done by several of these GPUs than by one, as starting them takes seconds."""
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

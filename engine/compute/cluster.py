"""Worker processes by Dask: those of this host, one for each GPU, or those of a scheduler that runs elsewhere."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, install_line, printable
from .devices import Device
from .remote_batch import Batch, solve, warm

if TYPE_CHECKING:
    from distributed import Client, Future, SpecCluster

DEVICE, THREADS, PARENT = "RANKSCOPE_WORKER_DEVICE", "RANKSCOPE_WORKER_THREADS", "RANKSCOPE_WORKER_PARENT"
"""Variables in a worker's environment: the device as its user knows it; the number of CPU threads, "" for what suits
the machine; the process with which the worker ends, "" for a worker that nobody here started."""
IN_FLIGHT = 2
"""The most batches that a worker has: one is solved while the next is read. An urgent one may come on top."""
_CONNECT_SECONDS, _START_SECONDS = 10, 120
_CONFIG: dict[str, Any] = {
    "distributed.scheduler.worker-ttl": None,  # a host that slept, or a process that was stopped, is not dead
    "distributed.scheduler.allowed-failures": 2,
    # Dask would allow only one BLAS thread; workers set the number themselves. Their logs would overwrite the screen.
    "distributed.nanny.pre-spawn-environ": {"DASK_LOGGING__DISTRIBUTED": "critical"},
    # Dask opens a port for a dashboard even without one: no page is served there
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
_LOST: dict[str, Any] = {"distributed.deploy.lost-worker-timeout": "365d"}
"""Read whenever a worker dies: by default Dask ends its Nanny for good if no other has started within 15 s, which takes
longer where all cores are busy."""


def is_installed() -> bool:
    """Return whether the extra `cluster` is installed, without importing it."""
    return all(importlib.util.find_spec(name) for name in ("distributed", "cryptography"))


def require() -> None:
    """Check that the extra `cluster` is installed.

    Raises:
        InputError: it is not.
    """
    if not is_installed():
        raise InputError(f"a scheduler needs Dask:  {install_line('cluster')}")


def environment(device: str, threads: int | None, parent: int | None = None) -> dict[str, str]:
    """The environment of a worker process for a device ("cpu", "cuda:1"), set before the process imports anything.

    A worker for a GPU sees that GPU only: the n-th of those that this process sees.
    """
    made = {DEVICE: device, THREADS: str(threads or ""), PARENT: str(parent or "")}
    if device.startswith("cuda:"):
        number = int(device.partition(":")[2])
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        made["CUDA_VISIBLE_DEVICES"] = seen.split(",")[number].strip() if seen else str(number)
    return made


def nanny_options(device: str, threads: int | None, parent: int | None = None) -> dict[str, Any]:
    """The options with which Dask's Nanny keeps a worker process for a device and restarts it whenever it dies."""
    return {
        "nthreads": IN_FLIGHT + 1,
        "env": environment(device, threads, parent),
        "preload": ["rankscope.engine.compute.worker_process"],
        "memory_limit": 0,  # the engine of the worker bounds what it reads ahead
        "dashboard": False,
    }


class Cluster:
    """The workers of a Dask scheduler, and how batches get to them.

    `processes` are the worker processes that this process started, None if the scheduler runs elsewhere.
    """

    def __init__(self, client: Client, processes: SpecCluster | None) -> None:
        self._client, self._processes = client, processes
        self._told: list[Callable[[], None]] = []
        self._client.subscribe_topic("all", self._heard)

    @classmethod
    def local(cls, devices: Sequence[Device], threads: int | None) -> Cluster:
        """Start a worker process for each device. Only this process can talk to them: over TLS, with fresh credentials.

        Raises:
            Exception: whatever keeps processes from being started.
        """
        import dask
        from distributed import Client, Nanny, Scheduler, Security, SpecCluster

        _silence()
        with redirect_stderr(sys.__stderr__):  # a file number is needed, and Textual's stand-in for stderr has none
            resource_tracker.ensure_running()
        security = Security.temporary()
        inside = {"security": security, "host": "127.0.0.1", "protocol": "tls://"}
        workers = {
            device.name: {"cls": Nanny, "options": {**inside, **nanny_options(device.name, threads, os.getpid())}}
            for device in devices
        }
        scheduler = {
            "cls": Scheduler,
            "options": {**inside, "dashboard": False, "dashboard_address": "127.0.0.1:0", "port": 0},
        }
        with dask.config.set(_CONFIG):
            quiet = {"silence_logs": logging.CRITICAL, "security": security}
            cluster = SpecCluster(workers, scheduler, asynchronous=False, shutdown_on_close=False, **quiet)
            client = Client(cluster, set_as_default=False, security=security, direct_to_workers=True)
        dask.config.set(_LOST)
        return cls(client, cluster)

    @classmethod
    def connect(cls, scheduler: str) -> Cluster:
        """Connect to a scheduler that runs elsewhere: `tcp://host:port`, `tls://host:port` with the credentials of
        Dask's settings, or the file to which it writes its address.

        Raises:
            InputError: it does not answer, or the extra is not installed.
        """
        address = _address(scheduler)
        from distributed import Client

        asyncio.run(_reach(address, scheduler))
        return cls(Client(address, timeout=_CONNECT_SECONDS, set_as_default=False), None)

    def workers(self) -> dict[str, str] | None:
        """The names of the present workers by their addresses, None if the scheduler is gone."""
        if self._client.status != "running":
            return None
        try:
            found = self._client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError):
            return None
        return {address: str(worker["name"]) for address, worker in found.items()}

    def on_change(self, call: Callable[[], None]) -> None:
        """Have `call` called, from another thread, when a worker comes or goes; several engines may share a cluster."""
        self._told.append(call)

    def no_more(self, call: Callable[[], None]) -> None:
        """Stop calling what on_change was given."""
        self._told.remove(call)

    def _heard(self, event: tuple[float, Any]) -> None:
        if isinstance(event[1], dict) and event[1].get("action") in ("add-worker", "remove-worker"):
            for call in list(self._told):
                call()

    def submit(self, batch: Batch, address: str, key: str) -> Future[Any]:
        """Have a worker solve a batch, an urgent one before others that wait there."""
        return self._client.submit(
            solve,
            batch,
            key=key,
            pure=False,
            workers=[address],
            allow_other_workers=False,
            priority=10 if batch.is_urgent else 0,
        )

    def warm(self, address: str) -> Future[None]:
        """Have a worker load what its first batch needs."""
        key = f"rankscope-warm-{uuid.uuid4().hex}"
        return self._client.submit(warm, key=key, pure=False, workers=[address], allow_other_workers=False)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the processes that were started here."""
        for nanny in list(self._processes.workers.values()) if self._processes else []:
            process = nanny.process  # None, as its pid, as soon as Dask's thread has seen it end
            if process is not None and (pid := process.pid) is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def close(self) -> None:
        """Leave the scheduler, and end the processes that were started here."""
        from distributed import Status

        for nanny in self._processes.workers.values() if self._processes else ():
            nanny.status = Status.closing_gracefully  # it restarts no worker
        self.signal(signal.SIGKILL)  # a polite signal would let them finish their batches first
        with suppress(Exception):
            self._client.unsubscribe_topic("all")
            self._client.close(timeout=1)
        if self._processes is not None:
            with suppress(Exception):
                self._processes.close(timeout=5)


async def serve(
    scheduler: str, devices: Sequence[str], names: Sequence[str], threads: int | None, ready: Callable[[], None]
) -> None:
    """Keep a worker process for each device at a scheduler (see Cluster.connect) until the scheduler is gone.

    The workers are called `names` there. `ready` is called once they can take batches.

    Raises:
        InputError: the scheduler does not answer, or the extra is not installed.
    """
    address = _address(scheduler)
    import dask
    from distributed import Nanny

    await _reach(address, scheduler)
    with dask.config.set(_CONFIG):
        nannies = [
            Nanny(address, name=name, death_timeout=_START_SECONDS, **nanny_options(device, threads))
            for device, name in zip(devices, names, strict=True)
        ]
        await asyncio.gather(*nannies)
    ready()
    await asyncio.gather(*(nanny.finished() for nanny in nannies))


def _address(scheduler: str) -> str:
    """The address of a scheduler, given as that address or as the file that holds it.

    Raises:
        InputError: it is given in another way, or Dask is not installed.
    """
    require()
    with suppress(OSError, ValueError, KeyError, TypeError):
        scheduler = scheduler if "://" in scheduler else str(json.loads(Path(scheduler).read_text())["address"])
    if not re.fullmatch(r"(tcp|tls)://[^/\s]+:\d+", scheduler):
        known = "tcp://host:port, tls://host:port or the file that it writes"
        raise InputError(f"a scheduler is named by {known}, not {printable(scheduler)!r}")
    return scheduler


async def _reach(address: str, named: str) -> None:
    """Check that a scheduler answers before a Client is made: a refused Client leaves threads and warnings behind.

    Raises:
        InputError: it does not answer, or rejects the credentials of Dask's settings.
    """
    from distributed import Security
    from distributed.comm.core import connect

    _silence()
    try:
        comm = await connect(address, _CONNECT_SECONDS, **Security().get_connection_args("client"))
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)
        raise InputError(
            f"no Dask scheduler answers at {printable(named)} ({reason}): check the address, or start one with  "
            "dask scheduler"
        ) from None
    await comm.close()


def _silence() -> None:
    """Silence Dask's loggers, which would write over the screen; what matters to the user is told as an event."""
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)

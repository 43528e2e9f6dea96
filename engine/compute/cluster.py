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
"""Variables of a worker's environment: the device as its user knows it; CPU threads, "" for what suits the machine; the
process that the worker ends with, "" for a worker that stands alone."""
IN_FLIGHT = 2
"""Batches that a worker has at most: one is solved, and what the next needs is read. An urgent one comes on top."""
_CONNECT_SECONDS, _START_SECONDS = 10, 120
_CONFIG: dict[str, Any] = {
    "distributed.scheduler.worker-ttl": None,  # a host that slept, or a process that was stopped, is no dead one
    "distributed.scheduler.allowed-failures": 2,
    # Dask would allow one BLAS thread: ours are bounded where they compute. What workers log would go over the screen.
    "distributed.nanny.pre-spawn-environ": {"DASK_LOGGING__DISTRIBUTED": "critical"},
    # Dask opens a port for a dashboard even where there is none: it answers nothing
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


def is_installed() -> bool:
    """Whether the extra `cluster` is there. Imports none of it."""
    return all(importlib.util.find_spec(name) for name in ("distributed", "cryptography"))


def require() -> None:
    """See that the extra `cluster` is there.

    Raises:
        InputError: it is not installed.
    """
    if not is_installed():
        raise InputError(f"a scheduler needs Dask:  {install_line('cluster')}")


def environment(device: str, threads: int | None, parent: int | None = None) -> dict[str, str]:
    """What a worker process for a device ("cpu", "cuda:1") has in its environment before it imports anything: of GPUs
    it sees that one only, the n-th of those that this process sees."""
    made = {DEVICE: device, THREADS: str(threads or ""), PARENT: str(parent or "")}
    if device.startswith("cuda:"):
        number = int(device.partition(":")[2])
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        made["CUDA_VISIBLE_DEVICES"] = seen.split(",")[number].strip() if seen else str(number)
    return made


def nanny_options(device: str, threads: int | None, parent: int | None = None) -> dict[str, Any]:
    """How Dask's Nanny is to keep a worker process for a device: started anew whenever it dies."""
    return {
        "nthreads": IN_FLIGHT + 1,
        "env": environment(device, threads, parent),
        "preload": ["rankscope.engine.compute.worker_process"],
        "memory_limit": 0,  # the engine of the worker bounds what it reads ahead
        "dashboard": False,
    }


class Cluster:
    """Workers by address, and batches sent to them. `processes` are those that were started here, None elsewhere."""

    def __init__(self, client: Client, processes: SpecCluster | None) -> None:
        self._client, self._processes = client, processes
        self._told: list[Callable[[], None]] = []
        self._client.subscribe_topic("all", self._heard)

    @classmethod
    def local(cls, devices: Sequence[Device], threads: int | None) -> Cluster:
        """A process for each device, which only this one can talk to: over TLS, by credentials made for it alone.

        Raises:
            Exception: whatever keeps processes from being started.
        """
        import dask
        from distributed import Client, Nanny, Scheduler, Security, SpecCluster

        _silence()
        with redirect_stderr(sys.__stderr__):  # its file is asked for, which what Textual puts there does not have
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
        return cls(client, cluster)

    @classmethod
    def connect(cls, scheduler: str) -> Cluster:
        """The workers of a scheduler that runs elsewhere: `tcp://host:port`, `tls://host:port` with the credentials of
        Dask's own settings, or the file that it writes its address to.

        Raises:
            InputError: it does not answer, or the extra is not installed.
        """
        address = _address(scheduler)
        from distributed import Client

        asyncio.run(_reach(address, scheduler))
        return cls(Client(address, timeout=_CONNECT_SECONDS, set_as_default=False), None)

    def workers(self) -> dict[str, str] | None:
        """Name by address of the workers that are there now, None where their scheduler is gone."""
        if self._client.status != "running":
            return None
        try:
            found = self._client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError):
            return None
        return {address: str(worker["name"]) for address, worker in found.items()}

    def on_change(self, call: Callable[[], None]) -> None:
        """Have `call` called, from another thread, when a worker comes or goes: each of the engines that share it."""
        self._told.append(call)

    def no_more(self, call: Callable[[], None]) -> None:
        """Take back what on_change was given."""
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
        """Have a worker make itself ready before its first batch."""
        key = f"rankscope-warm-{uuid.uuid4().hex}"
        return self._client.submit(warm, key=key, pure=False, workers=[address], allow_other_workers=False)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the processes that were started here."""
        for process in list(self._processes.workers.values()) if self._processes else []:
            if process.process is not None and process.process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.process.pid, number)

    def close(self) -> None:
        """Leave the scheduler; what was started here ends."""
        from distributed import Status

        for nanny in self._processes.workers.values() if self._processes else ():
            nanny.status = Status.closing_gracefully  # it starts no other worker
        self.signal(signal.SIGKILL)  # asked to end they would first finish what they are at
        with suppress(Exception):
            self._client.unsubscribe_topic("all")
            self._client.close(timeout=1)
        if self._processes is not None:
            with suppress(Exception):
                self._processes.close(timeout=5)


async def serve(
    scheduler: str, devices: Sequence[str], names: Sequence[str], threads: int | None, ready: Callable[[], None]
) -> None:
    """Keep a worker process for each of these devices at a scheduler (see Cluster.connect) until that is gone. There
    they are called by `names`. `ready` is called once they can be asked.

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
    """The address of a scheduler, named by it or by the file that holds it.

    Raises:
        InputError: it is named in another way, or Dask is not installed.
    """
    require()
    with suppress(OSError, ValueError, KeyError, TypeError):
        scheduler = scheduler if "://" in scheduler else str(json.loads(Path(scheduler).read_text())["address"])
    if not re.fullmatch(r"(tcp|tls)://[^/\s]+:\d+", scheduler):
        known = "tcp://host:port, tls://host:port or the file that it writes"
        raise InputError(f"a scheduler is named by {known}, not {printable(scheduler)!r}")
    return scheduler


async def _reach(address: str, named: str) -> None:
    """See that a scheduler answers: a Client that was refused leaves threads and warnings behind.

    Raises:
        InputError: it does not, or not to the credentials of Dask's settings.
    """
    from distributed import Security
    from distributed.comm.core import connect

    _silence()
    try:
        comm = await connect(address, _CONNECT_SECONDS, **Security().get_connection_args("client"))
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)
        raise InputError(f"no Dask scheduler answers at {printable(named)}: {reason}") from None
    await comm.close()


def _silence() -> None:
    """Dask's own warnings would be written over the screen: what matters of them is told as an event."""
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)

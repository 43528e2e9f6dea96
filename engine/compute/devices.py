"""The devices that compute, the number of their threads, and the record of a run."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import sys
import threading
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, printable, without_secrets
from ..spectrum import Run

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

READERS = 8
LARGE = 1e10
_WAY = 10
"""What a thread that gives way adds to its niceness."""
_UNNOTICED = 3 << 29
"""Bytes of a GPU that other processes may use before the user is told: a CUDA context alone takes half a gigabyte."""
_SPEC = re.compile(r"auto|cpu|cuda|cuda:\d+(?:,cuda:\d+)*")


@dataclass(frozen=True, slots=True)
class Device:
    """A torch device name ("cpu", "cuda:0") and what the hardware calls itself."""

    name: str
    label: str


def check_spec(spec: str) -> str:
    """Return `spec` if it has the form auto | cpu | cuda | cuda:0,cuda:1. Needs no torch.

    Raises:
        InputError: it has another form, or names a device twice.
    """
    names = spec.split(",")
    if not _SPEC.fullmatch(spec) or len(set(names)) < len(names):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:0,cuda:1, not {printable(spec)!r}")
    return spec


def pick(spec: str) -> tuple[list[Device], list[str]]:
    """The devices that `spec` names, and lines for the user. Imports torch if there may be a GPU.

    Raises:
        InputError: this machine or this torch does not have a device.
    """
    cpu = Device("cpu", platform.processor() or platform.machine())
    if spec == "cpu":
        return [cpu], []
    if spec == "auto" and not _may_have_gpu():
        is_mac = platform.system() == "Darwin" and platform.machine() == "arm64"
        return [cpu], ["this GPU (MPS) has no float64: computing on the CPU"] if is_mac else []
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if spec == "auto" and not available:
        return [cpu], []
    wanted = [f"cuda:{i}" for i in range(available)] if spec in ("auto", "cuda") else spec.split(",")
    absent = [name for name in wanted if int(name.partition(":")[2]) >= available]
    if absent or not wanted:
        reason = f"torch {torch.__version__} sees {available} GPUs"
        raise InputError(f"no device {', '.join(absent) or spec}: {reason}; use --device auto or cpu")
    return [Device(name, torch.cuda.get_device_name(name)) for name in wanted], []


def is_gpu(name: str) -> bool:
    """Return whether a device solves with torch, in batches."""
    return name != "cpu"


def answers(device: str) -> bool:
    """Return whether a device still works: after a CUDA fault nothing on the GPU does in this process."""
    if not is_gpu(device):
        return True
    import torch

    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _may_have_gpu() -> bool:
    """Return whether there is a driver that torch could use, without importing torch (1.2 s and more)."""
    if Path("/dev/kfd").exists():  # AMD
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return False
    return True


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads: int | None) -> int:
    """The number of CPU threads to compute with: `threads`, else OMP_NUM_THREADS, else the cores, at most 8.

    The reduction to tridiagonal form is bound by memory bandwidth: more threads than 8 gain nothing.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return threads or (int(stated) if stated.isdecimal() and int(stated) else min(available_cores(), 8))


def workers(device: Device, threads: int) -> tuple[int, int]:
    """(worker threads, BLAS threads of each) for a device.

    On a CPU each worker solves a separate matrix: BLAS threads lose time waiting for each other, most of all on a busy
    machine. 576 x 576 on 2 cores: 10 ms a matrix with two workers, 17 ms with one worker of two BLAS threads; with
    another such process running, 37 ms and 1.2 s.
    A GPU has two workers with a CUDA stream each: one copies weights to it while the other solves.
    """
    return (min(threads, available_cores()), 1) if device.name == "cpu" else (2, threads)


def blas_threads(device: Device, threads: int, cost: float, alone: bool) -> int:
    """The number of BLAS threads for work of `cost` operations: all if it is large and the CPU has nothing else to do.

    2048 x 2048 on two cores: 0.37 s with two threads, 0.57 s with one; below 1024 x 1024 a second gains nothing.
    """
    count, each = workers(device, threads)
    return count if alone and cost >= LARGE and device.name == "cpu" else each


def give_way() -> None:
    """Let the threads that answer keys go before this thread and those that it starts.

    With two workers on two busy cores, nine of ten key presses were painted within 210 ms; within 650 ms without this.
    Only Linux has a niceness for each thread (setpriority(2)); elsewhere nothing changes.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _WAY)  # 19 at most


def set_blas_threads(device: Device, count: int) -> None:
    """Set the number of BLAS threads: of this process for a CPU (numpy), of this thread for a GPU (torch, OpenMP)."""
    if is_gpu(device.name):
        import torch

        torch.set_num_threads(count)
    else:
        _blas().limit(limits=count, user_api="blas")


@lru_cache
def _blas() -> ThreadpoolController:
    import numpy  # noqa: F401 - threadpoolctl finds numpy's BLAS only once it is loaded
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # type: ignore[no-untyped-call]


def readers(found: Sequence[Device]) -> int:
    """The number of threads that read weights: one keeps up with a CPU; eight read 12 GB/s, and a GPU solves 4 GB/s."""
    return 1 if found[0].name == "cpu" else max(1, min(READERS, available_cores() - 2))


def prefetch_bytes(device: Device) -> int:
    """How many bytes of weights may lie in a device's memory, read or being solved, unless the user sets a number.

    On a GPU a batch of 16 bfloat16 matrices of 14336 x 4096 takes 1.9 GB, one of 8 of 28672 x 8192 takes 3.8 GB. Two
    batches are being solved while a third is read; with less room the second would not be full. Never more than a
    quarter of the memory that is free there now. Imports torch.
    """
    if device.name == "cpu":
        return 1 << 30
    import torch

    try:
        free = torch.cuda.mem_get_info(device.name)[0]
    except RuntimeError:  # a driver that does not answer: the weights stay on the CPU
        return 1 << 30
    return min(12 << 30, free // 4)


def used_by_others(device: Device) -> str:
    """A line on how much of a GPU's memory other processes hold, "" if little. Imports torch for a GPU."""
    if device.name == "cpu":
        return ""
    import torch

    try:
        free, total = torch.cuda.mem_get_info(device.name)
        used = total - free - torch.cuda.memory_reserved(device.name)
    except RuntimeError:  # a driver that does not answer
        return ""
    if used < _UNNOTICED:
        return ""
    return f"{device.name}: other processes use {used / 2**30:.0f} GB of its {total / 2**30:.0f}"


def make_run(devices: Iterable[Device], command: Sequence[str] | None = None) -> Run:
    """The record of this process for provenance; `cuda` is "" if torch is not imported."""
    torch = sys.modules.get("torch")
    labels = ", ".join(f"{d.name} {d.label}" for d in devices)
    return Run(
        run_id=uuid.uuid4().hex,
        software=f"rankscope-tui {version('rankscope-tui')}, numpy {version('numpy')}",
        torch=version("torch"),
        cuda=(torch.version.cuda or getattr(torch.version, "hip", None) or "") if torch else "",
        driver=_driver(),
        host=f"{platform.node()} ({platform.system()} {platform.release()}; {labels})",
        command=shlex.join(map(without_secrets, command if command is not None else sys.argv)),
        started_at=utc_now(),
    )


def utc_now() -> str:
    """The present time in ISO 8601, UTC, with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _driver() -> str:
    try:
        with open("/proc/driver/nvidia/version") as file:
            found = re.search(r"\d+\.\d+(\.\d+)?", file.readline())
    except OSError:
        return ""
    return found[0] if found else ""

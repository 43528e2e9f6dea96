"""Which devices compute, with how many threads, and the record of the run."""

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
"""How much nicer a thread is that gives way."""
_UNNOTICED = 3 << 29
"""Bytes of a GPU that are taken without a word: a context of CUDA is half a gigabyte."""
_SPEC = re.compile(r"auto|cpu|cuda|cuda:\d+(?:,cuda:\d+)*")


@dataclass(frozen=True, slots=True)
class Device:
    """A torch device name ("cpu", "cuda:0") and what the hardware calls itself."""

    name: str
    label: str


def check_spec(spec: str) -> str:
    """`spec` if it has the form auto | cpu | cuda | cuda:0,cuda:1. Needs no torch.

    Raises:
        InputError: any other form, or a device named twice.
    """
    names = spec.split(",")
    if not _SPEC.fullmatch(spec) or len(set(names)) < len(names):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:0,cuda:1, not {printable(spec)!r}")
    return spec


def pick(spec: str) -> tuple[list[Device], list[str]]:
    """The devices that `spec` names, and lines the user should see. Imports torch where there may be a GPU.

    Raises:
        InputError: a device that this machine or this torch does not have.
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
    """Whether a device solves with torch, in batches."""
    return name != "cpu"


def answers(device: str) -> bool:
    """Whether a device still works: after a fault of CUDA nothing does in this process."""
    if not is_gpu(device):
        return True
    import torch

    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _may_have_gpu() -> bool:
    """Whether a driver is there that torch could use: asked without torch, whose import takes 1.2 s and more."""
    if Path("/dev/kfd").exists():  # AMD
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return False
    return True


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads: int | None) -> int:
    """CPU threads to compute with: `threads`, else OMP_NUM_THREADS, else the cores, at most 8.

    The reduction to tridiagonal form is bound by memory bandwidth: more threads than that gain nothing.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return threads or (int(stated) if stated.isdecimal() and int(stated) else min(available_cores(), 8))


def workers(device: Device, threads: int) -> tuple[int, int]:
    """(worker threads, BLAS threads of each) for a device.

    On a CPU every thread solves a matrix of its own: BLAS threads that wait for one another lose time,
    and all of it on a busy machine. 576 x 576 on 2 cores: 10 ms a matrix with two workers, 17 ms with
    one worker of two BLAS threads; with another such process beside it 37 ms and 1.2 s.
    A GPU has two, each with a stream of its own: one copies weights there while the other solves.
    """
    return (min(threads, available_cores()), 1) if device.name == "cpu" else (2, threads)


def blas_threads(device: Device, threads: int, cost: float, alone: bool) -> int:
    """BLAS threads for work of so many operations: all of them where it is large and a CPU has nothing else to do.

    One matrix of 2048 x 2048 on two cores: 0.37 s with two threads, 0.57 with one; below 1024 x 1024 they gain nothing.
    """
    count, each = workers(device, threads)
    return count if alone and cost >= LARGE and device.name == "cpu" else each


def give_way() -> None:
    """Have this thread, and those that it starts, take a core only where the threads that answer keys need none.

    Two workers on two busy cores: in nine of ten presses a key's paint came within 210 ms, and within 650 without. Only
    Linux knows the niceness of a thread (setpriority(2)); elsewhere nothing changes.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _WAY)  # 19 at most


def set_blas_threads(device: Device, count: int) -> None:
    """Of this process for a CPU, where numpy computes; else of this thread, for which OpenMP keeps the number."""
    if is_gpu(device.name):
        import torch

        torch.set_num_threads(count)
    else:
        _blas().limit(limits=count, user_api="blas")


@lru_cache
def _blas() -> ThreadpoolController:
    import numpy  # noqa: F401 - whose library is to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # type: ignore[no-untyped-call]


def readers(found: Sequence[Device]) -> int:
    """Threads that read weights: one keeps up with a CPU; eight bring a GPU 12 GB/s, of which it takes 4."""
    return 1 if found[0].name == "cpu" else max(1, min(READERS, available_cores() - 2))


def prefetch_bytes(device: Device) -> int:
    """Bytes of weights that may lie in a device's memory, read or being solved, where the user states none.

    A GPU's batch of 16 bfloat16 matrices of 14336 x 4096 is 1.9 GB, one of 8 of 28672 x 8192 is 3.8: two are being
    solved and one is being read, without room for which the second would not be full; never more than a quarter of the
    memory that is free there now. Imports torch.
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
    """A line on the memory of a GPU that other processes hold, "" where that is little. Imports torch for a GPU."""
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
    """The record of this process for provenance; `cuda` is "" where nothing has needed torch."""
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
    """ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _driver() -> str:
    try:
        with open("/proc/driver/nvidia/version") as file:
            found = re.search(r"\d+\.\d+(\.\d+)?", file.readline())
    except OSError:
        return ""
    return found[0] if found else ""

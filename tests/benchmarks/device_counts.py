"""Scans of one model by one, two, four ... GPUs in turn: the table that `gpu_scan.py --devices 1,2,4` prints.

One GPU is worker threads of this process, as in `rankscope scan`; several are a process each where the extra `cluster`
is installed, else threads, as the table states. Every count has scanned the model once before, with the same worker
processes: that scan includes their start, torch, CUDA contexts and kernels, and is given separately. With --device cpu
the processes have one BLAS thread each, and a count of one is one such process too.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from whole_scan import Scan, reading, scan, scanned

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.compute import devices, elsewhere
from rankscope.engine.compute.cluster import is_installed
from rankscope.engine.compute.devices import Device

LARGEST, LARGEST_LAYERS = 8192, 80
"""Width and layers of a 70B model."""
_EVERY_MS = 100


@dataclass(frozen=True)
class Row:
    """The figures for one number of GPUs: the first scan, the others and reading alone in seconds; how busy each GPU
    was in the best scan, and a note on its batches."""

    count: int
    first: float
    scans: list[float]
    reading: float
    busy: list[float]
    batches: list[str]


def compare_counts(folder: Path, wanted: Sequence[int], is_cpu: bool, repeats: int, hidden: int) -> None:
    """Measure each count, and print the table."""
    if is_cpu:
        devices.pick = _cores
    rows = [_measure(folder, count, is_cpu, repeats) for count in wanted]
    one = min(rows[0].scans)
    how = "a process each" if is_installed() else "threads of one process: the extra is not installed"
    share = "recorded as solving" if is_cpu else "nvidia-smi"
    print(f"| {'cores' if is_cpu else 'GPUs'} ({how}) | scan | all scans | times faster | reading alone ", end="")
    print(f"| busy, each ({share}) | first scan: start, torch, kernels |\n|---|---|---|---|---|---|---|")
    for row in rows:
        best = min(row.scans)
        busy = " ".join(f"{share:.0%}" for share in row.busy) or "not known"
        every = ", ".join(f"{seconds:.2f}" for seconds in row.scans)
        print(f"| {row.count} | {best:.2f} s | {every} | {one / best:.2f} | {row.reading:.2f} s | {busy}", end="")
        print(f" | {row.first:.1f} s |", flush=True)
    for row in rows:
        if row.batches:
            print(f"\n{row.count}: {'; '.join(row.batches)}")
    if hidden == LARGEST:
        tree = build_tree(open_checkpoint(str(folder)))
        layers = len({p.layer for p in tree.scanned()})
        worked = ", ".join(f"{r.count}: {min(r.scans) * LARGEST_LAYERS / layers:.0f} s" for r in rows)
        print(f"\n{LARGEST_LAYERS} layers (a 70B model), worked out in proportion: {worked}")


def _measure(folder: Path, count: int, is_cpu: bool, repeats: int) -> Row:
    kind = "cpu" if is_cpu else "cuda"
    names = ",".join(f"{kind}:{number}" for number in range(count))
    began = time.perf_counter()
    with scanned(folder, names, threads=1 if is_cpu else None):  # keeps the processes
        first = time.perf_counter() - began
        found: list[tuple[Scan, list[float], list[str]]] = []
        for _ in range(repeats):
            with _watched_batches() as batches, _watched_gpus() as seen:
                done = scan(folder, names, threads=1 if is_cpu else None)
            busy = _solving_share(done, count) if is_cpu else _means(seen, done.seconds, count)
            found.append((done, busy, batches))
    best = min(found, key=lambda each: each[0].seconds)
    return Row(count, first, [done.seconds for done, *_ in found], _read_alone(folder, names), *best[1:])


def _cores(spec: str) -> tuple[list[Device], list[str]]:
    """A replacement of devices.pick: processes of one core each, told apart as GPUs are."""
    names = ["cpu"] if spec in ("cpu", "cpu:0") else spec.split(",")
    return [Device(name, "one core") for name in names], []


@contextmanager
def _watched_batches() -> Iterator[list[str]]:
    """A note on each worker process, by Dask's clock: its number of batches, and how long it had none between the
    first and the last; empty where threads of this process solve."""
    said: list[str] = []
    held = next((cluster for cluster, _ in elsewhere._open.values()), None)
    if held is None:
        yield said
        return
    from distributed import get_task_stream

    with get_task_stream(held._client) as stream:
        yield said
    spans: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for task in stream.data:
        if not str(task["key"]).startswith("rankscope-warm"):
            spans[task["worker"]] += [(s["start"], s["stop"]) for s in task["startstops"] if s["action"] == "compute"]
    for address, name in sorted((held.workers() or {}).items(), key=lambda pair: pair[1]):
        said.append(f"{name} {len(spans[address])} batches, {_gaps(spans[address]):.2f} s without one")


def _gaps(spans: list[tuple[float, float]]) -> float:
    """The seconds between the first begin and the last end that lie in no span."""
    total, until = 0.0, min((begin for begin, _ in spans), default=0.0)
    for begin, end in sorted(spans):
        total += max(0.0, begin - until)
        until = max(until, end)
    return total


def _solving_share(done: Scan, count: int) -> list[float]:
    """The mean busy share of this many cores, by the solving times that the spectra state."""
    return [sum(spectrum.provenance.seconds for spectrum in done.kept) / done.seconds / count]


@contextmanager
def _watched_gpus() -> Iterator[list[tuple[float, int, float]]]:
    """The time, number and busy share of every GPU, as nvidia-smi prints them; nothing where there is no GPU."""
    seen: list[tuple[float, int, float]] = []
    if shutil.which("nvidia-smi") is None:
        yield seen
        return
    asked = ["nvidia-smi", "--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits", f"-lms={_EVERY_MS}"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as process:

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                number, _, share = line.partition(",")
                if share.strip().isdecimal():
                    seen.append((time.perf_counter(), int(number), int(share) / 100))

        thread = threading.Thread(target=read)
        thread.start()
        yield seen
        seen.append((time.perf_counter(), -1, 0.0))  # the end
        process.terminate()
        thread.join()


def _means(seen: list[tuple[float, int, float]], seconds: float, count: int) -> list[float]:
    """The mean share of each of the first GPUs in the last seconds before the end."""
    end = next((at for at, number, _ in seen if number < 0), 0.0)
    shares: defaultdict[int, list[float]] = defaultdict(list)
    for at, number, share in seen:
        if end - seconds <= at <= end and number >= 0:
            shares[number].append(share)
    return [statistics.mean(shares[number]) for number in range(count) if shares[number]]


def _read_alone(folder: Path, names: str) -> float:
    """The seconds until processes, one for each device, have read and digested all tensors and copied them there."""
    each = [name if "cuda" in name else "cpu" for name in names.split(",")]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(len(each), mp_context=spawn) as pool:
        ready = manager.Barrier(len(each))
        spans = list(pool.map(partial(_read_share, str(folder), len(each), ready), range(len(each)), each))
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _read_share(folder: str, parts: int, ready: threading.Barrier, part: int, device: str) -> tuple[float, float]:
    """When a process began and ended to read its share, once all of them have read something before."""
    checkpoint = open_checkpoint(folder)
    wanted = [p for p in build_tree(checkpoint).scanned() if p.problem is None][part::parts]
    reading(checkpoint, wanted[:1], device)
    ready.wait()
    start = time.monotonic()
    reading(checkpoint, wanted, device, repeats=1)
    return start, time.monotonic()

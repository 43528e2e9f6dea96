"""Shared by benchmarks of whole scans: a model on disk, a scan from its files to the closed store, reading alone."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path

import torch
from safetensors.torch import save_file

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.compute import devices
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Again, Event, Failed, Notice, Progress, Saved
from rankscope.engine.compute.job import SCAN, Job
from rankscope.engine.compute.reader import Reader
from rankscope.engine.spectrum import Projection, Spectrum
from rankscope.store.spectra import SpectraStore

NOISE = 0.002


def shapes(hidden: int) -> dict[str, tuple[int, int]]:
    """The shapes of a layer's projections, by their names in the file."""
    wide, narrow = hidden * 7 // 2, min(hidden // 4, 1024)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    heads = dict(zip(names, [(hidden, hidden), (narrow, hidden), (narrow, hidden), (hidden, hidden)], strict=True))
    return heads | {"mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}


def write_model(folder: Path, layers: int, hidden: int, device: str) -> None:
    """Write a file a layer, with decaying spectra plus noise in bfloat16; do nothing if it exists."""
    config = {"model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers}
    file = folder / "config.json"
    if file.is_file() and json.loads(file.read_text()) == config:
        return
    size = 2 * layers * sum(rows * cols for rows, cols in shapes(hidden).values())
    free = shutil.disk_usage(folder).free
    print(f"writing {size / 1e9:.1f} GB to {folder}, where {free / 1e9:.0f} GB are free", file=sys.stderr, flush=True)
    if size > 0.95 * free:
        raise SystemExit("too little room: choose another --folder, or fewer --layers")
    generator = torch.Generator(device).manual_seed(0)
    for layer in range(layers):
        made = {
            f"model.layers.{layer}.{name}.weight": weights(*shape, generator) for name, shape in shapes(hidden).items()
        }
        save_file(made, folder / f"model-{layer + 1:05}-of-{layers:05}.safetensors")
    file.write_text(json.dumps(config))
    os.sync()  # or the store's fsync waits for the model's pages


def weights(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    """The numbers of one layer's matrix, on the CPU."""
    rank = min(rows, cols) // 4
    device = generator.device
    decay = torch.logspace(0, -2, rank, device=device)
    left = torch.randn(rows, rank, generator=generator, device=device) * decay
    right = torch.randn(rank, cols, generator=generator, device=device)
    noise = NOISE * torch.randn(rows, cols, generator=generator, device=device)
    return noise.addmm_(left, right, alpha=1 / rank).to(torch.bfloat16).cpu()


@dataclass
class Scan:
    """The times and results of one scan; the time of solving again is only in `again`."""

    seconds: float = 0.0
    again: Again = field(default_factory=Again)
    host_bytes: int = 0
    gpu_bytes: int = 0
    kept: list[Spectrum] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    idle: threading.Event = field(default_factory=threading.Event)

    def __call__(self, events: tuple[Event, ...]) -> None:
        """The engine's listener."""
        for event in events:
            if isinstance(event, Saved):
                self.kept.append(event.spectrum)
            elif isinstance(event, Failed) or (isinstance(event, Notice) and event.fatal):
                self.failed.append(getattr(event, "reason", "") or getattr(event, "text", ""))
            elif isinstance(event, Progress) and not event.busy:
                self.again = event.again
                self.idle.set()


def scan(folder: Path, device: str, layers: int | None = None, threads: int | None = None) -> Scan:
    """A scan from files to the closed store in a temporary folder; only of the first `layers` where they are given."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # a scan has its streams, and must find the memory that a new process finds
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    with scanned(folder, device, layers, threads) as done:
        pass
    if torch.cuda.is_initialized():
        done.gpu_bytes = sum(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count()))
    return done


@contextmanager
def scanned(folder: Path, device: str, layers: int | None = None, threads: int | None = None) -> Iterator[Scan]:
    """A scan whose engine is kept, with the worker processes that it has started; `seconds` run until its store is
    closed, and are set on leaving."""
    done = Scan()
    with tempfile.TemporaryDirectory() as root, _peak_memory(done):
        start = time.perf_counter()
        checkpoint = open_checkpoint(str(folder))
        wanted = [p for p in build_tree(checkpoint).scanned() if layers is None or (p.layer or 0) < layers]
        with SpectraStore(Path(root), "model") as store:
            engine = Engine(store, done, ComputeSettings(device, threads))
            engine.submit(checkpoint, wanted)
            if not done.idle.wait(300):
                raise SystemExit("nothing came for 300 s")
            kept_from = time.perf_counter()
            yield done
            start += time.perf_counter() - kept_from
            engine.close(10)
        done.seconds = time.perf_counter() - start - done.again.seconds
    if done.failed or len(done.kept) < len(wanted):
        raise SystemExit(f"{len(done.kept)} of {len(wanted)} saved: {done.failed[:3]}")


@contextmanager
def _peak_memory(into: Scan) -> Iterator[None]:
    """The most resident memory of this process above the present, sampled every 10 ms."""
    ended = threading.Event()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def watch() -> None:
        while not ended.wait(0.01):
            into.host_bytes = max(into.host_bytes, resident() - before)

    before = resident()
    thread = threading.Thread(target=watch)
    thread.start()
    yield
    ended.set()
    thread.join()


def reading(checkpoint: Checkpoint, projections: list[Projection], names: str, repeats: int = 2) -> float:
    """The seconds to read and digest all tensors and copy them to the devices, with nothing else to do."""
    wanted = {p.tensor for p in projections}
    queue = [Job(SCAN, 0, checkpoint, t, [], device=d) for t, d in zip(checkpoint.tensors, cycle(names.split(",")))]
    own = threading.local()

    def read(job: Job) -> None:
        if not hasattr(own, "reader"):
            own.reader = Reader()
        own.reader.read(job)

    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        with ThreadPoolExecutor(devices.READERS) as pool:
            list(pool.map(read, [job for job in queue if job.tensor.name in wanted]))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@contextmanager
def installed() -> Iterator[None]:
    """Give rankscope a version where it is on the path but not installed, in this process and in those it starts."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            version("rankscope-tui")
        except PackageNotFoundError:
            info = Path(folder) / "rankscope_tui-0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rankscope-tui\nVersion: 0\n")
            sys.path.append(folder)
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), folder)))
        yield

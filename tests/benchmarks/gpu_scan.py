"""A whole scan of a Llama-3-8B-shaped model, files to synced store, against the reference notebook's method.

    PYTHONPATH=.src python tests/benchmarks/gpu_scan.py                 # 4 layers, 2 GB
    PYTHONPATH=.src python tests/benchmarks/gpu_scan.py --layers 32     # 224 projections, 14 GB of disk
    PYTHONPATH=.src python tests/benchmarks/gpu_scan.py --device cpu --hidden 256 --layers 2

Needs torch, numpy, h5py and safetensors, on a GPU triton, and takes scipy where it is there. Writes the model to
--folder (and finds it there again) or to a folder that is removed. Everything is measured in one run, with the
files in the page cache. The scan is the engine and the store of `rankscope scan`, from opening the files to the
closed store; it has run once on one layer before (import, CUDA context, kernels), which is stated apart. The
notebook's method is timed without loading the model, and by --notebook-layers, for all layers in proportion.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.compute import devices
from rankscope.engine.compute.engine import Engine, Settings
from rankscope.engine.compute.events import Again, Event, Failed, Notice, Progress, Saved
from rankscope.engine.compute.job import SCAN, Job
from rankscope.engine.compute.reader import Reader
from rankscope.engine.formats.tensor import Tensor
from rankscope.engine.solvers.batch import limits, solve_batch
from rankscope.engine.solvers.ladder import choose, solve
from rankscope.engine.spectrum import Projection, Spectrum
from rankscope.engine.weights import host_array
from rankscope.store.spectra import SpectraStore

DRIVERS = ("gesvd", "gesvda")  # the default is gesvdj
NOISE = 0.002


def shapes(hidden: int) -> dict[str, tuple[int, int]]:
    """The projections of a layer, by their names in the file."""
    wide, narrow = hidden * 7 // 2, hidden // 4
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    heads = dict(zip(names, [(hidden, hidden), (narrow, hidden), (narrow, hidden), (hidden, hidden)], strict=True))
    return heads | {"mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}


def write_model(folder: Path, layers: int, hidden: int, device: str) -> None:
    """A file a layer: decaying spectra plus noise in bfloat16; nothing if it is there."""
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
    """Numbers of one layer's matrix, on the CPU."""
    rank = min(rows, cols) // 4
    device = generator.device
    decay = torch.logspace(0, -2, rank, device=device)
    left = torch.randn(rows, rank, generator=generator, device=device) * decay
    right = torch.randn(rank, cols, generator=generator, device=device)
    noise = NOISE * torch.randn(rows, cols, generator=generator, device=device)
    return noise.addmm_(left, right, alpha=1 / rank).to(torch.bfloat16).cpu()


@dataclass
class Scan:
    """What one scan took and gave; what went into solving again is in `again` alone."""

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
            elif isinstance(event, Failed | Notice):
                self.failed.append(getattr(event, "reason", "") or getattr(event, "text", ""))
            elif isinstance(event, Progress) and not event.busy:
                self.again = event.again
                self.idle.set()


def scan(folder: Path, device: str, layers: int | None = None) -> Scan:
    """From files to the closed store of a temporary folder; of the first layers only, where so many are named."""
    done = Scan()
    torch.cuda.empty_cache()  # a scan has streams of its own, and must find its memory as a new process does
    for index in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(index)
    with tempfile.TemporaryDirectory() as root, _peak_memory(done):
        start = time.perf_counter()
        checkpoint = open_checkpoint(str(folder))
        wanted = [p for p in build_tree(checkpoint).scanned() if layers is None or (p.layer or 0) < layers]
        with SpectraStore(Path(root), "model") as store:
            engine = Engine(store, done, Settings(device))
            engine.submit(checkpoint, wanted)
            done.idle.wait(300)
            engine.close(10)
        done.seconds = time.perf_counter() - start - done.again.seconds
    done.gpu_bytes = sum(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count()))
    if done.failed or len(done.kept) < len(wanted):
        raise SystemExit(f"{len(done.kept)} of {len(wanted)} saved: {done.failed[:3]}")
    return done


@contextmanager
def _peak_memory(into: Scan) -> Iterator[None]:
    """The most resident memory of this process above what it has now, looked at every 10 ms."""
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


def stored(checkpoint: Checkpoint, tensor: Tensor) -> torch.Tensor:
    """The bfloat16 weights on the CPU."""
    return torch.from_numpy(host_array(checkpoint.read(tensor)[0])).to(torch.bfloat16)


def notebook(matrix: torch.Tensor, device: str) -> np.ndarray:
    """The reference notebook's statements."""
    w = matrix.detach().float().to(device)
    _, s, _ = torch.linalg.svd(w, full_matrices=False)
    return s.cpu().numpy()


def notebook_seconds(checkpoint: Checkpoint, projections: list[Projection], layers: int, device: str) -> float:
    """Of the projections of the first layers, read beforehand and after a warm-up."""
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
    notebook(stored(checkpoint, tensors[projections[1].tensor]), device)
    total = 0.0
    for projection in projections:
        if (projection.layer or 0) < layers:
            matrix = stored(checkpoint, tensors[projection.tensor])
            start = time.perf_counter()
            notebook(matrix, device)
            total += time.perf_counter() - start
    return total


def best_of(run: Callable[[], object], repeats: int = 2) -> float:
    """Milliseconds of the fastest of some runs after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        _synchronize()
        start = time.perf_counter()
        run()
        _synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[1:])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def lapack(matrix: torch.Tensor) -> np.ndarray:
    """float64, on the CPU."""
    exact = matrix.double().numpy()
    try:
        from scipy.linalg import svdvals
    except ImportError:
        return np.linalg.svd(exact, compute_uv=False)
    return svdvals(exact)


def routines(matrix: torch.Tensor, device: str) -> dict[str, Callable[[], np.ndarray]]:
    """What gives the singular values of a matrix, by name."""
    placed = matrix.to(device)
    rungs = choose(device)
    made: dict[str, Callable[[], np.ndarray]] = {
        "notebook's": lambda: notebook(matrix, device),
        "svdvals float32": lambda: torch.linalg.svdvals(placed.float()).cpu().numpy(),
    }
    for driver in DRIVERS if device != "cpu" else ():
        made[driver] = lambda d=driver: torch.linalg.svdvals(placed.float(), driver=d).cpu().numpy()
    made["Gram + eigvalsh float64"] = lambda: solve(placed, rungs).values
    return made


def batched(matrix: torch.Tensor, device: str) -> float:
    """Milliseconds a matrix of a full batch of this one and noise, on the device."""
    small = min(matrix.shape)
    count = limits(device)(small)
    matrices = [
        matrix.to(device),
        *(torch.randn(matrix.shape, device=device).to(matrix.dtype) for _ in range(1, count)),
    ]
    return best_of(lambda: solve_batch(matrices, count, small, device, print)) / count


def measure_shapes(
    checkpoint: Checkpoint, scanned: dict[str, Spectrum], projections: list[Projection], device: str
) -> dict[tuple[int, int], float]:
    """Print ms and error of every routine for each shape of a layer; ms of ours by shape."""
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
    ours: dict[tuple[int, int], float] = {}
    print("| shape | routine | ms a matrix | largest error / sigma_1 |\n|---|---|---|---|", flush=True)
    for projection in projections:
        shape = (projection.rows, projection.cols)
        if shape in ours:
            continue
        matrix = stored(checkpoint, tensors[projection.tensor])
        start = time.perf_counter()
        wanted = lapack(matrix)
        rows = [("LAPACK float64, CPU", 1e3 * (time.perf_counter() - start), wanted)]
        rows += [(name, best_of(run), run()) for name, run in routines(matrix, device).items()]
        ours[shape] = rows[-1][1] if limits(device)(projection.count) == 1 else batched(matrix, device)
        rows.append(("ours: time in full batches, error as stored", ours[shape], scanned[projection.key].values))
        for name, ms, values in rows:
            error = np.abs(values - wanted).max() / wanted[0]
            print(f"| {shape[0]}x{shape[1]} | {name} | {ms:.1f} | {error:.0e} |", flush=True)
        torch.cuda.empty_cache()
    return ours


def reading(checkpoint: Checkpoint, projections: list[Projection], names: str) -> float:
    """Seconds to read and digest all tensors and bring them to the devices, with nothing else to do."""
    wanted = {p.tensor for p in projections}
    queue = [Job(SCAN, 0, checkpoint, t, [], device=d) for t, d in zip(checkpoint.tensors, cycle(names.split(",")))]
    own = threading.local()

    def read(job: Job) -> None:
        if not hasattr(own, "reader"):
            own.reader = Reader()
        own.reader.read(job)

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        with ThreadPoolExecutor(devices.READERS) as pool:
            list(pool.map(read, [job for job in queue if job.tensor.name in wanted]))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def report(args: argparse.Namespace, folder: Path, names: str, device: str) -> None:
    """Measure, and print the two tables."""
    checkpoint = open_checkpoint(str(folder))
    projections = build_tree(checkpoint).scanned()
    size = sum(2 * p.rows * p.cols for p in projections)
    alone = reading(checkpoint, projections, names)
    first = scan(folder, names, 1)
    scans = sorted((scan(folder, names) for _ in range(args.repeats)), key=lambda s: s.seconds)
    told = min(args.notebook_layers, args.layers)
    theirs = notebook_seconds(checkpoint, projections, told, device) * args.layers / told
    ours = scans[0]
    kept = {spectrum.projection.key: spectrum for spectrum in ours.kept}
    best = guarded(lambda: measure_shapes(checkpoint, kept, projections, device)) or {}
    eigen = sum(best.get((p.rows, p.cols), float("nan")) for p in projections) / 1e3
    rest = Rest(args, size / 1e9, alone, first.seconds, theirs, eigen)
    print_model(rest, scans)


@dataclass(frozen=True)
class Rest:
    """What was measured beside the scans: GB, and seconds."""

    args: argparse.Namespace
    size: float
    reading: float
    first: float
    notebook: float
    eigen: float


def print_model(rest: Rest, scans: list[Scan]) -> None:
    """The table of the model as a whole."""
    ours, layers, told = scans[0], rest.args.layers, rest.args.notebook_layers
    how = "measured" if told >= layers else f"{told} measured, times {layers / told:g}"
    solvers = ", ".join(f"{n} by {name}" for name, n in Counter(s.provenance.solver for s in ours.kept).items())
    rows = {
        f"{layers} layers, {len(ours.kept)} projections, {rest.size:.1f} GB": "",
        "---": "---",
        f"the notebook's method, weights in memory ({how})": f"{rest.notebook:.1f} s",
        "**rankscope scan, files to synced store**": f"**{ours.seconds:.2f} s**",
        "all scans": ", ".join(f"{s.seconds:.2f}" for s in scans) + " s",
        "**times faster**": f"**{rest.notebook / ours.seconds:.1f}**",
        "our Gram products and eigenvalues alone, weights on the device": f"{rest.eigen:.2f} s",
        "the scan over that": f"{ours.seconds / rest.eigen:.2f}",
        "solving time as recorded, of all workers": f"{sum(s.provenance.seconds for s in ours.kept):.2f} s",
        "solvers": solvers,
        "ill-conditioned, solved again, in no other row": f"{ours.again.solved} of {ours.again.found} "
        f"in {ours.again.seconds:.2f} s",
        "read during the scan": f"{rest.size / ours.seconds:.1f} GB/s",
        f"reading, digesting and copying alone, {devices.READERS} threads": f"{rest.reading:.2f} s, "
        f"{rest.size / rest.reading:.1f} GB/s",
        "peak host memory above the start": f"{ours.host_bytes / 1e9:.1f} GB",
        "peak GPU memory reserved": f"{ours.gpu_bytes / 1e9:.1f} GB",
        "first scan of one layer: CUDA context, libraries, kernels compiled": f"{rest.first:.1f} s",
    }
    print("\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items()), flush=True)


def guarded(run: Callable[[], dict[tuple[int, int], float]]) -> dict[tuple[int, int], float] | None:
    """Run; print what it raises and go on."""
    try:
        return run()
    except Exception:  # noqa: BLE001
        print(f"FAILED\n{traceback.format_exc()[-3000:]}", flush=True)
        return None


@contextmanager
def installed() -> Iterator[None]:
    """A version to ask for where rankscope is not installed but on the path."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            version("rankscope-tui")
        except PackageNotFoundError:
            info = Path(folder) / "rankscope_tui-0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rankscope-tui\nVersion: 0\n")
            sys.path.append(folder)
        yield


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--notebook-layers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="scans; the fastest counts, all are printed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--devices", type=int, default=1, help="GPUs that scan")
    parser.add_argument("--readers", type=int, default=devices.READERS)
    parser.add_argument("--folder", type=Path, help="keeps the model")
    args = parser.parse_args()
    devices.READERS = args.readers
    device = "cpu" if args.device == "cpu" else "cuda:0"
    names = "cpu" if device == "cpu" else ",".join(f"cuda:{i}" for i in range(args.devices))
    label = devices.pick(names)[0][0].label
    print(f"{datetime.now(UTC):%Y-%m-%d}, {args.devices} x {label}, {devices.available_cores()} cores, ", end="")
    print(f"torch {torch.__version__}: `{shlex.join(sys.argv)}`\n", flush=True)
    with installed(), tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder, args.layers, args.hidden, device)
        report(args, folder, names, device)


if __name__ == "__main__":
    main()

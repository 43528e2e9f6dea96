"""A whole scan of a Llama-3-8B-shaped model, files to synced store, against the reference notebook's method.

    PYTHONPATH=.src python tests/benchmarks/gpu_scan.py                 # 4 layers, 2 GB
    PYTHONPATH=.src python tests/benchmarks/gpu_scan.py --layers 32     # 224 projections, 14 GB of disk
    PYTHONPATH=.src python tests/benchmarks/gpu_scan.py --device cpu --hidden 256 --layers 2
    PYTHONPATH=.src python tests/benchmarks/gpu_scan.py --layers 32 --devices 1,2,4       # counts of GPUs in turn
    PYTHONPATH=.src python tests/benchmarks/gpu_scan.py --layers 8 --hidden 8192 --devices 1,2,4
    PYTHONPATH=.src python tests/benchmarks/gpu_scan.py --layers 32 --formats bf16,gguf-q8,gguf-q4k,fp8,mxfp4

Needs torch, numpy, h5py and safetensors, on a GPU triton, and takes scipy where it is there. Writes the model to
--folder (and finds it there again) or to a folder that is removed. Everything is measured in one run, with the
files in the page cache. The scan is the engine and the store of `rankscope scan`, from opening the files to the
closed store; it has run once on one layer before (import, CUDA context, kernels), which is timed apart. The
notebook's method is timed without loading the model, and by --notebook-layers, for all layers in proportion.
With several counts in --devices the only table is theirs: see device_counts.py; with --formats that of formats: see
stored_formats.py.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from device_counts import compare_counts
from stored_formats import compare_formats
from whole_scan import Scan, installed, reading, scan, write_model

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.compute import devices
from rankscope.engine.formats.tensor import Tensor
from rankscope.engine.solvers.batch import limits, solve_batch
from rankscope.engine.solvers.ladder import choose, solve
from rankscope.engine.spectrum import Projection, Spectrum
from rankscope.engine.weights import host_array

DRIVERS = ("gesvd", "gesvda")  # the default is gesvdj


def stored(checkpoint: Checkpoint, tensor: Tensor) -> torch.Tensor:
    """The bfloat16 weights on the CPU."""
    return torch.from_numpy(host_array(checkpoint.read(tensor)[0])).to(torch.bfloat16)


def notebook(matrix: torch.Tensor, device: str) -> np.ndarray:
    """The reference notebook's statements."""
    w = matrix.detach().float().to(device)
    _, s, _ = torch.linalg.svd(w, full_matrices=False)
    return s.cpu().numpy()


def notebook_seconds(checkpoint: Checkpoint, projections: list[Projection], layers: int, device: str) -> float:
    """The notebook's seconds for the projections of the first layers, read beforehand and after a warm-up."""
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
    """The milliseconds of the fastest of some runs, after one to warm up."""
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
    """Singular values by LAPACK in float64, on the CPU."""
    exact = matrix.double().numpy()
    try:
        from scipy.linalg import svdvals
    except ImportError:
        return np.linalg.svd(exact, compute_uv=False)
    return svdvals(exact)


def routines(matrix: torch.Tensor, device: str) -> dict[str, Callable[[], np.ndarray]]:
    """The routines that compute the singular values of a matrix, by name."""
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
    """Milliseconds a matrix on the device, in a full batch of this matrix and noise."""
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
    """Print ms and error of every routine for each shape of a layer; return ours in ms by shape."""
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
    """The measurements beside the scans: GB, and seconds."""

    args: argparse.Namespace
    size: float
    reading: float
    first: float
    notebook: float
    eigen: float


def print_model(rest: Rest, scans: list[Scan]) -> None:
    """Print the table of the model as a whole."""
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
    """Run a function; print what it raises, and go on."""
    try:
        return run()
    except Exception:  # noqa: BLE001
        print(f"FAILED\n{traceback.format_exc()[-3000:]}", flush=True)
        return None


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--notebook-layers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="scans; the fastest counts, all are printed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--devices", type=counts, default=[1], help="GPUs that scan; 1,2,4: in turn, one table")
    parser.add_argument("--formats", type=lambda text: text.split(","), help="stored formats in turn, one table")
    parser.add_argument("--readers", type=int, default=devices.READERS)
    parser.add_argument("--folder", type=Path, help="keeps the model")
    args = parser.parse_args()
    devices.READERS = args.readers
    device = "cpu" if args.device == "cpu" else "cuda:0"
    most = max(args.devices)
    names = "cpu" if device == "cpu" else ",".join(f"cuda:{i}" for i in range(most))
    label = devices.pick(names)[0][0].label
    print(f"{datetime.now(UTC):%Y-%m-%d}, {most} x {label}, {devices.available_cores()} cores, ", end="")
    print(f"torch {torch.__version__}: `{shlex.join(sys.argv)}`\n", flush=True)
    with installed(), tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder, args.layers, args.hidden, device)
        if args.formats:
            compare_formats(folder, args.formats, names, args.repeats)
        elif len(args.devices) == 1:
            report(args, folder, names, device)
        else:
            compare_counts(folder, args.devices, device == "cpu", args.repeats, args.hidden)


def counts(text: str) -> list[int]:
    """`1,2,4` -> [1, 2, 4]."""
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()

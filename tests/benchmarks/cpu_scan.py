"""A scan of a 1024-wide Llama's matrices on a CPU, files to synced store, against scipy, numpy and WeightWatcher.

    python tests/benchmarks/cpu_scan.py --threads 1           # 16 matrices, one core
    python tests/benchmarks/cpu_scan.py --threads 1 --hidden 2048 --matrices 1

Writes the matrices in bfloat16 to a temporary folder. Each way runs in a separate process, so that each has its own
BLAS threads; they take turns, and the fastest of --repeats counts. The others have the matrices in memory, in their
type, and solve them one after the other with --threads BLAS threads. Ours is the wall time of a scan by the command
line less that of the same scan when everything is stored, which opens, reads the headers and computes nothing.

The row of WeightWatcher calls its combined_eigenvalues, which casts to float64 and has scipy compute. It is left
out unless `pip install --target FOLDER weightwatcher==0.7.7` has put it where PYTHONPATH names FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from whole_scan import shapes, weights

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.compute.devices import available_cores
from rankscope.store.folders import model_folder
from rankscope.store.spectra import SpectraStore

SCIPY, NUMPY, WEIGHTWATCHER = "scipy float64", "numpy float32", "WeightWatcher"
WAYS = (SCIPY, NUMPY, WEIGHTWATCHER)


def write_model(folder: Path, matrices: int, hidden: int) -> None:
    """Write the first matrices, in as many layers as they need."""
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor] = {}
    for layer in range(-(-matrices // len(shapes(hidden)))):
        for name, shape in shapes(hidden).items():
            if len(made) < matrices:
                made[f"model.layers.{layer}.{name}.weight"] = weights(*shape, generator)
    save_file(made, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": hidden}))


def routine(way: str) -> Callable[[np.ndarray], np.ndarray]:
    """Singular values of a float32 matrix, descending."""
    if way == NUMPY:
        return lambda matrix: np.linalg.svd(matrix, compute_uv=False)
    if way == SCIPY:
        from scipy.linalg import svd

        return lambda matrix: svd(matrix, compute_uv=False)
    from weightwatcher import WeightWatcher

    watcher = WeightWatcher()

    def squares(matrix: np.ndarray) -> np.ndarray:
        small, large = sorted(matrix.shape)
        return watcher.combined_eigenvalues(matrix, large, small, small)[0]

    return lambda matrix: np.sqrt(squares(matrix)[::-1])


def solve(folder: Path, way: str) -> None:
    """Print the seconds that a way takes for all matrices in turn; leave the singular values in the folder."""
    run, dtype = routine(way), np.float64 if way == SCIPY else np.float32
    matrices = {n: w.float().numpy().astype(dtype) for n, w in load_file(folder / "model.safetensors").items()}
    run(np.eye(64, dtype=dtype))
    start = time.perf_counter()
    found = {name: run(matrix) for name, matrix in matrices.items()}
    print(time.perf_counter() - start)
    np.savez(folder / f"{way}.npz", **found)


def their_seconds(folder: Path, way: str, threads: int) -> float:
    """The seconds of a way, run in a separate process."""
    command = [sys.executable, __file__, "--solve", way, "--folder", str(folder)]
    told = subprocess.check_output(command, env=_environment(threads), text=True)
    return float(told.splitlines()[-1])  # WeightWatcher prints at import


def our_seconds(folder: Path, store: Path, threads: int) -> float:
    """The seconds of a scan into an empty store, less those of the same scan again."""
    shutil.rmtree(store, ignore_errors=True)
    command = [sys.executable, "-m", "rankscope.tui.cli.main", "scan", str(folder), "--store", str(store)]
    command += ["--device", "cpu", "--threads", str(threads)]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run(command, env=_environment(threads), check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return seconds[0] - seconds[1]


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}


def errors(folder: Path, root: Path, ways: list[str]) -> dict[str, float]:
    """The largest error of any value against scipy's float64, relative to sigma_1."""
    wanted = np.load(folder / f"{SCIPY}.npz")
    checkpoint = open_checkpoint(str(folder))
    with SpectraStore(root, model_folder(checkpoint.identity)) as store:
        found = {p.tensor: store.get(p.key).values for p in build_tree(checkpoint).scanned()}
    every = {way: np.load(folder / f"{way}.npz") for way in ways} | {"ours": found}
    return {
        way: max(float(np.abs(values[name] - wanted[name]).max() / wanted[name][0]) for name in wanted)
        for way, values in every.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--solve", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.solve:
        solve(args.folder, args.solve)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, store = Path(temporary) / "model", Path(temporary) / "store"
        folder.mkdir()
        write_model(folder, args.matrices, args.hidden)
        ways = [way for way in WAYS if way != WEIGHTWATCHER or find_spec("weightwatcher")]
        seconds: dict[str, list[float]] = {name: [] for name in (*ways, "ours")}
        for _ in range(args.repeats):
            for way in ways:
                seconds[way].append(their_seconds(folder, way, args.threads))
            seconds["ours"].append(our_seconds(folder, store, args.threads))
        worst = errors(folder, store, ways)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {args.threads} threads: `{shlex.join(sys.argv)}`\n")
    print(f"| {args.matrices} matrices, width {args.hidden} | s | times as long as ours | largest error / sigma_1 |")
    print("|---|---|---|---|")
    for name, found in seconds.items():
        error = f"{worst[name]:.0e}" if worst[name] else "none"
        print(f"| {name} | {min(found):.2f} | {min(found) / min(seconds['ours']):.2f} | {error} |")


if __name__ == "__main__":
    main()

"""A scan of a 1024-wide Llama's matrices on a CPU, files to synced store, against scipy and WeightWatcher's way.

    python tests/benchmarks/cpu_scan.py                       # 16 matrices, all cores
    python tests/benchmarks/cpu_scan.py --hidden 2048 --matrices 7 --threads 4

Writes the matrices in bfloat16 to a temporary folder. Each way is a process of its own, so that each has its own
BLAS threads; they take turns, and the fastest of --repeats counts. scipy and WeightWatcher (whose routine on a
CPU is scipy.linalg.svd of the float32 matrix, compute_uv=False) have the matrices in memory and solve them one after
the other with as many BLAS threads as there are cores. Ours is the wall time of a scan by the command line less that
of the same scan when everything is stored, which opens, reads the headers and computes nothing.
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
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from gpu_scan import shapes, weights
from safetensors.torch import load_file, save_file

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.compute.devices import available_cores
from rankscope.store.folders import model_folder
from rankscope.store.spectra import SpectraStore

WAYS = {"scipy float64": np.float64, "WeightWatcher's, float32": np.float32}


def write_model(folder: Path, matrices: int, hidden: int) -> None:
    """The first matrices of as many layers as hold them."""
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor] = {}
    for layer in range(-(-matrices // len(shapes(hidden)))):
        for name, shape in shapes(hidden).items():
            if len(made) < matrices:
                made[f"model.layers.{layer}.{name}.weight"] = weights(*shape, generator)
    save_file(made, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": hidden}))


def solve(folder: Path, way: str) -> None:
    """Print the seconds of scipy's SVD of all matrices in turn; leave the singular values in the folder."""
    from scipy.linalg import svd

    matrices = {n: w.float().numpy().astype(WAYS[way]) for n, w in load_file(folder / "model.safetensors").items()}
    svd(np.eye(64, dtype=WAYS[way]), compute_uv=False)
    start = time.perf_counter()
    found = {name: svd(matrix, compute_uv=False) for name, matrix in matrices.items()}
    print(time.perf_counter() - start)
    np.savez(folder / f"{WAYS[way].__name__}.npz", **found)


def their_seconds(folder: Path, way: str, threads: int) -> float:
    """By scipy, in a process of its own."""
    command = [sys.executable, __file__, "--solve", way, "--folder", str(folder)]
    return float(subprocess.check_output(command, env=_environment(threads), text=True))


def our_seconds(folder: Path, store: Path, threads: int) -> float:
    """A scan into an empty store, less the same scan again."""
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


def errors(folder: Path, root: Path) -> dict[str, float]:
    """The largest error of any value against scipy's float64, relative to sigma_1."""
    wanted, single = np.load(folder / "float64.npz"), np.load(folder / "float32.npz")
    worst = dict.fromkeys(("ours", "float32"), 0.0)
    checkpoint = open_checkpoint(str(folder))
    with SpectraStore(root, model_folder(checkpoint.identity)) as store:
        for projection in build_tree(checkpoint).scanned():
            right, spectrum = wanted[projection.tensor], store.get(projection.key)
            for name, values in (("ours", spectrum.values), ("float32", single[projection.tensor])):
                worst[name] = max(worst[name], float(np.abs(values - right).max() / right[0]))
    return worst


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
        seconds: dict[str, list[float]] = {name: [] for name in (*WAYS, "ours")}
        for _ in range(args.repeats):
            for way in WAYS:
                seconds[way].append(their_seconds(folder, way, args.threads))
            seconds["ours"].append(our_seconds(folder, store, args.threads))
        worst = errors(folder, store)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {args.threads} threads: `{shlex.join(sys.argv)}`\n")
    print(f"| {args.matrices} matrices, width {args.hidden} | s | times as long as ours | largest error / sigma_1 |")
    print("|---|---|---|---|")
    told = {"scipy float64": 0.0, "WeightWatcher's, float32": worst["float32"], "ours": worst["ours"]}
    for name, error in told.items():
        print(f"| {name} | {min(seconds[name]):.2f} | {min(seconds[name]) / min(seconds['ours']):.1f} | {error:.0e} |")


if __name__ == "__main__":
    main()

"""Time per matrix and error of the routines for singular values, side by side in one run.

    python tests/benchmarks/solvers.py [--device cuda] [--threads 1 2] [--shapes 4096x4096 1024x4096]

The weights decay and carry noise, as trained ones do, in bfloat16. Errors are the largest of any singular
value, relative to sigma_1, against LAPACK's float64 SVD of the same matrix (gesdd, by numpy). `notebook` is
the statement of the reference notebook; the last column is how many times faster `ours` is than that.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from rankscope.engine.compute.devices import Device, pick, set_blas_threads
from rankscope.engine.solvers import gram, svd
from rankscope.engine.solvers.ladder import choose, solve
from rankscope.engine.weights import host_array

SHAPES = {
    "cpu": ["192x576", "576x576", "1536x576", "1024x1024", "4096x1024"],
    "cuda": ["1024x4096", "4096x4096", "14336x4096"],
}


def weights(rows: int, cols: int) -> torch.Tensor:
    """A decaying spectrum plus noise, bfloat16, on the CPU."""
    generator = torch.Generator().manual_seed(rows * 10_007 + cols)
    rank = min(rows, cols)
    left = torch.randn(rows, rank, generator=generator) * torch.logspace(0, -2, rank)
    right = torch.randn(rank, cols, generator=generator)
    return (left @ right / rank + 0.002 * torch.randn(rows, cols, generator=generator)).to(torch.bfloat16)


def best_of(run: Callable[[], object], device: str, repeats: int) -> float:
    """Milliseconds of the fastest of `repeats` runs after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[1:])


def measure(rows: int, cols: int, device: str, repeats: int) -> None:
    """Print one line of the table."""
    stored = weights(rows, cols)
    reference = np.linalg.svd(stored.to(torch.float64).numpy(), compute_uv=False)
    on_device = stored.to(device) if device != "cpu" else host_array(stored)
    rungs = choose(device)

    def notebook() -> torch.Tensor:
        return torch.linalg.svd(stored.to(device).float(), full_matrices=False).S

    def qr_first() -> torch.Tensor:
        tall = stored.to(device, torch.float64)
        r = torch.linalg.qr(tall if rows >= cols else tall.T, mode="r").R
        return torch.linalg.svdvals(r)

    routines: dict[str, Callable[[], object]] = {
        "notebook": notebook,
        "svdvals": lambda: svd.singular_values(on_device, 1.0),
        "qr": qr_first,
        "gram": lambda: gram.singular_values(on_device, 1.0),
        "ours": lambda: solve(stored, rungs),
    }
    results = {
        "notebook": notebook().cpu().numpy(),
        "svdvals": host_array(svd.singular_values(on_device, 1.0)),
        "qr": qr_first().cpu().numpy(),
        "gram": host_array(gram.singular_values(on_device, 1.0)),
        "ours": solve(stored, rungs).values,
    }
    ms = {name: best_of(run, device, repeats) for name, run in routines.items()}
    cells = [f"{ms[name]:8.1f} ms {np.abs(results[name] - reference).max() / reference[0]:7.0e}" for name in routines]
    print(f"| {rows}x{cols} | " + " | ".join(cells) + f" | {ms['notebook'] / ms['ours']:.1f} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="BLAS threads, a table each")
    parser.add_argument("--shapes", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = pick(args.device)[0][0]
    for threads in args.threads:
        torch.set_num_threads(threads)
        set_blas_threads(Device("cpu", ""), threads)
        print(f"\n{device.name} ({device.label}), torch {torch.__version__}, {threads} BLAS threads\n")
        print("| shape | notebook: svd float32 | svdvals float64 | QR, svdvals | Gram, eigvalsh | ours | ratio |")
        print("|---|---|---|---|---|---|---|")
        for shape in args.shapes or SHAPES["cpu" if device.name == "cpu" else "cuda"]:
            rows, cols = map(int, shape.split("x"))
            measure(rows, cols, device.name, args.repeats)


if __name__ == "__main__":
    main()

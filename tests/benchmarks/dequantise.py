"""Milliseconds to dequantise 25 million weights of each GGUF type: the gguf package, ours on one core, ours on a GPU.

    OMP_NUM_THREADS=1 PYTHONPATH=.src python tests/benchmarks/dequantise.py

The package and ours take turns; the fastest of the repeats counts. Random blocks: time does not depend on the numbers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import gguf
import numpy as np
import torch

from rankscope.engine.formats.ggml_blocks import FORMULAS
from rankscope.engine.formats.gguf_blocks import gguf_matrix

ROWS, COLUMNS = 4096, 6144


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    print(f"| type | gguf package | ours | times faster | {device or 'no GPU'} |\n|---|---|---|---|---|")
    for name in FORMULAS:
        kind = gguf.GGMLQuantizationType[name]
        width, size = gguf.GGML_QUANT_SIZES[kind]
        rows = np.random.default_rng(0).integers(0, 60, (ROWS, COLUMNS // width * size), np.uint8)
        runs: list[Callable[[], object]] = [
            lambda rows=rows, kind=kind: gguf.quants.dequantize(rows, kind),
            lambda rows=rows, name=name: gguf_matrix(rows, name, (ROWS, COLUMNS)),
        ]
        if device:
            placed = torch.from_numpy(rows).cuda()
            runs.append(lambda placed=placed, name=name: gguf_matrix(placed, name, (ROWS, COLUMNS)))
        times = [[1e3 * _seconds(run) for run in runs] for _ in range(repeats + 1)][1:]
        best = [min(column) for column in zip(*times, strict=True)]
        there = f"{best[2]:.2f} ms" if device else ""
        print(f"| {name} | {best[0]:.0f} ms | {best[1]:.0f} ms | {best[0] / best[1]:.1f} | {there} |", flush=True)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

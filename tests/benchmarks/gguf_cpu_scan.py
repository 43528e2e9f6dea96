"""Does a scan of the demo on a CPU wait for its blocks? Dequantised by us, by the gguf package, or stored as float32.

    python tests/benchmarks/gguf_cpu_scan.py --threads 2

Measured from the files to the synced store. The three take turns in one process, and the fastest of the repeats counts.
`dequantising` is processor time of the thread that reads; its share is that of the whole scan's processor time. A scan
is not bound by dequantising where it takes as long as one of the same weights in a safetensors file of float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import gguf
import numpy as np
from safetensors.numpy import save_file
from whole_scan import scan

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.formats.gguf_blocks import gguf_matrix

PATCHED = "rankscope.engine.formats.gguf.gguf_matrix"
PLAIN = "float32, as stored"


class Took(NamedTuple):
    """The seconds of a scan, of the processor in it, and of the processor in dequantising."""

    wall: float
    processor: float
    dequantising: float


def by_the_package(blocks: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """A matrix as the gguf package dequantises it."""
    return gguf.quants.dequantize(blocks.reshape(*shape[:-1], -1), gguf.GGMLQuantizationType[dtype])


def took(model: Path, matrix: Callable[..., Any], threads: int) -> Took:
    """The times of a scan of a model whose blocks are dequantised by `matrix`."""
    spent = 0.0

    def timed(*args: Any) -> Any:
        nonlocal spent
        start = time.thread_time()
        found = matrix(*args)
        spent += time.thread_time() - start
        return found

    with mock.patch(PATCHED, timed):
        used = time.process_time()
        done = scan(model, "cpu", threads=threads)
        return Took(done.seconds, time.process_time() - used, spent)


def as_float32(folder: Path) -> Path:
    """Write the demo's matrices to a safetensors file."""
    demo = open_checkpoint("demo")
    scanned = {p.tensor for p in build_tree(demo).scanned()}
    held = {t.name: np.asarray(demo.read(t)[0]) for t in demo.tensors if t.name in scanned}
    save_file(held, folder / "model.safetensors")
    return folder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain, demo = as_float32(Path(folder)), Path("demo")
        ways: dict[str, tuple[Path, Callable[..., Any]]] = {
            "the gguf package's": (demo, by_the_package),
            "ours": (demo, gguf_matrix),
            PLAIN: (plain, gguf_matrix),
        }
        runs = [{way: took(*made, arguments.threads) for way, made in ways.items()} for _ in range(arguments.repeats)]
    best = {way: Took(*map(min, zip(*(run[way] for run in runs), strict=True))) for way in ways}
    print("| blocks | scan | to float32 | processor | dequantising | its share |\n|---|---|---|---|---|---|")
    for way, (wall, processor, spent) in best.items():
        ratio = wall / best[PLAIN].wall
        print(f"| {way} | {wall:.2f} s | {ratio:.2f} | {processor:.2f} s | {spent:.2f} s | {spent / processor:.1%} |")


if __name__ == "__main__":
    main()

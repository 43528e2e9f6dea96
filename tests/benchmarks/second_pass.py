"""Numerical ranks of square matrices on a GPU: by Gram, in batches and by the SVD, and as a scan leaves them.

    PYTHONPATH=.src python tests/benchmarks/second_pass.py                  # 8 layers of a 4096-wide Llama, 3.6 GB

The weights are independent Gaussian numbers in bfloat16, of which one square matrix in some 60 is ill-conditioned; the
query of the first layer is made so, in float64: singular values from 1 down to .1, and one of 1e-9. A solver's rank is
marked >= where it is only a bound. Ends with 1 where the SVD's rank is not LAPACK's, where a matrix of the scan is left
with another rank than that without a mark, or where solving again took more than a tenth of the scan and was not one
matrix alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from gpu_scan import lapack, stored
from safetensors.torch import save_file
from whole_scan import installed, shapes

from rankscope.engine import metrics
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.compute import devices, second_pass
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Again, Event, Failed, Notice, Progress
from rankscope.engine.solvers.batch import limits, solve_batch
from rankscope.engine.solvers.ladder import by_svd, choose, solve
from rankscope.engine.spectrum import Projection, Spectrum, Values
from rankscope.engine.weights import host_array
from rankscope.store.spectra import SpectraStore

PLANTED = "layers.0.attention.query"


class Listener:
    """The engine's listener: keeps the counts at the end, and the seconds until the last first result was saved."""

    def __init__(self) -> None:
        self.again = Again()
        self.scanned = 0.0
        self.trouble: list[str] = []
        self.idle = threading.Event()
        self._start = time.perf_counter()

    def __call__(self, events: tuple[Event, ...]) -> None:
        for event in events:
            if isinstance(event, Failed | Notice):
                self.trouble.append(getattr(event, "reason", "") or getattr(event, "text", ""))
            elif isinstance(event, Progress):
                self.again = event.again
                if event.done == event.total and not self.scanned:
                    self.scanned = time.perf_counter() - self._start
                if not event.busy:
                    self.idle.set()


def write_model(folder: Path, layers: int, hidden: int, device: str) -> None:
    """Gaussian weights in bfloat16, a file a layer, and one matrix that is ill-conditioned."""
    generator = torch.Generator(device).manual_seed(0)
    for layer in range(layers):
        made = {
            f"model.layers.{layer}.{name}.weight": torch.randn(shape, generator=generator, device=device)
            .to(torch.bfloat16)
            .cpu()
            for name, shape in shapes(hidden).items()
        }
        if layer == 0:
            made["model.layers.0.self_attn.q_proj.weight"] = ill_conditioned(hidden, generator).cpu()
        save_file(made, folder / f"model-{layer + 1:05}-of-{layers:05}.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": hidden}))


def ill_conditioned(size: int, generator: torch.Generator) -> torch.Tensor:
    """An ill-conditioned float64 matrix, shape (size, size)."""

    def orthogonal() -> torch.Tensor:
        noise = torch.randn(size, size, generator=generator, device=generator.device, dtype=torch.float64)
        return torch.linalg.qr(noise)[0]

    sigma = torch.linspace(1, 0.1, size, dtype=torch.float64, device=generator.device)
    sigma[-1] = 1e-9
    return (orthogonal() * sigma) @ orthogonal().T


def rank_of(values: Values, floor: float, rows: int, cols: int) -> tuple[int, bool]:
    """The numerical rank, and whether it is only a bound."""
    given = values, rows, cols, floor
    return metrics.numerical_rank(*given), metrics.rank_is_bound(*given)


def written(rank: tuple[int, bool]) -> str:
    """A rank as text, such as `>= 4095`."""
    return f"{'>= ' if rank[1] else ''}{rank[0]}"


def solvers(
    checkpoint: Checkpoint, p: Projection, device: str
) -> tuple[dict[str, tuple[tuple[int, bool], float]], int]:
    """Rank and seconds by each solver on the device, after a warm-up; and LAPACK's rank."""
    tensor = next(t for t in checkpoint.tensors if t.name == p.tensor)
    matrix = torch.from_numpy(host_array(checkpoint.read(tensor)[0]))
    placed, count = matrix.to(device), max(2, limits(device)(p.count))
    routines = {
        "gram-eigvalsh": lambda: solve(placed, choose(device)[:1]),
        "gram-two-stage": lambda: solve_batch([placed] * count, count, p.count, device, print)[0],
        "svdvals": lambda: solve(placed, [by_svd(device)]),
    }
    found = {}
    for name, run in routines.items():
        run()
        start = time.perf_counter()
        solution = run()
        seconds = (time.perf_counter() - start) / (count if name == "gram-two-stage" else 1)
        made = solution.provenance
        found[name] = rank_of(solution.values, made.noise_floor, p.rows, p.cols), seconds
    return found, rank_of(lapack(matrix), 0.0, p.rows, p.cols)[0]


def scan(checkpoint: Checkpoint, wanted: list[Projection], device: str, root: Path) -> tuple[Listener, list[Spectrum]]:
    """Scan into a store, and read it back."""
    heard = Listener()
    with SpectraStore(root, "model") as store:
        engine = Engine(store, heard, ComputeSettings(device))
        engine.submit(checkpoint, wanted)
        heard.idle.wait(500)
        engine.close(10)
    with SpectraStore(root, "model") as store:
        return heard, [store.get(p.key) for p in wanted]


def report(folder: Path, device: str) -> bool:
    """Print the tables; return whether all results are as promised."""
    checkpoint = open_checkpoint(str(folder))
    wanted = build_tree(checkpoint).scanned()
    planted = next(p for p in wanted if p.address == PLANTED)
    found, right = solvers(checkpoint, planted, device)
    print(f"| {PLANTED} | rank, LAPACK's {right} | s a matrix |\n|---|---|---|")
    for name, (rank, seconds) in found.items():
        print(f"| {name} | {written(rank)} | {seconds:.3f} |")
    is_right = found["svdvals"][0] == (right, False)
    for number in (1, 2):  # the first compiles
        with tempfile.TemporaryDirectory() as root:
            heard, spectra = scan(checkpoint, wanted, device, Path(root))
        again, share = heard.again, heard.again.seconds / heard.scanned
        print(
            f"\nscan {number}: {len(spectra)} in {heard.scanned:.2f} s; {again.found} ill-conditioned, {again.solved} ",
            end="",
        )
        print(f"of {again.begun} solved again in {again.seconds:.2f} s, {share:.1%}; {heard.trouble or 'no trouble'}")
        is_right &= not heard.trouble and again.solved == again.begun > 0
        is_right &= share <= second_pass.SHARE or again.begun == 1
    print("\n| left by the scan | solver | rank | LAPACK's |\n|---|---|---|---|")
    for spectrum in spectra:
        p, made = spectrum.projection, spectrum.provenance
        rank = rank_of(spectrum.values, made.noise_floor, p.rows, p.cols)
        if made.solver == "svdvals" or rank[1]:
            tensor = next(t for t in checkpoint.tensors if t.name == p.tensor)
            matrix = (
                torch.from_numpy(host_array(checkpoint.read(tensor)[0])) if p == planted else stored(checkpoint, tensor)
            )
            right = rank_of(lapack(matrix), 0.0, p.rows, p.cols)[0]
            print(f"| {p.address} | {made.solver} | {written(rank)} | {right} |", flush=True)
            is_right &= rank[0] <= right if rank[1] else rank[0] == right
    return is_right


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--device", default="cuda:0")
    args = parser.parse_args()
    label = devices.pick(args.device)[0][0].label
    print(f"{datetime.now(UTC):%Y-%m-%d}, {label}, torch {torch.__version__}: `{shlex.join(sys.argv)}`\n", flush=True)
    with installed(), tempfile.TemporaryDirectory() as temporary:
        write_model(Path(temporary), args.layers, args.hidden, args.device)
        is_right = report(Path(temporary), args.device)
    print("\nas promised" if is_right else "\nNOT as promised")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())

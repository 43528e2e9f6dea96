"""The two-stage eigensolver on a CUDA GPU: time of each stage, against the library, and hard matrices.

    PYTHONPATH=.src python tests/benchmarks/two_stage.py             # the tables
    PYTHONPATH=.src python tests/benchmarks/two_stage.py --check     # hard matrices of many sizes
    PYTHONPATH=.src python tests/benchmarks/two_stage.py --choices   # band, tile, group, warps, lanes

Needs torch, triton and numpy. Times are milliseconds per matrix, the fastest of --repeats runs after one to
warm up; errors are relative to the largest eigenvalue, against torch.linalg.eigvalsh of the same matrix. What
fails is printed with its traceback, and the rest goes on.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable

import torch
from torch import Tensor

from rankscope.engine.solvers import chase, panel, sturm
from rankscope.engine.solvers.band import to_band
from rankscope.engine.solvers.chase import to_tridiagonal
from rankscope.engine.solvers.sturm import tridiagonal_eigenvalues
from rankscope.engine.solvers.two_stage import WIDTH, available, eigenvalues

CHECKED = [1, 2, 3, 31, 64, 100, 257, 1000, 1024, 4096]
ALONE = [257, 1024]  # checked in batches of one too
BATCHES = {8192: [4, 8, 16]}  # else 1, 4, 16, 32
CHOSEN = {4096: 16, 8192: 8}
TILES = [(64, 8), (128, 8), (256, 8), (128, 1), (128, 2), (128, 4), (128, 16)]  # rows of a tile, panels of a group
WARPS = {32: (1, 2, 4), 64: (4, 8)}


def weights(batch: int, n: int, device: str) -> Tensor:
    """Decaying spectra plus noise, as trained weights have."""
    generator = torch.Generator(device).manual_seed(n)
    left, right, noise = torch.randn(3, batch, n, n, generator=generator, device=device, dtype=torch.float64).unbind(0)
    decay = torch.logspace(0, -2, n, device=device, dtype=torch.float64)
    return noise.mul_(0.002).baddbmm_(left * decay, right, alpha=1 / n)


def gram_of(matrix: Tensor) -> Tensor:
    """W W^T with its largest entry near 1."""
    gram = matrix @ matrix.mT
    return gram / gram.abs().amax().clamp(min=1e-300)


def best_of(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the fastest run, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[1:])


def guarded(label: str, run: Callable[[], None]) -> None:
    """Run; print what it raises and go on."""
    try:
        run()
    except Exception:  # noqa: BLE001
        print(f"FAILED {label}\n{traceback.format_exc()[-3000:]}", flush=True)
    torch.cuda.empty_cache()


def library(n: int, device: str, repeats: int) -> tuple[Tensor, float]:
    """The values and the time of eigvalsh for one matrix."""
    gram = gram_of(weights(1, n, device))[0]
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values, best_of(lambda: torch.linalg.eigvalsh(gram), repeats)


def stages(source: Tensor, work: Tensor, repeats: int) -> list[float]:
    """Milliseconds of dense -> band, band -> tridiagonal, bisection."""
    n = source.shape[-1]
    band = to_band(work.copy_(source), WIDTH, True)
    kept = band.clone()
    tridiagonal = to_tridiagonal(band, n, True)
    copy = best_of(lambda: work.copy_(source), repeats)
    again = best_of(lambda: band.copy_(kept), repeats)
    return [
        best_of(lambda: to_band(work.copy_(source), WIDTH, True), repeats) - copy,
        best_of(lambda: to_tridiagonal(band.copy_(kept), n, True), repeats) - again,
        best_of(lambda: tridiagonal_eigenvalues(tridiagonal, True), repeats),
    ]


def line(n: int, batch: int, device: str, repeats: int, reference: tuple[Tensor, float]) -> None:
    """One row: the stages, the whole, the library; error and peak memory."""
    source = gram_of(weights(1, n, device))
    work = source.repeat(batch, 1, 1)  # always a copy: the solver overwrites it
    times = stages(source, work, repeats)
    copy = best_of(lambda: work.copy_(source), repeats)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    whole = best_of(lambda: eigenvalues(work.copy_(source)), repeats) - copy
    extra = (torch.cuda.max_memory_allocated() - before) / 1e9
    values, passed = eigenvalues(work.copy_(source))
    error = float((values - reference[0]).abs().max() / reference[0].abs().max())
    cells = [f"{x / batch:8.2f}" for x in [*times, whole]] + [f"{reference[1]:7.1f}"]
    ratio, gram = reference[1] * batch / whole, 8e-9 * batch * n * n
    print(f"| {n:5} | {batch:2} | {WIDTH:3} | {' | '.join(cells)} | {ratio:5.1f} | {error:.0e} ", end="")
    print(f"| {int(passed.sum())}/{batch} | {gram:.2f} + {extra:.2f} |", flush=True)


def tables(sizes: list[int], device: str, repeats: int) -> None:
    """The main table."""
    print("|     n |  B |   b |  to band |    chase |   bisect |      all | library | ratio | error | ok | GB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for n in sizes:
        reference = library(n, device, 1)
        for batch in BATCHES.get(n, [1, 4, 16, 32]):
            guarded(
                f"n={n} batch={batch}",
                lambda n=n, batch=batch, r=reference: line(n, batch, device, repeats, r),
            )


def choices(sizes: list[int], device: str) -> None:
    """Print the choices that matter, stage by stage."""
    for n in sizes:
        guarded(f"choices n={n}", lambda n=n: choices_at(n, CHOSEN.get(n, 16), device))


def choices_at(n: int, batch: int, device: str) -> None:
    """Milliseconds per matrix of each stage under each choice."""
    source = gram_of(weights(1, n, device))
    work = source.repeat(batch, 1, 1)
    copy = best_of(lambda: work.copy_(source), 1)

    def report(label: str, run: Callable[[], object], less: float) -> None:
        guarded(label, lambda: print(f"n={n} B={batch} {label}: {(best_of(run, 1) - less) / batch:.2f}", flush=True))

    for width in (32, 64):
        for tile, group in TILES:
            label = f"to band b={width} tile={tile} group={group}"
            report(label, lambda w=width, t=tile, g=group: to_band(work.copy_(source), w, True, t, g), copy)
        kept = to_band(work.copy_(source), width, True)
        band = kept.clone()
        again = best_of(lambda b=band, k=kept: b.copy_(k), 1)
        for warps in WARPS[width]:
            label = f"chase b={width} warps={warps}"
            report(label, lambda b=band, k=kept, x=warps: to_tridiagonal(b.copy_(k), n, True, x), again)
    tridiagonal = to_tridiagonal(band.copy_(kept), n, True)
    for sturm.LANES in (32, 64, 128):
        report(f"bisect lanes={sturm.LANES}", lambda: tridiagonal_eigenvalues(tridiagonal, True), 0)
    sturm.LANES = 64


def parts(n: int, device: str) -> None:
    """Check each kernel against its twin, so that a failure names its stage."""
    tall = torch.randn(2, n, 8, device=device, dtype=torch.float64)
    q, r = panel.tall_qr(tall, True, 8, 32)
    one = torch.eye(8, device=device, dtype=torch.float64)
    print(f"tall_qr: {float((q @ r - tall).abs().max()):.0e} of QR, {float((q.mT @ q - one).abs().max()):.0e} of Q^T Q")
    gram = gram_of(torch.randn(2, n, n, device=device, dtype=torch.float64))
    band = to_band(gram.clone(), 16, True)
    twin = to_band(gram.cpu(), 16, False)
    print(f"to_band: {float((band.cpu() - twin).abs().max()):.0e} from its twin")
    rows = to_tridiagonal(twin.to(device), n, True).cpu()
    print(f"chase:   {float((rows - to_tridiagonal(twin, n, False)).abs().max()):.0e} from its twin")
    values = tridiagonal_eigenvalues(rows.to(device), True).cpu()
    print(
        f"bisect:  {float((values - tridiagonal_eigenvalues(rows, False)).abs().max()):.0e} from its twin", flush=True
    )


def hard(n: int, device: str) -> dict[str, Tensor]:
    """Matrices W that break careless solvers, by name."""
    generator = torch.Generator(device).manual_seed(n)
    noise = torch.randn(n, n, generator=generator, device=device, dtype=torch.float64)
    left, right = (torch.linalg.qr(x)[0] for x in (noise, noise.mT.flip(0)))
    index = torch.arange(n, device=device, dtype=torch.float64) / max(n - 1, 1)
    rank = max(1, n // 3)
    return {
        "random": noise,
        "decaying": left * 10 ** (-6 * index) @ right,
        "falling": left * 10 ** (-16 * index) @ right,
        "clustered": left * torch.where(index < 0.5, 3.0, 1 + 1e-9) @ right,
        "deficient": noise[:, :rank] @ noise[:rank],
        "rank one": noise[:, :1] @ noise[:1],
        "zero": torch.zeros_like(noise),
        "identity": torch.eye(n, device=device, dtype=torch.float64),
        "diagonal": torch.diag(1 + index),
        "outlier": left * torch.where(index == 0, 1e4, 1.0) @ right,
        "ones": torch.ones_like(noise) + 1e-6 * noise,
        "graded": noise * 10 ** (-8 * index).unsqueeze(1),
        "block": torch.block_diag(noise[: n // 2, : n // 2], torch.zeros_like(noise[n // 2 :, n // 2 :])),
        "huge": 1e140 * noise,
        "tiny": 1e-140 * noise,
    }


def check(sizes: list[int], device: str, width: int) -> None:
    """Check every hard matrix at every size: error in units of its bound, and the mask."""
    for n in sizes:
        for step in [3 if n >= 4096 else 15] + [1] * (n in ALONE):
            guarded(f"check n={n}", lambda n=n, step=step: check_size(n, step, device, width))


def check_size(n: int, step: int, device: str, width: int) -> None:
    """Check all hard matrices of a size, in batches of `step`."""
    named = list(hard(n, device).items())
    report = []
    for start in range(0, len(named), step):
        grams = torch.stack([w @ w.mT for _, w in named[start : start + step]])
        expected = torch.linalg.eigvalsh(grams)
        values, passed = eigenvalues(grams, width)
        top = expected[:, -1].clamp(min=torch.finfo(torch.float64).tiny)
        errors = (values - expected).abs().amax(1) / top
        report += zip([name for name, _ in named[start : start + step]], errors.tolist(), passed.tolist(), strict=True)
    allowed = 2 * max(1e-14, 1e-17 * n)  # in terms of sigma: d lambda = 2 sigma d sigma
    bad = [
        f"{name} {error:.0e}{'' if ok else ' not passed'}"
        for name, error, ok in report
        if not (error <= allowed and ok)
    ]
    worst = max(report, key=lambda row: row[1])
    verdict = "BAD " + "; ".join(bad) if bad else "good"
    print(
        f"n={n} in batches of {step}: worst {worst[1]:.1e} ({worst[0]}), allowed {allowed:.0e}: {verdict}", flush=True
    )


def main() -> None:
    """Print the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--choices", action="store_true")
    args = parser.parse_args()
    name = torch.cuda.get_device_name(args.device) if torch.cuda.is_available() else "no GPU"
    print(
        f"{name}, torch {torch.__version__}, kernels can run: {available(args.device)}, warps {chase.WARPS}", flush=True
    )
    guarded("parts", lambda: parts(100, args.device))
    if args.check:
        check(args.sizes or CHECKED, args.device, args.width)
    elif args.choices:
        choices(args.sizes or list(CHOSEN), args.device)
    else:
        tables(args.sizes or [1024, 2048, 4096, 8192], args.device, args.repeats)


if __name__ == "__main__":
    main()

"""The two-stage eigensolver against LAPACK, and its Triton kernels, under the interpreter, against their twins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import scipy.linalg
import torch
from lapack_reference import Array, lapack

from rankscope.engine.solvers import band as band_module
from rankscope.engine.solvers import two_stage
from rankscope.engine.solvers.band import to_band
from rankscope.engine.solvers.chase import to_tridiagonal
from rankscope.engine.solvers.panel import reflect
from rankscope.engine.solvers.sturm import tridiagonal_eigenvalues

SIZES = [(1, 4), (2, 4), (3, 4), (5, 8), (31, 8), (33, 16), (64, 16), (97, 32), (200, 32)]


def _with_spectrum(sigma: Array, rng: np.random.Generator) -> Array:
    left, right = (np.linalg.qr(rng.standard_normal((sigma.size, sigma.size)))[0] for _ in range(2))
    return np.asarray((left * sigma) @ right.T)


def _hard(n: int) -> dict[str, Array]:
    """Square matrices that break careless solvers."""
    rng = np.random.default_rng(n)
    noise = rng.standard_normal((n, n))
    rank = max(1, n // 3)
    outlier = np.ones(n)
    outlier[0] = 1e4
    half = noise.copy()
    half[n // 2 :] = 0
    return {
        "random": noise,
        "decaying": _with_spectrum(np.geomspace(1, 1e-6, n), rng),
        "falling": _with_spectrum(np.geomspace(1, 1e-16, n), rng),
        "clustered": _with_spectrum(np.where(np.arange(n) < n / 2, 3.0, 1 + 1e-9), rng),
        "deficient": noise[:, :rank] @ noise[:rank],
        "rank one": noise[:, :1] @ noise[:1],
        "zero": np.zeros((n, n)),
        "half zero": half,
        "identity": np.eye(n),
        "outlier": _with_spectrum(outlier, rng),
        "nearly ones": 1 + 1e-6 * noise,
        "graded": noise * np.geomspace(1, 1e-8, n)[:, None],
        "huge": 1e140 * noise,
        "tiny": 1e-140 * noise,
    }


@pytest.mark.parametrize(("n", "width"), SIZES)
def test_hard_matrices_match_lapack(n: int, width: int) -> None:
    named = _hard(n)
    grams = torch.stack([torch.from_numpy(w @ w.T) for w in named.values()])
    values, passed = two_stage.eigenvalues(grams, width)
    assert passed.all(), [name for name, ok in zip(named, passed, strict=True) if not ok]
    for (name, w), row in zip(named.items(), values.numpy(), strict=True):
        expected = lapack(w)
        sigma = np.sqrt(np.maximum(row[::-1], 0))
        kept = expected > 1e-7 * expected[0]
        bound = 1e-14 * expected[0] ** 2 / expected[kept]
        assert (np.abs(sigma - expected)[kept] <= bound).all(), name
        assert (np.diff(row) >= 0).all(), name


@pytest.mark.parametrize(("n", "width"), [(1, 4), (2, 4), (33, 16), (70, 32)])
def test_a_batch_of_one_is_solved_as_in_company(n: int, width: int) -> None:
    grams = torch.stack([torch.from_numpy(w @ w.T) for w in _hard(n).values()])
    together = two_stage.eigenvalues(grams.clone(), width)[0]
    for gram, wanted in list(zip(grams, together, strict=True))[::4]:
        for alone in (gram.clone()[None], gram.expand(1, n, n).clone(), torch.stack([gram, gram])[1:]):
            values, passed = two_stage.eigenvalues(alone, width)
            assert passed.all()
            assert (values[0] - wanted).abs().max() <= 1e-14 * wanted.abs().max()


def _tridiagonals(n: int) -> dict[str, tuple[Array, Array]]:
    rng = np.random.default_rng(n)
    one, half = np.ones(n), np.full(n - 1, 0.5)
    return {
        "random": (rng.standard_normal(n), rng.standard_normal(n - 1)),
        "second difference": (2 * one, -2 * half),
        "wilkinson": (np.abs(np.arange(n) - n // 2) / n, half / n),
        "uncoupled": (np.round(rng.random(n), 1), 0 * half),
        "hardly coupled": (one, 1e-20 * half),
        "in blocks": (rng.random(n), half * (np.arange(n - 1) % 7 > 0)),
        "graded": (np.geomspace(1, 1e-200, n), half * np.geomspace(1, 1e-200, n - 1)),
        "graded up": (np.geomspace(1e-200, 1, n), half * np.geomspace(1e-200, 1, n - 1)),
        "no diagonal": (0 * one, half),
        "large": (1e4 * rng.standard_normal(n), 1e4 * half),
    }


@pytest.mark.parametrize("n", [2, 9, 120])
def test_bisection_finds_every_eigenvalue(n: int) -> None:
    named = _tridiagonals(n)
    rows = np.stack([np.stack([d, np.append(e, 0)]) for d, e in named.values()])
    found = tridiagonal_eigenvalues(torch.from_numpy(rows), False).numpy()
    for (name, (d, e)), values in zip(named.items(), found, strict=True):
        wanted = scipy.linalg.eigh_tridiagonal(d, e, eigvals_only=True)
        assert np.abs(values - wanted).max() <= 4e-15 * np.abs(wanted).max(), name
        assert (np.diff(values) >= 0).all(), name


def test_a_zero_matrix_has_zeros() -> None:
    values, passed = two_stage.eigenvalues(torch.zeros(1, 9, 9, dtype=torch.float64), 4)
    assert passed.all()
    assert not values.any()


def test_not_a_number_does_not_pass_and_harms_no_neighbour() -> None:
    gram = torch.eye(20, dtype=torch.float64).repeat(3, 1, 1)
    gram[1, 4, 4] = torch.nan
    values, passed = two_stage.eigenvalues(gram, 4)
    assert passed.tolist() == [True, False, True]
    assert torch.equal(values[0], torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["random", "zero", "repeated", "ones", "unit"])
@pytest.mark.parametrize(
    ("rows", "width", "block", "tile"), [(8, 8, 8, 16), (9, 7, 8, 16), (70, 8, 8, 16), (300, 32, 32, 64)]
)
def test_a_panel_of_any_rank_is_reflected(kind: str, rows: int, width: int, block: int, tile: int) -> None:
    panel = torch.from_numpy(np.random.default_rng(rows).standard_normal((2, rows, width)))
    if kind == "zero":
        panel.zero_()
    elif kind == "repeated":
        panel[:, :, 1:] = panel[:, :, :1]
    elif kind == "ones":
        panel.fill_(1)
    elif kind == "unit":
        panel[:] = torch.eye(rows, width)
    v, x, r = reflect(panel, False, block, tile)
    reflector = torch.eye(rows, dtype=torch.float64) - v @ x @ v.mT
    left = reflector.mT @ panel
    left[:, :width] -= r
    assert (reflector @ reflector.mT - torch.eye(rows)).abs().max() < 1e-14
    assert left.abs().max() < 1e-14 * max(1, panel.norm())


@pytest.mark.parametrize("n", [70, 71, 96, 97])
def test_panels_updated_together_give_what_each_gives_by_itself(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a group that is not full, and a lower half of several blocks."""
    rng = np.random.default_rng(n)
    w = torch.from_numpy(rng.standard_normal((2, n, n)))
    w[1, :, n // 3 :] = 0
    grams = w @ w.mT
    alone = to_band(grams.clone(), 8, False, 16, 1)
    monkeypatch.setattr(band_module, "_ROWS", 20)
    together = to_band(grams.clone(), 8, False, 16, 3)
    for found, gram, kept in zip(together, grams, alone, strict=True):
        assert (found - kept).abs().max() <= 1e-12 * gram.norm()
        ends = scipy.linalg.eigvals_banded(found[:n, :9].T.numpy(), lower=True)
        assert np.abs(ends - np.linalg.eigvalsh(gram.numpy())).max() <= 1e-14 * float(gram.norm()) * 10


def test_the_band_has_room_for_bulges_and_zeros_beyond() -> None:
    n, width = 21, 4
    w = torch.from_numpy(np.random.default_rng(0).standard_normal((2, n, n)))
    band = to_band(w @ w.mT, width, False)
    assert band.shape == (2, n + 2 * width, 2 * width)
    assert not band[:, :, width + 1 :].any()
    assert not band[:, n:].any()
    rows = to_tridiagonal(band, n, False)
    assert not rows[:, 1, -1].any()
    assert band[:, :n, 2:].abs().max() < 1e-12


def test_without_a_gpu_the_kernels_are_not_offered() -> None:
    assert not two_stage.available("cpu")


INTERPRETED = """
import json, torch
from rankscope.engine.solvers.band import to_band
from rankscope.engine.solvers.chase import to_tridiagonal
from rankscope.engine.solvers.panel import tall_qr
from rankscope.engine.solvers.sturm import tridiagonal_eigenvalues
from rankscope.engine.solvers.two_stage import eigenvalues

torch.set_num_threads(1)
torch.manual_seed(0)
gap = lambda a, b: float((a - b).abs().max())
found = []
for n, width, tile, group in ((3, 4, 16, 2), (17, 4, 16, 2), (40, 8, 16, 3), (70, 32, 64, 8)):
    w = torch.randn(2, n, n, dtype=torch.float64)
    w[1, :, n // 2 :] = 0
    gram = w @ w.mT / n
    q = [tall_qr(w[:, :, :width], kernels, width, tile) for kernels in (True, False)] if n >= width else [(w, w)] * 2
    bands = [to_band(gram.clone(), width, kernels, tile, group) for kernels in (True, False)]
    rows = [to_tridiagonal(bands[1].clone(), n, kernels) for kernels in (True, False)]
    row = {"qr": max(map(gap, *q)), "band": gap(bands[0][0], bands[1][0]), "chase": gap(rows[0][0], rows[1][0])}
    if n <= 17:
        row["bisect"] = gap(*[tridiagonal_eigenvalues(rows[1], kernels) for kernels in (True, False)])
        values, passed = eigenvalues(gram.clone(), width, True)
        row["values"] = gap(values, torch.linalg.eigvalsh(gram))
        row["failed"] = int((~passed).sum())
    found.append(row)
print(json.dumps(found))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_do_what_their_twins_do() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for row in json.loads(done.stdout):
        assert max(row.values()) < 1e-12, row

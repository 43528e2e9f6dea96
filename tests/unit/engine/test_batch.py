"""Several matrices at once: each is right or refused by itself, independent of the others in the batch."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from extended_reference import assert_bounds_hold
from lapack_reference import EXTENDED_EPS, Array, jacobi, lapack

from rankscope.engine.errors import WeightsError
from rankscope.engine.solvers import batch, gram, ladder, two_stage
from rankscope.engine.solvers.batch import Outcome, limits, solve_batch
from rankscope.engine.solvers.ladder import Solution

TOLD: list[str] = []
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (17, 17), (31, 53), (64, 100), (100, 64)]


def _with_spectrum(sigma: Array, rows: int, cols: int, rng: np.random.Generator) -> Array:
    left, right = (np.linalg.qr(rng.standard_normal((side, sigma.size)))[0] for side in (rows, cols))
    return np.asarray((left * sigma) @ right.T)


def _kinds(rows: int, cols: int) -> dict[str, Array]:
    """Matrices of sizes from 1e-310 to 1e200."""
    rng = np.random.default_rng(rows * 1000 + cols)
    noise = rng.standard_normal((rows, cols))
    small = min(rows, cols)
    rank = max(1, small // 3)
    return {
        "random": noise,
        "decaying": _with_spectrum(np.geomspace(1, 1e-6, small), rows, cols, rng),
        "clustered": _with_spectrum(np.where(np.arange(small) < small / 2, 3.0, 1 + 1e-9), rows, cols, rng),
        "deficient": rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols)),
        "zero": np.zeros((rows, cols)),
        "huge": 1e200 * noise,
        "tiny": 1e-200 * noise,
        "of one sign": 1 + rng.random((rows, cols)),
    }


def _solved(matrices: list[torch.Tensor]) -> list[Outcome]:
    return solve_batch(matrices, len(matrices), min(matrices[0].shape), "cpu", TOLD.append)


def _assert_proven(outcome: Outcome, matrix: torch.Tensor) -> None:
    """Check a solution: descending, within its bound of LAPACK, and with the norm of the weights."""
    assert isinstance(outcome, Solution)
    exact = matrix.double().numpy()
    wanted = lapack(exact)
    assert outcome.provenance.solver == two_stage.NAME
    assert outcome.values.dtype == np.float64
    assert outcome.values.shape == wanted.shape
    assert (np.diff(outcome.values) <= 0).all()
    assert outcome.values[-1] >= 0
    assert_bounds_hold(outcome, exact)
    errors = np.abs(outcome.values - wanted)
    kept = wanted > 1e-7 * wanted[0]
    assert (errors[kept] <= 1e-14 * wanted[0] * (wanted[0] / wanted[kept])).all()
    scale = float(wanted[0]) or 1.0
    assert outcome.provenance.frobenius_norm / scale == pytest.approx(
        math.sqrt(((exact / scale) ** 2).sum()), rel=1e-13
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_of_a_batch_is_lapacks(shape: tuple[int, int]) -> None:
    matrices = [torch.from_numpy(matrix) for matrix in _kinds(*shape).values()]
    for outcome, matrix in zip(_solved(matrices), matrices, strict=True):
        _assert_proven(outcome, matrix)


def test_shapes_and_types_of_one_smaller_side_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_CHUNK_BYTES", 8 * 20 * 7)  # a slab has seven columns
    torch.manual_seed(1)
    matrices = [
        torch.randn(20, 20, dtype=torch.float64),
        torch.randn(20, 90).to(torch.bfloat16),
        torch.randn(50, 20).to(torch.float16),
        torch.randn(20, 31).to(torch.float8_e4m3fn),
        torch.randn(80, 40)[::4, 3:30],
    ]
    for outcome, matrix in zip(_solved(matrices), matrices, strict=True):
        _assert_proven(outcome, matrix)


@pytest.mark.parametrize(
    ("bad", "words"), [(math.nan, "NaN or infinite"), (-math.inf, "NaN or infinite"), (1.7e308, "range of float64")]
)
def test_weights_that_cannot_be_used_are_named_and_harm_no_neighbour(bad: float, words: str) -> None:
    torch.manual_seed(2)
    matrices = list(torch.randn(3, 9, 12, dtype=torch.float64))
    matrices[1][:4, 5] = bad
    outcomes = _solved(matrices)
    assert isinstance(outcomes[1], WeightsError)
    assert words in str(outcomes[1])
    _assert_proven(outcomes[0], matrices[0])
    _assert_proven(outcomes[2], matrices[2])


def test_what_is_not_proven_is_left_to_the_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = two_stage.eigenvalues

    def spoiled(grams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, passed = solved(grams)
        passed[0] = False
        values[1, -1] *= 1 + 1e-8
        values[2, 0] = math.nan
        return values, passed

    monkeypatch.setattr(two_stage, "eigenvalues", spoiled)
    torch.manual_seed(3)
    matrices = list(torch.randn(4, 9, 12))
    outcomes = _solved(matrices)
    assert outcomes[:3] == [None, None, None]
    _assert_proven(outcomes[3], matrices[3])


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate"), MemoryError()], ids=repr)
def test_a_batch_without_room_is_left_to_the_ladder(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_grams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise error

    monkeypatch.setattr(two_stage, "eigenvalues", fail)
    assert _solved([torch.eye(4), torch.eye(4)]) == [None, None]


@pytest.mark.parametrize("odd", [[torch.eye(5)], []], ids=["of another side", "too few"])
def test_a_batch_that_is_not_what_was_said_is_left_to_the_ladder(odd: list[torch.Tensor]) -> None:
    assert solve_batch([torch.eye(4), *odd], 2, 4, "cpu", TOLD.append) == [None, None]


def test_a_matrix_that_cannot_be_taken_leaves_all_to_the_ladder() -> None:
    def taken() -> Iterator[torch.Tensor]:
        yield torch.eye(4)
        raise MemoryError

    assert solve_batch(taken(), 2, 4, "cpu", TOLD.append) == [None, None]


def test_a_matrix_that_cannot_be_had_leaves_all_to_the_ladder_without_a_word() -> None:
    def taken() -> Iterator[torch.Tensor]:
        yield torch.ones(4, 7)
        raise WeightsError("the moments are of another width")

    TOLD.clear()
    assert solve_batch(taken(), 3, 4, "cpu", TOLD.append) == [None] * 3
    assert TOLD == []  # else no batch would be solved on that device from now on


def test_each_matrix_is_let_go_before_the_next() -> None:
    def taken() -> Iterator[torch.Tensor]:
        for _ in range(3):
            matrix = torch.eye(4)
            seen.append(weakref.ref(matrix))
            yield matrix
            del matrix
            assert [ref() for ref in seen] == [None] * len(seen)

    seen: list[weakref.ref[torch.Tensor]] = []
    assert None not in solve_batch(taken(), 3, 4, "cpu", TOLD.append)


@pytest.mark.parametrize(
    ("free", "small", "count"),
    [(80 << 30, 1, 32), (80 << 30, 2048, 32), (80 << 30, 4096, 16), (80 << 30, 5000, 8), (80 << 30, 9000, 1),
     (2 << 30, 4096, 3), (1 << 20, 4096, 1), (0, 0, 1)],
)  # fmt: skip
def test_a_batch_is_short_and_has_room(free: int, small: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_stage, "available", lambda _device: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 80 << 30))
    assert limits("cuda:0")(small) == count


@pytest.mark.parametrize("ours", [0.9, 1.1])
def test_where_float64_is_slow_the_faster_way_is_measured_once(ours: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of three takes `ours` of the library's time for three."""
    run: list[torch.Tensor] = []

    def seconds(way: Callable[[], torch.Tensor]) -> float:
        run.append(way())
        return 3 * ours if len(run) == 1 else 1.0

    monkeypatch.setattr(batch, "_FASTER", {})
    monkeypatch.setattr(batch, "_seconds", seconds)
    monkeypatch.setattr(batch, "limits", lambda _device: lambda _side: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 9))
    assert [batch.faster_together("cpu", small) for small in (33, 64, 40)] == [ours < 1] * 3
    together, alone = run
    assert together.shape == (3, 64)
    torch.testing.assert_close(together[0], alone)


def test_where_float64_is_fast_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.delattr(batch, "_seconds")
    assert batch.faster_together("cpu", 64)


def test_a_cpu_takes_one_matrix_at_a_time() -> None:
    assert [limits("cpu")(small) for small in (0, 1, 64, 4096)] == [1, 1, 1, 1]


def test_a_driver_that_does_not_answer_leaves_all_to_the_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_device: str) -> bool:
        raise RuntimeError("CUDA driver error")

    monkeypatch.setattr(two_stage, "available", fail)
    assert limits("cuda:0")(64) == 1


def test_a_single_value_equals_the_ladders_in_every_unit() -> None:
    """Bound, floor and norm are in units of the weights, as ladder.solve returns them."""
    torch.manual_seed(4)
    matrix = 1e-3 * torch.randn(12, 30, dtype=torch.float64)
    (ours,) = _solved([matrix])
    theirs = ladder.solve(matrix, ladder.choose("cpu"))
    assert isinstance(ours, Solution)
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-12)
    assert ours.provenance.frobenius_norm == pytest.approx(theirs.provenance.frobenius_norm, rel=1e-15)
    assert (ours.provenance.solver_version, ours.provenance.device) == (two_stage.VERSION, "cpu")
    assert ours.provenance.error_bound == pytest.approx(theirs.provenance.error_bound, rel=1e-9)
    assert ours.provenance.noise_floor == pytest.approx(theirs.provenance.noise_floor, rel=1e-9)
    assert 0 < ours.provenance.error_bound < 1e-14 * ours.values[0] * ours.values[0] / ours.values[-1]
    assert 1e-7 * ours.values[0] < ours.provenance.noise_floor < 1e-6 * ours.values[0]


@pytest.mark.parametrize("decade", range(0, 7, 2))
def test_the_bound_holds_on_ill_conditioned_matrices(decade: int) -> None:
    rng = np.random.default_rng(decade)
    matrices = [_with_spectrum(np.geomspace(1, 10.0**-decade, 12), 12, 13, rng) for _ in range(30)]
    outcomes = _solved([torch.from_numpy(matrix) for matrix in matrices])
    for outcome, matrix in zip(outcomes, matrices, strict=True):
        assert isinstance(outcome, Solution)
        exact = jacobi(matrix)
        slack = 100 * EXTENDED_EPS * float(exact[0])
        above = outcome.values > outcome.provenance.noise_floor
        assert (np.abs(outcome.values - exact)[above] <= outcome.provenance.error_bound + slack).all()
        assert (exact[~above] <= outcome.provenance.noise_floor * 1.05 + slack).all()

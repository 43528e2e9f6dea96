"""Singular values against LAPACK float64 and extended-precision Jacobi, and what happens when a solver fails."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from extended_reference import assert_bounds_hold
from lapack_reference import EXTENDED_EPS, Array, jacobi, lapack

from rankscope.engine.errors import WeightsError
from rankscope.engine.solvers import gram, svd
from rankscope.engine.solvers.ladder import Rung, Solution, choose, solve

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (17, 17), (31, 53), (53, 31), (64, 200), (200, 64)]
Make = Callable[[int, int, np.random.Generator], Array]


def _with_spectrum(sigma: Array, rows: int, cols: int, rng: np.random.Generator) -> Array:
    """A random matrix with these singular values."""
    left = np.linalg.qr(rng.standard_normal((rows, sigma.size)))[0]
    right = np.linalg.qr(rng.standard_normal((cols, sigma.size)))[0]
    return np.asarray((left * sigma) @ right.T)


def _random(rows: int, cols: int, rng: np.random.Generator) -> Array:
    return rng.standard_normal((rows, cols))


def _decaying(rows: int, cols: int, rng: np.random.Generator) -> Array:
    return _with_spectrum(np.geomspace(1, 1e-6, min(rows, cols)), rows, cols, rng)


def _clustered(rows: int, cols: int, rng: np.random.Generator) -> Array:
    small = min(rows, cols)
    return _with_spectrum(np.where(np.arange(small) < small / 2, 3.0, 1.0 + 1e-9), rows, cols, rng)


def _deficient(rows: int, cols: int, rng: np.random.Generator) -> Array:
    rank = max(1, min(rows, cols) // 3)
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols))


def _zero(rows: int, cols: int, _rng: np.random.Generator) -> Array:
    return np.zeros((rows, cols))


def _outlier(rows: int, cols: int, rng: np.random.Generator) -> Array:
    matrix = rng.standard_normal((rows, cols))
    matrix[rows // 2, cols // 2] = 1e4
    return matrix


def _huge(rows: int, cols: int, rng: np.random.Generator) -> Array:
    return 1e200 * rng.standard_normal((rows, cols))


def _tiny(rows: int, cols: int, rng: np.random.Generator) -> Array:
    return 1e-200 * rng.standard_normal((rows, cols))


def _subnormal(rows: int, cols: int, rng: np.random.Generator) -> Array:
    return 1e-310 * rng.standard_normal((rows, cols))


def _one_sign(rows: int, cols: int, rng: np.random.Generator) -> Array:
    """All entries positive: the first singular value takes nearly everything."""
    return 1.0 + rng.random((rows, cols))


KINDS: tuple[Make, ...] = (_random, _decaying, _clustered, _deficient, _zero, _outlier, _huge, _tiny, _one_sign)


def _assert_proven(solution: Solution, matrix: torch.Tensor) -> None:
    """Check type, order and sign, the stated bound against exact values and LAPACK's, and the norm."""
    exact = matrix.double().numpy()
    wanted = lapack(exact)
    top = float(wanted[0])
    assert solution.values.dtype == np.float64
    assert solution.values.shape == wanted.shape
    assert (np.diff(solution.values) <= 0).all()
    assert solution.values[-1] >= 0
    errors = np.abs(solution.values - wanted)
    assert errors.max() <= 1e-10 * top
    assert_bounds_hold(solution, exact)
    scale = top or 1.0
    assert solution.provenance.frobenius_norm / scale == pytest.approx(
        math.sqrt(((exact / scale) ** 2).sum()), rel=1e-13
    )


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_lapacks(make: Make, shape: tuple[int, int]) -> None:
    matrix = torch.from_numpy(make(*shape, np.random.default_rng(shape[0] * 1000 + shape[1])))
    _assert_proven(solve(matrix, choose("cpu")), matrix)


def test_subnormal_weights_are_weights() -> None:
    matrix = torch.from_numpy(_subnormal(9, 5, np.random.default_rng(2)))
    solution = solve(matrix, choose("cpu"))
    wanted = lapack(matrix * 2.0**1000) * 2.0**-1000
    assert np.abs(solution.values - wanted).max() <= 1e-10 * wanted[0]


DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(31, 53), (200, 64)], ids=str)
def test_every_stored_type_is_solved_in_float64(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape, dtype=torch.float64).to(dtype)
    _assert_proven(solve(matrix, choose("cpu")), matrix)


def test_a_cut_that_is_not_contiguous_is_solved() -> None:
    torch.manual_seed(2)
    matrix = torch.randn(40, 60, dtype=torch.bfloat16).T[::2, 3:30]
    _assert_proven(solve(matrix, choose("cpu")), matrix)


def test_a_spectrum_beyond_float64_is_refused_in_words() -> None:
    with pytest.raises(WeightsError, match="exceed the range of float64"):
        solve(torch.full((4, 5), 1.7e308, dtype=torch.float64), choose("cpu"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_and_infinity_are_refused_in_words(bad: float, dtype: torch.dtype) -> None:
    matrix = torch.ones(6, 5, dtype=dtype)
    matrix[3, 2] = bad
    with pytest.raises(WeightsError, match="the weights hold NaN or infinite values"):
        solve(matrix, choose("cpu"))


def _rung(name: str, routine: Callable[[torch.Tensor, float], torch.Tensor]) -> Rung:
    return Rung(name, 1, "cpu", routine, math.inf, svd.accuracy)


def _raising(error: BaseException) -> Callable[[torch.Tensor, float], torch.Tensor]:
    def routine(_matrix: torch.Tensor, _scale: float) -> torch.Tensor:
        raise error

    return routine


def _one_value_off(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    sigma = svd.singular_values(matrix, scale)
    sigma[0] *= 1 + 1e-8
    return sigma


def _not_a_number(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    return svd.singular_values(matrix, scale) * math.nan


LAST = Rung(svd.NAME, svd.VERSION, "cpu", svd.singular_values, math.inf, svd.accuracy)
BROKEN = {
    "wrong": _one_value_off,
    "nan": _not_a_number,
    "out of memory": _raising(RuntimeError("CUDA out of memory. Tried to allocate")),
    "no host memory": _raising(MemoryError()),
    "not converged": _raising(torch.linalg.LinAlgError("failed to converge")),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("routine", BROKEN.values(), ids=BROKEN.keys())
def test_the_next_solver_takes_over(routine: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
    matrix = torch.from_numpy(_random(12, 9, np.random.default_rng(4)))
    solution = solve(matrix, [_rung("broken", routine), LAST])
    assert solution.provenance.solver == svd.NAME
    _assert_proven(solution, matrix)


REASONS = {
    "wrong": "sum sigma^2 is not the Frobenius norm squared",
    "nan": "sum sigma^2 is not the Frobenius norm squared",
    "out of memory": "out of memory",
    "no host memory": "out of memory",
    "not converged": "failed to converge",
}


def test_when_all_fail_each_is_named() -> None:
    rungs = [_rung(f"solver {name}", routine) for name, routine in BROKEN.items()]
    with pytest.raises(WeightsError) as caught:
        solve(torch.eye(5), rungs)
    assert str(caught.value) == "no singular values: " + "; ".join(
        f"solver {name} on cpu: {reason}" for name, reason in REASONS.items()
    )


@pytest.mark.parametrize(
    ("condition", "solver"), [(1e3, gram.NAME), (4e5, gram.NAME), (5e5, svd.NAME), (1e9, svd.NAME)]
)
def test_a_cpu_takes_gram_while_the_smallest_value_is_known_by_it(condition: float, solver: str) -> None:
    matrix = _with_spectrum(np.geomspace(1, 1 / condition, 150), 150, 200, np.random.default_rng(6))
    solution, wanted = solve(torch.from_numpy(matrix), choose("cpu")), lapack(matrix)
    assert solution.provenance.solver == solver
    assert abs(solution.values[-1] - wanted[-1]) <= 1e-5 * wanted[-1]
    assert np.abs(solution.values - wanted).max() <= 1e-10 * wanted[0]


@pytest.mark.parametrize("shape", [(31, 53), (53, 31), (5, 1000)], ids=str)
def test_slabs_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    matrix = torch.from_numpy(_random(*shape, np.random.default_rng(8)))
    monkeypatch.setattr(gram, "_CHUNK_BYTES", 8 * min(shape) * 7)  # a slab has seven columns
    widths = [slab.shape[1] for slab in gram.slabs(matrix)]
    assert sum(widths) == max(shape)
    assert max(widths) == 7
    solution = solve(matrix, [Rung(gram.NAME, gram.VERSION, "cpu", gram.singular_values, math.inf, gram.accuracy)])
    assert solution.provenance.solver == gram.NAME
    _assert_proven(solution, matrix)


def test_a_slab_holds_at_least_one_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_CHUNK_BYTES", 1)
    matrix = torch.from_numpy(_random(3, 5, np.random.default_rng(9)))
    assert [slab.shape for slab in gram.slabs(matrix)] == [(3, 1)] * 5
    _assert_proven(solve(matrix, choose("cpu")), matrix)


def _gram_of(matrix: Array) -> Solution:
    by_gram = Rung(gram.NAME, gram.VERSION, "cpu", gram.singular_values, math.inf, gram.accuracy)
    return solve(torch.from_numpy(matrix), [by_gram])


def _assert_bound_holds(solution: Solution, matrix: Array) -> None:
    """Check that values above the floor are within the bound of the exact ones, and the others below the floor."""
    exact = jacobi(matrix)
    slack = 100 * EXTENDED_EPS * float(exact[0])
    errors = np.abs(solution.values - exact)
    above = solution.values > solution.provenance.noise_floor
    assert (errors[above] <= solution.provenance.error_bound + slack).all()
    assert (exact[~above] <= solution.provenance.noise_floor * 1.05 + slack).all()


def test_the_reference_knows_closed_forms() -> None:
    """[[1, t], [0, 1]] has the singular values (sqrt(t^2 + 4) +- t) / 2; their product is one."""
    exact = jacobi(np.array([[1.0, 1000.0], [0.0, 1.0]]))
    assert float(exact[0] * exact[1]) == pytest.approx(1.0, rel=1e-15)
    assert float(exact[0]) == pytest.approx((math.sqrt(1000.0**2 + 4) + 1000.0) / 2, rel=1e-15)
    matrix = _random(13, 11, np.random.default_rng(1))
    np.testing.assert_allclose(np.asarray(jacobi(matrix), float), lapack(matrix), rtol=1e-13)


@pytest.mark.parametrize("decade", range(7))
def test_the_grams_bound_holds_on_ill_conditioned_matrices(decade: int) -> None:
    for seed in range(30):
        rng = np.random.default_rng(1000 * decade + seed)
        rows, cols = int(rng.integers(2, 14)), int(rng.integers(2, 14))
        sigma = np.geomspace(1, 10.0**-decade, min(rows, cols))
        matrix = _with_spectrum(sigma, rows, cols, rng)
        _assert_bound_holds(_gram_of(matrix), matrix)


@pytest.mark.parametrize("shape", [(2, 20_000), (3, 50_000)], ids=str)
def test_the_grams_bound_holds_on_long_sums(shape: tuple[int, int]) -> None:
    matrix = _one_sign(*shape, np.random.default_rng(12))
    _assert_bound_holds(_gram_of(matrix), matrix)


def test_a_rank_eight_matrix_shows_eight_values_above_the_floor() -> None:
    rng = np.random.default_rng(13)
    solution = _gram_of(rng.standard_normal((40, 8)) @ rng.standard_normal((8, 40)))
    assert int((solution.values > solution.provenance.noise_floor).sum()) == 8
    assert int((solution.values > 40 * np.finfo(float).eps * solution.values[0]).sum()) > 8  # without the floor


def test_a_zero_matrix_has_no_error() -> None:
    solution = solve(torch.zeros(4, 6), choose("cpu"))
    assert (solution.values == 0).all()
    assert (solution.provenance.frobenius_norm, solution.provenance.error_bound, solution.provenance.noise_floor) == (
        0.0,
        0.0,
        0.0,
    )

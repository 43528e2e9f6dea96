"""Energy and ranks against closed forms and exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rankscope.engine.metrics import (
    break_even_rank,
    condition_number,
    effective_rank,
    energy,
    energy_at,
    entropy_rank,
    factor_parameters,
    nuclear_ratio,
    numerical_rank,
    participation_ratio,
    rank_is_bound,
    relative_error,
    stable_rank,
    threshold_rank,
    threshold_ranks,
)
from rankscope.engine.solvers.ladder import choose, solve
from rankscope.engine.spectrum import Values

TENTHS = tuple(i / 10 for i in range(1, 11))
VECTOR = np.array([4.0, 3.0, 2.0, 1.0])
EPS = float(np.finfo(np.float64).eps)
Ratio = Callable[[Values], float | None]
COUNTS: tuple[Ratio, ...] = (effective_rank, entropy_rank, stable_rank, participation_ratio, nuclear_ratio)
"""Each counts directions: r of r equal values, 1 of one."""


def test_the_vector_of_the_field_notes() -> None:
    assert effective_rank(VECTOR) == pytest.approx(3.596115, abs=5e-7)
    assert entropy_rank(VECTOR) == pytest.approx(2.940198, abs=5e-7)
    assert stable_rank(VECTOR) == 1.875
    assert participation_ratio(VECTOR) == pytest.approx(2.542373, abs=5e-7)
    assert nuclear_ratio(VECTOR) == 2.5
    assert condition_number(VECTOR, 0.0) == (4.0, False)
    assert threshold_ranks(VECTOR, (0.6, 0.8, 0.9, 0.95, 0.99)) == (2, 2, 3, 3, 4)
    np.testing.assert_allclose(energy(VECTOR), [16 / 30, 25 / 30, 29 / 30, 1.0], rtol=1e-15)


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_equal_values_are_counted_as_the_threshold_says(count: int) -> None:
    """A tie exact in real numbers, 6 of 10 at 0.6, is not lost to rounding."""
    values = np.full(count, 0.1)
    assert threshold_ranks(values, TENTHS) == tuple(count * i // 10 for i in range(1, 11))


def test_ties_of_an_identity_that_was_computed() -> None:
    values = solve(0.3 * torch.eye(10, dtype=torch.float64), choose("cpu")).values
    assert threshold_ranks(values, TENTHS) == tuple(range(1, 11))


def test_ties_of_a_rotation_that_was_computed() -> None:
    """A random orthogonal matrix: its values are one only up to rounding."""
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((10, 10)))[0]
    values = solve(torch.from_numpy(rotation), choose("cpu")).values
    assert threshold_ranks(values, TENTHS) == tuple(range(1, 11))


def test_a_zero_matrix_has_no_rank_and_no_ratios() -> None:
    zeros = np.zeros(5)
    assert threshold_ranks(zeros, (0.1, 0.9, 1.0)) == (0, 0, 0)
    assert (energy(zeros) == 0).all()
    assert [count(zeros) for count in COUNTS] == [None] * 5
    assert numerical_rank(zeros, 5, 9, 0.0) == 0
    assert condition_number(zeros, 0.0) is None
    assert [(energy_at(zeros, k), relative_error(zeros, k)) for k in (0, 3, 5)] == [(0.0, 0.0)] * 3


def test_no_values_at_all() -> None:
    nothing = np.zeros(0)
    assert threshold_rank(nothing, 0.5) == 0
    assert energy(nothing).shape == (0,)
    assert [count(nothing) for count in COUNTS] == [None] * 5
    assert numerical_rank(nothing, 0, 5, 0.0) == 0
    assert condition_number(nothing, 0.0) is None
    assert (energy_at(nothing, 0), relative_error(nothing, 0)) == (0.0, 0.0)


def test_the_whole_energy_needs_every_value_that_is_not_zero() -> None:
    assert threshold_rank(VECTOR, 1.0) == 4
    assert threshold_rank(np.array([4.0, 3.0, 0.0, 0.0]), 1.0) == 2
    assert threshold_rank(np.ones(997), 1.0) == 997


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0000001, 60.0, math.nan, math.inf])
def test_a_threshold_outside_zero_to_one_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"a threshold must be above 0 and at most 1"):
        threshold_rank(VECTOR, threshold)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 2.0**1000, 2.0**-1000])
def test_neither_overflow_nor_underflow(scale: float) -> None:
    assert threshold_ranks(VECTOR * scale, TENTHS) == threshold_ranks(VECTOR, TENTHS)
    for count in COUNTS:
        assert count(VECTOR * scale) == pytest.approx(count(VECTOR), rel=1e-14)
    assert relative_error(VECTOR * scale, 2) == pytest.approx(math.sqrt(5 / 30), rel=1e-14)
    assert condition_number(VECTOR * scale, 0.0) == (pytest.approx(4.0, rel=1e-14), False)
    assert numerical_rank(VECTOR * scale, 4, 4, 0.0) == 4
    np.testing.assert_allclose(energy(VECTOR * scale), energy(VECTOR), rtol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 17, 4096])
def test_a_uniform_spectrum_has_full_rank(count: int) -> None:
    values = np.full(count, 0.37)
    assert [counted(values) for counted in COUNTS] == [pytest.approx(count, rel=1e-12)] * 5


def test_one_direction_has_rank_one() -> None:
    values = np.array([5.0, 0.0, 0.0])
    assert [counted(values) for counted in COUNTS] == [1.0] * 5
    assert threshold_ranks(values, TENTHS) == (1,) * 10


def test_energy_is_one_minus_the_error_of_the_best_approximation() -> None:
    """Eckart-Young, on a matrix: truncate numpy's SVD and measure what is left."""
    matrix = np.random.default_rng(3).standard_normal((9, 14))
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    curve = energy(sigma)
    for k in range(1, 10):
        error = np.linalg.norm(matrix - (left[:, :k] * sigma[:k]) @ right[:k]) / np.linalg.norm(matrix)
        assert math.sqrt(max(0.0, 1 - curve[k - 1])) == pytest.approx(error, abs=1e-7)
        assert relative_error(sigma, k) == pytest.approx(error, abs=1e-14)
        assert energy_at(sigma, k) == curve[k - 1]
    assert (energy_at(sigma, 0), relative_error(sigma, 0), relative_error(sigma, 9)) == (0.0, 1.0, 0.0)


def test_a_tiny_error_is_exact() -> None:
    """1 - energy would be 0 here: against whole numbers, and where even the squares of what is left vanish."""
    sigma = [10**9, 10**8, 5, 4, 3]
    for k in range(1, 5):
        exact = Fraction(sum(s * s for s in sigma[k:]), sum(s * s for s in sigma))
        assert relative_error(np.array(sigma, np.float64), k) == pytest.approx(math.sqrt(exact), rel=1e-14)
    assert relative_error(np.array([1.0, 3e-250, 4e-250]), 1) == pytest.approx(5e-250, rel=1e-14)


@pytest.mark.parametrize("k", [-1, 5])
@pytest.mark.parametrize("function", [energy_at, relative_error])
def test_a_rank_that_does_not_exist_is_refused(function: Callable[[Values, int], float], k: int) -> None:
    with pytest.raises(ValueError, match=r"a rank must be from 0 to 4, not"):
        function(VECTOR, k)


@pytest.mark.parametrize("rank", [1, 5, 8, 20])
def test_the_numerical_rank_is_numpys_where_the_solver_has_no_floor(rank: int) -> None:
    rng = np.random.default_rng(rank)
    matrix = rng.standard_normal((20, rank)) @ rng.standard_normal((rank, 50))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    assert numerical_rank(sigma, 20, 50, 0.0) == np.linalg.matrix_rank(matrix) == rank


def test_the_numerical_rank_counts_above_both_bounds() -> None:
    ours = 50 * EPS  # of a 20 x 50 matrix with sigma_1 = 1
    values = np.array([1.0, 1e-3, 1e-3, 2 * ours, ours, 0.0])
    assert numerical_rank(values, 20, 50, 0.0) == 4
    assert numerical_rank(values, 20, 50, 2 * ours) == 3
    assert numerical_rank(values, 20, 50, 1e-3) == 1
    assert numerical_rank(values, 2, 5, 0.0) == 5


def test_a_deficient_matrix_by_gram_has_the_rank_that_it_was_made_with() -> None:
    rng = np.random.default_rng(13)
    made = torch.from_numpy(rng.standard_normal((40, 8)) @ rng.standard_normal((8, 40)))
    by_gram = solve(made, [replace(choose("cpu")[0], reach=math.inf)])
    assert numerical_rank(by_gram.values, 40, 40, 0.0) > 8
    assert numerical_rank(by_gram.values, 40, 40, by_gram.provenance.noise_floor) == 8
    condition, is_bound = condition_number(by_gram.values, by_gram.provenance.noise_floor) or (0.0, False)
    assert is_bound
    assert rank_is_bound(by_gram.values, 40, 40, by_gram.provenance.noise_floor)
    assert condition == by_gram.values[0] / by_gram.provenance.noise_floor


def test_a_numerical_rank_is_a_bound_where_the_solver_hides_a_value_that_rounding_does_not() -> None:
    rounding = 50 * np.finfo(float).eps
    hidden = np.array([1.0, 0.5, 1e-9])
    assert rank_is_bound(hidden, 20, 50, 1e-7)
    assert not rank_is_bound(hidden, 20, 50, 1e-10)
    assert not rank_is_bound(np.array([1.0, 0.5, 1e-17]), 20, 50, rounding)  # an SVD's floor: the rank is what it is
    assert not rank_is_bound(np.zeros(3), 20, 50, 1e-7)
    assert not rank_is_bound(np.zeros(0), 0, 50, 0.0)


def test_the_condition_number_is_numpys_or_a_bound() -> None:
    matrix = np.random.default_rng(5).standard_normal((12, 7))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    assert condition_number(sigma, 1e-9) == (pytest.approx(np.linalg.cond(matrix), rel=1e-13), False)
    assert condition_number(np.array([8.0, 1.0, 1e-9]), 2.0**-20) == (2.0**23, True)
    assert condition_number(np.array([8.0, 0.0]), 2.0) == (4.0, True)
    assert condition_number(np.array([8.0, 0.0]), 0.0) == (math.inf, True)


def test_up_to_the_break_even_rank_two_factors_hold_no_more_than_the_matrix() -> None:
    """At most as many numbers; one component more would be more: 576 x 1536 is 418.9."""
    assert [break_even_rank(*s) for s in ((4096, 4096), (1024, 4096), (14336, 4096), (576, 1536))] == [
        2048, 819, 3185, 418,
    ]  # fmt: skip
    for rows, cols in ((12, 4), (6, 3), (10, 10), (7, 5), (1, 9), (1, 1), (2**40, 3 * 2**40 + 1)):
        k = break_even_rank(rows, cols)
        assert isinstance(k, int)
        assert k * (rows + cols) <= rows * cols < (k + 1) * (rows + cols)
    for k in range(4):
        left, right = np.ones((7, k)), np.ones((k, 5))
        assert factor_parameters(7, 5, k) == left.size + right.size
    assert (break_even_rank(0, 0), break_even_rank(0, 4)) == (0, 0)


def _integers(seed: int) -> NDArray[np.int64]:
    """Descending whole numbers, with ties, zeros and outliers among them."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, int(rng.choice([3, 30, 3000])), int(rng.integers(1, 40)))
    if seed % 5 == 0:
        values[0] = 10**6
    return np.sort(values)[::-1]


def _exact_rank(sigma: NDArray[np.int64], threshold: Fraction) -> int:
    """The definition, in whole numbers: the smallest k with energy(k) >= threshold."""
    squares = [int(s) ** 2 for s in sigma]
    total, running = sum(squares), 0
    for k, square in enumerate(squares, 1):
        running += square
        if total and Fraction(running, total) >= threshold:
            return k
    return 0


def test_threshold_ranks_are_exact_on_whole_numbers() -> None:
    """300 vectors at hundredths, read as the decimal fractions that a user types."""
    hundredths = [Fraction(i, 100) for i in range(1, 101)]
    for seed in range(300):
        sigma = _integers(seed)
        wanted = tuple(_exact_rank(sigma, t) for t in hundredths)
        assert threshold_ranks(sigma.astype(np.float64), tuple(float(t) for t in hundredths)) == wanted


def test_one_threshold_or_many_give_the_same() -> None:
    for seed in range(20):
        sigma = _integers(seed).astype(np.float64)
        assert threshold_ranks(sigma, TENTHS) == tuple(threshold_rank(sigma, t) for t in TENTHS)


def test_ratios_are_their_definitions_on_whole_numbers() -> None:
    for seed in range(100):
        sigma = [int(s) for s in _integers(seed)]
        if not sigma[0]:
            continue
        values = np.array(sigma, np.float64)
        squares = [s * s for s in sigma]
        assert stable_rank(values) == pytest.approx(float(Fraction(sum(squares), sigma[0] ** 2)))
        assert nuclear_ratio(values) == pytest.approx(float(Fraction(sum(sigma), sigma[0])))
        assert participation_ratio(values) == pytest.approx(
            float(Fraction(sum(squares) ** 2, sum(s * s for s in squares)))
        )
        for rank, weights in ((effective_rank, sigma), (entropy_rank, squares)):
            p = [w / sum(weights) for w in weights if w]
            assert rank(values) == pytest.approx(math.exp(-math.fsum(x * math.log(x) for x in p)))

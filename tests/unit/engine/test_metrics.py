"""Energy and ranks against closed forms and exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rankscope.engine.metrics import effective_rank, energy, stable_rank, threshold_rank, threshold_ranks
from rankscope.engine.solvers.ladder import choose, solve

TENTHS = tuple(i / 10 for i in range(1, 11))
VECTOR = np.array([4.0, 3.0, 2.0, 1.0])


def test_the_vector_of_the_field_notes() -> None:
    assert effective_rank(VECTOR) == pytest.approx(3.596115, abs=5e-7)
    assert stable_rank(VECTOR) == 1.875
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
    assert effective_rank(zeros) is None
    assert stable_rank(zeros) is None


def test_no_values_at_all() -> None:
    nothing = np.zeros(0)
    assert threshold_rank(nothing, 0.5) == 0
    assert energy(nothing).shape == (0,)
    assert effective_rank(nothing) is None
    assert stable_rank(nothing) is None


def test_the_whole_energy_needs_every_value_that_is_not_zero() -> None:
    assert threshold_rank(VECTOR, 1.0) == 4
    assert threshold_rank(np.array([4.0, 3.0, 0.0, 0.0]), 1.0) == 2
    assert threshold_rank(np.ones(997), 1.0) == 997


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0000001, 60.0, math.nan, math.inf])
def test_a_threshold_outside_zero_to_one_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"a threshold lies in \(0, 1\]"):
        threshold_rank(VECTOR, threshold)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 2.0**1000, 2.0**-1000])
def test_neither_overflow_nor_underflow(scale: float) -> None:
    assert threshold_ranks(VECTOR * scale, TENTHS) == threshold_ranks(VECTOR, TENTHS)
    assert effective_rank(VECTOR * scale) == pytest.approx(effective_rank(VECTOR), rel=1e-14)
    assert stable_rank(VECTOR * scale) == pytest.approx(1.875, rel=1e-14)
    np.testing.assert_allclose(energy(VECTOR * scale), energy(VECTOR), rtol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 17, 4096])
def test_a_uniform_spectrum_has_full_rank(count: int) -> None:
    values = np.full(count, 0.37)
    assert effective_rank(values) == pytest.approx(count, rel=1e-12)
    assert stable_rank(values) == pytest.approx(count, rel=1e-12)


def test_one_direction_has_rank_one() -> None:
    values = np.array([5.0, 0.0, 0.0])
    assert effective_rank(values) == 1.0
    assert stable_rank(values) == 1.0
    assert threshold_ranks(values, TENTHS) == (1,) * 10


def test_energy_is_one_minus_the_error_of_the_best_approximation() -> None:
    """Eckart-Young, on a matrix: truncate numpy's SVD and measure what is left."""
    matrix = np.random.default_rng(3).standard_normal((9, 14))
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    curve = energy(sigma)
    for k in range(1, 10):
        error = np.linalg.norm(matrix - (left[:, :k] * sigma[:k]) @ right[:k]) / np.linalg.norm(matrix)
        assert math.sqrt(max(0.0, 1 - curve[k - 1])) == pytest.approx(error, abs=1e-7)


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
        p = [s / sum(sigma) for s in sigma if s]
        values = np.array(sigma, np.float64)
        assert stable_rank(values) == pytest.approx(float(Fraction(sum(s * s for s in sigma), sigma[0] ** 2)))
        assert effective_rank(values) == pytest.approx(math.exp(-math.fsum(x * math.log(x) for x in p)))

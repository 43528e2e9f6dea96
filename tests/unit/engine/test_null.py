"""The spectra of noise by shape, against Gaussian matrices that are drawn and solved by LAPACK."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from rankscope.engine import null
from rankscope.engine.metrics import energy, threshold_ranks
from rankscope.engine.null import mean_energy, noise_edge, noise_energy, noise_scale, noise_values, null_rank, spikes
from rankscope.engine.spectrum import Values

THRESHOLDS = (0.6, 0.8, 0.9, 0.95, 0.99)
LARGE = [(512, 512), (512, 2048), (1280, 640), (512, 1792), (768, 768)]
SMALL = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (17, 17), (40, 17), (10, 100), (64, 64), (128, 512), (255, 300)]


@cache
def drawn(rows: int, cols: int) -> Values:
    """Singular values of Gaussian matrices, shape (draws, min): more draws for a small matrix, which varies more."""
    rng = np.random.default_rng([rows, cols])
    draws = []
    for _ in range(max(3, min(200, 4000 // min(rows, cols)))):
        matrix = rng.standard_normal((rows, cols))
        wide = matrix if rows <= cols else matrix.T
        draws.append(np.sqrt(np.linalg.eigvalsh(wide @ wide.T).clip(0.0))[::-1])
    return np.array(draws)


def sampled_ranks(rows: int, cols: int) -> Values:
    """Mean threshold ranks of the drawn matrices, shape (5,)."""
    return np.mean([threshold_ranks(values, THRESHOLDS) for values in drawn(rows, cols)], axis=0)


def null_ranks(rows: int, cols: int) -> Values:
    return np.array([null_rank(rows, cols, t) for t in THRESHOLDS])


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_null_ranks_of_large_matrices_are_those_of_drawn_ones_within_a_hundredth(shape: tuple[int, int]) -> None:
    np.testing.assert_allclose(null_ranks(*shape), sampled_ranks(*shape), rtol=0.01)


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_null_ranks_of_small_matrices_are_those_of_drawn_ones_within_one(shape: tuple[int, int]) -> None:
    """Equal on average: the ranks of two draws may differ by two."""
    np.testing.assert_allclose(null_ranks(*shape), sampled_ranks(*shape), rtol=0.0, atol=1.0)


@pytest.mark.parametrize(("side", "draws", "within"), [(8, 1000, 0.05), (16, 500, 0.05), (32, 1000, 0.01)])
@pytest.mark.parametrize("flat", [1, 2, 4])
def test_noise_needs_as_many_components_as_noise(side: int, draws: int, within: float, flat: int) -> None:
    """k / k0 of pure noise is 1 in the mean. With this many draws the mean is right to .004 at side 8 and .001 at
    side 32; without the half component k0 would be 7 to 13 % and 2 to 3 % too small."""
    shape, wanted = (side, flat * side), (0.8, 0.9, 0.95)
    noise = np.random.default_rng(side).standard_normal((draws, *shape))
    squares = np.linalg.eigvalsh(noise @ noise.transpose(0, 2, 1))[:, ::-1]
    shares = np.cumsum(squares, axis=1) / squares.sum(axis=1, keepdims=True)
    ranks = [(shares < t).sum(axis=1).mean() + 1 for t in wanted]  # the first k whose share reaches t
    np.testing.assert_allclose(ranks, [null_rank(*shape, t) for t in wanted], rtol=within)
    reached = np.interp(wanted, noise_energy(*shape), np.arange(1, side + 1))
    np.testing.assert_allclose(ranks, reached, rtol=within)


def test_null_ranks_of_the_field_notes() -> None:
    for shape, shares in (((4096, 4096), (0.236, 0.387, 0.510)), ((1024, 4096), (0.392, 0.609, 0.761))):
        found = [(null_rank(*shape, t) - 0.5) / min(shape) for t in THRESHOLDS[:3]]
        np.testing.assert_allclose(found, shares, atol=6e-4)


def test_the_null_rank_is_half_a_component_more_than_the_law_says() -> None:
    """For a square matrix in closed form: the share (a - sin a) / pi of the count is above x = 2 + 2 cos a, and (a -
    sin(2 a) / 2) / pi of the sum."""
    for side in (64, 576):
        for a in (0.8, 1.5, 2.3, 2.9):
            share, count = (a - np.sin(2 * a) / 2) / np.pi, (a - np.sin(a)) / np.pi
            assert null_rank(side, side, share) - side * count == pytest.approx(0.5, abs=side * 1e-6)


def test_a_null_rank_is_one_at_least_and_the_full_rank_at_most() -> None:
    for shape in ((1, 1), (4, 4), (3, 9)):
        assert [null_rank(*shape, t) for t in (1e-9, 1.0)] == [1.0, min(shape)]
    assert null_rank(0, 7, 0.9) == 0.0


@pytest.mark.parametrize("shape", [*LARGE, (128, 512), (255, 300)], ids=str)
def test_noise_values_are_those_of_drawn_matrices(shape: tuple[int, int]) -> None:
    values = noise_values(*shape, 0.02)
    assert values.shape == (min(shape),)
    assert (np.diff(values) < 0).all()
    np.testing.assert_allclose(values, 0.02 * drawn(*shape).mean(axis=0), atol=0.01 * values[0])


@pytest.mark.parametrize("shape", [*LARGE, (128, 512), (255, 300)], ids=str)
def test_the_mean_energy_is_that_of_drawn_matrices(shape: tuple[int, int]) -> None:
    curve = mean_energy(*shape)
    sampled = np.mean([energy(values) for values in drawn(*shape)], axis=0)
    np.testing.assert_allclose(curve, sampled, atol=0.004)
    np.testing.assert_allclose(curve, energy(noise_values(*shape, 1.0)), atol=1e-4)
    assert curve[-1] == 1.0


@pytest.mark.parametrize("shape", [(1, 5), (17, 40), (64, 64), (512, 1792)], ids=str)
def test_noise_energy_reaches_a_threshold_at_its_null_rank(shape: tuple[int, int]) -> None:
    for k in range(1, min(shape) + 1):
        assert null_rank(*shape, float(noise_energy(*shape)[k - 1])) == pytest.approx(k, abs=1e-6)


def test_noise_does_not_ask_which_side_is_which() -> None:
    np.testing.assert_array_equal(noise_values(40, 17, 1.0), noise_values(17, 40, 1.0))
    np.testing.assert_array_equal(noise_energy(40, 17), noise_energy(17, 40))
    np.testing.assert_array_equal(mean_energy(40, 17), mean_energy(17, 40))
    assert null_rank(40, 17, 0.9) == null_rank(17, 40, 0.9)
    assert noise_edge(40, 17, 2.0) == noise_edge(17, 40, 2.0)


def test_what_a_caller_does_to_noise_values_stays_with_him() -> None:
    noise_values(9, 12, 1.0)[:] = 0.0
    assert noise_values(9, 12, 1.0)[0] > 0


@pytest.mark.parametrize("shape", [*LARGE, (128, 512), (255, 300)], ids=str)
@pytest.mark.parametrize("scale", [0.02, 1e-200, 1e200])
def test_the_scale_of_noise_is_found(shape: tuple[int, int], scale: float) -> None:
    for values in drawn(*shape):
        assert noise_scale(values * scale, *shape) / scale == pytest.approx(1.0, abs=0.02)
    assert noise_scale(noise_values(*shape, scale), *shape) / scale == pytest.approx(1.0, abs=1e-12)


def test_the_median_is_that_of_gavish_and_donoho() -> None:
    """Their omega is lambda sqrt(n) s / median: 2.858 for a square, .56 b^3 - .95 b^2 + 1.82 b + 1.43 within .02."""
    for beta in (1.0, 0.75, 0.5, 0.25, 0.125):
        rows, cols = int(4096 * beta), 4096
        root = np.sqrt(beta**2 + 14 * beta + 1)
        optimal = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))  # their lambda
        omega = optimal * cols**0.5 * noise_scale(np.ones(rows), rows, cols)
        assert omega == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.02)
        if beta == 1:
            assert omega == pytest.approx(2.858, abs=5e-4)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_noise_ends_at_the_edge_and_has_no_spikes(shape: tuple[int, int]) -> None:
    for values in drawn(*shape):
        assert values[0] == pytest.approx(noise_edge(*shape, 1.0), rel=0.02)
        assert spikes(values, *shape) <= 1


@pytest.mark.parametrize("planted", [1, 5, 30])
def test_spikes_are_the_directions_that_were_planted(planted: int) -> None:
    """Planted at 2 to 4 times the edge: they inflate the standard deviation of the entries, but not noise_scale."""
    shape, rng = (300, 500), np.random.default_rng(planted)
    noise = 0.02 * rng.standard_normal(shape)
    left, right = (np.linalg.qr(rng.standard_normal((side, planted)))[0] for side in shape)
    strength = noise_edge(*shape, 0.02) * np.linspace(4.0, 2.0, planted)
    matrix = noise + (left * strength) @ right.T
    values = np.linalg.svd(matrix, compute_uv=False)
    assert spikes(values, *shape) == planted
    if planted == 30:
        assert matrix.std() > 0.025
        assert noise_scale(values, *shape) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (1, 7), (7, 1), (2, 1), (1, 100_000)], ids=str)
def test_the_smallest_shapes_divide_by_nothing(shape: tuple[int, int]) -> None:
    small = min(shape)
    with np.errstate(all="raise"):
        values, curve, mean = noise_values(*shape, 0.5), noise_energy(*shape), mean_energy(*shape)
        assert values.shape == curve.shape == mean.shape == (small,)
        assert np.isfinite(values).all()
        assert spikes(values, *shape) == 0
        assert noise_scale(values, *shape) == pytest.approx(0.5 if small else 0.0)
        assert noise_edge(*shape, 0.0) == 0.0
        assert 0 <= null_rank(*shape, 0.9) <= small
    if small:
        assert curve[-1] == mean[-1] == 1.0


def test_spikes_are_never_more_than_the_numerical_rank() -> None:
    """At rank 1 LAPACK's other values are rounding, and most lie above the edge that follows from their median."""
    rng = np.random.default_rng(3)
    values = np.linalg.svd(np.outer(rng.standard_normal(60), rng.standard_normal(90)), compute_uv=False)
    assert (values > noise_edge(60, 90, noise_scale(values, 60, 90))).sum() > 1
    assert spikes(values, 60, 90) == 1
    by_gram = np.concatenate([[1.0], np.linspace(2e-8, 1e-9, 20), np.linspace(1e-10, 1e-11, 39)])
    assert [spikes(by_gram, 60, 90, floor) for floor in (3e-8, 1.5e-8)] == [1, 1 + int((by_gram[1:] > 1.5e-8).sum())]


def test_of_more_spikes_than_half_the_values_some_are_missed() -> None:
    """The median is then one of the spikes: the definition gives 26 for 100 among 192."""
    shape, rng = (192, 576), np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, 100)))[0] for side in shape)
    strength = noise_edge(*shape, 1.0) * np.linspace(4.0, 2.0, 100)
    values = np.linalg.svd(rng.standard_normal(shape) + (left * strength) @ right.T, compute_uv=False)
    assert (values > noise_edge(*shape, 1.0)).sum() == 100
    assert spikes(values, *shape) == pytest.approx(26, abs=2)
    for count in (1, 2, 9, 10):
        assert spikes(10.0 ** -np.arange(count), count, 12) <= count // 2


def test_a_zero_matrix_has_neither_scale_nor_spikes() -> None:
    assert noise_scale(np.zeros(5), 5, 9) == 0.0
    assert spikes(np.zeros(5), 5, 9) == 0


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (7, 9), (8, 30)])
def test_the_scale_is_a_ratio_of_medians_that_of_noise_worked_out_once_a_shape(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(sum(shape))
    unit = noise_values(*shape, 1.0)
    asked: list[tuple[int, ...]] = []
    real = null._unit_values.__wrapped__
    monkeypatch.setattr(null, "_unit_values", lambda *of: asked.append(of) or real(*of))
    null._unit_median.cache_clear()
    for _ in range(3):
        values = np.sort(rng.exponential(size=min(shape)))[::-1]
        assert noise_scale(values, *shape) == pytest.approx(np.median(values) / np.median(unit), rel=1e-15)
    assert asked == [(*shape, 0)]

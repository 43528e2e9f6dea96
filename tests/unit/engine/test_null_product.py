"""Noise of a product of two factors, against drawn factors whose product LAPACK decomposes."""

from __future__ import annotations

import numpy as np
import pytest
from lapack_reference import lapack

from rankscope.engine.metrics import energy, threshold_ranks
from rankscope.engine.null import mean_energy, noise_edge, noise_energy, noise_scale, noise_values, null_rank, spikes
from rankscope.engine.spectrum import THRESHOLDS, Values

SHAPES = [(96, 64, 16), (64, 96, 150), (80, 80, 80), (40, 400, 40), (120, 100, 1), (90, 100, 4)]


def drawn(rows: int, cols: int, inner: int, count: int) -> list[Values]:
    rng = np.random.default_rng(rows + cols + inner)
    small = min(rows, cols, inner)
    return [
        lapack(rng.standard_normal((rows, inner)) @ rng.standard_normal((inner, cols)))[:small] for _ in range(count)
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_of_a_product_is_that_of_drawn_factors(shape: tuple[int, int, int]) -> None:
    rows, cols, inner = shape
    found = drawn(*shape, count=40)
    ranks = np.mean([threshold_ranks(values, THRESHOLDS) for values in found], axis=0)
    wanted = [null_rank(rows, cols, t, inner) for t in THRESHOLDS]
    np.testing.assert_allclose(ranks, wanted, rtol=0.015, atol=0.5)
    scale = inner**0.5  # the standard deviation of an entry
    mean = np.mean(found, axis=0)
    middle = slice(len(mean) // 4, -len(mean) // 4 or None)
    np.testing.assert_allclose(noise_values(rows, cols, scale, inner)[middle], mean[middle], rtol=0.05)
    np.testing.assert_allclose(mean_energy(rows, cols, inner), np.mean([energy(v) for v in found], axis=0), atol=0.05)
    assert np.mean([noise_scale(v, rows, cols, inner) for v in found]) == pytest.approx(scale, rel=0.05)
    edge = noise_edge(rows, cols, scale, inner)
    assert (0.9 if inner > 4 else 0.8) * edge < np.mean([v[0] for v in found]) < edge
    assert np.mean([spikes(v, rows, cols, 0.0, inner) for v in found]) < 1


def test_a_matrix_of_iid_noise_of_the_same_shape_needs_more_than_a_product() -> None:
    """The law for the shape alone would find structure in every product of noise."""
    rows, cols, inner = 96, 64, 64
    assert null_rank(rows, cols, 0.9, inner) < 0.8 * null_rank(rows, cols, 0.9)


def test_the_order_of_the_sizes_does_not_matter_and_a_wide_inner_size_is_a_matrix() -> None:
    assert null_rank(30, 50, 0.9, 20) == null_rank(50, 20, 0.9, 30) == null_rank(20, 30, 0.9, 50)
    assert null_rank(30, 50, 0.9, 10**7) == pytest.approx(null_rank(30, 50, 0.9), rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 3), (7, 1, 3), (2, 2, 2), (5, 9, 2), (0, 4, 3)])
def test_tiny_products(shape: tuple[int, int, int]) -> None:
    rows, cols, inner = shape
    small = min(shape)
    assert min(1, small) <= null_rank(rows, cols, 0.9, inner) <= small
    assert len(noise_energy(rows, cols, inner)) == len(noise_values(rows, cols, 1.0, inner)) == small
    for k in range(1, small):
        assert null_rank(rows, cols, float(noise_energy(rows, cols, inner)[k - 1]), inner) == pytest.approx(k, abs=1e-6)

"""Leading singular triplets against LAPACK's SVD in float64, by the Gram matrix and by block Krylov."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rankscope.engine.errors import WeightsError
from rankscope.engine.solvers import leading
from rankscope.engine.solvers.leading import Triplets, leading_triplets

Array = NDArray[np.float64]
SHAPES = [(1, 1), (1, 7), (7, 1), (5, 3), (64, 200), (200, 64)]
LARGE = [(300, 420), (420, 300)]


def with_spectrum(sigma: Array, rows: int, cols: int) -> Array:
    """A random matrix with these singular values."""
    rng = np.random.default_rng(5)
    left = np.linalg.qr(rng.standard_normal((rows, sigma.size)))[0]
    right = np.linalg.qr(rng.standard_normal((cols, sigma.size)))[0]
    return np.asarray((left * sigma) @ right.T)


def assert_leading(found: Triplets, matrix: Array, loose: float = 1e-8) -> None:
    """Check values, the residuals of vectors on both sides, and the norms of rows and columns against LAPACK."""
    true = np.linalg.svd(matrix, compute_uv=False)
    k, top = min(8, *matrix.shape), true[0]
    assert found.values.shape == (k,)
    np.testing.assert_allclose(found.values, true[:k], atol=max(1e-13 * top, found.residual), rtol=0)
    assert np.linalg.norm(matrix @ found.right - found.left * found.values, axis=0).max() <= loose * top
    assert np.linalg.norm(matrix.T @ found.left - found.right * found.values, axis=0).max() <= loose * top
    for vectors in (found.left, found.right):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=1e-12)
    assert (found.left[np.abs(found.left).argmax(0), np.arange(k)] > 0).all()
    np.testing.assert_allclose(found.row_norms, np.linalg.norm(matrix, axis=1), atol=1e-14 * top)
    np.testing.assert_allclose(found.column_norms, np.linalg.norm(matrix, axis=0), atol=1e-14 * top)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", ["numpy", "torch"])
def test_by_the_gram_matrix(shape: tuple[int, int], device: str) -> None:
    matrix = np.random.default_rng(1).standard_normal(shape)
    found = leading_triplets(matrix if device == "numpy" else torch.from_numpy(matrix), 8)
    assert found.solver == leading.GRAM
    assert_leading(found, matrix, 1e-14)


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("kind", ["half a per cent apart", "of rank 3", "one value", "zero"])
@pytest.mark.parametrize("is_kept", [True, False])
def test_by_block_krylov(shape: tuple[int, int], kind: str, is_kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "GRAM_SIDE", 100)
    if not is_kept:  # a matrix that does not fit in float64 is widened one slab at a time
        monkeypatch.setattr(leading, "_KEPT_BYTES", 1000)
        monkeypatch.setattr(leading.gram, "_CHUNK_BYTES", 8 * 300 * 50)
    sigma = {
        "half a per cent apart": 0.995 ** np.arange(300.0),
        "of rank 3": np.array([3.0, 2.0, 1.0]),
        "one value": np.ones(300),
        "zero": np.zeros(300),
    }[kind]
    matrix = with_spectrum(sigma, *shape)
    found = leading_triplets(matrix, 8)
    assert found.solver == leading.KRYLOV
    assert_leading(found, matrix)


def test_a_span_that_does_not_hold_them_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "GRAM_SIDE", 100)
    monkeypatch.setattr(leading, "_STEPS", 4)
    monkeypatch.setattr(leading, "_ROUNDS", 60)
    matrix = with_spectrum(0.995 ** np.arange(300.0), 300, 420)
    assert_leading(leading_triplets(matrix, 8), matrix)


def test_what_is_not_found_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "GRAM_SIDE", 100)
    monkeypatch.setattr(leading, "_STEPS", 2)
    monkeypatch.setattr(leading, "_ROUNDS", 1)
    with pytest.raises(WeightsError, match="not found to 1e-8"):
        leading_triplets(with_spectrum(0.995 ** np.arange(300.0), 300, 420), 8)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_squares_neither_vanish_nor_overflow(size: float) -> None:
    matrix = np.random.default_rng(1).standard_normal((20, 30))
    found = leading_triplets(matrix * size, 8)
    np.testing.assert_allclose(found.values / size, np.linalg.svd(matrix)[1][:8], rtol=1e-13)


def test_values_far_below_the_first_keep_orthonormal_vectors() -> None:
    matrix = with_spectrum(10.0 ** -np.arange(0, 30, 2.0), 40, 60)
    assert_leading(leading_triplets(matrix, 8), matrix)


def test_float16_is_widened_before_it_is_squared() -> None:
    matrix = (300 * np.random.default_rng(1).standard_normal((20, 30))).astype(np.float16)
    assert_leading(leading_triplets(matrix, 8), matrix.astype(np.float64), 1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    matrix = np.ones((3, 4))
    matrix[1, 2] = bad
    with pytest.raises(WeightsError, match="NaN or infinite"):
        leading_triplets(matrix, 8)

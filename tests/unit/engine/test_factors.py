"""The factors of a matrix under second moments, against scipy's SVD of W C^1/2 formed explicitly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from weighted_examples import Array, projection

from rankscope.engine import moment
from rankscope.engine.errors import WeightsError
from rankscope.engine.moment import Moment
from rankscope.engine.plan.factors import factors, weighted_error
from rankscope.engine.plan.rewritten import factor_name
from rankscope.engine.plan.works import Work
from rankscope.engine.spectrum import Slice


def second_moment(form: str, n: int) -> tuple[Moment | None, Array]:
    """A second moment of this form, and C as a matrix."""
    rng = np.random.default_rng(n)
    gain, bias = rng.standard_normal(n) * 3, rng.standard_normal(n)
    if form == "none":
        return None, np.eye(n)
    if form == "diagonal":
        return moment.diagonal(gain**2), np.diag(gain**2)
    if form == "layer_norm":
        centred = np.eye(n) - np.ones((n, n)) / n
        return moment.layer_norm(gain, bias), np.diag(gain) @ centred @ np.diag(gain) + np.outer(bias, bias)
    x = rng.standard_normal((3 * n, n)) * gain
    return moment.full(x.T @ x / len(x)), x.T @ x / len(x)


def root(c: Array) -> Array:
    values, vectors = scipy.linalg.eigh(c)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


@pytest.mark.parametrize("form", ["none", "diagonal", "layer_norm", "full"])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (15, 15), (9, 1)], ids=str)
@pytest.mark.parametrize("kind", ["numpy", "torch", "bfloat16"])
def test_a_b_is_the_projection_onto_scipys_leading_left_vectors(form: str, shape: tuple[int, int], kind: str) -> None:
    stored = torch.tensor(np.random.default_rng(1).standard_normal(shape) * 1e-3, dtype=torch.float32)
    stored = stored.bfloat16() if kind == "bfloat16" else stored
    w = stored.double().numpy()
    given, c = second_moment(form, shape[1])
    left, values, _ = scipy.linalg.svd(w @ root(c))
    for rank in {1, min(shape) // 2 or 1, min(shape)}:
        a, b = factors(stored.numpy() if kind == "numpy" else stored, given, rank)
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == (shape[0], rank)
        assert b.shape == (rank, shape[1])
        np.testing.assert_allclose(a.T @ a, np.eye(rank), atol=1e-12)
        true = left[:, :rank] @ left[:, :rank].T @ w
        np.testing.assert_allclose(a @ b, true, atol=1e-9 * np.abs(w).max())
        wanted = math.sqrt(float((values[rank:] ** 2).sum() / (values**2).sum()))
        written = a @ b if kind == "numpy" else torch.tensor(a @ b)
        found = weighted_error(stored.numpy() if kind == "numpy" else stored, written, given)
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("turned", [False, True])
def test_a_is_orthonormal_beyond_the_rank_of_the_matrix(turned: bool) -> None:
    rng = np.random.default_rng(2)
    w: Any = rng.standard_normal((30, 3)) @ rng.standard_normal((3, 18))
    w = w.T if turned else w
    a, b = factors(w, None, 10)
    np.testing.assert_allclose(a.T @ a, np.eye(10), atol=1e-12)
    np.testing.assert_allclose(a @ b, w, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_that_float64_does_not_hold(scale: float) -> None:
    w = np.random.default_rng(3).standard_normal((20, 8))
    a, b = factors(w, None, 3)
    scaled_a, scaled_b = factors(w * scale, None, 3)
    np.testing.assert_allclose(scaled_a @ scaled_b, a @ b * scale, rtol=1e-9)
    assert weighted_error(w * scale, scaled_a @ scaled_b, None) == pytest.approx(weighted_error(w, a @ b, None))


def test_a_matrix_without_output_and_one_that_is_not_finite() -> None:
    zero = np.zeros((6, 4))
    a, b = factors(zero, None, 2)
    assert not (a @ b).any()
    assert weighted_error(zero, a @ b, None) == 0
    assert weighted_error(zero, zero + 1, None) == math.inf
    with pytest.raises(WeightsError, match="NaN or infinite"):
        factors(np.full((3, 3), np.nan), None, 1)


@pytest.mark.parametrize(
    ("part", "expert", "name"),
    [
        (None, None, "t"),
        (Slice(0, 1, 0, 13), None, "t.up"),
        (Slice(0, 2, 1, 1, 7), 7, "t.7.up"),
        (Slice(0, 1, 26, 13), 2, "t.2.up"),  # DBRX: all experts in the rows of one matrix
    ],
)
def test_factors_are_named_by_tensor_matrix_and_role(part: Slice | None, expert: int | None, name: str) -> None:
    assert factor_name(Work(projection(13, 8, slice=part, expert=expert), 4, None, 0.0)) == name

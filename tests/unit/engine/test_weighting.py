"""Spectra under a weighting: W C^1/2 formed explicitly, in float64 by scipy and in extended precision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from weighted_examples import MATRICES, MOMENTS, Array, Given, eigen, projection, reference, root, rotation

from rankscope.engine import moment
from rankscope.engine.derive import moment_factors
from rankscope.engine.derive.weigh import C, ValuesCheck, Weighed, noise, weigh
from rankscope.engine.derive.weighting import is_weighted, noise_of, weighted
from rankscope.engine.errors import WeightsError
from rankscope.engine.metrics import threshold_rank
from rankscope.engine.moment import Moment
from rankscope.engine.null import drawn_energy, null_rank_of
from rankscope.engine.solvers.ladder import choose, solve
from rankscope.engine.spectrum import Operand, Projection, Provenance, Values

SHAPES = [(12, 20), (20, 12), (15, 15), (1, 9), (9, 1)]
EPS = float(np.finfo(np.float64).eps)


def made(w: Any, given: Moment) -> Weighed:
    return weigh(weighted(projection(*w.shape), Given(given)), [w])


def solved(w: Any, given: Moment) -> tuple[Values, Provenance]:
    found = made(w, given)
    solution = solve(found.matrix, [replace(rung, reach=math.inf) for rung in choose("cpu")])
    return solution.values, found.check.proven(solution.values, solution.provenance)


def moments(form: str, n: int, seed: int = 0) -> tuple[Moment, Array]:
    """A moment of that form, and C written out."""
    rng = np.random.default_rng(seed)
    gain, bias = rng.standard_normal(n) * 3, rng.standard_normal(n)
    if form == "diagonal":
        return moment.diagonal(gain**2), np.diag(gain**2)
    if form == "layer_norm":
        centred = np.eye(n) - np.ones((n, n)) / n
        return moment.layer_norm(gain, bias), np.diag(gain) @ centred @ np.diag(gain) + np.outer(bias, bias)
    x = rng.standard_normal((3 * n, n)) * gain
    return moment.full(x.T @ x / len(x)), x.T @ x / len(x)


def explicit(w: Array, c: Array) -> Array:
    """Singular values of W C^1/2 by scipy, the root the symmetric one."""
    values, vectors = scipy.linalg.eigh(c)
    half = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return np.asarray(scipy.linalg.svd(w.astype(np.float64) @ half, compute_uv=False))


@pytest.mark.parametrize("form", ["diagonal", "full", "layer_norm"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_values_are_those_of_w_times_the_root_of_c(form: str, shape: tuple[int, int], kind: str) -> None:
    w = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    given, c = moments(form, shape[1])
    values, provenance = solved(w if kind == "numpy" else torch.tensor(w), given)
    true = explicit(w, c)
    assert values.shape == (min(shape),)
    np.testing.assert_allclose(values, true, rtol=0, atol=2e-8 * true[0])
    np.testing.assert_allclose(values[:3], true[:3], rtol=1e-12)
    assert provenance.frobenius_norm == pytest.approx(math.sqrt(np.trace(w.astype(np.float64) @ c @ w.T)), rel=1e-12)


@pytest.mark.parametrize("under", [name for name in MOMENTS if name != "identity"])
@pytest.mark.parametrize("kind", ["gaussian", "blind", "large"])
def test_the_stated_bounds_hold_against_eighty_bits(under: str, kind: str) -> None:
    for m, n in ((8, 20), (20, 8)):
        rng = np.random.default_rng([m, n])
        c = MOMENTS[under](rng, n)
        w = MATRICES[kind](rng, m, c)
        values, provenance = solved(w, moment.full(c))
        true = reference(w, root(c))
        known = values > provenance.noise_floor
        assert known.any() or values[0] <= provenance.noise_floor
        assert (np.abs(values - true)[known] <= provenance.error_bound).all()
        assert (true[~known] <= provenance.noise_floor + provenance.error_bound).all()
        reach = np.linalg.norm(w, 2) * math.sqrt(np.linalg.norm(c, 2))  # floor and bound as they are defined
        assert provenance.noise_floor >= max(1e-8 * values[0], 0.99 * math.sqrt(C * n * EPS) * reach)
        assert provenance.noise_floor <= max(1e-6 * values[0], 2 * math.sqrt(C * n * EPS) * reach)


def test_the_reference_is_right() -> None:
    """A bound that is held against a wrong reference proves nothing."""
    rng = np.random.default_rng(5)
    for n in (5, 8):
        exact = np.arange(1.0, n + 1)
        q = rotation(rng, n)
        values, vectors = eigen((q * exact) @ q.T)
        np.testing.assert_allclose(np.sort(values.astype(float)), exact, rtol=1e-14)
        np.testing.assert_allclose((vectors.T @ vectors).astype(float), np.eye(n), atol=1e-17)
    w, (_, c) = rng.standard_normal((6, 9)), moments("full", 9)
    np.testing.assert_allclose(reference(w, root(c)).astype(float), explicit(w, c), rtol=1e-12)


def test_a_diagonal_keeps_the_bounds_of_the_solver() -> None:
    w = np.random.default_rng(2).standard_normal((10, 16))
    d = np.random.default_rng(3).random(16)
    values, provenance = solved(w, moment.diagonal(d))
    plain = solve(w * np.sqrt(d), choose("cpu"))
    np.testing.assert_array_equal(values, plain.values)
    assert (provenance.error_bound, provenance.noise_floor) == (
        plain.provenance.error_bound,
        plain.provenance.noise_floor,
    )


def test_a_full_diagonal_is_the_diagonal_one() -> None:
    w = np.random.default_rng(4).standard_normal((10, 16))
    d = np.random.default_rng(5).random(16)
    one, other = solved(w, moment.diagonal(d))[0], solved(w, moment.full(np.diag(d)))[0]
    np.testing.assert_allclose(one, other, rtol=1e-12)
    assert moment.diagonal(d).digest != moment.full(np.diag(d)).digest


@pytest.mark.parametrize("form", ["diagonal", "full", "layer_norm"])
def test_scales_at_the_ends_of_float64_neither_overflow_nor_vanish(form: str) -> None:
    w = np.random.default_rng(6).standard_normal((6, 8))
    given, c = moments(form, 8)
    wanted = explicit(w, c)
    for large in (1e150, 1e-150):
        values, provenance = solved(w * large, given)
        np.testing.assert_allclose(values / large, wanted, rtol=1e-9)
        assert provenance.frobenius_norm == pytest.approx(large * np.linalg.norm(wanted), rel=1e-12)


def test_what_is_negative_by_rounding_counts_as_nothing_and_is_stated() -> None:
    rng = np.random.default_rng(7)
    q, values = rotation(rng, 8), np.array([4.0, 3.0, 2.0, 1.0, 0.5, 0.1, 1e-3, -2e-5])
    c, w = (q * values) @ q.T, rng.standard_normal((5, 8))
    found, provenance = solved(w, moment.full((c + c.T) / 2))
    np.testing.assert_allclose(found, reference(w, root((c + c.T) / 2)).astype(float), rtol=1e-9)
    assert provenance.clipped == pytest.approx(2e-5 / np.abs(values).sum(), rel=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (moment.full(np.diag([1.0, 1.0, 1.0, -2e-5])), "smallest eigenvalue is negative, -2.0e-05 of the largest"),
        (moment.full(-np.eye(4)), "the largest is not positive"),
        (moment.full(np.full((4, 4), np.nan)), "NaN or infinite"),
        (moment.diagonal(np.array([1.0, 2.0, -1.0, 0.0])), "a mean square cannot be negative"),
        (moment.diagonal(np.array([1.0, np.inf, 1.0, 0.0])), "NaN or infinite"),
        (Moment("diagonal", 4, (Operand("d" * 32),)), "only the digest of its second moments is known"),
    ],
)
def test_numbers_that_are_no_second_moments_are_refused(given: Moment, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        made(np.ones((3, 4)), given)


def test_weights_that_are_not_finite_are_refused_and_zeros_are_zeros() -> None:
    given, _ = moments("full", 4)
    with pytest.raises(WeightsError, match="NaN or infinite"):
        made(np.array([[1.0, np.nan, 1.0, 1.0]]), given)
    for w, under in ((np.zeros((3, 4)), given), (np.ones((3, 4)), moment.full(np.zeros((4, 4))))):
        values, provenance = solved(w, under)
        assert (values == 0).all()
        assert provenance.frobenius_norm == 0


@pytest.mark.parametrize("form", ["diagonal", "full", "layer_norm"])
def test_a_product_that_is_wrong_is_found_by_the_trace(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = moment_factors._FORMS[form]
    right = kind.times  # type: ignore[attr-defined]

    def times(self: Any, rows: Any) -> Any:
        out = right(self, rows)
        out[0, 0] += 0.01
        return out

    monkeypatch.setattr(kind, "times", times)
    given, _ = moments(form, 8, seed=9)
    with pytest.raises(WeightsError, match="not the trace"):
        solved(np.random.default_rng(8).standard_normal((5, 8)), given)


def test_a_check_lets_no_energy_of_nothing_pass() -> None:
    check = ValuesCheck(0.0, 0.0, 0.0, 4, 0.0, False)
    with pytest.raises(WeightsError, match="not the trace"):
        check.proven(np.array([1.0]), Provenance(1.0, "gram", 1, "float64", 0.0, 0.0, "cpu", 0.0))


def test_the_eigenvalues_of_one_moment_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, real = [], moment_factors._eigh

    def eigh(c: Any) -> Any:
        found.append(len(c))
        return real(c)

    monkeypatch.setattr(moment_factors, "_eigh", eigh)
    given, _ = moments("full", 11, seed=10)
    for rows in (3, 20, 5):
        made(np.ones((rows, 11)), given)
    assert found == [11]


# Names and keys


def test_a_weighted_projection_keeps_its_address_and_has_a_key_of_its_numbers() -> None:
    plain = projection(5, 8)
    one, other = moments("full", 8)[0], moments("full", 8, seed=1)[0]
    under = weighted(plain, Given(one))
    assert (under.address, under.label, under.role) == (plain.address, "layers.0.mlp.up@moments", plain.role)
    assert is_weighted(under)
    assert under.counts("moments")
    assert not under.counts()
    assert under.parents == (plain,)
    others = weighted(plain, Given(other)), weighted(projection(5, 8, key="k"), Given(one))
    assert len({plain.key, under.key, *(p.key for p in others)}) == 4
    again = weighted(plain, Given(moments("full", 8)[0], name="imatrix", label="of another file"))
    assert again.key == under.key  # equal numbers, whatever file held them


def test_what_has_no_moment_has_a_problem_and_another_key() -> None:
    plain = projection(5, 8)

    class Without(Given):
        def moment(self, p: Projection) -> Moment:
            raise WeightsError(f"{p.tensor} was not seen")

    sound = Given(moments("full", 8)[0])
    for refused, said in (
        (weighted(plain, Without(moments("full", 8)[0])), "t was not seen"),
        (weighted(plain, Given(moments("full", 9)[0])), "have 9 inputs, the matrix has 8"),
        (weighted(projection(5, 8, key="other", problem="packed"), sound), "packed"),
    ):
        assert said in str(refused.problem)
        assert refused.key not in (plain.key, weighted(plain, sound).key)


def test_projections_of_one_shape_and_moment_share_their_noise() -> None:
    given = Given(moments("full", 8)[0])
    up, gate = (weighted(projection(5, 8, key=role, role=role), given) for role in ("up", "gate"))
    assert noise_of(up).key == noise_of(gate).key
    tall = weighted(projection(6, 8), given)
    other = weighted(projection(5, 8), Given(moments("full", 8, seed=1)[0]))
    assert len({noise_of(p).key for p in (up, tall, other)}) == 3
    assert not any(noise_of(up).counts(*state) for state in ((), ("moments", "")))


def test_noise_is_the_same_each_time_and_no_weights() -> None:
    p = noise_of(weighted(projection(30, 8), Given(moments("full", 8)[0])))
    one, other = (noise(p, [w]) for w in (np.zeros((30, 8)), np.ones((30, 8))))
    np.testing.assert_array_equal(one.matrix, other.matrix)
    assert np.linalg.matrix_rank(np.asarray(one.matrix)) == 8


def decaying(n: int, decades: float, seed: int) -> Array:
    q = rotation(np.random.default_rng(seed), n)
    return np.asarray((q * np.logspace(0, -decades, n)) @ q.T)


@pytest.mark.parametrize(("rows", "cols"), [(40, 64), (64, 64), (96, 64)])
@pytest.mark.parametrize("decades", [0.0, 1.0, 2.0])
def test_other_draws_of_noise_read_one(rows: int, cols: int, decades: float) -> None:
    c = decaying(cols, decades, 3)
    under = weighted(projection(rows, cols), Given(moment.full((c + c.T) / 2)))
    drawn = np.linalg.svd(np.asarray(noise(noise_of(under), [np.zeros((rows, cols))]).matrix), compute_uv=False)
    rng = np.random.default_rng(4)
    half = scipy.linalg.sqrtm(c).real
    others = [np.linalg.svd(rng.standard_normal((rows, cols)) @ half, compute_uv=False) for _ in range(24)]
    for threshold in (0.8, 0.9, 0.95):
        k0 = null_rank_of(drawn, threshold)
        ratios = [threshold_rank(sigma, threshold) / k0 for sigma in others]
        assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)


def test_a_null_rank_of_drawn_values_is_half_above_the_interpolated_one() -> None:
    values = np.sqrt([4.0, 3.0, 2.0, 1.0])
    assert null_rank_of(values, 0.4) == pytest.approx(1.5)
    assert null_rank_of(values, 0.55) == pytest.approx(2.0)
    assert null_rank_of(values, 0.2) == pytest.approx(1.0)
    assert null_rank_of(values, 0.05) == 1.0  # at least 1, at most r, as that of a shape
    assert null_rank_of(values, 0.999) == 4.0
    assert null_rank_of(np.zeros(3), 0.9) == 0.0
    for k, threshold in enumerate(drawn_energy(values)[:3], 1):
        assert null_rank_of(values, threshold) == pytest.approx(k)

"""Keys and values as one matrix under every way, balance and weighting, and the products of a latent attention's
factors, against explicit matrices and LAPACK in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from lapack_reference import lapack
from numpy.typing import NDArray
from weighted_examples import Given, projection

from rankscope.engine.catalogue.caches import Cache, Heads
from rankscope.engine.catalogue.rope import NO_ROPE, Rope
from rankscope.engine.derive.biases import appended
from rankscope.engine.derive.formulas import FORMULAS
from rankscope.engine.derive.latent import CHOICES, KEY_VALUE, QUERY_PRODUCT, Way, latent_of, norms_of, products_of, way
from rankscope.engine.derive.weigh import NotedMatrix, Weighed
from rankscope.engine.errors import InputError, WeightsError
from rankscope.engine.metrics import rank_losing
from rankscope.engine.moment import Moment, diagonal, full, layer_norm, operand
from rankscope.engine.spectrum import Projection, Provenance

Array = NDArray[np.float64]
KV, DIM, N, ROTATED = 3, 6, 13, 4
PROVENANCE = Provenance(0.0, "test", 1, "float64", 0.0, 0.0, "cpu", 0.0)
RNG = np.random.default_rng(5)
KEY = RNG.standard_normal((KV * DIM, N)) * np.exp(-RNG.uniform(0, 3, N))
VALUE = RNG.standard_normal((KV * 5, N)) * np.exp(-RNG.uniform(0, 3, N)) / 40
MIXED = RNG.standard_normal((N, N + 2))
GAIN, BIAS = RNG.standard_normal((2, N))
MOMENTS: dict[str, tuple[Moment | None, Array]] = {
    "none": (None, np.eye(N)),
    "diagonal": (diagonal(np.exp(np.arange(N) / 3.0)), np.diag(np.exp(np.arange(N) / 3.0))),
    "layer_norm": (layer_norm(GAIN, BIAS), np.diag(GAIN) @ (np.eye(N) - 1 / N) @ np.diag(GAIN) + np.outer(BIAS, BIAS)),
    "full": (full(MIXED @ MIXED.T), MIXED @ MIXED.T),
}
WAYS = [Way(), Way("decoupled", 6), Way("decoupled", 2, is_real=True), Way("decoupled", 12)]
WAYS += [Way("per-head", 2, choice) for choice in CHOICES]


def part(role: str, rows: int, cols: int = N, **more: Any) -> Projection:
    address = f"layers.0.attention.{role}"
    return projection(rows, cols, block="attention", role=role, address=address, key=f"the {role}", **more)


CACHE = Cache("layers.0.attention", {"key": part("key", KV * DIM), "value": part("value", KV * 5)})


def heads(interleaved: bool = True) -> Heads:
    return Heads(KV, DIM, Rope(ROTATED, interleaved, 1e4))


def places(interleaved: bool) -> Iterator[tuple[int, int]]:
    """The two rows of a head that form each pair."""
    half = ROTATED // 2
    yield from ((2 * f, 2 * f + 1) if interleaved else (f, f + half) for f in range(half))


def explicit(chosen: Way, c: Array, interleaved: bool, key: Array = KEY) -> Array:
    """The part of the key that has left RoPE, under C^1/2, by a loop over frequencies and heads."""
    root, n = sqrt(c), key.shape[1]
    rows = key.reshape(KV, DIM, n)
    found: list[tuple[float, int, int, list[Array]]] = []  # energy, direction or head, frequency, rows
    for f, (a, b) in enumerate(places(interleaved)):
        z = rows[:, a] + 1j * rows[:, b]
        if chosen.rope == "per-head":
            for g in range(KV):
                found.append((float((np.abs(z[g] @ root) ** 2).sum()), g, f, [rows[g, a], rows[g, b]]))
            continue
        gram = sum(np.outer(z[:, i], z[:, j].conj()) * c[i, j] for i, j in product(range(n), range(n)))
        energies, u = np.linalg.eigh(gram.real if chosen.is_real else gram)  # type: ignore[union-attr]
        for j in range(KV):
            new = u[:, KV - 1 - j].conj() @ z
            found.append((float(energies[KV - 1 - j]), j, f, [new.real, new.imag]))
    if chosen.rope == "per-head":
        lost = []
        for g in range(KV):
            own = [item for item in found if item[1] == g]
            order = {"norm": lambda i: -i[0], "high": lambda i: i[2], "low": lambda i: -i[2], "uniform": lambda i: i[2]}
            lost += sorted(own, key=order[chosen.choice])[chosen.dims // 2 :]
    else:  # one shared key has each frequency once before any comes twice
        lost = sorted(found, key=lambda i: (i[1], -i[0]))[chosen.dims // 2 :]
    rest = [row for *_, both in lost for row in both] + list(rows[:, ROTATED:].reshape(-1, n))
    return np.array(rest) @ root


def made(derived: Projection, matrices: list[Array]) -> tuple[Array, str]:
    assert derived.derived is not None
    found = FORMULAS[derived.derived.formula](derived, matrices)
    assert isinstance(found, NotedMatrix)
    if isinstance(found.matrix, Weighed):
        found.matrix.check.proven(lapack(found.matrix.matrix), PROVENANCE)
    return np.asarray(found.matrix.matrix if isinstance(found.matrix, Weighed) else found.matrix), found.note


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("state", MOMENTS)
@pytest.mark.parametrize("chosen", WAYS, ids=lambda w: w.text)
def test_a_stack_is_the_explicit_one(chosen: Way, state: str, interleaved: bool) -> None:
    moment, c = MOMENTS[state]
    root = sqrt(c)
    rest = explicit(chosen, c, interleaved) if chosen.rope != "recompute" else KEY @ root
    whole, left, values = (float(np.linalg.norm(m)) for m in (KEY @ root, rest, VALUE @ root))
    scales = {"whole": (1 / whole, 1 / values), "own": (1 / left, 1 / values), "none": (1.0, 1.0)}
    for balance, (for_keys, for_values) in scales.items():
        derived = latent_of(
            CACHE, replace(chosen, balance=balance), heads(interleaved), Given(moment) if moment else None
        )
        matrix, note = made(derived, [KEY, VALUE])
        wanted = np.concatenate([rest * for_keys, VALUE @ root * for_values])
        assert matrix.shape == wanted.shape == (derived.rows, derived.cols)
        assert np.abs(lapack(matrix) - lapack(wanted)).max() <= 1e-12 * lapack(wanted)[0]
        assert norms_of(f"label; {note}") == pytest.approx((whole, left, values), rel=1e-12)


def sqrt(c: Array) -> Array:
    values, vectors = np.linalg.eigh(c)
    return np.asarray(vectors * np.sqrt(values.clip(0)) @ vectors.T)


def test_keys_tell_ways_layouts_and_weightings_apart() -> None:
    found = [latent_of(CACHE, replace(w, balance=b), heads()) for w in WAYS for b in ("whole", "own", "none")]
    found += [latent_of(CACHE, WAYS[1], heads(False)), latent_of(CACHE, WAYS[0], None, Given(diagonal(np.ones(N))))]
    assert len({p.key for p in found}) == len(found)
    assert {p.address for p in found} == {"layers.0.attention.key_value"}
    assert all(p.derived is not None and p.derived.is_further and len(p.parents) == 2 for p in found)
    assert not any(p.counts() or p.counts("moments") for p in found)


def test_where_nothing_is_rotated_nothing_has_to_keep_rope() -> None:
    still = latent_of(CACHE, Way("decoupled", 6), Heads(KV, DIM, NO_ROPE))
    assert still.key == latent_of(CACHE, Way(), None).key
    assert still.rows == KV * (DIM + 5)


def test_more_rows_than_are_rotated_are_refused() -> None:
    for chosen in (Way("decoupled", KV * ROTATED + 2), Way("per-head", ROTATED + 2, "norm")):
        with pytest.raises(InputError, match="rows are rotated, fewer than --rope"):
            latent_of(CACHE, chosen, heads())


@pytest.mark.parametrize(
    "text",
    ["", "Recompute", "decoupled", "decoupled:0", "decoupled:3", "decoupled:64:norm", "per-head:8:best", "per-head:-2"],
)
def test_a_way_that_there_is_not_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^--rope"):
        way(text)
    for other in ("recompute", "per-head:8"):
        with pytest.raises(InputError, match="--real goes with --rope decoupled:D"):
            way(other, is_real=True)


def test_moments_of_key_and_value_that_differ_are_refused() -> None:
    class Different:
        name, label = "moments", "a test"

        def moment(self, p: Projection) -> Moment:
            return diagonal(np.full(p.cols, 2.0 if p.role == "key" else 3.0))

    refused = latent_of(CACHE, Way(), None, Different())
    assert refused.problem is not None
    assert "different second moments" in refused.problem


def test_zeros_and_what_is_not_finite() -> None:
    derived = latent_of(CACHE, Way("decoupled", 4), heads())
    matrix, note = made(derived, [np.zeros_like(KEY), VALUE])
    assert norms_of(note) == (0.0, 0.0, pytest.approx(float(np.linalg.norm(VALUE))))
    assert np.linalg.norm(matrix) == pytest.approx(1.0)
    broken = KEY.copy()
    broken[0, 0] = np.nan
    with pytest.raises(WeightsError, match="NaN"):
        made(derived, [broken, VALUE])


@pytest.mark.parametrize("size", [1e-200, 1e150])
def test_sizes_whose_squares_leave_the_numbers(size: float) -> None:
    derived = latent_of(CACHE, Way("decoupled", 4), heads())
    plain, large = (lapack(made(derived, [KEY * s, VALUE * s])[0]) for s in (1.0, size))
    assert np.abs(plain - large).max() <= 1e-12


@pytest.mark.parametrize(("rows", "width", "cols"), [(40, 8, 30), (5, 8, 30), (40, 8, 6)])
def test_products_are_the_explicit_ones(rows: int, width: int, cols: int) -> None:
    rng = np.random.default_rng(rows)
    second, first = rng.standard_normal((rows, width)), rng.standard_normal((width, cols))
    gain = rng.standard_normal(width)  # of both signs
    split = rows // 2
    roles = {"kv_a": part("kv_a", width, cols), "key_b": part("key_b", split, width)}
    roles |= {"value_b": part("value_b", rows - split, width), "query_a": part("query_a", width, cols)}
    cache = Cache("layers.0.attention", roles | {"query_b": part("query_b", rows, width)})
    moment = full(np.cov(rng.standard_normal((width, 50))))
    plain = products_of(cache, lambda _: operand(gain))
    weighted = products_of(cache, lambda _: operand(gain), Given(moment))
    assert [p.role for p in plain] == [KEY_VALUE, QUERY_PRODUCT]
    for derived, behind, parts in zip(plain, weighted, ([second[:split], second[split:]], [second]), strict=True):
        assert derived.derived is not None
        core = np.asarray(FORMULAS[derived.derived.formula](derived, [*parts, first]))
        wanted = lapack(second @ np.diag(gain) @ first)
        assert core.shape == (derived.rows, derived.cols)
        count = derived.count
        assert np.abs(lapack(core) - wanted[:count]).max() <= 1e-12 * wanted[0]
        assert (wanted[count:] <= 1e-12 * wanted[0]).all()
        assert behind.derived is not None
        found = FORMULAS[behind.derived.formula](behind, parts)
        assert isinstance(found, Weighed)
        (operand_of,) = moment.operands
        assert operand_of.load is not None
        true = lapack(second @ sqrt(operand_of.load()))
        assert np.abs(lapack(found.matrix) - true).max() <= 1e-12 * true[0]


def test_a_rank_by_what_it_loses() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        values = np.sort(rng.exponential(1, 9))[::-1]
        most = rng.uniform(0, float((values**2).sum()) * 1.1)
        assert rank_losing(values, most) == next(k for k in range(10) if (values[k:] ** 2).sum() <= most)
    assert rank_losing(np.ones(10), 4.0) == 6  # a tie is reached
    assert rank_losing(np.zeros(3), 0.0) == 0
    assert rank_losing(np.array([3.0, 1.0]) * 1e-200, 0.0) == 2


@pytest.mark.parametrize(
    "chosen", [Way(bias=True), Way("decoupled", 6, bias=True), Way("per-head", 2, "norm", bias=True)]
)
def test_appended_biases_are_a_column_of_an_input_that_is_one(chosen: Way) -> None:
    rng = np.random.default_rng(7)
    inputs = MIXED @ rng.standard_normal((N + 2, 200)) + 3.0 * rng.standard_normal((N, 1))
    moment, mean = full(inputs @ inputs.T / 200), inputs.mean(1)
    biases = rng.standard_normal(len(KEY)) * 9, rng.standard_normal(len(VALUE))
    wide = appended(moment, mean)
    derived = latent_of(CACHE, chosen, heads(), Given(wide), tuple(map(operand, biases)))
    matrix, note = made(derived, [KEY, VALUE])
    # From the outputs themselves: key and value of every token, biases included.
    outputs = [m @ inputs + b[:, None] for m, b in zip((KEY, VALUE), biases, strict=True)]
    sizes = [float(np.sqrt((x**2).sum() / 200)) for x in outputs]
    norms = norms_of(note)
    assert norms is not None
    assert (norms[0], norms[2]) == pytest.approx(sizes, rel=1e-10)
    key = np.column_stack([KEY, biases[0]])
    c = np.block([[inputs @ inputs.T / 200, mean[:, None]], [mean[None], np.ones((1, 1))]])
    rest = explicit(chosen, c, True, key) if chosen.rope != "recompute" else key @ sqrt(c)
    value = np.column_stack([VALUE, biases[1]]) @ sqrt(c)
    wanted = lapack(np.concatenate([rest / norms[0], value / norms[2]]))
    assert np.abs(lapack(matrix) - wanted).max() <= 1e-10 * wanted[0]


def test_a_diagonal_with_means_stays_a_second_moment() -> None:
    squares, mean = np.array([4.0, 9.0, 1.0]), np.array([1.9, -2.9, 0.9])
    (held,) = appended(diagonal(squares), mean).operands
    assert held.load is not None
    c = held.load()
    assert np.allclose(c.diagonal(), [*squares, 1.0])
    assert np.allclose(c[-1], [*mean, 1.0])
    assert np.linalg.eigvalsh(c).min() >= -1e-12
    with pytest.raises(WeightsError, match="no mean"):
        appended(layer_norm(np.ones(3), np.zeros(3)), mean)


@pytest.mark.parametrize("state", MOMENTS)
@pytest.mark.parametrize("chosen", [Way(), Way("decoupled", 6), Way("per-head", 2, "norm", balance="own")])
def test_tensors_of_torch_make_the_same_stack(chosen: Way, state: str) -> None:
    """As on a GPU, in bfloat16, whose numbers float32 holds."""
    moment, _ = MOMENTS[state]
    derived = latent_of(CACHE, chosen, heads(), Given(moment) if moment else None)
    tensors: Any = [torch.from_numpy(m).bfloat16() for m in (KEY, VALUE)]
    found, note = made(derived, tensors)
    wanted, said = made(derived, [tensor.float().numpy() for tensor in tensors])
    assert np.abs(lapack(found) - lapack(wanted)).max() <= 1e-12 * lapack(wanted)[0]
    assert norms_of(note) == pytest.approx(norms_of(said), rel=1e-12)

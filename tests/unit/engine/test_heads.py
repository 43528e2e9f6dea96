"""Spectra of single heads and of their products, against explicit products in float64 and LAPACK; and products at an
offset of tokens, against an attention whose queries and keys are rotated position by position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lapack_reference import lapack
from numpy.typing import NDArray
from weighted_examples import Given, projection

from rankscope.engine.catalogue.attention import Attention
from rankscope.engine.catalogue.rope import Rope
from rankscope.engine.derive.formulas import FORMULAS
from rankscope.engine.derive.head_matrices import (
    BY_KV_HEAD,
    GROUP_OV,
    KEY,
    KINDS,
    OV,
    QK,
    QUERY,
    VALUE,
    Turned,
    head_of,
    heads_of,
    offset_of,
)
from rankscope.engine.derive.weigh import Weighed
from rankscope.engine.derive.weighting import weighted
from rankscope.engine.moment import Moment, diagonal, full, layer_norm
from rankscope.engine.spectrum import Projection, Provenance

Array = NDArray[np.float64]
PROVENANCE = Provenance(0.0, "test", 1, "float64", 0.0, 0.0, "cpu", 0.0)
COUNTS = [(12, 12), (12, 1), (12, 4), (14, 2)]
N, DIM = 20, 4
RNG = np.random.default_rng(11)
GAIN, BIAS = RNG.standard_normal((2, N))
MIXED = RNG.standard_normal((N, N + 2))
MOMENTS: dict[str, tuple[Moment | None, Array]] = {
    "none": (None, np.eye(N)),
    "diagonal": (diagonal(np.exp(np.arange(N) / 3.0)), np.diag(np.exp(np.arange(N) / 3.0))),
    "layer_norm": (layer_norm(GAIN, BIAS), np.diag(GAIN) @ (np.eye(N) - 1 / N) @ np.diag(GAIN) + np.outer(BIAS, BIAS)),
    "full": (full(MIXED @ MIXED.T), MIXED @ MIXED.T),
}


def part(role: str, rows: int, cols: int = N) -> Projection:
    address = f"layers.0.attention.{role}"
    return projection(rows, cols, block="attention", role=role, address=address, key=f"the {role}")


def attention(count: int, kv: int, value_dim: int = 3) -> Attention:
    """An attention with `count` heads over `kv` KV heads, whose values are narrower than their keys."""
    parts = (part("query", count * DIM), part("key", kv * DIM), part("value", kv * value_dim))
    return Attention("layers.0.attention", *parts, part("output", N, count * value_dim), count, kv, DIM, DIM, value_dim)


def weights(a: Attention, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    every = (a.query, a.key, a.value, a.output)
    return {p.address: rng.standard_normal((p.rows, p.cols)) * np.exp(-rng.uniform(0, 3, p.cols)) for p in every}


def made(p: Projection, held: dict[str, Array], torch_: bool = False) -> Array:
    """Singular values of the matrix that a row's formula makes."""
    assert p.derived is not None
    assert p.problem is None
    matrices: list[Any] = [held[q.address] for q in p.parents]
    found: Any = FORMULAS[p.derived.formula](p, [torch.from_numpy(m) for m in matrices] if torch_ else matrices)
    matrix = found.matrix if isinstance(found, Weighed) else found
    assert tuple(matrix.shape) == (p.rows, p.cols)
    sigma = lapack(matrix)
    if isinstance(found, Weighed):
        proven = found.check.proven(sigma, PROVENANCE)
        assert proven.frobenius_norm == pytest.approx(float(np.sqrt((sigma**2).sum())), rel=1e-10)
    return sigma


def root(c: Array) -> Array:
    """The symmetric square root."""
    values, vectors = np.linalg.eigh(c)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def explicit(a: Attention, kind: str, number: int, held: dict[str, Array], c: Array) -> Array:
    """The full matrix of a row, formed explicitly."""
    s, per = root(c), a.count // a.kv_count
    w_q, w_k, w_v, w_o = (held[p.address] for p in (a.query, a.key, a.value, a.output))
    q, k, v = (w.reshape(-1, d, N) for w, d in ((w_q, DIM), (w_k, DIM), (w_v, a.value_dim)))
    o = w_o.reshape(N, a.count, a.value_dim)
    if kind in (QUERY, KEY, VALUE):
        return np.asarray({QUERY: q, KEY: k, VALUE: v}[kind][number] @ s)
    if kind == QK:
        return np.asarray(s @ q[number].T @ k[number // per] @ s)
    if kind == OV:
        return np.asarray(o[:, number] @ v[number // per] @ s)
    return np.concatenate([o[:, h] @ v[number] @ s for h in range(a.count) if h // per == number])


def states(a: Attention, moment: Moment | None) -> dict[str, Projection]:
    if moment is None:
        return {}
    return {p.address: weighted(p, Given(moment)) for p in (a.query, a.key, a.value)}


def close(found: Array, wanted: Array) -> bool:
    """Whether the values are the first wanted ones, and all other wanted ones are zero."""
    if len(wanted) < len(found) or wanted[len(found) :].max(initial=0.0) > 1e-9 * wanted[0]:
        return False
    return bool(np.abs(found - wanted[: len(found)]).max() <= 1e-9 * wanted[0])


@pytest.mark.parametrize("form", MOMENTS)
@pytest.mark.parametrize(("count", "kv"), COUNTS)
def test_every_head_and_product_is_that_of_explicit_matrices(count: int, kv: int, form: str) -> None:
    a, (moment, c) = attention(count, kv), MOMENTS[form]
    held, shown = weights(a), states(a, moment)
    for kind in KINDS:
        rows = heads_of(a, kind, shown)
        assert len(rows) == (kv if kind in BY_KV_HEAD else count)
        for number in {0, 1, len(rows) // 2, len(rows) - 1} & set(range(len(rows))):
            found = made(rows[number], held, torch_=number == 1)
            assert close(found, lapack(explicit(a, kind, number, held, c))), (kind, number)


@pytest.mark.parametrize(("count", "kv"), [(12, 4), (14, 2)])
@pytest.mark.parametrize("kind", [QK, OV])
def test_the_kv_head_of_a_head_is_not_its_remainder(count: int, kv: int, kind: str) -> None:
    """If head h had KV head h % KV instead of h // (H / KV), the numbers would differ."""
    a = attention(count, kv)
    held = weights(a)
    order = [h for g in range(kv) for h in range(count) if h % kv == g]  # the heads as the wrong map pairs them
    q, o = held[a.query.address].reshape(count, DIM, N), held[a.output.address].reshape(N, count, -1)
    wrong = held | {a.query.address: q[order].reshape(-1, N), a.output.address: o[:, order].reshape(N, -1)}
    at = next(n for n in range(count) if order[n] % kv != order[n] // (count // kv))
    assert not close(made(heads_of(a, kind)[order[at]], held), lapack(explicit(a, kind, at, wrong, np.eye(N))))
    assert close(made(heads_of(a, kind)[at], wrong), lapack(explicit(a, kind, at, wrong, np.eye(N))))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("form", ["none", "full"])
def test_an_offset_is_that_of_a_running_rotation(interleaved: bool, form: str) -> None:
    a, (moment, c) = attention(6, 3), MOMENTS[form]
    held, s = weights(a), root(c)
    rope, frequencies = Rope(DIM - 2, interleaved, 100.0), (0.7,)
    rows = heads_of(a, QK, states(a, moment), Turned(5, rope, frequencies))

    def rotated(head: Array, position: int) -> Array:
        """The rows rotated as the model does: the first pair turned, the other rows unchanged."""
        turned, angle = head.copy(), position * 0.7
        turned[0] = head[0] * np.cos(angle) - head[1] * np.sin(angle)
        turned[1] = head[1] * np.cos(angle) + head[0] * np.sin(angle)
        return turned

    q, k = held[a.query.address].reshape(6, DIM, N), held[a.key.address].reshape(3, DIM, N)
    for number, row in enumerate(rows):
        scores = s @ rotated(q[number], 12).T @ rotated(k[number // 2], 7) @ s
        assert close(made(row, held), lapack(scores)), number
        assert (offset_of(row), row.key != heads_of(a, QK, states(a, moment))[number].key) == (5, True)


def test_an_offset_of_four_pairs_turns_each_by_its_own_angle() -> None:
    """In both layouts, rows 2 i and 2 i + 1 or i and i + 4, against a loop."""
    dim, rng = 8, np.random.default_rng(3)
    parts = (part("query", dim), part("key", dim), part("value", dim), part("output", N, dim))
    a = Attention("layers.0.attention", *parts, 1, 1, dim, dim, dim)
    held = {p.address: rng.standard_normal((p.rows, p.cols)) for p in parts}
    frequencies = (1.0, 0.3, 0.09, 0.027)
    for interleaved in (False, True):
        pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + 4) for i in range(4)]
        (row,) = heads_of(a, QK, {}, Turned(9, Rope(dim, interleaved, 1e4), frequencies))
        q = held[a.query.address].copy()
        for (first, second), f in zip(pairs, frequencies, strict=True):
            x, y = q[first].copy(), q[second].copy()
            q[first] = x * np.cos(9 * f) - y * np.sin(9 * f)
            q[second] = y * np.cos(9 * f) + x * np.sin(9 * f)
        assert close(made(row, held), lapack(q.T @ held[a.key.address]))


def test_the_names_of_rows_say_their_heads() -> None:
    a = attention(12, 4)
    every = {kind: heads_of(a, kind) for kind in KINDS}
    assert [p.address for p in every[GROUP_OV]] == [f"layers.0.attention.kv_head.{n}.ov" for n in range(4)]
    assert every[QK][11].address == "layers.0.attention.head.11.qk"
    made_of = every[QK][0].derived
    assert made_of is not None
    assert made_of.label == "QK, offset 0, RoPE not applied"
    addresses = [p.address for rows in every.values() for p in rows]
    keys = {p.key for rows in every.values() for p in rows}
    assert len(set(addresses)) == len(addresses) == len(keys)
    for kind, rows in every.items():
        for number, p in enumerate(rows):
            found = head_of(p)
            assert found is not None
            assert (found.kind, found.number, found.attention) == (kind, number, a.address)
            assert not p.counts()

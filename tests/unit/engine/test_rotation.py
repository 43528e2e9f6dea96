"""The rows that keep RoPE in a key that is made latent, checked in a running attention of transformers: its scores
before and after the exact part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.models.helium import modeling_helium
from transformers.models.llama import modeling_llama

from rankscope.engine.derive.rotation import RotaryLayout, head_kept, rows_of, shared_basis, shared_kept

Array = NDArray[Any]
HIDDEN, TOKENS, THETA = 14, 5, 100.0
MODULES: dict[bool, Any] = {False: modeling_llama, True: modeling_helium}  # by whether pairs are interleaved
HEADS = [(4, 4), (4, 1), (6, 2), (14, 2)]


def phases(rotated: int) -> Array:
    """The angle of every position and pair."""
    return np.arange(TOKENS)[:, None] * THETA ** (-np.arange(0, rotated, 2) / rotated)


def scores(query: Array, key: Array, layout: RotaryLayout) -> Array:
    """transformers' scores of queries and keys, (heads x head_dim, tokens): (heads, token, token)."""
    module, angle = MODULES[layout.is_interleaved], phases(layout.rotated)
    wide = np.concatenate([angle, angle], axis=1)
    cos, sin = (torch.from_numpy(f(wide))[None] for f in (np.cos, np.sin))
    q, k = (torch.from_numpy(x.reshape(-1, layout.head_dim, TOKENS)).transpose(1, 2)[None] for x in (query, key))
    r = layout.rotated
    turned = module.apply_rotary_pos_emb(q[..., :r], k[..., :r], cos, sin)
    q, k = (torch.cat([t, x[..., r:]], -1) for t, x in zip(turned, (q, k), strict=True))
    return (q @ modeling_llama.repeat_kv(k, q.shape[1] // k.shape[1]).transpose(2, 3))[0].numpy()


def turned(pairs: Array, rotated: int) -> Array:
    """Pairs by frequency, (rotated / 2, ..., tokens), each rotated at its position."""
    angle = np.exp(1j * phases(rotated)).T
    return pairs * angle.reshape(len(angle), *[1] * (pairs.ndim - 2), TOKENS)


def product(query: Array, key: Array) -> Array:
    """Re(q conj(k)) summed over the frequencies: (query token, key token)."""
    return np.einsum("ft,fu->tu", query, key.conj()).real


@pytest.fixture
def attention(request: pytest.FixtureRequest) -> tuple[Array, Array, Array, RotaryLayout]:
    """Queries and keys of a few tokens, the key's matrix, and its layout; 6 of a head's 8 rows are rotated."""
    heads, kv, interleaved = request.param
    rng = np.random.default_rng(3)
    layout = RotaryLayout(kv, 8, 6, interleaved)
    weights, inputs = rng.standard_normal((kv * 8, HIDDEN)), rng.standard_normal((HIDDEN, TOKENS))
    return rng.standard_normal((heads * 8, TOKENS)), weights @ inputs, weights, layout


@pytest.mark.parametrize("is_real", [False, True])
@pytest.mark.parametrize("attention", [(*h, i) for h in HEADS for i in (False, True)], indirect=True)
def test_scores_are_the_same_over_the_new_directions(
    attention: tuple[Array, Array, Array, RotaryLayout], is_real: bool
) -> None:
    query, key, weights, layout = attention
    true = scores(query, key, layout)
    basis, energies = shared_basis(layout.pairs(weights), is_real)
    new_keys = turned(basis.conj().transpose(0, 2, 1) @ layout.pairs(key), layout.rotated)
    group = len(true) // layout.count
    as_heads = RotaryLayout(len(true), 8, layout.rotated, layout.is_interleaved)
    pairs, rest = as_heads.pairs(query), as_heads.unrotated(query).reshape(len(true), 2, TOKENS)
    plain = layout.unrotated(key).reshape(layout.count, 2, TOKENS)
    for head in range(len(true)):
        g = head // group
        # U_f^H e_g q_f: by frequency the query in each of the directions.
        asked = turned(basis.conj()[:, g, :, None] * pairs[:, head, None], layout.rotated)
        found = sum(product(asked[:, j], new_keys[:, j]) for j in range(layout.count)) + rest[head].T @ plain[g]
        assert np.abs(found - true[head]).max() <= 1e-10
    # The energies are those of the rows that carry them, and no direction of the key is lost.
    carried = (np.abs(basis.conj().transpose(0, 2, 1) @ layout.pairs(weights)) ** 2).sum(2)
    assert np.allclose(carried, energies, atol=1e-10)
    assert (np.diff(energies, axis=1) <= 1e-12).all()


@pytest.mark.parametrize("choice", ["norm", "high", "low", "uniform"])
@pytest.mark.parametrize("attention", [(*h, i) for h in HEADS[2:] for i in (False, True)], indirect=True)
def test_scores_are_those_of_what_keeps_rope_and_of_what_does_not(
    attention: tuple[Array, Array, Array, RotaryLayout], choice: str
) -> None:
    """Each head keeps some pairs; with the other pairs still rotated, the two parts add up to the scores."""
    query, key, weights, layout = attention
    true = scores(query, key, layout)
    kept = head_kept(layout.pairs(weights), 2, choice)
    assert (kept.sum(0) == 1).all()
    as_heads = RotaryLayout(len(true), 8, layout.rotated, layout.is_interleaved)
    pairs, rest = as_heads.pairs(query), as_heads.unrotated(query).reshape(len(true), 2, TOKENS)
    plain = layout.unrotated(key).reshape(layout.count, 2, TOKENS)
    keys = turned(layout.pairs(key), layout.rotated)
    for head in range(len(true)):
        g = head // (len(true) // layout.count)
        parts = [
            product(turned(pairs[:, head], layout.rotated)[mask], keys[:, g][mask])
            for mask in (kept[:, g], ~kept[:, g])
        ]
        assert np.abs(sum(parts) + rest[head].T @ plain[g] - true[head]).max() <= 1e-10


def test_a_wrong_layout_of_pairs_is_another_attention() -> None:
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((8, TOKENS)), rng.standard_normal((8, TOKENS))
    halves, interleaved = RotaryLayout(1, 8, 8, False), RotaryLayout(1, 8, 8, True)
    asked, held = (turned(interleaved.pairs(x), 8)[:, 0] for x in (query, key))
    assert np.abs(product(asked, held) - scores(query, key, interleaved)[0]).max() <= 1e-10
    assert np.abs(product(asked, held) - scores(query, key, halves)[0]).max() > 0.1


def test_which_pairs_are_kept() -> None:
    energies = np.array([[5.0, 4.0], [9.0, 0.5], [7.0, 6.0]])
    assert np.argwhere(shared_kept(energies, 2)).tolist() == [[1, 0]]
    assert np.argwhere(shared_kept(energies, 6)).tolist() == [[0, 0], [1, 0], [2, 0]]  # each frequency once
    assert np.argwhere(shared_kept(energies, 8)).tolist() == [[0, 0], [1, 0], [2, 0], [2, 1]]
    seen = np.sqrt(np.arange(1.0, 9.0)).reshape(8, 1, 1) * np.ones((8, 2, 1)) + 0j
    seen[:, 1] = seen[::-1, 1]
    wanted = {"high": ([0, 1], [0, 1]), "low": ([6, 7], [6, 7]), "uniform": ([0, 4], [0, 4]), "norm": ([6, 7], [0, 1])}
    for choice, heads in wanted.items():
        kept = head_kept(seen, 4, choice)
        assert tuple(np.flatnonzero(kept[:, head]).tolist() for head in (0, 1)) == heads


def test_complex_rows_have_the_singular_values_of_their_pairs() -> None:
    rng = np.random.default_rng(1)
    key, layout = rng.standard_normal((16, 9)), RotaryLayout(2, 8, 6, True)
    rows = np.concatenate([rows_of(layout.pairs(key).reshape(-1, 9)), layout.unrotated(key)])
    assert np.allclose(np.linalg.svd(rows, compute_uv=False), np.linalg.svd(key, compute_uv=False), atol=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
def test_recomputed_keys_of_a_latent_of_full_rank_are_the_keys(interleaved: bool) -> None:
    """A token keeps its projection on the right vectors of [K / |K|; V / |V|]; keys are rotated as they are expanded
    from that."""
    rng = np.random.default_rng(4)
    layout, heads = RotaryLayout(2, 8, 8, interleaved), 6
    weights, values = rng.standard_normal((16, 40)), rng.standard_normal((10, 40))
    inputs, query = rng.standard_normal((40, TOKENS)), rng.standard_normal((heads * 8, TOKENS))
    size = np.linalg.norm(weights)
    left, sigma, right = np.linalg.svd(
        np.concatenate([weights / size, values / np.linalg.norm(values)]), full_matrices=False
    )
    latent = right @ inputs  # the bound min(n, kv (d_k + d_v)) allows as many numbers
    assert len(latent) == 26
    expanded = size * (left * sigma)[:16] @ latent
    assert np.abs(scores(query, expanded, layout) - scores(query, weights @ inputs, layout)).max() <= 1e-10

"""A tall panel as block reflector and triangle: panel = (I - V X V^T)[:, :w] R, V (m, w), X and R (w, w).

Q comes from Householder QR over a tree of row tiles (TSQR): orthonormal whatever the rank of the panel, zero
columns included, with nothing to decide at run time. The reflector is rebuilt from Q (Ballard et al.,
"Reconstructing Householder vectors from tall-skinny QR"): V = Q + [S; 0], X = S (Q1 + S)^-T, with the signs
S taken inside the elimination, as each pivot is reached. Panels wider than LEAF are halved and merged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEAF = 32
TILE = 128
PER_WARP = 1024  # entries of a tile
_TINY = 1e-280
_INNER_ROWS = 1024  # from here on a^T b is summed over slices: one long sum per tile leaves a GPU idle
_INNER_SLICES = 16


class Reflector(NamedTuple):
    """H = I - v x v^T and the triangle that H^T leaves on top of the panel."""

    v: Tensor
    x: Tensor
    r: Tensor


def reflect(panel: Tensor, kernels: bool, leaf: int = LEAF, tile: int = TILE) -> Reflector:
    """Block reflector of a panel (batch, m, w), m >= w."""
    batch, rows, width = panel.shape
    if width <= leaf:
        return _leaf(panel, kernels, leaf, tile)
    half = width // 2
    left = reflect(panel[:, :, :half], kernels, leaf, tile)
    right = panel[:, :, half:]
    right = (right.mT - (inner(left.v, right).mT @ left.x) @ left.v.mT).mT  # by columns, as a GPU wants it
    lower = reflect(right[:, half:], kernels, leaf, tile)
    v = panel.new_zeros(batch, rows, width)
    v[:, :, :half] = left.v
    v[:, half:, half:] = lower.v
    x = panel.new_zeros(batch, width, width)
    x[:, :half, :half] = left.x
    x[:, :half, half:] = -left.x @ inner(v[:, :, :half], v[:, :, half:]) @ lower.x
    x[:, half:, half:] = lower.x
    r = panel.new_zeros(batch, width, width)
    r[:, :half, :half] = left.r
    r[:, :half, half:] = right[:, :half]
    r[:, half:, half:] = lower.r
    return Reflector(v, x, r)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """a^T b for tall a, b."""
    batch, rows, _ = a.shape
    if rows < _INNER_ROWS or rows % _INNER_SLICES:
        return a.mT @ b
    shape = (batch * _INNER_SLICES, rows // _INNER_SLICES, -1)
    parts = a.reshape(shape).mT @ b.reshape(shape)
    return parts.view(batch, _INNER_SLICES, *parts.shape[1:]).sum(1)


def _leaf(panel: Tensor, kernels: bool, leaf: int, tile: int) -> Reflector:
    q, r = tall_qr(panel, kernels, leaf, tile)
    v = q.contiguous()
    signs, inverse = (_inverse_kernel if kernels else _inverse_twin)(v, leaf)
    v.diagonal(dim1=1, dim2=2).add_(signs)
    return Reflector(v, signs.unsqueeze(-1) * inverse.mT, -signs.unsqueeze(-1) * r)


def tall_qr(panel: Tensor, kernels: bool, leaf: int = LEAF, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """Q (batch, m, w) with orthonormal columns, R (batch, w, w), over a tree of tiles."""
    batch, rows, width = panel.shape
    tile = max(min(tile, _power_of_two(rows)), _power_of_two(leaf))
    if tile < rows:
        tile = max(tile, 2 * _power_of_two(leaf))  # each level at least halves the rows
    q, r = (_tiles_kernel if kernels else _tiles_twin)(panel, tile, leaf)
    if q.shape[1] > 1:
        above, r = tall_qr(r, kernels, leaf, tile)
        q = q @ above.reshape(batch, q.shape[1], width, width)
    return q.reshape(batch, -1, width)[:, :rows], r


def _tiles_kernel(panel: Tensor, tile: int, leaf: int) -> tuple[Tensor, Tensor]:
    from . import kernels

    if panel.stride(1) != 1:
        panel = panel.mT.contiguous().mT
    batch, rows, width = panel.shape
    tiles = -(-rows // tile)
    q = panel.new_empty(batch, tiles, width, tile)
    r = panel.new_empty(batch, width, tiles * width)
    columns = max(_power_of_two(leaf), 2)
    strides = panel.stride(0), panel.stride(2)
    warps = min(max(tile * columns // PER_WARP, 1), 16)
    kernels.tile_qr[(tiles, batch)](
        panel, q, r, rows, width, *strides, tiles, ROWS=tile, COLS=columns, num_warps=warps, num_stages=1
    )
    return q.mT, r.mT


def _tiles_twin(panel: Tensor, tile: int, _leaf: int) -> tuple[Tensor, Tensor]:
    """Householder QR of all tiles at once, step by step as the kernel does it."""
    batch, rows, width = panel.shape
    tiles = -(-rows // tile)
    a = panel.new_zeros(batch, tiles * tile, width)
    a[:, :rows] = panel
    a = a.view(batch, tiles, tile, width)
    taus = []
    for k in range(width):
        tau, scale, beta = reflector(a[..., k, k], a[..., k + 1 :, k].square().sum(-1))
        v = a[..., k:, k] * scale.unsqueeze(-1)
        v[..., 0] = 1
        z = tau.unsqueeze(-1) * (v.unsqueeze(-1) * a[..., k:, k + 1 :]).sum(-2)
        a[..., k:, k + 1 :] -= v.unsqueeze(-1) * z.unsqueeze(-2)
        a[..., k:, k] = v
        a[..., k, k] = beta
        taus.append(tau)
    r = a[..., :width, :].triu().reshape(batch, tiles * width, width)
    for k in reversed(range(width)):
        v = a[..., k:, k].clone()
        v[..., 0] = 1
        tau = taus[k].unsqueeze(-1)
        z = tau * (v.unsqueeze(-1) * a[..., k:, k + 1 :]).sum(-2)
        a[..., :, k] = 0
        a[..., k:, k + 1 :] -= v.unsqueeze(-1) * z.unsqueeze(-2)
        a[..., k:, k] = -tau * v
        a[..., k, k] += 1
    return a, r


def reflector(alpha: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(tau, scale, beta): I - tau v v^T with v = (1, scale * tail) takes (alpha, tail) to (beta, 0)."""
    live = square > _TINY
    norm = (alpha * alpha + square).sqrt()
    beta = torch.where(live, torch.where(alpha > 0, -norm, norm), alpha)
    one = torch.ones_like(alpha)
    scale = live / torch.where(live, alpha - beta, one)
    tau = live * (beta - alpha) / torch.where(live, beta, one)
    return tau, scale, beta


def _inverse_kernel(q: Tensor, leaf: int) -> tuple[Tensor, Tensor]:
    from . import kernels

    batch, _, width = q.shape
    signs = q.new_empty(batch, width)
    inverse = q.new_empty(batch, width, width)
    size = max(_power_of_two(leaf), 2)
    kernels.signed_inverse[(batch,)](
        q, signs, inverse, width, *q.stride()[:2], SIZE=size, num_warps=4 if size > 16 else 1, num_stages=1
    )
    return signs, inverse


def _inverse_twin(q: Tensor, _leaf: int) -> tuple[Tensor, Tensor]:
    """Gauss-Jordan of Q1 + S, the signs chosen as the pivots are reached."""
    width = q.shape[2]
    a = q[:, :width].clone()
    signs = q.new_empty(q.shape[0], width)
    for k in range(width):
        signs[:, k] = torch.where(a[:, k, k] < 0, -1.0, 1.0)
        over = 1 / (a[:, k, k] + signs[:, k])
        row = a[:, k] * over.unsqueeze(-1)
        row[:, k] = over
        col = a[:, :, k].clone()
        col[:, k] = 0
        a[:, :, k] = 0
        a -= col.unsqueeze(-1) * row.unsqueeze(-2)
        a[:, k] = row
    return signs, a


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()

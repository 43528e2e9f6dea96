"""A tall panel as block reflector and triangle: panel = (I - V X V^T)[:, :w] R, V (m, w), X and R (w, w).

Q comes from Householder QR over a tree of row tiles (TSQR). It is orthonormal whatever the rank of the panel, even with
zero columns, and nothing has to be decided at run time. The reflector is rebuilt from Q (Ballard et al.,
"Reconstructing Householder vectors from tall-skinny QR"): V = Q + [S; 0], X = S (Q1 + S)^-T, with the signs S chosen
during the elimination, when each pivot is reached. The kernels are compiled for one width, `block`, and also take
narrower panels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TILE = 256
PER_WARP = 1024  # entries of a tile
_TINY = 1e-280


class Reflector(NamedTuple):
    """H = I - v x v^T, and the triangle r that H^T leaves at the top of the panel."""

    v: Tensor
    x: Tensor
    r: Tensor


def reflect(panel: Tensor, kernels: bool, block: int, tile: int = TILE) -> Reflector:
    """The block reflector of a panel (batch, m, w), m >= w, w <= block."""
    v, r = tall_qr(panel, kernels, block, tile)
    x = (_rebuild_kernel if kernels else _rebuild_twin)(v, r, block)
    return Reflector(v, x, r)


def tall_qr(panel: Tensor, kernels: bool, block: int, tile: int = TILE, stacked: bool = False) -> tuple[Tensor, Tensor]:
    """Q (batch, m, w) with orthonormal columns and R (batch, w, w), over a tree of tiles of `tile` rows.

    A tile of `stacked` triangles has twice as many rows if that saves a level, as each level waits for the one before.
    """
    batch, rows, width = panel.shape
    least = 2 * _power_of_two(block)  # each level at least halves the rows
    size = max(tile << stacked if rows > tile else tile, least) if rows > least else least
    q, r = (_tiles_kernel if kernels else _tiles_twin)(panel, size, block)
    if q.shape[1] > 1:
        above, r = tall_qr(r, kernels, block, tile, True)
        q = q @ above.reshape(batch, q.shape[1], width, width)
    return q.reshape(batch, -1, width)[:, :rows], r


def _tiles_kernel(panel: Tensor, tile: int, block: int) -> tuple[Tensor, Tensor]:
    from . import kernels

    if panel.stride(1) != 1:
        panel = panel.mT.contiguous().mT
    batch, rows, width = panel.shape
    tiles = -(-rows // tile)
    q = panel.new_empty(batch, tiles, width, tile)
    r = panel.new_empty(batch, width, tiles * width)
    columns = max(_power_of_two(block), 2)
    strides = panel.stride(0), panel.stride(2)
    warps = min(max(tile * columns // PER_WARP, 1), 16)
    kernels.tile_qr[(tiles, batch)](
        panel, q, r, rows, width, *strides, tiles, ROWS=tile, COLS=columns, num_warps=warps, num_stages=1
    )
    return q.mT, r.mT


def _tiles_twin(panel: Tensor, tile: int, _block: int) -> tuple[Tensor, Tensor]:
    """Householder QR of all tiles at once, with the steps of the kernel."""
    batch, rows, width = panel.shape
    tile = min(tile, rows)
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


def _rebuild_kernel(q: Tensor, r: Tensor, block: int) -> Tensor:
    from . import kernels

    batch, _, width = q.shape
    x = q.new_empty(batch, width, width)
    size = max(_power_of_two(block), 2)
    kernels.rebuild[(batch,)](
        q, r, x, width, *q.stride(), *r.stride(), SIZE=size, num_warps=4 if size > 16 else 1, num_stages=1
    )
    return x


def _rebuild_twin(q: Tensor, r: Tensor, _block: int) -> Tensor:
    """X by Gauss-Jordan of Q1 + S, with signs chosen when the pivots are reached. Q becomes V, and R becomes -S R."""
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
    q.diagonal(dim1=1, dim2=2).add_(signs)
    signs = signs.unsqueeze(-1)
    r.mul_(-signs)
    return signs * a.mT


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()

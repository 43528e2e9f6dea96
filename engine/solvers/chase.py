"""Band -> tridiagonal by bulge chasing: stage 2 of the two-stage eigensolver.

Sweep s clears column s below the subdiagonal; its step k moves the bulge down by a block of `width` rows. If step k of
sweep s is in wave 2 s + k, the blocks of a wave are disjoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .panel import reflector

WARPS = {128: 16, 64: 4, 32: 4, 16: 2}
_DONE = 1 << 30


def to_tridiagonal(
    band: Tensor, n: int, kernels: bool, warps: int | None = None, registers: int | None = None
) -> Tensor:
    """Diagonal and subdiagonal (with last entry 0), shape (batch, 2, n), of a band of to_band, which is overwritten."""
    if n > 2:
        if kernels:
            _chase_kernel(band, n, warps, registers)
        else:
            _chase_twin(band, n)
    return band[:, :n, :2].mT.contiguous()


def _chase_kernel(band: Tensor, n: int, warps: int | None, registers: int | None) -> None:
    """One launch. A program draws a sweep and runs its steps, each once the sweep before it is far enough."""
    from . import kernels

    batch, _, room = band.shape
    width = room // 2
    sweeps = n - 2
    progress = torch.zeros(batch, n, dtype=torch.int32, device=band.device)
    progress[:, 0] = _DONE
    ticket = torch.zeros(1, dtype=torch.int32, device=band.device)
    programs = batch * min(sweeps, n // room + 2)  # sweeps are two steps apart, so no more can run
    kernels.chase[(programs,)](
        band,
        progress,
        ticket,
        n,
        batch,
        batch * sweeps,
        band.stride(0),
        B=width,
        num_warps=warps or WARPS.get(width, 1),
        num_stages=1,
        **({"maxnreg": registers} if registers else {}),
    )


def _chase_twin(band: Tensor, n: int) -> None:
    """Chase wave by wave, all blocks of a wave at once."""
    width = band.shape[2] // 2
    flat = band.view(band.shape[0], -1)
    vs = band.new_zeros(band.shape[0], n, width)
    taus = band.new_zeros(band.shape[0], n)
    for wave in range(2 * n):
        sweep = torch.arange(min(wave // 2, n - 3) + 1)
        step = wave - 2 * sweep
        sweep = sweep[step <= (n - 2 - sweep) // width]
        step = wave - 2 * sweep
        for s, at in ((sweep[step == 0], 0), (sweep[step > 0], 1)):
            if len(s):
                first = s + 1 + (wave - 2 * s) * width
                v, tau = (_pass_on if at else _start)(flat, first, vs[:, s], taus[:, s], width)
                _two_sided(flat, first, v, tau, width)
                vs[:, s], taus[:, s] = v, tau


def _start(flat: Tensor, first: Tensor, _v: Tensor, _tau: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The reflector of the column before row `first`, applied to that column."""
    at = ((first - 1) * 2 * width + 1).unsqueeze(-1) + torch.arange(width)
    v, tau, flat[:, at] = _first(flat[:, at])
    return v, tau


def _pass_on(flat: Tensor, first: Tensor, v: Tensor, tau: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Apply the last reflector from the right to the block below it, then that block's own reflector from the left."""
    i = torch.arange(width)
    at = ((first - width) * 2 * width + width).view(-1, 1, 1) + i.view(-1, 1) + i * (2 * width - 1)
    block = flat[:, at]
    u = tau.unsqueeze(-1) * (block * v.unsqueeze(-2)).sum(-1)
    block -= u.unsqueeze(-1) * v.unsqueeze(-2)
    v, tau, column = _first(block[..., 0])
    z = tau.unsqueeze(-1) * (block * v.unsqueeze(-1)).sum(-2)
    block -= v.unsqueeze(-1) * z.unsqueeze(-2)
    block[..., 0] = column
    flat[:, at] = block
    return v, tau


def _first(column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tau, scale, beta = reflector(column[..., 0], column[..., 1:].square().sum(-1))
    v = column * scale.unsqueeze(-1)
    v[..., 0] = 1
    reflected = torch.zeros_like(column)
    reflected[..., 0] = beta
    return v, tau, reflected


def _two_sided(flat: Tensor, first: Tensor, v: Tensor, tau: Tensor, width: int) -> None:
    """Replace the diagonal blocks D that start at rows `first` by H D H; only their lower halves are stored."""
    low, right = torch.tril_indices(width, width)
    at = (first * 2 * width).unsqueeze(-1) + low + right * (2 * width - 1)
    block = v.new_zeros(*v.shape, width)
    block[..., low, right] = flat[:, at]
    p = tau.unsqueeze(-1) * ((block * v.unsqueeze(-2)).sum(-1) + (block.tril(-1) * v.unsqueeze(-1)).sum(-2))
    w = p - (0.5 * tau * (p * v).sum(-1)).unsqueeze(-1) * v
    block -= v.unsqueeze(-1) * w.unsqueeze(-2) + w.unsqueeze(-1) * v.unsqueeze(-2)
    flat[:, at] = block[..., low, right]

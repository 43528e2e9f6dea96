"""Dense symmetric -> band, in matrix products: stage 1 of the two-stage eigensolver."""

from __future__ import annotations

import torch
from torch import Tensor

from .panel import LEAF, TILE, inner, reflect


def to_band(gram: Tensor, width: int, kernels: bool, leaf: int = LEAF, tile: int = TILE) -> Tensor:
    """An orthogonally similar band, `gram` (batch, n, n) being overwritten.

    Returned in columns with room for the bulges and a margin of zeros: entry (j + d, j) stands at [:, j, d],
    0 <= d < 2 width, 0 <= j < n + 2 width, so that every block of the band is a strided view.
    """
    n = gram.shape[-1]
    for start in range(0, n - width - 1, width):
        _reduce_panel(gram, start, width, kernels, leaf, tile)
    band = gram.new_zeros(gram.shape[0], n + 2 * width, 2 * width)
    for d in range(min(width + 1, n)):
        band[:, : n - d, d] = gram.diagonal(-d, 1, 2)
    return band


def _reduce_panel(gram: Tensor, start: int, width: int, kernels: bool, leaf: int, tile: int) -> None:
    """Clear the columns from `start` below the band, and the trailing matrix H^T A H."""
    first = start + width
    panel = gram[:, start:first, first:].mT  # above the diagonal: by columns
    cols = min(panel.shape[1:])
    v, x, r = reflect(panel[:, :, :cols], kernels, leaf, tile)
    below = gram[:, first : first + cols, start:first]
    if cols < width:
        rest = panel[:, :, cols:]
        below[:, :, cols:] = rest - v @ (x.mT @ inner(v, rest))
    below[:, :, :cols] = r
    trailing = gram[:, first:, first:]
    y = trailing @ v @ x
    w = torch.baddbmm(y, v, x.mT @ inner(v, y), alpha=-0.5)
    trailing.baddbmm_(torch.cat([v, w], 2), torch.cat([w, v], 2).mT, alpha=-1)

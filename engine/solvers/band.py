"""Dense symmetric -> band, in matrix products: stage 1 of the two-stage eigensolver.

After each panel the trailing matrix A would become A - V W^T - W V^T. These products are only written back after GROUP
panels, to the lower half, which is then mirrored; until then they are subtracted from whatever is read of A. So A is
read once for each panel and written once for each group, by wide products: on an H100 27 TFLOP/s with 128 columns, 48
with 512.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .panel import TILE, reflect

GROUP = 8
_ROWS = 1024  # rows of the lower half that are updated at a time, each up to the diagonal


def to_band(gram: Tensor, width: int, kernels: bool, tile: int = TILE, group: int = GROUP) -> Tensor:
    """A band matrix that is orthogonally similar to `gram` (batch, n, n), which is overwritten.

    The band is stored by columns, with room for the bulges and a margin of zeros: entry (j + d, j) is at [:, j, d],
    0 <= d < 2 width, 0 <= j < n + 2 width, so that every block of the band is a strided view.
    """
    batch, n, _ = gram.shape
    starts = range(0, n - width - 1, width)
    left, right = gram.new_empty(2, batch, n, 2 * width * min(group, len(starts))).unbind(0)
    for first in range(0, len(starts), group):
        used = 0
        for start in starts[first : first + group]:
            used = _reduce_panel(gram, start, width, left, right, used, kernels, tile)
        done = starts[first : first + group][-1] + width
        _subtract(gram[:, done:, done:], left[:, done:, :used], right[:, done:, :used].mT)
    del left, right
    band = gram.new_zeros(batch, n + 2 * width, 2 * width)
    for d in range(min(width + 1, n)):
        band[:, : n - d, d] = gram.diagonal(-d, 1, 2)
    return band


def _reduce_panel(
    gram: Tensor, start: int, width: int, left: Tensor, right: Tensor, used: int, kernels: bool, tile: int
) -> int:
    """Clear the columns from `start` below the band.

    The trailing matrix is `gram` minus left right^T with their first `used` columns, [V W ...] and [W V ...]. This
    panel's V and W are written after these. Return how many columns are used then.
    """
    first = start + width
    rows = gram[:, start:first, start:]  # above the diagonal: the panel by columns
    if used:
        rows.baddbmm_(left[:, start:first, :used], right[:, start:, :used].mT, alpha=-1)
    panel = rows[:, :, width:].mT
    cols = min(panel.shape[1:])
    v, x, r = reflect(panel[:, :, :cols], kernels, width, tile)
    below = gram[:, first : first + cols, start:first]
    if cols < width:
        rest = panel[:, :, cols:]
        below[:, :, cols:] = rest - v @ (x.mT @ (v.mT @ rest))
    below[:, :, :cols] = r
    y = gram[:, first:, first:] @ v
    if used:
        y.baddbmm_(left[:, first:, :used], right[:, first:, :used].mT @ v, alpha=-1)
    y = y @ x
    w = y.baddbmm_(v, x.mT @ (v.mT @ y), alpha=-0.5)
    end = used + 2 * cols
    torch.cat([v, w], 2, out=left[:, first:, used:end])
    torch.cat([w, v], 2, out=right[:, first:, used:end])
    return end


def _subtract(matrix: Tensor, left: Tensor, right: Tensor) -> None:
    """Subtract the symmetric product left right from a symmetric matrix (batch, m, m); only its lower half is read."""
    size = matrix.shape[1]
    for row in range(0, size, _ROWS):
        end = min(row + _ROWS, size)
        matrix[:, row:end, :end].baddbmm_(left[:, row:end], right[:, :, :end], alpha=-1)
    for row in range(_ROWS, size, _ROWS):
        end = min(row + _ROWS, size)
        matrix[:, :row, row:end] = matrix[:, row:end, :row].mT

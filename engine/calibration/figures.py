"""Computing the figures of projections under a calibration from sums and weights: k90, held-out energy, position 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ..catalogue.rules import cut
from ..checkpoint.open import Checkpoint
from ..errors import WeightsError
from ..metrics import threshold_rank
from ..spectrum import Projection
from ..weights import host_array
from .running import Fed
from .said import SINK, Figures
from .sums import PARTS, Sums

_THRESHOLD = 0.9


def figures(checkpoint: Checkpoint, seen: Mapping[Fed, Sums], device: str) -> Iterator[tuple[Projection, Figures]]:
    """Yield the figures of each projection that tokens reached and that can be read; in float64 on the device."""
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
    last: tuple[str, Any] | None = None  # experts of one stack come one after the other
    for fed, sums in seen.items():
        if not sums.tokens:
            continue
        rest, first, held = (torch.as_tensor(sums.parts[part].products, device=device).double() for part in PARTS)
        for p in fed.projections:
            try:
                if last is None or last[0] != p.tensor:
                    last = p.tensor, checkpoint.read(tensors[p.tensor])[0]
                own: Any = last[1] if p.slice is None else cut(last[1], p.slice)
            except WeightsError:
                continue
            matrix = host_array(own).astype(np.float64)
            w = torch.as_tensor(matrix.T if p.transposed else matrix, device=device)
            yield p, _of(w, sums, rest, first, held)


def _of(w: torch.Tensor, sums: Sums, rest: torch.Tensor, first: torch.Tensor, held: torch.Tensor) -> Figures:
    energies, kept = _spectrum(w, rest + first)
    k90 = _k90(energies)
    total = float(energies.sum())
    sink = _energy(w, first) / total if sums.parts["first"].count and total else None
    apart = None
    if sink is not None and sink > SINK and sums.parts["rest"].count:
        apart = _k90(_spectrum(w, rest)[0])
    held_out = _energy(w, held) if sums.held else 0.0
    share = _energy(kept[:, :k90].T @ w, held) / held_out if held_out else None
    return Figures(sums.tokens, sums.cols, k90, share, sink, apart)


def _k90(energies: torch.Tensor) -> int:
    return threshold_rank(energies.sqrt().cpu().numpy(), _THRESHOLD)


def _energy(w: torch.Tensor, c: torch.Tensor) -> float:
    """tr(W C W^T)."""
    return float((_times(w, c) * w).sum())


def _times(w: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """W C; a vector `c` is the diagonal of C."""
    return w * c if c.dim() == 1 else w @ c


def _spectrum(w: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The eigenvalues of W C W^T, descending, as many as the smaller side of W, and their vectors in columns.

    The best approximation of W with rank k under C is U U^T W, U the first k vectors (Eckart and Young for W C^1/2).
    """
    if len(w) <= w.shape[1]:
        squares, left = torch.linalg.eigh(_times(w, c) @ w.T)
        return squares.flip(0).clamp(min=0), left.flip(1)
    if c.dim() == 1:
        product = w * c.sqrt()
    else:
        values, vectors = torch.linalg.eigh(c)
        product = w @ (vectors * values.clamp(min=0).sqrt())
    squares, right = torch.linalg.eigh(product.T @ product)
    left = product @ right
    left /= left.norm(dim=0).clamp(min=torch.finfo(left.dtype).tiny)
    return squares.flip(0).clamp(min=0), left.flip(1)

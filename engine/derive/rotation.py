"""Which rows of a key keep RoPE when it is made latent, and what is left of it then.

Rows of a key that are rotated as a pair are one row of complex numbers, z = a + i b, and RoPE turns each by a phase of
its position: whatever mixes the z of one frequency over the KV heads commutes with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..spectrum import Values

Pairs: TypeAlias = NDArray[np.complex128]


@dataclass(frozen=True, slots=True)
class RotaryLayout:
    """How the rows of a key stand: `count` heads of `head_dim` rows, of which the first `rotated` make pairs, 2 i and
    2 i + 1 where `is_interleaved`, else i and i + rotated / 2."""

    count: int
    head_dim: int
    rotated: int
    is_interleaved: bool

    def pairs(self, key: Values) -> Pairs:
        """The rotated rows of a key of shape (count x head_dim, n), shape (rotated / 2, count, n): by frequency, the
        highest first, and head."""
        rows = key.reshape(self.count, self.head_dim, -1)[:, : self.rotated]
        if self.is_interleaved:
            first, second = rows[:, 0::2], rows[:, 1::2]
        else:
            first, second = rows[:, : self.rotated // 2], rows[:, self.rotated // 2 :]
        return np.ascontiguousarray((first + 1j * second).transpose(1, 0, 2))

    def unrotated(self, key: Values) -> Values:
        """The rows that RoPE leaves as they are."""
        rows = key.reshape(self.count, self.head_dim, -1)[:, self.rotated :]
        return rows.reshape(-1, rows.shape[2])


def shared_basis(seen: Pairs, is_real: bool) -> tuple[Pairs, Values]:
    """By frequency the unitary U, shape (rotated / 2, count, count), whose columns are the directions over the heads
    with most energy first, and these energies, (rotated / 2, count): U_f^H z_f are the new keys, exact since U commutes
    with RoPE. `seen`: the pairs of W S under a weighting S S^T = C, else of W. `is_real` takes the real part of
    sum z z^H, as TransMLA's rotation of heads does (arXiv 2502.07864)."""
    gram = seen @ seen.conj().transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(gram.real if is_real else gram)
    return vectors[:, :, ::-1].astype(np.complex128), values[:, ::-1]


def shared_kept(energies: Values, dims: int) -> NDArray[np.bool_]:
    """Which of the new pairs (frequency, direction) are the shared key of `dims` rows.

    A shared key has each frequency once, as RoPE does: the first directions of those frequencies where they have most
    energy; where it has more rows than that, the second ones follow, and so on.
    """
    frequencies, count = energies.shape
    direction = np.broadcast_to(np.arange(count), (frequencies, count))
    order = np.lexsort((-energies.ravel(), direction.ravel()))
    kept = np.zeros(energies.size, bool)
    kept[order[: dims // 2]] = True
    return kept.reshape(energies.shape)


def head_kept(seen: Pairs, dims: int, choice: str) -> NDArray[np.bool_]:
    """Which pairs, shape (rotated / 2, count), of every head keep RoPE, `dims` / 2 of each, by one of latent.CHOICES:
    those of MHA2MLA (arXiv 2502.14837), `norm` of the keys alone."""
    frequencies, count, _ = seen.shape
    kept = np.zeros((frequencies, count), bool)
    if choice == "norm":
        energies = (np.abs(seen) ** 2).sum(2)
        order = np.argsort(-energies, axis=0, kind="stable")[: dims // 2]
        np.put_along_axis(kept, order, True, axis=0)
        return kept
    if choice == "uniform":
        kept[np.arange(dims // 2) * frequencies // (dims // 2)] = True
    elif choice == "high":
        kept[: dims // 2] = True
    else:
        kept[frequencies - dims // 2 :] = True
    return kept


def rows_of(pairs: Pairs) -> Values:
    """Complex rows, shape (k, n), as 2 k real ones."""
    return np.concatenate([pairs.real, pairs.imag])

"""Which rows of a key keep RoPE when it is made latent, and the other rows.

Two rows that RoPE rotates as a pair are one row of complex numbers, z = a + i b, and RoPE multiplies each number by a
phase for its position. A mixing of the z of one frequency over the KV heads therefore commutes with RoPE.
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
    """How the rows of a key are ordered: `count` heads of `head_dim` rows. The first `rotated` rows of a head make
    pairs: 2 i and 2 i + 1 if `is_interleaved`, else i and i + rotated / 2."""

    count: int
    head_dim: int
    rotated: int
    is_interleaved: bool

    def pairs(self, key: Values) -> Pairs:
        """The rotated rows of a key of shape (count x head_dim, n) as complex pairs, shape (rotated / 2, count, n): by
        frequency, highest first, and head."""
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
    """For each frequency a unitary U, shape (rotated / 2, count, count), whose columns are directions over the heads in
    descending order of energy, and these energies, (rotated / 2, count).

    U_f^H z_f are the new keys, and exact, as U commutes with RoPE. `seen` are the pairs of W S under a weighting
    S S^T = C, else of W. `is_real` takes the real part of sum z z^H, as TransMLA's rotation of heads does (arXiv
    2502.07864).
    """
    gram = seen @ seen.conj().transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(gram.real if is_real else gram)
    return vectors[:, :, ::-1].astype(np.complex128), values[:, ::-1]


def shared_kept(energies: Values, dims: int) -> NDArray[np.bool_]:
    """A mask of the new pairs (frequency, direction) that make up the shared key of `dims` rows.

    A shared key has each frequency once, as RoPE does: the first directions of the frequencies at which these have most
    energy. If it has more rows than that, second directions follow, and so on.
    """
    frequencies, count = energies.shape
    direction = np.broadcast_to(np.arange(count), (frequencies, count))
    order = np.lexsort((-energies.ravel(), direction.ravel()))
    kept = np.zeros(energies.size, bool)
    kept[order[: dims // 2]] = True
    return kept.reshape(energies.shape)


def head_kept(seen: Pairs, dims: int, choice: str) -> NDArray[np.bool_]:
    """A mask, shape (rotated / 2, count), of the `dims` / 2 pairs of each head that keep RoPE, by `choice`, one of
    latent.CHOICES: those of MHA2MLA (arXiv 2502.14837), where `norm` looks at the keys only."""
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
    """Complex rows, shape (k, n), as 2 k real ones: real parts first."""
    return np.concatenate([pairs.real, pairs.imag])

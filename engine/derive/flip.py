"""The sign-flipped twin of a projection: the same sizes of weights under random signs.

Its threshold rank, kf, is what the row and column scales alone leave of the rank: k/k0 compares with
iid noise, k/kf with noise of the same |weights|, so their difference is structure in the signs.
"""

from __future__ import annotations

from functools import lru_cache

from ..spectrum import FLIPPED, Projection
from .derived import derive


@lru_cache(maxsize=1 << 16)  # a table asks for the twin of every cell: 5 us each made, 0.5 us remembered
def flipped(projection: Projection) -> Projection:
    """The twin of a projection: the same but for `derived` and `key`, so it is read, queued and stored like any."""
    return derive(projection, FLIPPED)

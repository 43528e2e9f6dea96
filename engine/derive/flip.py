"""The sign-flipped twin of a projection: the same absolute weights with random signs.

kf is the threshold rank of the twin. k/k0 compares a rank with that of iid noise, k/kf with that of noise with the same
|weights|, and so the same row and column scales: their difference is structure in the signs.
"""

from __future__ import annotations

from functools import lru_cache

from ..spectrum import FLIPPED, Projection
from .derived import derive


@lru_cache(maxsize=1 << 16)  # a table needs the twin of every cell: 5 us to make one, 0.5 us from the cache
def flipped(projection: Projection) -> Projection:
    """The twin of a projection. Only `derived` and `key` differ, so it is read, queued and stored like any other."""
    return derive(projection, FLIPPED)

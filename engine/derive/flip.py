"""The sign-flipped twin of a projection: the same sizes of weights under random signs.

Its threshold rank, kf, is what the row and column scales alone leave of the rank: k/k0 compares with
iid noise, k/kf with noise of the same |weights|, so their difference is structure in the signs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ..spectrum import Projection, digest

FLIP = "flip"
VERSION = 1
"""Of the recipe in derive/signs.py. It is part of the key: other signs are another spectrum."""


@lru_cache(maxsize=1 << 16)  # a table asks for the twin of every cell: 5 us each made, 0.5 us remembered
def flipped(projection: Projection) -> Projection:
    """The twin of a projection: the same but for `null` and `key`, so it is read, queued and stored like any."""
    return replace(projection, null=FLIP, key=twin_key(projection.key))


def twin_key(key: str) -> str:
    """The content key of the twin of the projection with this content key."""
    return digest(key, FLIP, VERSION)

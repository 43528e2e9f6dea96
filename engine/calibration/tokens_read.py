"""Which tokens a calibration has read: short runs of them by their digests, to be found in any other text."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
from xxhash import xxh3_64_hexdigest

RUN = 16
"""Tokens of a run. Of what two texts share nothing of twice this length is missed, wherever it begins."""


def digests_of(sequences: Iterable[Sequence[int]], special: Collection[int]) -> list[str]:
    """Of the runs that each sequence is made of, one behind the other; without the tokens that a tokenizer puts around
    a text, which are no text."""
    found = (digest for ids in sequences for digest in _digests(ids, special, RUN))
    return list(dict.fromkeys(found))


def has_read(digests: Collection[str], ids: Sequence[int], special: Collection[int]) -> bool:
    """Whether one of the runs that were read is somewhere in this sequence."""
    return any(digest in digests for digest in _digests(ids, special, 1))


def _digests(ids: Sequence[int], special: Collection[int], step: int) -> Iterator[str]:
    text = np.array([token for token in ids if token not in special], "<i4")
    for start in range(0, len(text) - RUN + 1, step):
        yield xxh3_64_hexdigest(text[start : start + RUN].tobytes())


def written(digests: Sequence[str]) -> str:
    """As it stands in the metadata of a file of moments."""
    return json.dumps({"run": RUN, "digests": digests})


def read_back(text: str) -> frozenset[str] | None:
    """The digests that `written` wrote, None where something else stands there, or nothing."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        found = json.loads(text)
        if found["run"] == RUN and all(type(digest) is str for digest in found["digests"]):
            return frozenset(found["digests"])
    return None

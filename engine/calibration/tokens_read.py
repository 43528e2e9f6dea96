"""The text that a calibration has read, as digests of short runs of tokens, so that other texts can be compared."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
from xxhash import xxh3_64_hexdigest

RUN = 16
"""How many tokens a run has. A shared passage of twice this length is always found, wherever it begins."""


def digests_of(sequences: Iterable[Sequence[int]], special: Collection[int]) -> list[str]:
    """The digests of the consecutive runs of each sequence, without the special tokens that a tokenizer puts around a
    text."""
    found = (digest for ids in sequences for digest in _digests(ids, special, RUN))
    return list(dict.fromkeys(found))


def has_read(digests: Collection[str], ids: Sequence[int], special: Collection[int]) -> bool:
    """Return whether one of the runs that were read is anywhere in this sequence."""
    return any(digest in digests for digest in _digests(ids, special, 1))


def _digests(ids: Sequence[int], special: Collection[int], step: int) -> Iterator[str]:
    text = np.array([token for token in ids if token not in special], "<i4")
    for start in range(0, len(text) - RUN + 1, step):
        yield xxh3_64_hexdigest(text[start : start + RUN].tobytes())


def written(digests: Sequence[str]) -> str:
    """The digests as text for the metadata of a file of moments."""
    return json.dumps({"run": RUN, "digests": digests})


def read_back(text: str) -> frozenset[str] | None:
    """The digests in a text that `written` made, None if it is something else."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        found = json.loads(text)
        if found["run"] == RUN and all(type(digest) is str for digest in found["digests"]):
            return frozenset(found["digests"])
    return None

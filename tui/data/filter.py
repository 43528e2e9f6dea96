"""Filters as a person types them: parts of an address, globs, or just some letters of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rankscope.engine.catalogue.tree import is_named
from rankscope.engine.spectrum import Projection


def find(projections: Iterable[Projection], pattern: str) -> list[Projection]:
    """The projections that a filter matches, by the first method that finds any.

    First dotted parts or a glob, as for `--filter`; then the words of the pattern, each anywhere in the address with
    its letters in order: `3dwn` finds layers.3.mlp.down but not layers.13.mlp.down, since numbers are matched whole.
    """
    candidates = [p for p in projections if p.rows]
    exact = [p for p in candidates if p.address == pattern]
    named = exact or [p for p in candidates if is_named(p, pattern)]
    if named or any(c in pattern for c in "*?["):
        return named
    words = [_loose(word) for word in pattern.split()]
    return [p for p in candidates if all(word.search(p.address) for word in words)]


def _loose(word: str) -> re.Pattern[str]:
    parts = re.findall(r"[0-9]+|[^0-9]", word)
    return re.compile(
        ".*?".join(rf"(?<![0-9]){part}(?![0-9])" if part[0].isdigit() else re.escape(part) for part in parts),
        re.IGNORECASE,
    )

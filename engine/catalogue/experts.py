"""A sample of the experts of each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..spectrum import Projection


def sample(projections: Iterable[Projection], count: int | None) -> list[Projection]:
    """The projections, but at most `count` experts of each layer; None keeps all.

    The choice is always the same: of n experts those at 0, n / count, 2 n / count ... in the order of their numbers, so
    that a sample twice as large contains the smaller one.
    """
    everything = list(projections)
    if count is None:
        return everything
    numbers: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for p in everything:
        if p.expert is not None:
            numbers[_place(p)].add(p.expert)
    kept = {place: _spread(sorted(found), count) for place, found in numbers.items()}
    return [p for p in everything if p.expert is None or p.expert in kept[_place(p)]]


def _place(p: Projection) -> tuple[object, ...]:
    return p.tower, p.layer, p.block


def _spread(numbers: list[int], count: int) -> set[int]:
    return {numbers[i * len(numbers) // count] for i in range(count)} if count < len(numbers) else set(numbers)

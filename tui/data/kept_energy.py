"""How much energy a rank keeps of each spectrum: a cache of the numbers that were read, by rank."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import isnan, nan

from rankscope.engine.spectrum import Projection, Values

from .kept_ranks import KeptRanks

_BATCH = 256
_MOST_RANKS = 16
"""Ranks whose numbers are cached: for 45,000 projections each takes some 5 MB."""

EnergyByKey = dict[str, float]
"""Energy in % by content key; NaN for a zero matrix, which has no energy."""


class KeptEnergies:
    """`read` returns the values of stored keys, `tell` is called with keys whose numbers have become known."""

    def __init__(
        self, read: Callable[[Sequence[str]], dict[str, Values]], tell: Callable[[Iterable[str]], None]
    ) -> None:
        self._read, self._tell = read, tell
        self._at: dict[int, EnergyByKey] = {}

    def number(self, p: Projection, ranks: KeptRanks) -> float | None:
        """The energy in % that a projection keeps at its rank; None if it was not read, or there is none."""
        k = ranks.of(p)
        found = nan if k is None else self._at.get(k, {}).get(p.key, nan)
        return None if isnan(found) else found

    def knows(self, p: Projection, ranks: KeptRanks) -> bool:
        """Whether the energy was read, even if there is none."""
        k = ranks.of(p)
        return k is not None and p.key in self._at.get(k, {})

    def numbers(self, projections: Iterable[Projection], ranks: KeptRanks) -> Mapping[str, float]:
        """The energies of several projections by key; some may be NaN or missing."""
        if not ranks.roles and ranks.common is not None:
            return self._at.get(ranks.common, {}).copy()
        every = ((p.key, ranks.of(p)) for p in projections)
        return {key: found for key, k in every if k and (found := self._at.get(k, {}).get(key)) is not None}

    def unread(self, projections: Iterable[Projection], stored: Collection[str], ranks: KeptRanks) -> set[str]:
        """The keys of those projections that are stored and whose energy was not read."""
        every = ((p.key, ranks.of(p)) for p in projections if p.key in stored)
        return {key for key, k in every if k is not None and key not in self._at.get(k, {})}

    def load(self, projections: Sequence[Projection], stored: Collection[str], ranks: KeptRanks) -> None:
        """Compute the energies of those projections that are stored. Reads files."""
        from rankscope.engine.metrics import energy_at  # imports numpy

        unread = self.unread(projections, stored, ranks)
        wanted = {p.key: k for p in projections if p.key in unread and (k := ranks.of(p)) is not None}
        if len(self._at.keys() | set(wanted.values())) > _MOST_RANKS:
            self._at = {k: found for k, found in self._at.items() if k in set(wanted.values())}
        keys = list(wanted)
        for start in range(0, len(keys), _BATCH):
            found = self._read(keys[start : start + _BATCH])
            for key, values in found.items():
                k = wanted[key]
                kept = 100 * energy_at(values, k) if k < values.size else 100.0
                self._at.setdefault(k, {})[key] = kept if values.size and values[0] > 0 else nan
            self._tell(found)

    def forget(self, key: str) -> None:
        """Drop the energies of a key whose stored spectrum has changed or is gone."""
        for numbers in self._at.values():
            numbers.pop(key, None)

"""The null ranks of projections under a weighting: ranks of stored spectra of noise under the same weighting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from rankscope.engine.derive.weighting import is_weighted, noise_of
from rankscope.engine.spectrum import THRESHOLDS, Projection, Values

_BATCH = 256


class NullRanks:
    """`read` returns the values of stored keys, `tell` is called with keys whose ranks have become known."""

    def __init__(
        self, read: Callable[[Sequence[str]], dict[str, Values]], tell: Callable[[Iterable[str]], None]
    ) -> None:
        self._read, self._tell = read, tell
        self._noises: dict[str, Projection] = {}  # by the key of a projection under a weighting
        self._ranks: dict[str, dict[float, float]] = {}  # by the key of noise

    def noise(self, projection: Projection) -> Projection:
        """The noise that a projection under a weighting is compared with (see noise_of), made once."""
        found = self._noises.get(projection.key)
        if found is None:
            found = self._noises[projection.key] = noise_of(projection)
        return found

    def number(self, projection: Projection, threshold: float) -> float | None:
        """The null rank of a projection under a weighting; None if it was not read."""
        return self._ranks.get(self.noise(projection).key, {}).get(threshold)

    def unread(self, projections: Iterable[Projection], stored: Collection[str], threshold: float) -> list[Projection]:
        """Those of the projections under a weighting whose noise is stored and was not read at this threshold."""
        return [p for p in projections if self._is_unread(p, stored, threshold)]

    def load(self, projections: Iterable[Projection], stored: Collection[str], threshold: float) -> None:
        """Compute the null ranks of those projections that are under a weighting, at this threshold and at THRESHOLDS.
        Reads files."""
        unread = list(dict.fromkeys(self.noise(p).key for p in self.unread(projections, stored, threshold)))
        if not unread:
            return
        from rankscope.engine.null import null_rank_of  # imports numpy

        for start in range(0, len(unread), _BATCH):
            found = self._read(unread[start : start + _BATCH])
            for key, values in found.items():
                wanted = {threshold, *THRESHOLDS} - self._ranks.setdefault(key, {}).keys()
                self._ranks[key] |= {t: null_rank_of(values, t) for t in wanted}
            self._tell(found)

    def forget(self, key: str) -> None:
        """Drop the ranks of a key whose stored spectrum has changed or is gone."""
        self._ranks.pop(key, None)

    def _is_unread(self, p: Projection, stored: Collection[str], threshold: float) -> bool:
        if p.problem is not None or not is_weighted(p):
            return False
        key = self.noise(p).key
        return key in stored and threshold not in self._ranks.get(key, ())

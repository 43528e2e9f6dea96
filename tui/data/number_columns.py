"""Numbers of all projections of a model at once, as arrays, so that thresholds, units and sorting are array operations.

Reading the numbers of 45,000 projections one by one takes 60 ms a measure, and a key needs three measures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from rankscope.engine.derive.head_matrices import is_like_noise
from rankscope.engine.spectrum import Projection, Values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    RowNumbers = NDArray[np.intp]

_MOST_CHANGES = 1024
"""Changes that are remembered; a reader that is further behind makes its array anew."""
_MOST_ARRAYS = 96
"""Arrays that are kept: stepping through ranks makes one at each step."""
_FEW = 8
"""An array is made anew if more than one in this number of its rows have changed."""


class NumberColumns:
    """The numbers of a model's projections (`every`): arrays of float64 with a row per content key, NaN for unknown
    numbers. One further row, the last, is always NaN: it represents a projection that the model does not have.

    Its session reports which keys have changed; an array is updated when it is next read. From any thread. Numpy is
    imported by the first read, because the first screen does not need it.
    """

    def __init__(self, every: Sequence[Projection]) -> None:
        self._every = every
        self._lock = threading.RLock()  # a ratio reads its numerator and denominator
        self._changes: list[frozenset[str] | None] = []
        self._arrays: dict[Hashable, tuple[int, Values]] = {}
        self._dropped = 0  # changes that were dropped from the front of the list

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """The row of each content key. 45,000 take some 10 ms."""
        return {key: row for row, key in enumerate(dict.fromkeys(p.key for p in self._every))}

    @cached_property
    def projections(self) -> tuple[Projection, ...]:
        """The projection of each row; one of those that share a tensor."""
        return tuple({p.key: p for p in self._every}.values())

    @cached_property
    def _shapes(self) -> tuple[list[Projection], RowNumbers]:
        """One projection of each shape, products and others apart, and for each row which of these is like it."""
        import numpy as np

        found: dict[tuple[int, int, int, bool], int] = {}
        like = [found.setdefault((p.rows, p.cols, p.inner, is_like_noise(p)), len(found)) for p in self.projections]
        return [self.projections[like.index(number)] for number in range(len(found))], np.array(like, dtype=np.intp)

    def rows_of(self, projections: Iterable[Projection | None]) -> RowNumbers:
        """The rows of projections; the last, which has no number, for None and for those that the model lacks."""
        import numpy as np

        rows, last = self.rows, len(self.rows)
        found = (last if p is None else rows.get(p.key, last) for p in projections)
        return np.fromiter(found, dtype=np.intp)

    def of_keys(self, numbers: Mapping[str, float | None]) -> Values:
        """An array of numbers given by content key; keys without a row are left out."""
        import numpy as np

        rows, last = self.rows, len(self.rows)
        found = self._blank()
        places = np.array([rows.get(key, last) for key in numbers], dtype=np.intp)
        found[places] = np.array(list(numbers.values()), dtype=np.float64)  # None becomes NaN
        found[last] = np.nan
        return found

    def by_shape(self, number: Callable[[Projection], float | None]) -> Values:
        """A number that depends on the shape alone, computed once for each shape."""
        import numpy as np

        kinds, like = self._shapes
        numbers = np.array([number(p) for p in kinds], dtype=np.float64)
        found = self._blank()
        found[:-1] = numbers[like]
        return found

    def kept(
        self, what: Hashable, every: Callable[[], Values], one: Callable[[Projection], float | None], *, twins: bool
    ) -> Values:
        """The array of `what`: as `every` made it, then updated by `one` where something has changed. `twins`: whether
        changes of twins with random signs affect it too. Not to be written to."""
        with self._lock:
            seen = self._dropped + len(self._changes)
            since, found = self._arrays.get(what, (-1, None))
            changed = self._changed_since(since, twins)
            if found is None or changed is None:
                found = every()
            else:
                for row in map(self.rows.__getitem__, changed):
                    number = one(self.projections[row])
                    found[row] = float("nan") if number is None else number
            self._arrays.pop(what, None)
            self._arrays[what] = seen, found
            if len(self._arrays) > _MOST_ARRAYS:  # drop the least recently read one
                del self._arrays[next(iter(self._arrays))]
            return found

    def changed(self, keys: Iterable[str] | None) -> None:
        """Record that these keys have changed, None: any."""
        with self._lock:
            if len(self._changes) >= _MOST_CHANGES:
                self._dropped += len(self._changes)
                self._changes.clear()
            self._changes.append(None if keys is None else frozenset(keys))

    def _changed_since(self, change: int, twins: bool) -> set[str] | None:
        """The keys that changed since then; None if there are too many, or they are no longer recorded. A key without a
        row belongs to a twin; with `twins` this counts as a change of everything."""
        if change < self._dropped:
            return None
        found: set[str] = set()
        for keys in self._changes[change - self._dropped :]:
            if keys is None or (twins and not keys <= self.rows.keys()):
                return None
            found |= keys & self.rows.keys()
        return found if len(found) * _FEW <= len(self.rows) else None

    def _blank(self) -> Values:
        import numpy as np

        return np.full(len(self.rows) + 1, np.nan)

"""Numbers of all projections of a model at once, as arrays: a threshold, a unit or a sort is one look at an array.

Asking 45,000 projections for their number one by one takes 60 ms a measure, and three measures a key.
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
"""Changes that are remembered: who has not asked for so long begins anew."""
_MOST_ARRAYS = 96
"""Arrays that are kept: a rank that is stepped through asks for another at each step."""
_FEW = 8
"""An array is made anew where more than one in so many of its rows have changed."""


class NumberColumns:
    """What is known of a model's projections (`every`): arrays of float64 with a row for each content key, NaN where
    there is no number. One row more, the last, is always NaN: it stands for a projection that the model does not have.

    Its session tells which keys have changed; an array is put right when it is next asked for. From any thread. Numpy,
    which the first screen does without, is imported with the first question.
    """

    def __init__(self, every: Sequence[Projection]) -> None:
        self._every = every
        self._lock = threading.RLock()  # a ratio asks for what it is a ratio of
        self._changes: list[frozenset[str] | None] = []
        self._arrays: dict[Hashable, tuple[int, Values]] = {}
        self._begun = 0  # changes that were dropped from the front of the list

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """The row of each content key. 45,000 take some 10 ms."""
        return {key: row for row, key in enumerate(dict.fromkeys(p.key for p in self._every))}

    @cached_property
    def projections(self) -> tuple[Projection, ...]:
        """The projection of each row; of several that share a tensor, one."""
        return tuple({p.key: p for p in self._every}.values())

    @cached_property
    def _shapes(self) -> tuple[list[Projection], RowNumbers]:
        """One projection of each shape, products and others apart, and which of these each row is like."""
        import numpy as np

        found: dict[tuple[int, int, int, bool], int] = {}
        like = [found.setdefault((p.rows, p.cols, p.inner, is_like_noise(p)), len(found)) for p in self.projections]
        return [self.projections[like.index(number)] for number in range(len(found))], np.array(like, dtype=np.intp)

    def rows_of(self, projections: Iterable[Projection | None]) -> RowNumbers:
        """Their rows: the last, which has no number, for None and for what the model does not have."""
        import numpy as np

        rows, last = self.rows, len(self.rows)
        found = (last if p is None else rows.get(p.key, last) for p in projections)
        return np.fromiter(found, dtype=np.intp)

    def of_keys(self, numbers: Mapping[str, float | None]) -> Values:
        """Numbers by content key as an array; those of keys that have no row are left out."""
        import numpy as np

        rows, last = self.rows, len(self.rows)
        found = self._blank()
        places = np.array([rows.get(key, last) for key in numbers], dtype=np.intp)
        found[places] = np.array(list(numbers.values()), dtype=np.float64)  # None is NaN
        found[last] = np.nan
        return found

    def by_shape(self, number: Callable[[Projection], float | None]) -> Values:
        """A number that depends on the shape alone, worked out once for each."""
        import numpy as np

        kinds, like = self._shapes
        numbers = np.array([number(p) for p in kinds], dtype=np.float64)
        found = self._blank()
        found[:-1] = numbers[like]
        return found

    def kept(
        self, what: Hashable, every: Callable[[], Values], one: Callable[[Projection], float | None], *, twins: bool
    ) -> Values:
        """The array of `what`: as `every` made it, put right by `one` where something has changed since. `twins`:
        whether twins with random signs change it too. Not to be written to."""
        with self._lock:
            seen = self._begun + len(self._changes)
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
            if len(self._arrays) > _MOST_ARRAYS:  # the one that was asked for longest ago
                del self._arrays[next(iter(self._arrays))]
            return found

    def changed(self, keys: Iterable[str] | None) -> None:
        """Something else is known of these keys, None: of any."""
        with self._lock:
            if len(self._changes) >= _MOST_CHANGES:
                self._begun += len(self._changes)
                self._changes.clear()
            self._changes.append(None if keys is None else frozenset(keys))

    def _changed_since(self, change: int, twins: bool) -> set[str] | None:
        """The keys that changed since, None: too many, or no longer known. One of no row is that of a twin: where those
        matter, any may be its parent."""
        if change < self._begun:
            return None
        found: set[str] = set()
        for keys in self._changes[change - self._begun :]:
            if keys is None or (twins and not keys <= self.rows.keys()):
                return None
            found |= keys & self.rows.keys()
        return found if len(found) * _FEW <= len(self.rows) else None

    def _blank(self) -> Values:
        import numpy as np

        return np.full(len(self.rows) + 1, np.nan)

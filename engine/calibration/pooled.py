"""Second moments of experts that few tokens reached: each expert's own, drawn towards those of all tokens of its layer.

An expert that n_e tokens reached has (n_e C_e + n C) / (n_e + n) in the place of its own C_e: n its input features, C
the second moment of all tokens that reached any expert of its layer, of each once for each expert that it reached. One
that no token reached has C.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from ..errors import UnseenError, WeightsError, printable
from ..moment import Form, Moment, diagonal
from ..spectrum import Operand, Projection, Values, digest
from .file_weighting import FileWeighting

POOLED = "pooled:"
"""What stands before the file of pooled moments, where an operand names it."""
_Place: TypeAlias = tuple[str | None, int | None, str, str]
_MATRICES = 4
"""Second moments of whole layers kept in memory where they are matrices: gate, up and down of one layer, and a next."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """What the experts of a layer have of one role: how many tokens reached each, and the moments of those that any
    reached, by address."""

    tokens: Mapping[str, float]
    moments: Mapping[str, Moment]
    form: Form
    digest: str


class PooledWeighting:
    """See moment.Weighting: a file's second moments, those of experts pooled; other projections have the file's.

    `projections` are all of the model. Experts of which the file does not say how many tokens reached them have none.
    """

    def __init__(self, weighting: FileWeighting, projections: Iterable[Projection]) -> None:
        self._own = weighting
        self.name = weighting.name
        self.label = f"{weighting.label}, pooled"
        self.is_centred = weighting.is_centred
        self._file = f"{POOLED}{weighting.file}"
        self._experts: dict[_Place, list[Projection]] = defaultdict(list)
        for p in projections:
            if p.expert is not None:
                self._experts[_place(p)].append(p)
        self._lock = threading.Lock()
        self._pools: dict[_Place, _Pool] = {}
        self._means: dict[_Place, Values] = {}

    def tokens(self, projection: Projection) -> float:
        """How many tokens reached it; see FileWeighting.tokens."""
        return self._own.tokens(projection)

    def moment(self, projection: Projection) -> Moment:
        """See Weighting.

        Raises:
            UnseenError: no token of the calibration reached any expert of its layer.
            WeightsError: there is none that can be used.
        """
        if projection.expert is None:
            return self._own.moment(projection)
        with self._lock:
            pool = self._pool(projection)
        if projection.address not in pool.tokens:
            self._own.tokens(projection)
            self._own.moment(projection)  # one of the two says why
        if not pool.moments:
            raise UnseenError.of(f"the layer of {printable(projection.address)}")
        if pool.form == "diagonal":
            return diagonal(self._pooled(projection, pool)).of_file(self._file)
        own = pool.moments.get(projection.address)
        seen = digest("pooled", pool.tokens[projection.address], own.digest if own else "", pool.digest)
        found = Moment(pool.form, projection.cols, (Operand(seen, partial(self._pooled, projection, pool)),))
        return found.of_file(self._file)

    def _pool(self, projection: Projection) -> _Pool:
        place = _place(projection)
        if place not in self._pools:
            self._pools[place] = self._gathered(self._experts[place])
        return self._pools[place]

    def _gathered(self, experts: Iterable[Projection]) -> _Pool:
        """What there is of these. One that has none for another reason than that no token reached it is left out."""
        tokens: dict[str, float] = {}
        moments: dict[str, Moment] = {}
        form: Form = "diagonal"
        for p in experts:
            try:
                tokens[p.address] = self._own.tokens(p)
                moments[p.address] = self._own.moment(p)
                form = moments[p.address].form
            except UnseenError:
                tokens[p.address] = 0.0
            except WeightsError:
                tokens.pop(p.address, None)
        if any(moment.form != form for moment in moments.values()):
            name = next(iter(moments))
            raise WeightsError(f"{printable(name)}: some experts of its layer have matrices in the file, others not")
        parts = (part for address, moment in moments.items() for part in (tokens[address], moment.digest))
        return _Pool(tokens, moments, form, digest(*parts))

    def _pooled(self, projection: Projection, pool: _Pool) -> Values:
        """The moment of an expert, as numbers.

        Raises:
            WeightsError: those of an expert of its layer cannot be used.
        """
        n, tokens = projection.cols, pool.tokens[projection.address]
        own = pool.moments.get(projection.address)
        layer: Values = n / (n + tokens) * self._mean(_place(projection), pool)
        return layer if own is None else layer + tokens / (n + tokens) * _loaded(own)

    def _mean(self, place: _Place, pool: _Pool) -> Values:
        """C of all tokens of the layer."""
        with self._lock:
            if place not in self._means:
                total = sum(pool.tokens[address] for address in pool.moments)
                every = iter(pool.moments.items())
                address, moment = next(every)
                mean = pool.tokens[address] / total * _loaded(moment)
                for address, moment in every:
                    mean += pool.tokens[address] / total * _loaded(moment)
                if pool.form != "diagonal" and len(self._means) >= _MATRICES:
                    del self._means[next(iter(self._means))]
                self._means[place] = mean
            return self._means[place]


def _place(p: Projection) -> _Place:
    return p.tower, p.layer, p.block, p.role


def _loaded(moment: Moment) -> Values:
    (held,) = moment.operands
    assert held.load is not None
    return held.load()

"""Second moments for experts that few tokens reached: those of the expert, pooled with those of its layer's tokens.

An expert that n_e tokens reached gets (n_e C_e + n C) / (n_e + n) instead of its C_e. n is its number of input
features, C the second moment of all tokens that reached any expert of its layer, where a token counts once for each
expert that it reached. An expert that no token reached gets C.
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
"""The prefix of the file's name in operands that hold pooled moments."""
_Place: TypeAlias = tuple[str | None, int | None, str, str]
_MATRICES = 4
"""How many matrices C are kept in memory: gate, up and down of one layer, and one of the next layer."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """The experts of a layer with one role: how many tokens reached each, and the moments of those that some reached,
    by address."""

    tokens: Mapping[str, float]
    moments: Mapping[str, Moment]
    form: Form
    digest: str


class PooledWeighting:
    """The Weighting (see moment.py) of a file whose moments of experts are pooled; other projections get the file's.

    `projections` are all of the model. Experts have no moment if the file does not tell how many tokens reached them.
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
            WeightsError: there is no usable moment.
        """
        if projection.expert is None:
            return self._own.moment(projection)
        with self._lock:
            pool = self._pool(projection)
        if projection.address not in pool.tokens:
            self._own.tokens(projection)
            self._own.moment(projection)  # one of the two raises the reason
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
        """The tokens and moments of these experts. Those without a usable moment are left out, but not those that
        merely no token reached."""
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
            WeightsError: the moment of an expert of its layer cannot be used.
        """
        n, tokens = projection.cols, pool.tokens[projection.address]
        own = pool.moments.get(projection.address)
        layer: Values = n / (n + tokens) * self._mean(_place(projection), pool)
        return layer if own is None else layer + tokens / (n + tokens) * _loaded(own)

    def _mean(self, place: _Place, pool: _Pool) -> Values:
        """The moment C of all tokens of the layer."""
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

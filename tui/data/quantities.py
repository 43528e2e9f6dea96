"""Numbers of a projection, to be read for one projection or for all of a model at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rankscope.engine.derive.derived import is_state
from rankscope.engine.derive.flip import flipped
from rankscope.engine.spectrum import Projection, Values

if TYPE_CHECKING:
    from .session import Session

Value = Callable[["Session", Projection, float], float | None]
"""The number of a projection of a session at a threshold; None if it is not known (yet), or does not exist."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A `Value` that can also be read for all projections at once: `of_all` returns an array as `NumberColumns.of_keys`
    does. `twins`: whether it depends on twins with random signs."""

    of: Value
    of_all: Callable[[Session, float], Values]
    twins: bool = False

    def __call__(self, session: Session, p: Projection, threshold: float) -> float | None:
        """The number of one projection."""
        return self.of(session, p, threshold)

    def numbers(self, session: Session, threshold: float) -> Values:
        """The numbers of all projections of a session, one per row of `session.columns`."""
        every, one = partial(self.of_all, session, threshold), lambda p: self.of(session, p, threshold)
        return session.columns.kept((self, threshold), every, one, twins=self.twins)


def by_shape(of: Value) -> Quantity:
    """A number that depends only on shape and threshold."""

    def of_all(session: Session, threshold: float) -> Values:
        return session.columns.by_shape(lambda p: of(session, p, threshold))

    return Quantity(of, of_all)


def stored(name: str) -> Quantity:
    """A number of the stored table, by its name there."""

    return Quantity(
        lambda session, p, _: session.number(p, name),
        lambda session, _: session.columns.of_keys(session.all_numbers(name)),
    )


def rank_over(below: Quantity) -> Quantity:
    """The threshold rank over another number; none if that is 0."""

    def of(session: Session, p: Projection, threshold: float) -> float | None:
        above, under = session.rank(p, threshold), below(session, p, threshold)
        return None if above is None or not under else above / under

    def of_all(session: Session, threshold: float) -> Values:
        return divided(RANK.numbers(session, threshold), below.numbers(session, threshold))

    return Quantity(of, of_all, below.twins)


def divided(above: Values, below: Values) -> Values:
    """above / below; NaN if below is 0 or either is missing, infinite if no float is so large."""
    import numpy as np  # not needed for the first screen

    found = np.full_like(above, np.nan)
    with np.errstate(over="ignore"):
        return np.divide(above, below, out=found, where=below != 0)


RANK = Quantity(
    lambda session, p, threshold: session.rank(p, threshold),
    lambda session, threshold: session.columns.of_keys(session.all_ranks(threshold)),
)
"""The threshold rank."""
FLIPPED_RANK = Quantity(
    lambda session, p, threshold: None if p.derived is not None else session.rank(flipped(p), threshold),
    lambda session, threshold: session.columns.of_keys(session.ranks_of_twins(threshold)),
    twins=True,
)
"""The threshold rank of a projection's twin with random signs."""


def _raw_rank(session: Session, p: Projection, threshold: float) -> float | None:
    return session.rank(p.parents[0], threshold) if is_state(p) else None


RAW_RANK = Quantity(
    _raw_rank,
    lambda session, threshold: session.columns.of_keys(
        {p.key: _raw_rank(session, p, threshold) for p in session.columns.projections}
    ),
)
"""The threshold rank of the unmodified matrix, for a projection under a weighting or in the fixed gauge."""
PARTICIPATION = Quantity(
    lambda session, p, _: session.participations.number(p),
    lambda session, _: session.columns.of_keys(
        {p.key: session.participations.number(p) for p in session.columns.projections}
    ),
)
"""The number of outputs that carry the first direction, if directions are stored."""
IS_STORED = Quantity(
    lambda session, p, _: None if session.entry(p) is None else 1.0,
    lambda session, _: session.columns.of_keys(dict.fromkeys(session.stored_keys, 1.0)),
)
"""1 if a spectrum is stored."""


def unread_ranks(session: Session, threshold: float) -> set[str]:
    """The keys of projections whose rank at a threshold has yet to be computed from stored values."""
    import numpy as np  # not needed for the first screen

    lacking = np.isnan(RANK.numbers(session, threshold)) & ~np.isnan(IS_STORED.numbers(session, 0.0))
    return {session.columns.projections[row].key for row in np.flatnonzero(lacking)}

"""A number of a projection, asked for one projection or for all of a model at once."""

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
"""The number of a projection of a session at a threshold; None where it is not known (yet), or does not exist."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A `Value` that can be asked for all at once too: `of_all` gives what `Columns.of_keys` does. `twins`: whether it
    is other where a twin with random signs is."""

    of: Value
    of_all: Callable[[Session, float], Values]
    twins: bool = False

    def __call__(self, session: Session, p: Projection, threshold: float) -> float | None:
        """The number of one projection."""
        return self.of(session, p, threshold)

    def numbers(self, session: Session, threshold: float) -> Values:
        """The numbers of all projections of a session, as its columns keep them."""
        every, one = partial(self.of_all, session, threshold), lambda p: self.of(session, p, threshold)
        return session.columns.kept((self, threshold), every, one, twins=self.twins)


def by_shape(of: Value) -> Quantity:
    """Of a number that depends on the shape and the threshold alone."""

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
    """The threshold rank over something else; none where that is 0."""

    def of(session: Session, p: Projection, threshold: float) -> float | None:
        above, under = session.rank(p, threshold), below(session, p, threshold)
        return None if above is None or not under else above / under

    def of_all(session: Session, threshold: float) -> Values:
        return divided(RANK.numbers(session, threshold), below.numbers(session, threshold))

    return Quantity(of, of_all, below.twins)


def divided(above: Values, below: Values) -> Values:
    """above / below; NaN where below is 0, as where there is no number, infinite where it has no float."""
    import numpy as np  # the first screen does without

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
"""That of the twin with random signs, for the projection."""


def _raw_rank(session: Session, p: Projection, threshold: float) -> float | None:
    return session.rank(p.parents[0], threshold) if is_state(p) else None


RAW_RANK = Quantity(
    _raw_rank,
    lambda session, threshold: session.columns.of_keys(
        {p.key: _raw_rank(session, p, threshold) for p in session.columns.projections}
    ),
)
"""That of the matrix as it is, of a projection under a weighting or in the fixed gauge."""
PARTICIPATION = Quantity(
    lambda session, p, _: session.participations.number(p),
    lambda session, _: session.columns.of_keys(
        {p.key: session.participations.number(p) for p in session.columns.projections}
    ),
)
"""How many outputs carry the first direction, of what has its directions stored."""
IS_STORED = Quantity(
    lambda session, p, _: None if session.entry(p) is None else 1.0,
    lambda session, _: session.columns.of_keys(dict.fromkeys(session.stored_keys, 1.0)),
)
"""1 of what has a stored spectrum."""


def unread_ranks(session: Session, threshold: float) -> set[str]:
    """The keys of the projections whose rank at a threshold only the stored values tell so far."""
    import numpy as np  # the first screen does without

    lacking = np.isnan(RANK.numbers(session, threshold)) & ~np.isnan(IS_STORED.numbers(session, 0.0))
    return {session.columns.projections[row].key for row in np.flatnonzero(lacking)}

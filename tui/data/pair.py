"""One open model, or two whose projections are matched by address."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from rankscope.engine.spectrum import Projection

from .depths import Depths, address_there, depths_of, kind_of
from .session import Session

if TYPE_CHECKING:
    from .deltas import WithoutDifference
    from .number_columns import RowNumbers


class Curve(NamedTuple):
    """A spectrum in a chart: its label, its model, and its projection there."""

    label: str
    session: Session
    projection: Projection


class Side(StrEnum):
    """The model that a number belongs to, or the ratio of two."""

    A = "A"
    B = "B"
    RATIO = "B/A"


@dataclass(frozen=True, slots=True)
class NumberGroup:
    """Projections whose numbers are read together, with their rows in the columns of each model."""

    members: Sequence[Projection]
    rows: tuple[RowNumbers, ...]


class Pair:
    """`first` is the model that tree and grid show; `second`, if any, is compared with it, matched by address or,
    `by_depth`, by relative depth if one has more layers (see depths.address_there).

    While the first shows its differences from the second, there are only the numbers of one model: the second is then
    `aside`, and `apart` lists what has no difference.
    """

    def __init__(self, first: Session, second: Session | None = None, *, by_depth: bool = True) -> None:
        self.first = first
        self.second = second
        self._by_depth = by_depth
        self.aside: Session | None = None
        self.apart: Sequence[WithoutDifference] = ()

    def hold(self, second: Session) -> None:
        """Compare another model with the first."""
        self.second, self.aside, self.apart = second, None, ()
        self.renew()

    def set_aside(self, apart: Sequence[WithoutDifference] | None) -> None:
        """Show the differences of the first model from the second; `apart` lists what has none. None: show its own
        projections."""
        other = self.other
        self.second, self.aside = (other, None) if apart is None else (None, other)
        self.apart = apart or ()
        self.renew()

    @property
    def other(self) -> Session | None:
        """The second model, even while it is aside."""
        return self.second or self.aside

    @property
    def opened(self) -> tuple[Session, ...]:
        """The models that are open, one or two."""
        return (self.first,) if self.other is None else (self.first, self.other)

    def renew(self) -> None:
        """Forget the matching, because a session shows other projections."""
        for name in ("depths", "_partners", "_compared_with", "_ours"):
            self.__dict__.pop(name, None)

    @cached_property
    def depths(self) -> Depths:
        """The towers whose layers are matched by relative depth; empty if all are matched by address."""
        return depths_of(self.first.model, self.second.model) if self.second and self._by_depth else {}

    @cached_property
    def _partners(self) -> dict[str, Projection]:
        """The projections of the second model, by the address of the first or, if only the second has them, their
        own."""
        theirs = {p.address: p for p in self.second.model.every} if self.second else {}
        if not self.depths:
            return theirs
        alone = {address: q for address, q in theirs.items() if address not in self._ours}
        every = ((p.address, theirs.get(address_there(p, self.depths))) for p in self.first.model.every)
        return alone | {address: q for address, q in every if q is not None}

    @cached_property
    def _compared_with(self) -> dict[str, set[str]]:
        """The keys of the second model, with those of the first model that they are compared with."""
        found: dict[str, set[str]] = {}
        for p in self.first.model.every:
            if (partner := self.partner(p)) is not None:
                found.setdefault(partner.key, set()).add(p.key)
        return found

    @cached_property
    def _ours(self) -> dict[str, Projection]:
        return {p.address: p for p in self.first.model.every}

    def partner(self, p: Projection) -> Projection | None:
        """The projection of the second model that is compared with it: at the same address unless depths differ."""
        return self._partners.get(p.address)

    def ours(self, p: Projection) -> Projection | None:
        """The projection of the first model at the same address: `p` itself unless only the second has it."""
        return p if self.second is None else self._ours.get(p.address)

    def has(self, p: Projection) -> bool:
        """Whether the spectrum of a projection is stored in either model."""
        return any(session.has(there) for _, session, there in self.curves(p, Side.RATIO))

    def known_as(self, session: Session, keys: set[str]) -> set[str]:
        """The keys in the first model of what has changed in a session."""
        if session is self.first:
            return keys
        return keys.union(*(self._compared_with[key] for key in keys & self._compared_with.keys()))

    def group(self, members: Sequence[Projection]) -> NumberGroup:
        """Group projections of the first model to read their numbers together; valid for the pair as it is now."""
        if self.second is None:
            return NumberGroup(members, (self.first.columns.rows_of(members),))
        ours, theirs = map(self.ours, members), map(self.partner, members)
        return NumberGroup(members, (self.first.columns.rows_of(ours), self.second.columns.rows_of(theirs)))

    def differs_in_shape(self, p: Projection) -> bool:
        """Whether both models have the projection, with different shapes."""
        if self.second is None:
            return False
        ours, partner = self.ours(p), self.partner(p)
        both = ours is not None and partner is not None and ours.rows and partner.rows
        return bool(both) and shape_of(ours) != shape_of(partner)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The models whose numbers are shown, one or two."""
        return (self.first, self.second) if self.second else (self.first,)

    @property
    def weighting(self) -> str:
        """The name of the weighting under which both are shown, "" for none."""
        return self.first.weighting[0]

    @property
    def shown_as(self) -> str:
        """The state in which both are shown: see Known.shown_as."""
        return self.first.shown_as

    def says(self, name: str) -> bool:
        """Whether the file of the weighting has this fact (see Said.known) for either model."""
        return any(session.said is not None and name in session.said.known for session in self.sessions)

    @property
    def has_spectra(self) -> bool:
        """Whether anything is known to be stored for either model: without it there are no numbers."""
        return any(session.has_spectra for session in self.sessions)

    def unmatched(self) -> tuple[list[Projection], list[Projection]]:
        """The projections that a scan of either would compute and that have no partner: of the first, of the second."""
        if self.second is None:
            return [], []
        return (
            [p for p in self.first.model.tree.scanned() if p.address not in self._partners],
            self.only_second(self.second.model.tree.scanned()),
        )

    def only_second(self, projections: Iterable[Projection]) -> list[Projection]:
        """Those of the second model's projections without a partner; layers between matched ones do not count."""
        kinds = {kind_of(p) for p in self.first.model.every} if self.depths else set()
        found = [q for q in projections if q.address not in self._ours]
        return [q for q in found if (q.tower or "") not in self.depths or kind_of(q) not in kinds]

    def curves(self, p: Projection, side: Side) -> list[Curve]:
        """The spectra of a projection on a side, labelled with their model's letter ("" for a lone model); for a ratio
        those of both models."""
        if self.second is None:
            return [Curve("", self.first, p)]
        first, second = self.ours(p), self.partner(p)
        found = [Curve("A", self.first, first)] if first is not None and (side is not Side.B or second is None) else []
        if second is not None and (side is not Side.A or first is None):
            found.append(Curve("B", self.second, second))
        return found


def shape_of(p: Projection | None) -> str:
    """`576x1536`, "-" without a shape."""
    return f"{p.rows}x{p.cols}" if p is not None and p.rows else "-"

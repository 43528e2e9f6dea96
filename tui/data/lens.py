"""The number that views show for a projection: which measure, at which threshold, of which of two models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import nan

from rankscope.engine.derive.flip import flipped
from rankscope.engine.derive.weighting import CENTRED_NAME
from rankscope.engine.spectrum import THRESHOLDS, Projection, Values

from .contrast import Contrast
from .kept_ranks import KeptRanks
from .measures import BY_NAME, MODELS_LIMITS, Measure, from_values
from .pair import NumberGroup, Pair, Side, shape_of
from .quantities import divided, unread_ranks
from .session import Session

UNEQUAL = "\u2260"
UNKNOWN = "-"
"""The bound of a number about which nothing is known."""
_FAR = 1000.0
"""From this factor on between two models three decimals are too many, or too few."""


@dataclass(slots=True)
class Lens:
    """The number that is shown for a projection: its measure, threshold and model. `thresholds` are those of the
    columns of tables; `ranks`, if any, are those whose kept energy tables show."""

    pair: Pair
    threshold: float
    measure: Measure = field(default_factory=lambda: BY_NAME["k"])
    side: Side = Side.A
    thresholds: tuple[float, ...] = THRESHOLDS
    ranks: KeptRanks | None = None
    contrast: Contrast = Contrast.FIXED

    def number(self, p: Projection) -> float | None:
        """The number, None if it is not known (yet), or nothing can be known about it."""
        return None if self.bound(p) == UNKNOWN else self._value(self.measure, p)

    def numbers(self, group: NumberGroup) -> Values:
        """The numbers of a group as an array, NaN if not known (yet)."""
        found = self._values(self.measure, group)
        if self.side is Side.RATIO and self.measure.may_be_bound:
            found[[self.bound(p) == UNKNOWN for p in group.members]] = nan
        return found

    def knows_any(self, projections: Sequence[Projection]) -> bool:
        """Whether the number of any of them is known."""
        if not self.pair.has_spectra:
            return False
        from numpy import isnan  # not needed for the first screen

        return not isnan(self.numbers(self.pair.group(projections))).all()

    def tones(self, group: NumberGroup) -> Values:
        """The numbers that the shades show, as an array."""
        by = self.measure.shaded_by
        return self._values(BY_NAME[by], group) if by and self.side is not Side.RATIO else self.numbers(group)

    def text(self, p: Projection) -> str:
        """The number as text with its `sign` and `bound`, as `> 1.2e+06`; "" if it is not known (yet), the bound alone
        if nothing can be known about it."""
        number, bound = self.number(p), self.bound(p)
        if number is None:
            return bound if bound == UNKNOWN else ""
        return f"{self.sign(p)}{bound}{' ' if bound else ''}{self.written(number)}"

    def sign(self, p: Projection) -> str:
        """A sign before the number if it is a ratio of two shapes, else ""."""
        return UNEQUAL if self.side is Side.RATIO and self.pair.differs_in_shape(p) else ""

    def shape(self, p: Projection) -> str:
        """The shape on the lens's side, if the projection exists there; for a ratio both if they differ."""
        if self.sign(p):
            return f"{shape_of(self.pair.ours(p))} {UNEQUAL} {shape_of(self.pair.partner(p))}"
        _, there = self.session(p)
        return shape_of(there or p)

    def written(self, number: float) -> str:
        """A number of this measure and side as text. A ratio has three decimals, enough for how models usually differ,
        unless it is extreme and may span many decades."""
        is_near = self.measure.digits is not None or 1 / _FAR <= number < _FAR
        return f"{number:.3f}" if self.side is Side.RATIO and is_near else self.measure.written(number)

    def bound(self, p: Projection) -> str:
        """`>` if the number is only a lower bound, `<` if an upper bound, for counts `>=` and `<=`, UNKNOWN if it may
        be either, else "".

        The numbers of A and B are lower bounds. If B's is one, so is B/A; if A's is one, B/A is an upper bound; if both
        are, nothing follows.
        """
        if not self.measure.may_be_bound:
            return ""
        second = self.pair.second
        ours = None if self.side is Side.B else self.pair.ours(p)
        partner = None if self.side is Side.A else self.pair.partner(p)
        a = ours is not None and self.measure.is_bound(self.pair.first, ours)
        b = second is not None and partner is not None and self.measure.is_bound(second, partner)
        if self.side is Side.RATIO:
            found = UNKNOWN if a and b else "<" if a else ">" if b else ""
        else:
            found = ">" if a or b else ""
        return f"{found}=" if found in ("<", ">") and self.measure.digits == 0 else found

    def is_bound(self, p: Projection) -> bool:
        """Whether the number is only a bound; for a ratio, whether either of its two is one."""
        return bool(self.bound(p))

    def tone(self, p: Projection) -> float | None:
        """The number that the shade shows: the number itself, or that of another measure."""
        by = self.measure.shaded_by
        return self._value(BY_NAME[by], p) if by and self.side is not Side.RATIO else self.number(p)

    @property
    def is_rank(self) -> bool:
        """Whether the numbers are ranks: whole, and no ratios."""
        return self.measure.digits == 0 and self.side is not Side.RATIO

    @property
    def limits(self) -> tuple[float, ...] | None:
        """The limits between the shades; None: spread over the range of the numbers."""
        if self.contrast is not Contrast.FIXED:
            return None
        if self.side is Side.RATIO:
            return MODELS_LIMITS
        return BY_NAME[self.measure.shaded_by or self.measure.name].limits

    @property
    def diverges(self) -> bool:
        """Whether shades diverge at 1. Shades spread over a range do not, as it may lie on one side of 1."""
        if self.contrast is not Contrast.FIXED:
            return False
        return self.side is Side.RATIO or BY_NAME[self.measure.shaded_by or self.measure.name].diverges

    @property
    def shade_title(self) -> str:
        """The heading of the measure that the shade shows, if it is another than the number's: `k90/k0`; else ""."""
        by = self.measure.shaded_by
        return BY_NAME[by].titled(self.threshold) if by and self.side is not Side.RATIO else ""

    @property
    def heading(self) -> str:
        """The measure at the threshold, `k90`; for moments about the mean `k90 centred`, to mark every such number."""
        is_centred = self.pair.weighting == CENTRED_NAME and not (self.measure.said or self.measure.name == "k*")
        return f"{self.measure.titled(self.threshold)}{f' {CENTRED_NAME}' * is_centred}"

    @property
    def formula(self) -> str:
        """The formula of the number."""
        text = self.measure.explained(self.threshold, self.pair.weighting)
        name = self.measure.titled(self.threshold)
        return f"B's / A's; {name}: {text}" if self.side is Side.RATIO else text

    @property
    def title(self) -> str:
        """`k90`, `k90/k0 of B`, `stable B/A`; under a weighting `k90 norm`, `k90/k0 imatrix of B`."""
        name = " ".join(filter(None, [self.measure.titled(self.threshold), self.pair.shown_as]))
        return name if self.pair.second is None else f"{name} {'' if self.side is Side.RATIO else 'of '}{self.side}"

    @property
    def greyed_above(self) -> float | None:
        """The number above which factoring saves nothing; None if it does not tell."""
        return self.measure.greyed_above if self.side is not Side.RATIO else None

    def is_greyed(self, p: Projection) -> bool:
        """Whether the number means that factoring saves nothing."""
        number, above = self.number(p), self.greyed_above
        return above is not None and number is not None and number > above

    def session(self, p: Projection) -> tuple[Session, Projection | None]:
        """The session and projection whose state a cell shows: those of the side (None: it lacks the projection)."""
        if self.pair.second is not None and self.side is Side.B:
            return self.pair.second, self.pair.partner(p)
        if self.pair.second is not None and self.side is Side.RATIO:
            return self._behind(p)
        return self.pair.first, self.pair.ours(p)

    @property
    def needs_values(self) -> bool:
        """Whether its numbers are computed from values, because the store's tables do not have them."""
        is_kept = self.threshold in THRESHOLDS and not self.pair.weighting
        of_values = self.measure.from_values is not None or self.measure.needs_directions or self.measure.needs_ranks
        return not is_kept or of_values

    def unread(self) -> set[str]:
        """Content keys, in the first model, for which `load` has something to read."""
        found: set[str] = set()
        for session in self.pair.sessions:
            unread = unread_ranks(session, self.threshold) | session.without_null_rank(self.threshold)
            if self.measure.needs_twin:
                unread |= session.twins_without_rank(self.threshold)
            if self.measure.needs_raw and self.threshold not in THRESHOLDS:
                unread |= session.without_raw_rank(self.threshold)
            if self.measure.needs_directions:
                unread |= session.without_participation() & session.columns.rows.keys()
            if self.measure.ranks is not None:
                unread |= session.without_kept(self.measure.ranks)
            if self.measure.from_values is not None:
                unread |= session.without_facts() & session.columns.rows.keys()
            found |= self.pair.known_as(session, unread)
        return found

    def look_up(self) -> None:
        """Look up the ranks at every threshold of the tables, so that the next one is shown at once: for 45,000
        projections each takes some 15 ms."""
        for session in self.pair.sessions:
            for threshold in self.thresholds:
                BY_NAME["k"].numbers(session, threshold)

    def load(self, projections: Iterable[Projection]) -> None:
        """Load what the numbers need. Reads files."""
        wanted = list(projections)
        partners = [q for p in wanted if (q := self.pair.partner(p)) is not None]
        for session, found in zip(self.pair.sessions, (wanted, partners), strict=False):
            session.load_ranks(found, self.threshold)
            session.load_null_ranks(found, self.threshold)
            if self.measure.needs_raw:
                session.load_ranks([p.parents[0] for p in found], self.threshold)
            if self.measure.needs_twin:
                session.load_ranks([flipped(p) for p in found], self.threshold)
            if self.measure.needs_directions:
                session.load_participations(found)
            if self.measure.ranks is not None:
                session.load_kept(found, self.measure.ranks)
            if self.measure.from_values is not None:
                session.load_facts(found, from_values())

    def _behind(self, p: Projection) -> tuple[Session, Projection | None]:
        """For a ratio: the side that is not stored yet, else the first."""
        ours, partner = self.pair.ours(p), self.pair.partner(p)
        assert self.pair.second is not None
        if ours is None or partner is None:
            return self.pair.first, None
        is_here = self.pair.first.has(ours)
        return (self.pair.second, partner) if is_here else (self.pair.first, ours)

    def _value(self, measure: Measure, p: Projection) -> float | None:
        ours, partner = self.pair.ours(p), self.pair.partner(p)
        a = None if ours is None or self.side is Side.B else measure.number(self.pair.first, ours, self.threshold)
        if self.pair.second is None or self.side is Side.A:
            return a
        b = None if partner is None else measure.number(self.pair.second, partner, self.threshold)
        if self.side is Side.B:
            return b
        return b / a if a and b is not None else None

    def _values(self, measure: Measure, group: NumberGroup) -> Values:
        found = [
            measure.numbers(session, self.threshold)[rows]
            for session, rows in zip(self.pair.sessions, group.rows, strict=True)
        ]
        if len(found) == 1 or self.side is Side.A:
            return found[0]
        return found[1] if self.side is Side.B else divided(found[1], found[0])

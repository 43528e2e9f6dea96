"""The metric table without a screen: its columns, and the order of its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rankscope.engine.spectrum import Projection, Values

from .latent_columns import latent_measures
from .lens import UNEQUAL, UNKNOWN, Lens
from .measures import BY_NAME, ENERGY, SAID_MEASURES, Measure, energy_of
from .pair import NumberGroup, Side
from .session import Session
from .wording import MARKS, percent, refusal

ADDRESS, SHAPE = "address", "shape"
NOT_APART = "not apart"
"""The text for the share of position 0 if a file has no sums for it."""
_SAMPLE = 512
"""Rows, evenly spread, whose twins are looked up: naming the twins of 47,000 takes 0.4 s the first time."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the table or a row of the comparison: a name for commands and files, a heading, its formula, and the
    lens for its numbers (None: the address or the shape, by `words`)."""

    name: str
    title: str
    explained: str
    lens: Lens | None = None
    words: Callable[[Projection], str] = lambda p: p.address

    @property
    def width(self) -> int:
        """Characters that its numbers may need, with two spaces before them: `1536`, `1.234e-05`; if they may be bounds
        `>= 1023`, `> 2.581e+10`, and one more for the sign of a ratio."""
        if self.lens is None:
            return 8
        plain = 11 if self.lens.measure.digits is None else 8
        if not self.lens.measure.may_be_bound:
            return plain
        return plain + (3 if self.lens.side is Side.RATIO else 2)

    def number(self, p: Projection) -> float | None:
        """The number that rows are sorted by and files hold; None if it is unknown, or does not exist."""
        if self.lens is None:
            return float(p.rows * p.cols) if self.name == SHAPE and p.rows else None
        number = self.lens.number(p)
        return None if number is None or math.isnan(number) else number

    def numbers(self, group: NumberGroup) -> Values:
        """`number` for each of a group, NaN for None."""
        if self.lens is not None:
            return self.lens.numbers(group)
        import numpy as np  # not needed for the first screen

        return np.array([self.number(p) for p in group.members], dtype=np.float64)

    def text(self, p: Projection) -> str:
        """The text of a cell; without a number, the mark of the projection's state."""
        if self.lens is None:
            return self.words(p)
        if self.number(p) is not None:
            return self.lens.text(p)
        session, there = self.lens.session(p)
        if there is None or not there.rows:
            return "-"
        if there.problem:
            return refusal(there)
        if not session.has(there):
            return MARKS[session.state(there)]
        if self.lens.measure.said == "sink" and session.said is not None and not session.said.is_split:
            return NOT_APART
        return "-" if self._is_void(session, there) else "."

    def _is_void(self, session: Session, p: Projection) -> bool:
        """Whether a number is missing for good: ratios for a zero matrix do not exist, and nothing is known about the
        ratio of two bounds."""
        lens = self.lens
        if lens is None:
            return False
        if lens.side is Side.RATIO:
            return lens.bound(p) == UNKNOWN
        if lens.measure.said or not lens.measure.exists(session.shown_as):
            return True
        if (other := lens.measure.beside(p)) is not None:
            return lens.measure.needs_noise and session.has(other)
        if (ranks := lens.measure.ranks) is not None:
            return not lens.measure.fits(p) or session.kept.knows(p, ranks)
        known = session.facts(p) if lens.measure.from_values is not None else session.rank(p, lens.threshold)
        return known is not None


def fields_of(lens: Lens, with_twins: bool = False, latent: Sequence[Measure] = ()) -> tuple[Field, ...]:
    """The columns: address, shape, k at the lens's thresholds, facts from the file of a weighting, the energy that the
    lens's ranks keep, then the measures at its threshold.

    They are valid for the lens as it is now: another threshold or side needs other fields. `with_twins`: include
    measures that need the spectrum with random signs; `latent`: measures of latent attention, see latent_columns.
    """
    found = [Field(ADDRESS, ADDRESS, "in model order"), _shape_field(lens)]
    for threshold in sorted({*lens.thresholds, lens.threshold}):
        found.append(field_of(f"k{percent(threshold)}", replace(lens, threshold=threshold, measure=BY_NAME["k"])))
    if lens.side is not Side.RATIO:
        found += [field_of(m.name, replace(lens, measure=m)) for m in SAID_MEASURES if lens.pair.says(m.said)]
    found_ones = (m for m in BY_NAME.values() if m.exists(lens.pair.shown_as) and not m.needs_directions)
    others = (m for m in found_ones if m.name != "k" and not m.needs_ranks and (with_twins or not m.needs_twin))
    if lens.ranks is not None:
        found.append(field_of(lens.ranks.column(ENERGY), replace(lens, measure=energy_of(lens.ranks))))
    return (*found, *(field_of(m.name, replace(lens, measure=m)) for m in (*latent, *others)))


def _shape_field(lens: Lens) -> Field:
    both = f"; where A and B differ: A {UNEQUAL} B" if lens.side is Side.RATIO else ""
    return Field(SHAPE, SHAPE, f"output x input features{both}", words=lens.shape)


def field_of(name: str, lens: Lens) -> Field:
    """The number of a lens as a field with this name."""
    return Field(name, lens.heading, lens.formula, lens)


def find_field(fields: Sequence[Field], name: str) -> Field | None:
    """A field by its name or its heading."""
    return next((f for f in fields if name in (f.name, f.title)), None)


def has_twins(lens: Lens, projections: Iterable[Projection]) -> bool:
    """Whether the spectrum with random signs is stored for any of these, in either model."""
    places = (place for p in projections for place in lens.pair.curves(p, Side.RATIO))
    return any(session.has(session.twin(there)) for _, session, there in places)


def load(fields: Iterable[Field], projections: Collection[Projection]) -> None:
    """Load what the fields need. Reads files."""
    for lens in _reading(fields):
        lens.load(projections)


def unread(fields: Iterable[Field]) -> set[str]:
    """Content keys, in the first model, for which `load` has something to read."""
    return set().union(*(lens.unread() for lens in _reading(fields)))


def _reading(fields: Iterable[Field]) -> Iterator[Lens]:
    """The lenses whose `load` loads what all fields need: all facts of a spectrum are loaded together, and every other
    measure needs at most the rank k."""
    lenses = [field.lens for field in fields if field.lens is not None]
    of_values = next((lens for lens in lenses if lens.measure.from_values is not None), None)
    for lens in lenses:
        of = lens.measure
        if of.name == "k" or of.needs_twin or of.needs_raw or of.ranks is not None or lens is of_values:
            yield lens


def sort_order(numbers: Values | Sequence[float | None], descending: bool) -> list[int]:
    """The order of rows by their numbers; equal ones keep their order, unknown ones (None, NaN) are last either way."""
    import numpy as np  # not needed for the first screen

    found = np.asarray(numbers, dtype=np.float64)
    order: list[int] = np.argsort(-found if descending else found, kind="stable").tolist()
    return order


class TableRows:
    """Projections in the order of a column. Nothing is computed before it is read: a scan of 47,000 projections reports
    changes ten times a second, and a hidden table must not cost anything."""

    def __init__(self, lens: Lens) -> None:
        self._lens = lens
        self._projections: Sequence[Projection] = ()
        self._by_address: dict[str, int] = {}
        self._by_key: dict[str, int] = {}
        self.sorted_by = ADDRESS
        self.descending = False
        self._changed: set[str] | None = None  # keys whose numbers have changed; None: all
        self._with_twins = False
        self._latent: tuple[Measure, ...] = ()
        self._fields: tuple[Field, ...] = ()
        self._group: NumberGroup | None = None
        self._order: Sequence[int] = ()
        self._places: Sequence[int] = ()

    def show(self, projections: Sequence[Projection]) -> None:
        """Show other rows, given in model order."""
        self._projections = projections
        self._by_address = {p.address: number for number, p in enumerate(projections)}
        self._by_key = {p.key: number for number, p in enumerate(projections)}
        self._with_twins = False
        self._latent = latent_measures(projections)
        self._group = None
        self._changed = None

    def forget(self, keys: Iterable[str] | None = None) -> None:
        """Record that states, numbers or the lens changed, for these keys or, for None, any. Unknown keys (a twin's,
        one of the second model) count as any."""
        known = None if keys is None else set(keys)
        if self._changed is not None:
            self._changed = None if known is None or known - self._by_key.keys() else self._changed | known

    def sort(self, name: str) -> None:
        """Sort by a column, numbers from the largest down; the same column again reverses the order."""
        self.descending = not self.descending if name == self.sorted_by else name != ADDRESS
        self.sorted_by = name
        self._changed = None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The columns."""
        self._settle()
        return self._fields

    def __len__(self) -> int:
        return len(self._projections)

    def __getitem__(self, place: int) -> Projection:
        self._settle()
        return self._projections[self._order[place]]

    def place(self, address: str) -> int | None:
        """The row of a projection, by address."""
        self._settle()
        row = self._by_address.get(address)
        return None if row is None else self._places[row]

    def _settle(self) -> None:
        """Apply recorded changes."""
        changed, self._changed = self._changed, set()
        if changed is not None and not changed:
            return
        touched = self._projections if changed is None else [self._projections[self._by_key[key]] for key in changed]
        sample = touched[:: max(1, len(touched) // _SAMPLE)]
        had_twins, self._with_twins = self._with_twins, self._with_twins or has_twins(self._lens, sample)
        if changed is None or had_twins != self._with_twins:
            self._fields = fields_of(self._lens, self._with_twins, self._latent)
        field = find_field(self._fields, self.sorted_by)
        if field is None:  # k97, and the threshold has changed
            self.sorted_by, self.descending, field = ADDRESS, False, self._fields[0]
        if changed is None or field.name != ADDRESS:
            self._arrange(field)

    def _arrange(self, field: Field) -> None:
        in_order = range(len(self._projections))
        if field.name == ADDRESS:
            self._order = self._places = in_order[::-1] if self.descending else in_order
            return
        if self._group is None:
            self._group = self._lens.pair.group(self._projections)
        self._order = sort_order(field.numbers(self._group), self.descending)
        places = list(in_order)
        for place, row in enumerate(self._order):
            places[row] = place
        self._places = places

"""Marked projections side by side: their numbers, and the differences from the first one's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from .grid import member_of
from .latent_columns import latent_measures
from .lens import Lens
from .measures import ENERGY
from .pair import Side
from .table_rows import Field, fields_of, has_twins, load

MOST_MARKS = 8
NOTHING = "nothing marked: space marks the selection, M clears"
_FAR = 10.0
"""From this factor on a difference is not shown in percent, which would be hard to read."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One column: a projection in one model. Differences are relative to column `base`; None for the first column."""

    heading: str
    projection: Projection
    side: Side
    base: int | None


class Comparison:
    """Metrics in rows, marked projections in columns. With two models A and B each mark has two columns: B is compared
    with A, and A with the first A."""

    def __init__(self, lens: Lens, marks: Sequence[Projection]) -> None:
        self.marks = tuple(marks)
        sides = (Side.A, Side.B) if lens.pair.second is not None else (Side.A,)
        with_twins = has_twins(lens, marks)
        latent = latent_measures(marks)
        self._fields = {side: fields_of(replace(lens, side=side), with_twins, latent)[1:] for side in sides}
        self.fields = self._fields[Side.A]
        self.columns = tuple(_columns(marks, sides))

    def field(self, row: int, column: int) -> Field:
        """The metric of a row, in the model of a column."""
        return self._fields[self.columns[column].side][row]

    def value(self, row: int, column: int) -> str:
        """The number as text; without a number, the mark of the state."""
        return self.field(row, column).text(self.columns[column].projection)

    def number(self, row: int, column: int) -> float | None:
        """The number of a cell, None if it is unknown."""
        return self.field(row, column).number(self.columns[column].projection)

    def difference(self, row: int, column: int) -> str:
        """The difference of a number from the base, "" if it would be meaningless."""
        at = self.columns[column].base
        lens = self.field(row, column).lens
        if at is None or lens is None or self._is_bound(row, column) or self._is_bound(row, at):
            return ""
        number, base = self.number(row, column), self.number(row, at)
        return "" if number is None or base is None else difference(number, base, lens)

    def load(self) -> None:
        """Load what the numbers need. Reads files."""
        for fields in self._fields.values():
            load(fields, self.marks)

    def records(self) -> Iterator[dict[str, object]]:
        """Yield one record per column, for a file."""
        from .records import of_rows  # not needed for the first screen

        for column in self.columns:
            yield from of_rows(self._fields[column.side], [column.projection])

    def _is_bound(self, row: int, column: int) -> bool:
        """Whether the number is only a lower bound."""
        lens = self.field(row, column).lens
        return lens is not None and lens.is_bound(self.columns[column].projection)


def difference(number: float, base: float, lens: Lens) -> str:
    """The difference as text: `+12` for counts, percentages and shares of energy, `+8 %` for all else, `x 25` if it is
    large."""
    measure = lens.measure
    if measure.digits == 0 or measure.name in ("percent", ENERGY):
        return f"{_no_minus_zero(number - base, measure.digits or 0):+.{measure.digits}f}"
    if base <= 0:
        return ""
    factor = number / base
    if not 1 / _FAR < factor < _FAR:
        return f"x {factor:.3g}"
    share = _no_minus_zero(100 * (factor - 1), 1)
    return f"{share:+.{0 if abs(share) >= 10 else 1}f} %"


def _no_minus_zero(number: float, digits: int) -> float:
    return round(number, digits) + 0.0


def _columns(marks: Sequence[Projection], sides: Sequence[Side]) -> Iterator[Contender]:
    headings = headings_of(marks)
    for number, (p, heading) in enumerate(zip(marks, headings, strict=True)):
        first = number * len(sides)
        yield Contender(heading if len(sides) == 1 else f"{heading} A", p, Side.A, 0 if first else None)
        if len(sides) > 1:
            yield Contender(f"{heading} B", p, Side.B, first)


def headings_of(marks: Sequence[Projection]) -> list[str]:
    """The shortest labels that tell the marks apart, `2 key`, `e17 gate`; the address if nothing shorter does."""
    found = []
    for p in marks:
        parts = []
        if p.layer is not None and len({(q.tower, q.layer) for q in marks}) > 1:
            parts.append(f"{p.tower}.{p.layer}" if p.tower else str(p.layer))
        if (member := member_of(p)) is not None and len(set(map(member_of, marks))) > 1:
            parts.append(member.label)
        is_shared = len({q.block for q in marks if q.role == p.role}) > 1
        parts.append(f"{p.block}.{p.role}" if is_shared else p.role)
        found.append(" ".join(parts))
    return [printable(t if found.count(t) == 1 else p.address) for t, p in zip(found, marks, strict=True)]

"""The table of changes by a fine-tune, without a screen: its rows, their numbers, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from rankscope.engine.derive.difference import is_delta
from rankscope.engine.spectrum import Projection, Run

from .delta_numbers import DeltaColumn, DeltaNumbers, changes_of
from .deltas import WithoutDifference
from .lens import Lens
from .session import Session
from .wording import MARKS, refusal

_Stamp: TypeAlias = tuple[str, Run, float]


class DeltaRows:
    """Rows 0 to `deltas` are differences, sorted by a column; those after them have no difference. Numbers that `load`
    has read at the lens's threshold are kept as long as the same spectrum is stored."""

    def __init__(self, lens: Lens) -> None:
        self._lens = lens
        self._every: Sequence[Projection] = ()
        self._order: Sequence[Projection] = ()
        self._apart: Sequence[WithoutDifference] = ()
        self._places: dict[str, int] | None = None
        self._known: dict[str, tuple[_Stamp, DeltaNumbers]] = {}
        self._sorted_by = ""
        self._is_descending = False
        self.longest = self.longest_shape = 0

    def show(self, projections: Sequence[Projection]) -> None:
        """Show other rows: the differences among these projections."""
        shown = projections if self._session.model.against else ()
        self._every = self._order = shown
        self._places = None
        self._sorted_by, self._is_descending = "", False
        self._measure()

    def show_apart(self, apart: Sequence[WithoutDifference]) -> None:
        """Set the rows after the differences."""
        self._apart = apart
        self._measure()

    def _measure(self) -> None:
        addresses = [*(p.address for p in self._every), *(item.address for item in self._apart)]
        self.longest = max(map(len, addresses), default=0)
        shapes = {(p.rows, p.cols) for p in self._every}
        self.longest_shape = max((len(f"{rows}x{cols}") for rows, cols in shapes), default=len("shape"))

    @property
    def _session(self) -> Session:
        return self._lens.pair.first

    def __len__(self) -> int:
        return len(self._order) + len(self._apart)

    @property
    def deltas(self) -> int:
        """The number of rows that are differences."""
        return len(self._order)

    def delta(self, row: int) -> Projection:
        """The difference of a row."""
        return self._order[row]

    def listed(self, row: int) -> WithoutDifference | None:
        """The entry of a row without a difference; None for a row that is one."""
        return None if row < len(self._order) else self._apart[row - len(self._order)]

    def key(self, row: int) -> str:
        """The content key of a difference, "" for any other row."""
        return "" if row >= len(self._order) else self._order[row].key

    def place(self, address: str) -> int | None:
        """The row of a difference, by address."""
        if self._places is None:
            self._places = {p.address: row for row, p in enumerate(self._order)}
        return self._places.get(address)

    def change(self, row: int) -> DeltaNumbers | None:
        """The numbers of a difference, or only its mark if it is not computed; None if it is not read yet."""
        return self._change(self._order[row])

    def changes(self) -> list[DeltaNumbers]:
        """The numbers of all differences, in their order."""
        return [found or DeltaNumbers(p, mark=".") for p in self._order for found in (self._change(p),)]

    def _change(self, p: Projection) -> DeltaNumbers | None:
        if p.problem is not None:
            return DeltaNumbers(p, mark=refusal(p))
        if not self._session.has(p):
            return DeltaNumbers(p, mark=MARKS[self._session.state(p)])
        held = self._known.get(p.key)
        return held[1] if held is not None and held[0] == self._stamp(p) else None

    def _stamp(self, p: Projection) -> _Stamp | None:
        """An identifier of a stored spectrum at a threshold, which changes with either."""
        entry = self._session.entry(p)
        return None if entry is None else (entry.computed_at, entry.run, self._lens.threshold)

    def load(self, projections: Sequence[Projection]) -> None:
        """Load the numbers of those that are stored. Reads files."""
        threshold = self._lens.threshold
        stored = [(p, stamp) for p in projections if is_delta(p) and (stamp := self._stamp(p)) is not None]
        for (p, stamp), change in zip(
            stored, changes_of(self._session, [p for p, _ in stored], threshold), strict=True
        ):
            if not change.mark:
                self._known[p.key] = (*stamp[:2], threshold), change

    def unread(self) -> set[str]:
        """The keys for which `load` has something to read. Goes through all rows, so it is meant for a thread."""
        return {p.key for p in self._every if self._session.has(p) and self._change(p) is None}

    def sort(self, column: DeltaColumn | None) -> None:
        """Sort by a column, numbers from the largest down, unknown ones last; the same column again reverses the order;
        None restores the model's order."""
        name = "" if column is None else column.name
        self._is_descending = not self._is_descending if name == self._sorted_by else bool(name)
        self._sorted_by, self._places = name, None
        if column is None:
            self._order = self._every[::-1] if self._is_descending else self._every
            return
        from .table_rows import sort_order

        numbers = [None if (c := self._change(p)) is None or c.mark else column.of(c) for p in self._every]
        self._order = [self._every[at] for at in sort_order(numbers, self._is_descending)]

    def mark_of(self, name: str) -> str:
        """The mark at the heading of a column that shows how rows are sorted by it."""
        return ("^ ", "v ")[self._is_descending] if name == self._sorted_by else ""

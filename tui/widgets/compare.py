"""The marked projections side by side: every metric, and its difference to the first mark. View 6."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from rich.style import Style
from textual.binding import BindingType
from textual.events import Resize, Show

from rankscope.engine.spectrum import Projection

from ..data.comparison import NOTHING, Comparison
from ..drawing.cells import Look
from ..settings import keys
from .sheet import DIM, MARK_STYLES, PLAIN, Sheet

if TYPE_CHECKING:
    from ..data.view_records import Content

LEAST_VALUE, LEAST_DIFFERENCE, GAP = 7, 7, 3


class Compare(Sheet, inherit_bindings=False):
    """`look` gives the lens for the numbers. Metrics are rows, marked projections are columns."""

    BINDINGS: ClassVar[list[BindingType]] = keys.COMPARE
    FIRST_COLUMN = 1
    compares_marks = True

    def __init__(self, look: Look, **kwargs: str) -> None:
        super().__init__(look, **kwargs)
        self._comparison = Comparison(look.lens, ())
        self._widest: list[tuple[int, int]] = []  # for each mark, the width of its values and of its differences

    def title(self) -> str:
        weighting = self._look.lens.pair.shown_as
        return f"marked projections{f', {weighting}' if weighting else ''}, differences to the first"

    def set_marks(self, marks: Sequence[Projection]) -> None:
        """Compare these, in the order in which they were marked."""
        self._show(tuple(marks))

    def update(self, keys: Iterable[str] | None = None) -> None:  # noqa: ARG002 - the numbers of marks are few
        """Show the numbers again after states, numbers or the lens have changed."""
        self._show(self._comparison.marks)

    def text_of_cell(self) -> str:
        """The number under the cursor, "" if there is none."""
        if not self._comparison.marks:
            return ""
        row, column = self.cursor[0], self.cursor[1] - 1
        return "" if self._comparison.number(row, column) is None else self._value(row, column)

    def load(self, projections: Sequence[Projection]) -> None:  # noqa: ARG002 - what is compared
        self._comparison.load()

    def content(self, content: Content) -> Content:
        return replace(content, projections=self._comparison.marks)

    def on_show(self, _: Show) -> None:
        self.lay_out(*self.cursor)

    def on_resize(self, _: Resize) -> None:
        self.lay_out(*self.cursor)

    @property
    def row_count(self) -> int:
        return len(self._comparison.fields) if self._comparison.marks else 0

    def widths(self) -> list[int]:
        columns = self._comparison.columns
        if not columns:
            return []
        names = max(len(field.title) for field in self._comparison.fields)
        pairs = zip(columns, self._widest, strict=True)
        return [names + GAP, *(GAP + max(len(c.heading), value + difference) for c, (value, difference) in pairs)]

    def heading(self, column: int) -> str:
        return self._comparison.columns[column - 1].heading if column else ""

    def cell(self, row: int, column: int) -> tuple[str, Style]:
        if column == 0:
            return f"{'>' if row == self.cursor[0] else ' '} {self._comparison.fields[row].title}", PLAIN
        value = self._value(row, column - 1)
        width = self._widest[column - 1][1]
        text = f"{value}{self._comparison.difference(row, column - 1):>{width}}"
        return text, DIM if value in (".", "-") else MARK_STYLES.get(value, PLAIN)

    def foot(self) -> str:
        """The column's projection, and the meaning of the row."""
        if not self._comparison.marks:
            return NOTHING
        field, column = self._comparison.fields[self.cursor[0]], self._comparison.columns[self.cursor[1] - 1]
        return f"{column.heading}: {column.projection.address}   {field.title}: {field.explained}"

    def _show(self, marks: tuple[Projection, ...]) -> None:
        """Compute all numbers again, as there are few, and fit the columns to them."""
        self._comparison = shown = Comparison(self._look.lens, marks)
        self._widest = []
        for number, column in enumerate(shown.columns):
            rows = range(len(shown.fields))
            value = max(LEAST_VALUE, *(len(self._value(row, number)) for row in rows))
            difference = max(LEAST_DIFFERENCE, *(len(shown.difference(row, number)) + 2 for row in rows))
            self._widest.append((value, 0 if column.base is None else difference))
        if self.is_attached:
            self.lay_out(*self.cursor)

    def _value(self, row: int, column: int) -> str:
        return self._comparison.value(row, column)

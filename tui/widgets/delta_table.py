"""How a fine-tune changed each projection, and the tensors of the two models without a difference. View 8."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from rich.style import Style
from textual.binding import BindingType
from textual.events import Resize, Show
from textual.geometry import Region
from textual.strip import Strip

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ..data.delta_numbers import DeltaColumn, DeltaNumbers, columns_at
from ..data.delta_rows import DeltaRows
from ..data.deltas import Apart, WithoutDifference
from ..data.grid import Column as Place
from ..data.grid import Grid, Row, Selection
from ..drawing.cells import Look
from ..settings import keys
from .heatmap_table import shortened
from .sheet import DIM, FOOTER, MARK_STYLES, PLAIN, Sheet
from .table import LEAST_ADDRESS, MetricTable

if TYPE_CHECKING:
    from ..data.view_records import Content

_WORDS = 3 + max(len("unchanged"), *map(len, Apart))
"""Characters of the column that shows a word if there is no number."""
_NUMBER = 9
_WITHOUT = "8 shows what a second model changed: :against MODEL"


class DeltaTable(Sheet, inherit_bindings=False):
    """A row for each difference, and after them a row for each tensor that has none. There are rows only while
    differences are shown in place of the first model's projections."""

    BINDINGS: ClassVar[list[BindingType]] = keys.DELTA

    def __init__(self, look: Look, **kwargs: str) -> None:
        super().__init__(look, **kwargs)
        self._rows = DeltaRows(look.lens)
        self._columns: tuple[DeltaColumn, ...] = ()
        self._grid = Grid((), (), {})
        self._places: dict[str, tuple[Row, Place]] = {}
        self._at = ""
        self._is_behind = False
        self.marked: frozenset[str] = frozenset()

    # What is shown

    def set_rows(self, projections: Sequence[Projection], grid: Grid) -> None:
        self._grid = grid
        self._rows.show(projections)
        shown = grid.cells.items() if self._rows.deltas else ()
        self._places = {p.address: place for place, members in shown for p in members}
        self._catch_up()

    def set_apart(self, apart: Sequence[WithoutDifference]) -> None:
        self._rows.show_apart(apart)
        self._catch_up()

    def update(self, keys: Iterable[str] | None = None) -> None:
        """Draw again after states, numbers or the lens have changed: rows with these content keys, or for None all."""
        if not self.is_on_screen:
            self._is_behind = True
        elif keys is None:
            self._catch_up()
        else:
            changed = set(keys)
            self.refresh_rows(row for row in self._rows_in_view if self._rows.key(row) in changed)

    def set_marks(self, marks: Sequence[Projection]) -> None:
        self.marked = frozenset(p.key for p in marks)
        self.refresh()

    def load(self, projections: Sequence[Projection]) -> None:
        self._rows.load(projections)

    def unread(self) -> set[str]:
        return self._rows.unread()

    def keys_in_view(self) -> tuple[str, ...]:
        return tuple(filter(None, map(self._rows.key, self._rows_in_view)))

    def title(self) -> str:
        model = self._look.lens.pair.first.model
        if not model.against:
            return "B - A: d shows it" if self._look.lens.pair.second is not None else _WITHOUT
        by = f", weighted by {self._look.lens.pair.weighting}" if self._look.lens.pair.weighting else ""
        return f"{printable(model.against)} - {printable(model.name)}{by}"

    def content(self, content: Content) -> Content:
        """The differences in the order shown."""
        return replace(content, changes={self._look.lens.threshold: self._rows.changes()})

    def text_of_cell(self) -> str:
        if not self.row_count or not self._columns or self.cursor[1] < 2:
            return self.cell(self.cursor[0], self.cursor[1])[0].strip(" >+") if self.row_count else ""
        change = self._rows.change(self.cursor[0])
        return "" if change is None or change.mark else self._columns[self.cursor[1] - 2].text(change)

    # The sheet

    @property
    def row_count(self) -> int:
        return len(self._rows)

    @property
    def _rows_in_view(self) -> range:
        return range(*slice(self.scroll_offset.y, self.scroll_offset.y + self._page).indices(self.row_count))

    def widths(self) -> list[int]:
        if not self.row_count:
            return []
        room = max(LEAST_ADDRESS, self._room.width // 2)
        numbers = [max(_NUMBER, len(column.heading) + 4) for column in self._columns[1:]]
        return [min(self._rows.longest + 3, room), self._rows.longest_shape + 2, _WORDS, *numbers]

    def heading(self, column: int) -> str:
        if column < 2:
            title = ("  address", "shape")[column]
            return f"{title} {self._rows.mark_of('')}".rstrip() if column == 0 else title
        held = self._columns[column - 2]
        return f"{self._rows.mark_of(held.name)}{held.heading}"

    def cell(self, row: int, column: int) -> tuple[str, Style]:
        listed = self._rows.listed(row)
        if column == 0:
            address = listed.address if listed is not None else self._rows.delta(row).address
            marks = (">" if row == self.cursor[0] else " ") + ("+" if self._rows.key(row) in self.marked else " ")
            return marks + shortened(printable(address), self._widths[0] - 3), PLAIN if listed is None else DIM
        if listed is not None:
            return (str(listed.why) if column == 2 else ""), DIM
        if column == 1:
            p = self._rows.delta(row)
            return f"{p.rows}x{p.cols}", PLAIN
        change = self._rows.change(row)
        text = "" if change is None else self._columns[column - 2].text(change)
        return text, DIM if text in (".", "-", "unchanged") else MARK_STYLES.get(text, PLAIN)

    def foot(self) -> str:
        """The meaning of the column; for a tensor without a difference, the reason."""
        if not self.row_count:
            return ""
        listed = self._rows.listed(self.cursor[0])
        if listed is not None:
            return f"{listed.why}: {printable(listed.text)}"
        if self.cursor[1] < 2:
            apart = self.row_count - self._rows.deltas
            return f"{self._rows.deltas} differences{f'; below them {apart} tensors that have none' if apart else ''}"
        change: DeltaNumbers | None = self._rows.change(self.cursor[0])
        if change is not None and change.quantised:
            return f"A or B is quantised ({change.quantised}): no rank is advised"
        column = self._columns[self.cursor[1] - 2]
        return f"{column.heading}: {column.explained}"

    # The cursor

    def go(self, row: int, column: int) -> None:
        """Move the cursor without reporting it; the line at the bottom depends on the row too."""
        before = self.cursor
        super().go(row, column)
        if before[0] != self.cursor[0]:
            self._refresh_lines((self._room.height - FOOTER,))

    def show_selection(self, selection: Selection) -> None:
        found = () if selection == Selection() else selection.projections(self._grid)
        if found and not any(p.address == self._at for p in found):
            self._at = found[0].address
            if self.is_on_screen and self._columns:
                self.go(*self._place())
            else:
                self._is_behind = True

    def moved(self, before: tuple[int, int]) -> None:
        if before[0] == self.cursor[0] or not self.row_count:
            return
        if self._rows.listed(self.cursor[0]) is None:
            p = self._rows.delta(self.cursor[0])
            self._at = p.address
            self.post_message(MetricTable.RowSelected(self._selection(p)))

    def _selection(self, p: Projection) -> Selection:
        place = self._places.get(p.address)
        if place is None:
            return Selection(single=p)
        return Selection(*place, single=None if len(self._grid.cells[place]) == 1 else p)

    def action_sort(self) -> None:
        """Sort by the column under the cursor, the other way the second time, and go to the first row."""
        if self._columns:
            at = self.cursor[1] - 2
            self._rows.sort(self._columns[at] if at >= 0 else None)
            self._catch_up()
            self.action_jump(-1)

    def heading_clicked(self) -> None:
        self.action_sort()

    def render_lines(self, crop: Region) -> list[Strip]:
        """Draw lines. If it was hidden and shown again between two layouts, it has missed Show and takes in changes
        now."""
        if self._is_behind:
            self.call_next(self._catch_up)
        return super().render_lines(crop)

    def on_show(self, _: Show) -> None:
        self._catch_up()

    def on_resize(self, _: Resize) -> None:
        self._catch_up()

    def _catch_up(self) -> None:
        """Take in what has changed if the table is visible; otherwise this waits until it is shown."""
        self._is_behind = not (self.is_attached and self.is_on_screen)
        if not self._is_behind:
            self._columns = columns_at(self._look.lens.threshold)
            self.lay_out(*self._place())

    def _place(self) -> tuple[int, int]:
        row = self._rows.place(self._at)
        return self.cursor[0] if row is None else row, self.cursor[1]

"""Every projection with every metric, sorted by any of them. View 5."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from rich.style import Style
from textual.binding import BindingType
from textual.events import Resize, Show
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from rankscope.engine.spectrum import Projection

from ..data.grid import Column, Grid, Row, Selection
from ..data.table_rows import ADDRESS, Field, TableRows, fields_of, load, unread
from ..drawing.cells import Look
from ..settings import keys
from .heatmap_table import shortened
from .sheet import DIM, MARK_STYLES, PLAIN, Sheet

if TYPE_CHECKING:
    from ..data.view_records import Content

LEAST_ADDRESS = 16


class MetricTable(Sheet, inherit_bindings=False):
    """`look` gives the lens for the numbers. `marked`: content keys of the marked projections."""

    BINDINGS: ClassVar[list[BindingType]] = keys.TABLE

    class RowSelected(Message):
        """The user moved the cursor to a projection."""

        def __init__(self, selection: Selection) -> None:
            super().__init__()
            self.selection = selection

    def __init__(self, look: Look, **kwargs: str) -> None:
        super().__init__(look, **kwargs)
        self._rows = TableRows(look.lens)
        self._fields: tuple[Field, ...] = ()
        self._places: dict[str, tuple[Row, Column]] = {}
        self._grid = Grid((), (), {})
        self._longest = 0
        self._kinds: dict[tuple[int, ...], Projection] = {}
        self._at = ""  # address and field under the cursor, as rows and columns may change
        self._field = ""
        self._is_behind = False  # something has changed while the table was hidden
        self.marked: frozenset[str] = frozenset()

    def set_rows(self, projections: Sequence[Projection], grid: Grid) -> None:
        """Show other projections, in model order; `grid` gives their places."""
        self._grid = grid
        self._places = {p.address: place for place, members in grid.cells.items() for p in members}
        self._rows.show(projections)
        self._longest = max((len(p.address) for p in projections), default=0)
        self._kinds = {self._shapes(p): p for p in projections}
        self._catch_up()

    def update(self, keys: Iterable[str] | None = None) -> None:
        """Draw again after states, numbers or the lens have changed: rows with these content keys, or for None all."""
        changed = None if keys is None else set(keys)
        self._rows.forget(changed)
        if not self.is_on_screen:
            self._is_behind = True
        elif changed is None or self._rows.sorted_by != ADDRESS or self._rows.fields is not self._fields:
            self._catch_up()
        else:
            # A scan changes some rows ten times a second; drawing the whole table would send 5 kB each time.
            self.refresh_rows(row for row in self._rows_in_view if self._rows[row].key in changed)

    def show_selection(self, selection: Selection) -> None:
        """Go to a selection, or to the first of several, without reporting it."""
        found = () if selection == Selection() else selection.projections(self._grid)
        if found and not any(p.address == self._at for p in found):
            self._at = found[0].address
            if not self.is_on_screen:
                self._is_behind = True
            elif self._fields:
                self.go(*self._place())

    def text_of_cell(self) -> str:
        """The text under the cursor, "" if there is no number."""
        if not self.row_count or not self._fields:
            return ""
        p, field = self._rows[self.cursor[0]], self._fields[self.cursor[1]]
        return field.text(p) if field.lens is None or field.number(p) is not None else ""

    def set_marks(self, marks: Sequence[Projection]) -> None:
        self.marked = frozenset(p.key for p in marks)

    def load(self, projections: Sequence[Projection]) -> None:
        load(fields_of(self._look.lens, with_twins=True), projections)

    def unread(self) -> set[str]:
        return unread(fields_of(self._look.lens, with_twins=True))

    def keys_in_view(self) -> tuple[str, ...]:
        return tuple(self._rows[row].key for row in self._rows_in_view)

    @property
    def _rows_in_view(self) -> range:
        return range(*slice(self.scroll_offset.y, self.scroll_offset.y + self._page).indices(self.row_count))

    def content(self, content: Content) -> Content:
        """The table in the order shown."""
        rows = [self._rows[place] for place in range(len(self._rows))]
        return replace(content, projections=rows, fields=self._rows.fields)

    def action_sort(self) -> None:
        """Sort by the column under the cursor, the other way the second time, and go to the first row."""
        if self._fields:
            self._rows.sort(self._fields[self.cursor[1]].name)
            self._catch_up()
            self.action_jump(-1)

    def render_lines(self, crop: Region) -> list[Strip]:
        """Draw lines. If it was hidden and shown again between two layouts, it has missed Show and takes in changes
        now."""
        if self._is_behind:
            self.call_next(self._catch_up)
        return super().render_lines(crop)

    def heading_clicked(self) -> None:
        self.action_sort()

    def on_show(self, _: Show) -> None:
        self._catch_up()

    def on_resize(self, _: Resize) -> None:
        self._catch_up()

    @property
    def row_count(self) -> int:
        return len(self._rows)

    def widths(self) -> list[int]:
        room = max(LEAST_ADDRESS, self._room.width // 2)
        shape = 2 + max((len(self._look.lens.shape(p)) for p in self._kinds.values()), default=0)
        numbers = [max(f.width, len(f.title) + 3) for f in self._fields[1:]]
        return [min(self._longest + 3, room), *(max(shape, width) for width in numbers[:1]), *numbers[1:]]

    def _shapes(self, p: Projection) -> tuple[int, ...]:
        """The sizes that determine how wide a shape is written, in both models: many projections share few of them."""
        partner = self._look.lens.pair.partner(p)
        return (p.rows, p.cols) if partner is None else (p.rows, p.cols, partner.rows, partner.cols)

    def heading(self, column: int) -> str:
        field = self._fields[column]
        mark = ("^ ", "v ")[self._rows.descending] if field.name == self._rows.sorted_by else ""
        return f"  {field.title} {mark}" if column == 0 else f"{mark}{field.title}"

    def cell(self, row: int, column: int) -> tuple[str, Style]:
        p, field = self._rows[row], self._fields[column]
        if column == 0:
            marks = (">" if row == self.cursor[0] else " ") + ("+" if p.key in self.marked else " ")
            return marks + shortened(p.address, self._widths[0] - 3), PLAIN
        text = field.text(p)
        is_grey = text in (".", "-") or (field.lens is not None and field.lens.is_greyed(p))
        return text, DIM if is_grey else MARK_STYLES.get(text, PLAIN)

    def foot(self) -> str:
        """The meaning of the column: three measures are called effective rank elsewhere."""
        if not self._fields:
            return ""
        field = self._fields[self.cursor[1]]
        return f"{field.title}: {field.explained}"

    def moved(self, before: tuple[int, int]) -> None:
        if self._fields:  # a key may arrive before the table has been on the screen
            self._field = self._fields[self.cursor[1]].name
        if before[0] != self.cursor[0]:
            p = self._rows[self.cursor[0]]
            self._at = p.address
            self.post_message(self.RowSelected(self._selection(p)))

    def _selection(self, p: Projection) -> Selection:
        place = self._places.get(p.address)
        if place is None:
            return Selection(single=p)
        is_alone = len(self._grid.cells[place]) == 1
        return Selection(*place, single=None if is_alone else p)

    def _catch_up(self) -> None:
        """Take in what has changed if the table is visible; otherwise this waits until it is shown."""
        self._is_behind = not (self.is_attached and self.is_on_screen)
        if not self._is_behind:
            self._fields = self._rows.fields
            self.lay_out(*self._place())

    def _place(self) -> tuple[int, int]:
        """The current place of the projection and the measure that were under the cursor."""
        row = self._rows.place(self._at)
        names = [field.name for field in self._fields]
        column = names.index(self._field) if self._field in names else self.cursor[1]
        return self.cursor[0] if row is None else row, column

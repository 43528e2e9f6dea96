"""Layers x roles of numbers and shades: as a table, as one layer's experts, or turned as an overview.

A ScrollView that draws lines itself: 53 ms to the first paint and 2 ms for a key, while DataTable takes 120 and 4.4;
with 61 layers x 256 experts 83 ms against 1.2 s. Only the characters that change are sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import BindingType
from textual.events import Click, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip

from rankscope.engine.spectrum import Projection

from ..data.grid import Column, Grid, Row, Selection, unfolded
from ..data.kept_sum import ShownRanks
from ..data.outliers import Role, by_distance
from ..drawing.cell import PLAIN
from ..drawing.cells import Look
from ..drawing.shade_key import shade_key
from ..drawing.strips import difference
from ..settings import keys
from .heatmap_overview import Overview
from .heatmap_table import LONGEST_NAME, Layers, Pointer, shortened
from .top_pane import TopPane

TITLE_MARGIN = 4
"""Columns of the border, inside the corners, that a title leaves free."""


class Heatmap(TopPane, inherit_bindings=False):
    """`look` gives what a cell shows. `cursor`, which keys move, is (row, column) in `shown`; that is `grid`, or while
    `unfolded` names a layer, the experts of one of its blocks."""

    BINDINGS: ClassVar[list[BindingType]] = keys.HEATMAP

    class CellSelected(Message):
        """The user selected a cell or an expert."""

        def __init__(self, selection: Selection) -> None:
            super().__init__()
            self.selection = selection

    def __init__(self, look: Look, **kwargs: str) -> None:
        super().__init__(look, **kwargs)
        self.grid = self.shown = Grid((), (), {})
        self.unfolded: Row | None = None
        self.overview = False
        self.cursor = (0, 0)
        self.selection = Selection()
        self._block = ""
        self._ranks = ShownRanks(look.lens.pair, ())
        self._strips: dict[int, Strip] = {}
        self._form: Layers | Overview = Layers(look, self.grid, Size(0, 0))

    def title(self) -> str:
        """The name of the number; for the energy that given ranks keep, also what these ranks come to."""
        found = self._ranks.sum(self._look.lens) if self._look.lens.measure.needs_ranks else None
        if found is None:
            return super().title()
        name = f"{self._look.lens.title}: "
        return f"{name}{found.fitting(self.size.width - TITLE_MARGIN - len('3 heatmap  ') - len(name))}"

    def subtitle(self, room: int) -> Text:
        """The smallest and largest number of the cursor's role, outliers in bold, and the shades; the shades lose their
        words if there is little room, and are shown alone if there is less."""
        ends, key = self._extremes(), shade_key(self._look, self._column)
        forms = [Text("  ").join(filter(None, parts)) for parts in ((ends, self._shades()), (ends, key))]
        return next((form for form in forms if form.cell_len <= room), self._shades())

    def _extremes(self) -> Text:
        """`key min 69@79  max 125@3`."""
        column, look = self._column, self._look
        if column is None or not self.shown.rows or not look.lens.pair.has_spectra:
            return Text()
        tower = self.shown.rows[self.cursor[0]].tower
        rows = [row for row in self.shown.rows if row.tower == tower]
        ends = Role(self.shown, rows, column, look.numbers, ranks=look.lens.is_rank).ends()
        if ends is None:
            return Text()
        text = Text(shortened(column.heading, LONGEST_NAME))
        for name, standing in zip(("min", "max"), ends, strict=True):
            number = look.short(standing.number, max(look.width, len(name)))
            style = Style(bold=True) if standing.is_outlier else PLAIN
            text.append(f" {name} ").append(f"{number}@{standing.label}", style).append(" ")
        return text

    def _shades(self) -> Text:
        """The shades, after the name of their measure if it is not that of the number, and what they are spread
        over."""
        lens = self._look.lens
        by = ", ".join(filter(None, (lens.shade_title, lens.contrast.words)))
        return Text(f"shade {by} " if by else "").append_text(shade_key(self._look, self._column))

    def set_rows(self, projections: Sequence[Projection], grid: Grid) -> None:
        """Show other projections. The cursor stays inside, and experts stay unfolded if they are in the grid."""
        self.grid = grid
        self._ranks = ShownRanks(self._look.lens.pair, projections)
        if self.unfolded is None or not self._open(self.unfolded, self._block):
            self._close()

    def set_overview(self, overview: bool) -> None:
        """Show the layers as columns, or as rows."""
        if overview != self.overview:
            self.overview = overview
            self._arrange()

    @property
    def lines_needed(self) -> int:
        """Lines that show every row of the current form, with header and border."""
        return (Overview if self.overview else Layers).height(self.shown) + 2

    @property
    def overview_lines(self) -> tuple[int, int]:
        """Lines that the overview needs at least, and with its blocks as headings; both with border."""
        return Overview.least_height(self.shown) + 2, Overview.height(self.shown) + 2

    def update(self, keys: Iterable[str] | None = None) -> None:  # noqa: ARG002 - compares all cells
        """Draw what looks different after some cells, or the unit, have changed."""
        self._build()
        self._repaint(self._in_view)

    def keys_in_view(self) -> tuple[str, ...]:
        """Content keys of the rows in view of the table; none for the overview, where everything is in view."""
        if self.overview:
            return ()
        top = self.scroll_offset.y
        rows = self.shown.rows[top : top + self.size.height - self._form.header]
        return tuple(p.key for row in rows for p in self.shown.row(row))

    # Experts

    def unfold(self) -> bool:
        """Show the experts of the cursor's layer, if its cell has several; return whether it has."""
        if self.unfolded is not None or not self.grid.rows:
            return False
        row, column = self.grid.rows[self.cursor[0]], self.grid.columns[self.cursor[1]]
        if len(self.grid.cells.get((row, column), ())) < 2 or not self._open(row, column.block):
            return False
        self._travel(self._row_of(self.selection) or 0, self.shown.columns.index(column))
        return True

    def fold(self) -> bool:
        """Go back from the experts to the cell of their layer; return whether any were shown."""
        if self.unfolded is None:
            return False
        self._close()
        self._travel(*self.cursor)
        return True

    def _open(self, row: Row, block: str) -> bool:
        """Show the experts of a block in a layer, if it has any. The cursor goes to the one that is farthest from their
        median in the cursor's role."""
        if not any(len(self.grid.cells.get((row, c), ())) > 1 for c in self.grid.columns if c.block == block):
            return False
        grid = unfolded(self.grid, row, block)
        column = self._column if self._column in grid.columns else grid.columns[0]
        self._look.show_experts(grid)
        self._show(replace(grid, rows=tuple(by_distance(grid, column, self._look.numbers))), row, block)
        return True

    def _close(self) -> None:
        """Show the whole grid, with the cursor on the layer of the experts."""
        row, column = self.unfolded, self._column
        if row in self.grid.rows and column in self.grid.columns:
            self.cursor = self.grid.rows.index(row), self.grid.columns.index(column)
        self._show(self.grid, None, "")

    @property
    def _column(self) -> Column | None:
        return self.shown.columns[self.cursor[1]] if self.shown.columns else None

    def _show(self, grid: Grid, row: Row | None, block: str) -> None:
        self.shown, self.unfolded, self._block = grid, row, block
        self._look.show_experts(Grid((), (), {}) if row is None else grid)
        self.cursor = self._inside(*self.cursor)
        self._arrange()

    def _follow(self, selection: Selection) -> None:
        """Show the experts of another layer, or none, if the selection has left those shown."""
        if self.unfolded is None or (selection.row is None and selection.column is None):
            return
        row = selection.row
        block = selection.column.block if selection.column else selection.block or self._block
        is_elsewhere = selection.column is not None and selection.column not in self.shown.columns
        if row is None or block != self._block or is_elsewhere or not (row == self.unfolded or self._open(row, block)):
            self._close()

    # The selection

    def show_selection(self, selection: Selection) -> None:
        """Mark what is selected, one or several cells, and move the cursor there without reporting it."""
        self._follow(selection)
        columns = self.shown.columns
        in_block = [n for n, c in enumerate(columns) if c.block == selection.block]
        column = columns.index(selection.column) if selection.column in columns else (in_block or [self.cursor[1]])[0]
        row = self._row_of(selection)
        self._point(selection, (self.cursor[0] if row is None else row, column))

    def _point(self, selection: Selection, cursor: tuple[int, int]) -> None:
        before = set(self._form.touched(self._pointer))
        self.selection = selection
        self.cursor = self._inside(*cursor)
        self._reveal()
        self._repaint(before.union(self._form.touched(self._pointer)))

    def _row_of(self, selection: Selection) -> int | None:
        """The row of a selection in what is shown; None if it is in no single row."""
        if self.unfolded is None:
            return self.grid.rows.index(selection.row) if selection.row in self.grid.rows else None
        wanted = selection.single.address if selection.single else None
        places = (place for place, members in self.shown.cells.items() if members[0].address == wanted)
        found = next((row for row, _ in places), None)
        return None if found is None else self.shown.rows.index(found)

    def action_move(self, rows: int, columns: int) -> None:
        """Move by cells as seen on the screen."""
        down, right = (columns, rows) if self.overview else (rows, columns)
        self._travel(self.cursor[0] + down, self.cursor[1] + right)

    def action_jump(self, end: int) -> None:
        """Go to the first or the last layer."""
        self._travel(0 if end < 0 else len(self.shown.rows) - 1, self.cursor[1])

    def action_half(self, direction: int) -> None:
        """Move by half a page of layers; in the overview by half of all layers."""
        page = len(self.shown.rows) if self.overview else self.size.height - self._form.header
        self._travel(self.cursor[0] + direction * max(1, page // 2), self.cursor[1])

    def _travel(self, row: int, column: int) -> None:
        if not self.shown.rows:
            return
        at_row, at_column = self._inside(row, column)
        place = self.shown.rows[at_row], self.shown.columns[at_column]
        selection = Selection(*place)
        if self.unfolded is not None:
            selection = Selection(self.unfolded, place[1], single=next(iter(self.shown.cells.get(place, ())), None))
        self._point(selection, (at_row, at_column))
        self.post_message(self.CellSelected(selection))

    def on_click(self, event: Click) -> None:
        """Go to the cell under the mouse."""
        at = event.get_content_offset(self)
        if at is None or at.y < self._form.header or at.x < self._form.label_width:
            return
        line = at.y - self._form.header + self.scroll_offset.y
        if (cell := self._form.cell_at(line, at.x - self._form.label_width + self.scroll_offset.x)) is not None:
            self._travel(*cell)

    def _inside(self, row: int, column: int) -> tuple[int, int]:
        return (
            max(0, min(len(self.shown.rows) - 1, row)),
            max(0, min(len(self.shown.columns) - 1, column)),
        )

    # Drawing

    @property
    def _pointer(self) -> Pointer:
        return Pointer(self.cursor, self.selection, self.has_focus)

    def _build(self) -> None:
        """Lay out rows and columns for this grid, unit and size."""
        self._form = (Overview if self.overview else Layers)(self._look, self.shown, self.size)
        self.virtual_size = self._form.size

    def _arrange(self) -> None:
        """Lay out other rows, columns or sizes, and keep the cursor in view."""
        self._build()
        self._reveal()
        self._repaint(self._in_view)

    @property
    def _in_view(self) -> range:
        """The lines of the form, down to the last visible one."""
        return range(self.scroll_offset.y + self.size.height)

    def on_resize(self, _: Resize) -> None:
        self._arrange()

    def notify_style_update(self) -> None:
        self._strips.clear()
        super().notify_style_update()

    def watch_has_focus(self, has_focus: bool) -> None:
        self._strips.clear()
        super().watch_has_focus(has_focus)

    # ScrollView would draw all of its region again with headings and blanks, which makes half of the bytes of a page.

    def watch_scroll_x(self, _: float, new_value: float) -> None:
        if self.show_horizontal_scrollbar:
            self.horizontal_scrollbar.position = new_value
        self._repaint(self._in_view)

    def watch_scroll_y(self, _: float, new_value: float) -> None:
        if self.show_vertical_scrollbar:
            self.vertical_scrollbar.position = new_value
        self._repaint(self._in_view)

    def render_line(self, y: int) -> Strip:
        found = self._strips.get(y)
        if found is None:
            found = self._strips[y] = self._line(y)
        return found

    def _line(self, y: int) -> Strip:
        width, style = self.size.width, self.rich_style
        line = y if y < self._form.header else y + self.scroll_offset.y
        if line >= self._form.size.height:
            return Strip.blank(width, style)
        label, body = self._form.draw(line, self._pointer)
        left = self.scroll_offset.x
        strip = Strip([label, *Strip(body).crop(left, left + max(0, width - self._form.label_width))])
        return strip.adjust_cell_length(width, style).apply_style(style).simplify()

    def _repaint(self, lines: Iterable[int]) -> None:
        """Send what has changed in these lines of the form."""
        header, top = self._form.header, self.scroll_offset.y
        regions = []
        for line in sorted(lines):
            y = line if line < header else line - top
            if y < min(line, header) or y >= self.size.height:
                continue
            old = self._strips.pop(y, None)
            start, end = (0, self.size.width) if old is None else difference(old, self.render_line(y))
            if start < end:
                regions.append(Region(start, y, end - start, 1))
        if regions:
            self.refresh(*regions)

    def _reveal(self) -> None:
        """Scroll by half a page when the cursor leaves the view: 1.9 kB for a key, instead of 12.6 line by line."""
        line = self._form.line_of(self.cursor)
        page = max(1, self.size.height - self._form.header)
        top = self.scroll_offset.y
        if self.size.height > self._form.header and not top <= line < top + page:
            top = max(0, line - page // 2)
        room = self.size.width - self._form.label_width
        left = self.scroll_offset.x
        start, end = self._form.span_of(self.cursor)
        if room > 0:
            left = start if start < left else max(left, end - room)
            left = 0 if end <= room else left
        if (left, top) != (self.scroll_offset.x, self.scroll_offset.y):
            self.scroll_to(left, top, animate=False, immediate=True)

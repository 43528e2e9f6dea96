"""Rows and columns of text with a cursor: the base of the metric table, the comparison and the table of differences.

It draws lines itself, like the heatmap and for the same reasons: a DataTable takes 1.2 s to open on 47,000 rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.events import Click
from textual.geometry import Region, Size
from textual.strip import Strip

from ..drawing.cells import Look
from .top_pane import TopPane

HEADER, FOOTER = 1, 1
BORDER = 2
PLAIN, DIM, BOLD = Style.null(), Style(dim=True), Style(bold=True)
MARK_STYLES = {"!": Style(color="red", bold=True), "?": Style(color="red"), "*": Style(color="yellow", bold=True)}


class Sheet(TopPane, inherit_bindings=False):
    """A table in which column 0 stays in view while the others scroll. A line at the bottom explains the column under
    the cursor.

    A subclass defines `row_count`, `widths`, `heading`, `cell` and `foot`, and calls `lay_out` when they change.
    """

    FIRST_COLUMN = 0
    """The cursor cannot go left of this column."""

    def __init__(self, look: Look, **kwargs: str) -> None:
        super().__init__(look, **kwargs)
        self.cursor = (0, self.FIRST_COLUMN)
        self._widths: list[int] = []
        self._lefts: list[int] = []

    @property
    def row_count(self) -> int:
        """Lines between header and foot."""
        raise NotImplementedError

    def widths(self) -> list[int]:
        """Widths of all columns, including the first."""
        raise NotImplementedError

    def heading(self, column: int) -> str:
        """The text over a column."""
        raise NotImplementedError

    def cell(self, row: int, column: int) -> tuple[str, Style]:
        """A cell's text and style."""
        raise NotImplementedError

    def foot(self) -> str:
        """The last line."""
        raise NotImplementedError

    @property
    def lines_needed(self) -> int:
        """Lines that show every row, with header, foot, border and scroll bar. Until widths are known there may be a
        scroll bar, which would hide a row."""
        bar = not self._widths or sum(self._widths) >= self.size.width
        return self.row_count + HEADER + FOOTER + BORDER + bar

    def lay_out(self, row: int, column: int) -> None:
        """Measure the columns, put the cursor in a cell, and draw: rows or columns have changed."""
        self._widths = self.widths()
        self._lefts = [0, *accumulate(self._widths[1:-1], initial=0)]  # where each scrolling column begins
        self.virtual_size = Size(sum(self._widths) + 1, HEADER + self.row_count + FOOTER)
        self.cursor = self._inside(row, column)
        self._reveal()
        self.call_after_refresh(self._reveal_on_screen)  # before the layout it cannot scroll
        self.refresh()

    def moved(self, before: tuple[int, int]) -> None:
        """React to a move of the cursor by the user, which was at `before`."""

    def go(self, row: int, column: int) -> None:
        """Move the cursor without reporting it."""
        old, self.cursor = self.cursor, self._inside(row, column)
        if old == self.cursor:
            return
        self._reveal()
        self.refresh_rows((old[0], self.cursor[0]))
        if old[1] != self.cursor[1]:
            self._refresh_lines((0, self._room.height - FOOTER))

    def refresh_rows(self, rows: Iterable[int]) -> None:
        """Draw these rows again, if they are in view."""
        lines = (HEADER + row - self.scroll_offset.y for row in rows)
        self._refresh_lines(y for y in lines if HEADER <= y < HEADER + self._page)

    def action_move(self, rows: int, columns: int) -> None:
        """Move by cells."""
        self._travel(self.cursor[0] + rows, self.cursor[1] + columns)

    def action_jump(self, end: int) -> None:
        """Go to the first or the last row."""
        self._travel(0 if end < 0 else self.row_count - 1, self.cursor[1])

    def action_half(self, direction: int) -> None:
        """Move by half a page."""
        self._travel(self.cursor[0] + direction * max(1, self._page // 2), self.cursor[1])

    def on_click(self, event: Click) -> None:
        """Go to the cell under the mouse; on a heading, go to its column, and sort by it if rows can be sorted."""
        at = event.get_content_offset(self)
        if at is None or not self._widths:
            return
        x = at.x if at.x < self._widths[0] else at.x + self.scroll_offset.x
        column = next((n for n, end in enumerate(accumulate(self._widths)) if x < end), None)
        row = at.y - HEADER + self.scroll_offset.y
        if column is None or at.y > self._page or row >= self.row_count:
            return
        self._travel(self.cursor[0] if at.y < HEADER else row, column)
        if at.y < HEADER:
            self.heading_clicked()

    def heading_clicked(self) -> None:
        """React to a click on a heading, after the cursor has moved to its column."""

    def render_line(self, y: int) -> Strip:
        width, height = self._room
        row = y - HEADER + self.scroll_offset.y
        foot = height - FOOTER if self._widths else 0
        if y == foot:
            segments = [Segment(set_cell_size(f" {self.foot()}", width), DIM)]
        elif self._widths and (y < HEADER or row < self.row_count):
            segments = self._line(None if y < HEADER else row)
        else:
            return Strip.blank(width, self.rich_style)
        return Strip(segments).simplify().adjust_cell_length(width).apply_style(self.rich_style)

    def _line(self, row: int | None) -> list[Segment]:
        """The header (None) or a row: the fixed column, then the visible part of the others."""
        segments = [self._segment(row, column) for column in range(len(self._widths))]
        left, room = self.scroll_offset.x, max(0, self._room.width - self._widths[0])
        return [segments[0], *Strip(segments[1:]).crop(left, left + room)]

    def _segment(self, row: int | None, column: int) -> Segment:
        at_column = column == self.cursor[1]
        if row is None:
            text, style = self.heading(column), BOLD if at_column else DIM
        else:
            text, style = self.cell(row, column)
            if row == self.cursor[0]:
                style += BOLD
                style += Style(reverse=at_column and self.has_focus)
        width = self._widths[column]
        if column == 0:
            return Segment(set_cell_size(text, width), style)
        return Segment(" " * max(0, width - cell_len(text)) + text, style)

    @property
    def _room(self) -> Size:
        """The size without the scroll bars."""
        bars = self.scrollbar_gutter
        return Size(max(0, self.size.width - bars.width), max(0, self.size.height - bars.height))

    @property
    def _page(self) -> int:
        return max(1, self._room.height - HEADER - FOOTER)

    def _inside(self, row: int, column: int) -> tuple[int, int]:
        last = max(self.FIRST_COLUMN, len(self._widths) - 1)
        return max(0, min(self.row_count - 1, row)), max(self.FIRST_COLUMN, min(last, column))

    def _travel(self, row: int, column: int) -> None:
        before = self.cursor
        self.go(row, column)
        if before != self.cursor:
            self.moved(before)

    def _refresh_lines(self, lines: Iterable[int]) -> None:
        regions = [Region(0, y, self._room.width, 1) for y in set(lines) if 0 <= y < self._room.height]
        if regions:  # without a region, everything would be refreshed
            self.refresh(*regions)

    def _reveal_on_screen(self) -> None:
        if self.is_on_screen:
            self._reveal()

    def _reveal(self) -> None:
        """Scroll by half a page when the cursor leaves the view: 1.9 kB for a key, instead of 12.6 line by line."""
        row, column = self.cursor
        left, top = self.scroll_offset
        if not top <= row < top + self._page:
            top = max(0, row - self._page // 2)
        room = self._room.width - self._widths[0] if self._widths else 0
        if column and room > 0 and len(self._widths) > column:
            start, end = self._lefts[column], self._lefts[column] + self._widths[column]
            if not left <= start <= end <= left + room:
                left = 0 if end <= room else max(0, min(start, end - room // 2))
        elif not column:
            left = 0
        if (left, top) != tuple(self.scroll_offset):
            self.scroll_to(left, top, animate=False, immediate=True)

"""Layers x roles of threshold ranks: a number in every cell, its shade against noise of the same shape.

A ScrollView that draws lines itself: 53 ms to the first paint and 2 ms a key where DataTable takes 120
and 4.4, and 83 ms against 1.2 s at 61 layers x 256 experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.binding import BindingType
from textual.events import Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .. import keys
from ..grid import Column, Grid, Row, Selection

HEADER = 2
GAP = 2
# Even steps of lightness in the 256 colours (viridis itself keeps 12 of 20 steps there and turns once).
SHADES = tuple(Style(color=fg, bgcolor=f"color({bg})") for fg, bg in (
    ("white", 53), ("white", 24), ("white", 30), ("black", 36), ("black", 77), ("black", 220),
))  # fmt: skip
CHOSEN = Style(color="black", bgcolor="white", bold=True)
LIMITS = (0.6, 0.7, 0.8, 0.9, 1.0)
"""k/k0 at which the shade changes."""


def shade_key() -> Text:
    """The shades with the ratios between them."""
    names = ["<.6", *(f"{limit:.1f}".lstrip("0") for limit in LIMITS[:-1]), ">1"]
    return Text(" ").join(Text(f" {name} ", style) for name, style in zip(names, SHADES, strict=True))


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows: `rank` with `ratio` to the rank of noise, else a mark for its state."""

    mark: str
    rank: float | None = None
    ratio: float | None = None

    @property
    def text(self) -> str:
        return self.mark if self.rank is None else f"{self.rank:.0f}"

    @property
    def style(self) -> Style:
        if self.ratio is None:
            return Style(color="red", bold=True) if self.mark == "!" else Style(dim=self.mark in ".-")
        return SHADES[sum(self.ratio > limit for limit in LIMITS)]


def fold(cells: list[Cell]) -> Cell:
    """Several projections in one place (experts): their median, else the most telling mark."""
    if len(cells) == 1:
        return cells[0]
    ranks = [c.rank for c in cells if c.rank is not None]
    ratios = [c.ratio for c in cells if c.ratio is not None]
    if ranks and ratios:
        return Cell("", median(ranks), median(ratios))
    return Cell(next((m for m in "*!:." if any(c.mark == m for c in cells)), "-"))


class Heatmap(ScrollView, can_focus=True, inherit_bindings=False):
    """`look` tells what a cell shows; `cursor`, from where the keys move, is (row, column) in the grid."""

    BINDINGS: ClassVar[list[BindingType]] = keys.HEATMAP

    class Moved(Message):
        """The user moved the cursor to a cell."""

        def __init__(self, row: Row, column: Column) -> None:
            super().__init__()
            self.row = row
            self.column = column

    def __init__(self, look: Callable[[Row, Column], Cell], **kwargs: str) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._look = look
        self.grid = Grid((), (), {})
        self.cursor = (0, 0)
        self.selection = Selection()
        self._lefts: list[int] = []
        self._widths: list[int] = []
        self._label_width = 5
        self._cells: dict[tuple[int, int], Cell] = {}

    def set_grid(self, grid: Grid) -> None:
        """Show another grid; the cursor stays inside."""
        self.grid = grid
        self._cells.clear()
        self._label_width = max([5, *(len(row.label) for row in grid.rows)]) + 3
        self.cursor = self._inside(*self.cursor)
        self._measure()
        self.refresh()

    def _measure(self) -> None:
        """Lay out the columns: as wide as their role, wider where there is room."""
        grid = self.grid
        least = [max(6, len(column.role) + 1) for column in grid.columns]
        gaps = GAP * max(0, len({column.block for column in grid.columns}) - 1)
        spare = self.size.width - self._label_width - sum(least) - gaps - 1
        more = max(0, min(3, spare // max(1, len(least))))
        self._widths = [width + more for width in least]
        self._lefts = []
        left = 0
        for number, (column, width) in enumerate(zip(grid.columns, self._widths, strict=True)):
            left += GAP if number and column.block != grid.columns[number - 1].block else 0
            self._lefts.append(left)
            left += width
        self.virtual_size = Size(self._label_width + left + 1, HEADER + len(grid.rows))

    @property
    def lines_needed(self) -> int:
        """Lines that show every layer, with header and border."""
        return len(self.grid.rows) + HEADER + 2

    def update_cells(self) -> None:
        """Some cells changed: look at them again."""
        self._cells.clear()
        self.refresh()

    def show_selection(self, selection: Selection) -> None:
        """Mark what is selected, a cell or several, and go there, without telling anyone."""
        old, self.selection = self.selection, selection
        rows, columns = self.grid.rows, self.grid.columns
        in_block = [n for n, c in enumerate(columns) if c.block == selection.block]
        column = columns.index(selection.column) if selection.column in columns else (in_block or [self.cursor[1]])[0]
        self._go(rows.index(selection.row) if selection.row in rows else self.cursor[0], column)
        if old.row is None or selection.row is None:  # a role: its marks are in every line
            self.refresh()
        elif old != selection:
            self._refresh_rows(rows.index(row) for row in (old.row, selection.row) if row in rows)

    def action_move(self, rows: int, columns: int) -> None:
        """One cell further."""
        self._travel(self.cursor[0] + rows, self.cursor[1] + columns)

    def action_jump(self, end: int) -> None:
        """The first or the last layer."""
        self._travel(0 if end < 0 else len(self.grid.rows) - 1, self.cursor[1])

    def action_half(self, direction: int) -> None:
        """Half a page."""
        self._travel(self.cursor[0] + direction * max(1, (self.size.height - HEADER) // 2), self.cursor[1])

    def on_resize(self, _: Resize) -> None:
        self._measure()
        self._reveal()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y < HEADER:
            label, body = self._header(y)
        else:
            row = y - HEADER + self.scroll_offset.y
            if row >= len(self.grid.rows):
                return Strip.blank(width, self.rich_style)
            label, body = self._row(row)
        left = self.scroll_offset.x
        strip = Strip([label, *Strip(body).crop(left, left + max(0, width - self._label_width))])
        return strip.adjust_cell_length(width, self.rich_style).apply_style(self.rich_style)

    def _header(self, y: int) -> tuple[Segment, list[Segment]]:
        segments: list[Segment] = []
        cursor = self.cursor[1]
        for number, (column, width) in enumerate(zip(self.grid.columns, self._widths, strict=True)):
            first = number == 0 or column.block != self.grid.columns[number - 1].block
            if first and number:
                segments.append(Segment(" " * GAP))
            if y:
                style = Style(bold=True, reverse=number == cursor and self.has_focus)
                segments.append(Segment(f"{column.role:>{width}}", style))
            else:
                segments.append(Segment(self._block_heading(number, width) if first else "", Style(dim=True)))
        return Segment(f" {'layer' if y else '':>{self._label_width - 3}}  ", Style(dim=True)), segments

    def _block_heading(self, number: int, _: int) -> str:
        """A block's name over all of its columns."""
        block = self.grid.columns[number].block
        span = sum(w for c, w in zip(self.grid.columns, self._widths, strict=True) if c.block == block)
        return f" {block} ".center(span, "\u2500")[:span]

    def _row(self, row: int) -> tuple[Segment, list[Segment]]:
        segments: list[Segment] = []
        at = self.cursor
        for number, (column, width) in enumerate(zip(self.grid.columns, self._widths, strict=True)):
            if number and column.block != self.grid.columns[number - 1].block:
                segments.append(Segment(" " * GAP))
            cell = self._cell(row, number)
            if self._is_selected(row, column):
                segments.append(Segment(f"[{cell.text}]".rjust(width), CHOSEN))
            else:
                segments.append(Segment(f"{cell.text} ".rjust(width), cell.style))
        here = Style(bold=True) if at[0] == row else Style(dim=True)
        mark = ">" if at[0] == row else " "
        return Segment(f"{mark}{self.grid.rows[row].label:>{self._label_width - 3}}  ", here), segments

    def _is_selected(self, row: int, column: Column) -> bool:
        selected = self.selection
        if selected.row is None:
            return selected.column == column
        in_column = selected.column == column or (selected.column is None and selected.block in (None, column.block))
        return in_column and selected.row == self.grid.rows[row]

    def _cell(self, row: int, column: int) -> Cell:
        found = self._cells.get((row, column))
        if found is None:
            found = self._cells[row, column] = self._look(self.grid.rows[row], self.grid.columns[column])
        return found

    def _inside(self, row: int, column: int) -> tuple[int, int]:
        return (
            max(0, min(len(self.grid.rows) - 1, row)),
            max(0, min(len(self.grid.columns) - 1, column)),
        )

    def _travel(self, row: int, column: int) -> None:
        if not self.grid.rows:
            return
        at_row, at_column = self._inside(row, column)
        self.show_selection(Selection(self.grid.rows[at_row], self.grid.columns[at_column]))
        self.post_message(self.Moved(self.grid.rows[at_row], self.grid.columns[at_column]))

    def _go(self, row: int, column: int) -> None:
        old, self.cursor = self.cursor, self._inside(row, column)
        if old == self.cursor or not self.grid.rows:
            return
        self._reveal()
        self._refresh_rows((old[0], self.cursor[0]))
        if old[1] != self.cursor[1]:
            self.refresh(Region(0, HEADER - 1, self.size.width, 1))

    def _refresh_rows(self, rows: Iterable[int]) -> None:
        lines = {HEADER + row - self.scroll_offset.y for row in rows}
        self.refresh(*(Region(0, y, self.size.width, 1) for y in lines if HEADER <= y < self.size.height))

    def _reveal(self) -> None:
        """Scroll by half a page when the cursor leaves the view: 1.9 kB a key where line by line costs 12.6."""
        row, column = self.cursor
        page = max(1, self.size.height - HEADER)
        top = self.scroll_offset.y
        if self.size.height > HEADER and not top <= row < top + page:
            top = max(0, row - page // 2)
        room = self.size.width - self._label_width
        left = self.scroll_offset.x
        if self._lefts and room > 0:
            start, end = self._lefts[column], self._lefts[column] + self._widths[column]
            left = start if start < left else max(left, end - room)
            left = 0 if end <= room else left
        if (left, top) != (self.scroll_offset.x, self.scroll_offset.y):
            self.scroll_to(left, top, animate=False, immediate=True)

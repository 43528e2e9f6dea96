"""The heatmap as a table: rows are layers, or the experts of one layer; columns are roles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size

from rankscope.engine.errors import printable

from ..data.grid import Column, Grid, Selection
from ..drawing.cell import GREYED, Cell
from ..drawing.cells import Look

HEADER = 2
GAP = 2
LONGEST_NAME = 16
"""Columns of a role's name; a longer one loses its middle."""
CHOSEN = Style(reverse=True, bold=True)
DIM = Style(dim=True)


def chosen(cell: Cell) -> Style:
    """The style of a selected cell: a grey one stays grey."""
    return CHOSEN + GREYED if cell.is_greyed else CHOSEN


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where the user is: (row, column) in the grid, the selection, and whether the widget has the focus."""

    cursor: tuple[int, int]
    selection: Selection
    has_focus: bool


def shortened(text: str, width: int) -> str:
    """The text, with an ellipsis in its middle if it is longer than `width` columns."""
    text = printable(text)
    if cell_len(text) <= width:
        return text
    end = max(0, width - 1) // 2
    return set_cell_size(text, max(0, width - 1) - end) + "\u2026"[:width] + set_cell_size(text[::-1], end)[::-1]


def banner(name: str, width: int) -> str:
    """A name in the middle of a line."""
    text = f" {shortened(name, width - 2)} " if width > 2 else ""
    left = (width - cell_len(text)) // 2
    return "\u2500" * left + text + "\u2500" * (width - left - cell_len(text))


class Layers:
    """The table of one grid at one width: rows are layers or a layer's experts, columns are roles."""

    header = HEADER

    def __init__(self, look: Look, grid: Grid, size: Size) -> None:
        self._look, self._grid = look, grid
        self._has_experts = any(row.member is not None for row in grid.rows)
        self._heads = ("", grid.rows_are)
        if self._has_experts and (member := grid.rows[0].member):
            self._heads = (grid.named(replace(grid.rows[0], member=None)), member.what)
        labels = [*self._heads, *(row.label for row in grid.rows)]
        self.label_width = max(map(len, labels)) + 3
        self._beside = [0] * len(grid.columns)
        self._widths = self._fit(size.width - self.label_width - 1)
        self._lefts: list[int] = []
        left = 0
        for number, width in enumerate(self._widths):
            left += GAP if number and self._begins(number) else 0
            self._lefts.append(left)
            left += width
        self.size = Size(self.label_width + left + 1, HEADER + len(grid.rows))

    @staticmethod
    def height(grid: Grid) -> int:
        """Lines that show every row."""
        return HEADER + len(grid.rows)

    def _fit(self, room: int) -> list[int]:
        """Widths of the columns, for number, brackets and mark, or the role; and for the spread of experts if it
        fits."""
        look, columns = self._look, self._grid.columns
        number = look.width + 3 + look.is_mono
        widths = [max(number, min(LONGEST_NAME, cell_len(printable(c.role))) + 1) for c in columns]
        room -= GAP * sum(self._begins(n) for n in range(1, len(columns)))
        most: dict[Column, int] = {}
        for (_, column), members in self._grid.cells.items():
            most[column] = max(most.get(column, 0), len(members))
        beside = [look.beside(most[c]) if most[c] > 1 else 0 for c in columns]
        wider = [max(w, number + more) if more else w for w, more in zip(widths, beside, strict=True)]
        if sum(wider) <= room:
            widths, self._beside = wider, beside
        more = max(0, min(3, (room - sum(widths)) // max(1, len(widths))))
        return self._named([width + more for width in widths], room)

    def _named(self, widths: list[int], room: int) -> list[int]:
        """The widths, with the last column of a block widened for a long block name, if there is room."""
        columns = self._grid.columns
        for block in dict.fromkeys(column.block for column in columns):
            places = [n for n, column in enumerate(columns) if column.block == block]
            lacking = cell_len(printable(block)) + 2 - sum(widths[n] for n in places)
            if 0 < lacking <= room - sum(widths):
                widths[places[-1]] += lacking
        return widths

    def _begins(self, number: int) -> bool:
        """Whether a column is the first of its block."""
        return number == 0 or self._grid.columns[number].block != self._grid.columns[number - 1].block

    def cell_at(self, line: int, x: int) -> tuple[int, int] | None:
        """The cell in a line below the header and a column after the labels, if there is one."""
        spans = [self.span_of((line, column)) for column in range(len(self._lefts))]
        column = next((n for n, (start, end) in enumerate(spans) if start <= x < end), None)
        return (line, column) if column is not None and line < len(self._grid.rows) else None

    def line_of(self, cursor: tuple[int, int]) -> int:
        """The line of a cell, counted below the header."""
        return cursor[0]

    def span_of(self, cursor: tuple[int, int]) -> tuple[int, int]:
        """The characters of a cell, after the label."""
        if not self._lefts:
            return 0, 0
        return self._lefts[cursor[1]], self._lefts[cursor[1]] + self._widths[cursor[1]]

    def touched(self, pointer: Pointer) -> Iterable[int]:
        """The lines whose look depends on the cursor and the selection."""
        selection = pointer.selection
        is_one = selection.row is not None and (selection.single is not None or not self._has_experts)
        return (1, HEADER + pointer.cursor[0]) if is_one else range(self.size.height)

    def draw(self, line: int, pointer: Pointer) -> tuple[Segment, list[Segment]]:
        """A line, as the label before the columns and the columns."""
        if line == 0:
            return self._head(0), self._blocks()
        if line == 1:
            return self._head(1), self._roles(pointer)
        return self._row(line - HEADER, pointer)

    def _head(self, line: int) -> Segment:
        return Segment(f" {self._heads[line]:>{self.label_width - 3}}  ", DIM)

    def _blocks(self) -> list[Segment]:
        """Each block's name over its columns."""
        segments: list[Segment] = []
        for number, column in enumerate(self._grid.columns):
            if self._begins(number):
                last = max(n for n, c in enumerate(self._grid.columns) if c.block == column.block)
                name = banner(column.block, self._lefts[last] + self._widths[last] - self._lefts[number])
                segments += [Segment(" " * GAP if number else ""), Segment(name, DIM)]
        return segments

    def _roles(self, pointer: Pointer) -> list[Segment]:
        segments: list[Segment] = []
        for number, (column, width) in enumerate(zip(self._grid.columns, self._widths, strict=True)):
            if number and self._begins(number):
                segments.append(Segment(" " * GAP))
            name = shortened(column.role, width - 1)
            style = Style(bold=True, reverse=number == pointer.cursor[1] and pointer.has_focus)
            left = max(0, width - 1 - cell_len(name) - self._beside[number])
            segments.append(Segment((" " * left + name).ljust(width), style))
        return segments

    def _row(self, row: int, pointer: Pointer) -> tuple[Segment, list[Segment]]:
        segments: list[Segment] = []
        place = self._grid.rows[row]
        is_whole = pointer.selection == Selection(place)  # brackets around the whole row would cost 500 bytes a key
        for number, column in enumerate(self._grid.columns):
            if number and self._begins(number):
                segments.append(Segment(" " * GAP))
            is_chosen = not is_whole and pointer.selection.holds(self._grid, place, column)
            is_one = is_chosen and pointer.selection.column is not None and (row, number) == pointer.cursor
            segments += self._cell(self._look.cell(place, column), number, is_chosen, is_one)
        is_here = pointer.cursor[0] == row
        label = f"{'>' if is_here else ' '}{place.label:>{self.label_width - 3}}  "
        return Segment(label, Style(bold=True, reverse=is_whole) if is_here else DIM), segments

    def _cell(self, cell: Cell, number: int, is_chosen: bool, is_one: bool) -> list[Segment]:
        """A cell of a column, in brackets if it is selected, and without its shade if nothing else is selected. Medians
        are aligned, whether something is beside them or not."""
        level = (cell.level or " ") if self._look.is_mono else ""
        width = self._widths[number]
        text, blanks = cell.standing(width - 3 - len(level), self._beside[number])
        text = f"{'+' if cell.is_marked else ''}{text}{level}"
        text = (f"[{text}]" if is_chosen else f"{text} ") + blanks
        style = chosen(cell) + Style(underline=cell.is_marked) if is_one else cell.style
        blank = style + Style(underline=False) if cell.is_marked else style
        return [Segment(" " * (width - len(text)), blank), Segment(text, style)]

"""The heatmap turned: roles are rows, layers are columns, and every layer is in view at any width.

Each layer gets as many characters as there is room for: its number, else its shade, else half a character (half
blocks; braille without colours), and beyond that each half is the median shade of several layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size

from rankscope.engine.errors import printable

from ..data.grid import Grid, Selection
from ..data.measures import BY_NAME
from ..data.pair import Side
from ..data.spread import median_of
from ..drawing.cell import PLAIN, Cell
from ..drawing.cells import Look
from ..settings.palette import LEVELS
from .heatmap_table import CHOSEN, DIM, Pointer, banner, chosen, shortened

HERE = "\u2503"
"""The shade under the cursor: a plain white block could be mistaken for a shade."""
LEAST_NAME = 8
LEAST_BODY = 10
"""If layers have fewer columns than this, the summary is left out."""
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
# Braille bars of one to four dots, in the left and in the right half of a character.
_LEFT_DOTS = (0x40, 0x44, 0x46, 0x47)
_RIGHT_DOTS = (0x80, 0xA0, 0xB0, 0xB8)


@dataclass(frozen=True, slots=True)
class Slots:
    """The places of layers in a line: each slot holds `per` layers and is `width` characters wide; 0 means half of
    one."""

    layers: int
    per: int
    width: int

    @classmethod
    def fitting(cls, layers: int, room: int, most: int) -> Slots:
        """Slots as wide as there is room for, up to `most`."""
        room = max(1, room)
        if layers <= room:
            return cls(layers, 1, min(room // max(1, layers), most))
        return cls(layers, -(-layers // (2 * room)), 0)

    def left(self, layer: int) -> int:
        """The first character of a layer."""
        slot = layer // self.per
        return slot * self.width if self.width else slot // 2

    @property
    def total(self) -> int:
        """Characters of all slots."""
        return self.left(self.layers - 1) + max(1, self.width) if self.layers else 0

    def groups(self) -> list[range]:
        """The layers of each slot."""
        return [range(at, min(self.layers, at + self.per)) for at in range(0, self.layers, self.per)]


class Overview:
    """The overview of one grid at one size."""

    def __init__(self, look: Look, grid: Grid, size: Size) -> None:
        self._look, self._grid, self._width = look, grid, size.width
        self.header = _header(grid)
        self._entries = _entries(grid)
        if len(self._entries) + self.header > size.height:  # then the names of roles include the block
            self._entries = list(range(len(grid.columns)))
        is_said = len(self._entries) > len(grid.columns) or len({column.block for column in grid.columns}) == 1
        self._names = [printable(column.role if is_said else column.heading) for column in grid.columns]
        is_ratio = look.lens.side is Side.RATIO
        self._number = max(3, look.width - look.sign_width * is_ratio)
        self._last_head = look.last_head
        self._tail = 3 * (self._number + 1) + len(self._last_head) + 1
        self._name_width, room = self._divide(size.width)
        if room < LEAST_BODY:
            self._tail = 0
            self._name_width, room = self._divide(size.width)
        most = look.width + look.is_mono + 1
        folded = [len(members) for members in grid.cells.values() if len(members) > 1]
        self._beside = max(map(look.beside, folded), default=0)
        if len(grid.rows) * (most + self._beside) > room:  # then a cell of experts only shows their median
            self._beside = 0
        most += self._beside
        self._slots = Slots.fitting(len(grid.rows), room, most)
        self._has_numbers = self._slots.width == most
        self.label_width = self._name_width + 2
        self.size = Size(1, self.header + len(self._entries))
        self._summaries: dict[int, str] = {}

    def _divide(self, width: int) -> tuple[int, int]:
        """Columns for the names of the roles, and for the layers."""
        left = width - self._tail - 2
        longest = max([LEAST_NAME, *map(cell_len, self._names)])
        name = min(longest, max(LEAST_NAME, left // 4))
        return name, left - name

    @staticmethod
    def height(grid: Grid) -> int:
        """Lines that show every role with blocks as headings."""
        return _header(grid) + len(_entries(grid))

    @staticmethod
    def least_height(grid: Grid) -> int:
        """Lines that show every role with blocks as part of the names."""
        return _header(grid) + len(grid.columns)

    def cell_at(self, line: int, x: int) -> tuple[int, int] | None:
        """The cell in a line below the header and a column after the labels, if there is one; the first of layers that
        share a character."""
        entry = self._entries[line] if line < len(self._entries) else ""
        layers = range(len(self._grid.rows))
        width = max(1, self._slots.width)
        layer = next((n for n in layers if self._slots.left(n) <= x < self._slots.left(n) + width), None)
        return (layer, entry) if layer is not None and isinstance(entry, int) else None

    def line_of(self, cursor: tuple[int, int]) -> int:
        """The line of a cell, counted below the header."""
        return self._entries.index(cursor[1]) if self._grid.columns else 0

    def span_of(self, _: tuple[int, int]) -> tuple[int, int]:
        """The characters of a cell that must be in view: none, as all layers are in view."""
        return 0, 0

    def touched(self, pointer: Pointer) -> Iterable[int]:
        """The lines whose look depends on the cursor and the selection."""
        if pointer.selection.row is not None and pointer.selection.column is not None:
            return (*range(self.header), self.header + self.line_of(pointer.cursor))
        return range(self.size.height)

    def draw(self, line: int, pointer: Pointer) -> tuple[Segment, list[Segment]]:
        """A line, as the label before the layers and the rest."""
        if line < self.header - 1:
            return Segment(" " * self.label_width), [Segment(self._groups(), DIM)]
        if line < self.header:
            return self._ticks(pointer.cursor[0])
        entry = self._entries[line - self.header]
        if isinstance(entry, str):
            text = f" {entry} ".ljust(self.label_width + self._slots.total, "\u2500")
            return Segment(text[: self.label_width], DIM), [Segment(text[self.label_width :], DIM)]
        return self._label(entry, pointer), [*self._layers(entry, pointer), *self._summary(entry)]

    # The header

    def _groups(self) -> str:
        """The names of the towers, or of the experts' layer, over their columns; the last name may be longer than
        those."""
        named = self._grid.named
        names = [
            f"{row.member.what}s of {named(replace(row, member=None))}" if row.member else row.tower or "layers"
            for row in self._grid.rows
        ]
        text = ""
        for name in dict.fromkeys(names):
            text = text.ljust(self._slots.left(names.index(name)))
            last = len(names) - 1 - names[::-1].index(name)
            end = self._slots.left(last) + max(1, self._slots.width)
            if last == len(names) - 1:
                end = max(end, min(len(text) + cell_len(printable(name)) + 2, self._width - self.label_width))
            text += banner(name, max(0, end - len(text)))
        return text

    def _ticks(self, cursor: int) -> tuple[Segment, list[Segment]]:
        """The line of layer numbers, including the cursor's, and the headings of the summary."""
        numbers = [row.layer if row.member is None else row.member.number for row in self._grid.rows]
        line = [" "] * self._slots.total
        free = 0
        for layer in self._numbered(numbers):
            start, text = self._tick(layer, numbers[layer])
            if start >= free:
                line[start : start + len(text)] = text
                free = start + len(text) + 1
        start, text = self._tick(cursor, numbers[cursor]) if numbers else (0, "")
        _clear(line, start - 1, start + len(text) + 1)
        heads = "".join(f"{head:>{self._number + 1}}" for head in ("min", "med", "max"))
        rest = "".join(line[start + len(text) :]) + (f" {heads}{self._last_head}" if self._tail else "")
        label = Segment(f" {self._grid.rows_are:<{self._name_width}} ", DIM)
        return label, [Segment("".join(line[:start]), DIM), Segment(text, Style(bold=True)), Segment(rest, DIM)]

    def _numbered(self, numbers: list[int]) -> list[int]:
        """The layers whose numbers have room: all, or those at even steps."""
        widest = len(str(max(numbers, default=0))) + 1
        per_layer = (self._slots.width or 0.5) / self._slots.per
        step = next((step for step in _STEPS if step * per_layer >= widest), _STEPS[-1])
        return [layer for layer, number in enumerate(numbers) if number % step == 0]

    def _tick(self, layer: int, number: int) -> tuple[int, str]:
        """Where the text of a layer's number begins: right-aligned with the numbers below, or over its shade; and the
        text."""
        text = str(number)
        left = self._slots.left(layer)
        end = left + self._slots.width - self._look.is_mono - self._beside
        start = end - len(text) if self._has_numbers else left
        return max(0, min(start, self._slots.total - len(text))), text

    # A role

    def _label(self, column: int, pointer: Pointer) -> Segment:
        here = pointer.cursor[1] == column
        name = set_cell_size(shortened(self._names[column], self._name_width), self._name_width)
        style = CHOSEN if self._is_whole(column, pointer.selection) else Style(bold=True) if here else PLAIN
        return Segment(f"{'>' if here else ' '}{name} ", style)

    def _layers(self, column: int, pointer: Pointer) -> list[Segment]:
        """The layers of a role, and the blanks up to the summary."""
        groups = self._slots.groups()
        cells = [self._cell(group, column) for group in groups]
        chosen = [any(self._is_chosen(layer, column, pointer.selection) for layer in group) for group in groups]
        if self._slots.width:
            return [self._wide(cell, is_chosen) for cell, is_chosen in zip(cells, chosen, strict=True)]
        return [self._halves(cells[at : at + 2], any(chosen[at : at + 2])) for at in range(0, len(cells), 2)]

    def _cell(self, layers: range, column: int) -> Cell:
        rows, role = self._grid.rows, self._grid.columns[column]
        return self._look.blend([self._look.cell(rows[layer], role) for layer in layers], role)

    def _is_whole(self, column: int, selection: Selection) -> bool:
        """Whether the whole line is selected: then its name is highlighted, and the shades stay visible."""
        rows, role = self._grid.rows, self._grid.columns[column]
        is_over_rows = selection.row is None or (selection.single is None and rows[0].member is not None)
        return is_over_rows and selection.holds(self._grid, rows[0], role)

    def _is_chosen(self, layer: int, column: int, selection: Selection) -> bool:
        is_held = selection.holds(self._grid, self._grid.rows[layer], self._grid.columns[column])
        return is_held and not self._is_whole(column, selection)

    def _wide(self, cell: Cell, is_chosen: bool) -> Segment:
        """A layer in one character or more."""
        width = self._slots.width
        text = cell.sign.rjust(width, cell.fill)
        if self._has_numbers:
            level = (cell.level or " ") if self._look.is_mono else ""
            plus = "+" if cell.is_marked else ""
            number, blanks = cell.standing(width - 1 - len(level), self._beside)
            text = f"{plus}{number}{level}{blanks}".rjust(width)
        elif is_chosen and cell.sign == cell.fill:
            text = "[".ljust(width - 1) + "]" if width > 1 else HERE
        return Segment(text, chosen(cell) if is_chosen else cell.style)

    def _halves(self, pair: list[Cell], is_chosen: bool) -> Segment:
        """Two layers in one character."""
        shaded = [cell if cell.tone is not None and not cell.is_greyed else None for cell in pair]
        telling = next((cell for cell in pair if cell.sign in "+!"), None if any(shaded) else pair[0])
        if telling is not None:
            text, style = telling.sign, telling.style
        elif is_chosen:
            text, style = HERE, PLAIN
        else:
            text, style = _braille(shaded) if self._look.is_mono else _half_block(shaded)
        return Segment(text, chosen(telling or pair[0]) if is_chosen else style)

    def _summary(self, column: int) -> list[Segment]:
        """Smallest, median and largest number of a role's cells, and the median of their last number."""
        if not self._tail:
            return []
        found = self._summaries.get(column)
        if found is None:
            role, rows = self._grid.columns[column], self._grid.rows
            numbers = [n for row in rows if (n := self._look.cell(row, role).number) is not None]
            looked_at = rows if self._last_head else ()
            ratios = [r for row in looked_at if (r := self._look.last_number(row, role)) is not None]
            parts = [min(numbers), median_of(numbers), max(numbers)] if numbers else []
            text = "".join(f"{self._look.short(number, self._number):>{self._number + 1}}" for number in parts)
            ratio = BY_NAME["k/k0"].written(median_of(ratios)) if ratios else ""
            width = 3 * (self._number + 1)
            found = self._summaries[column] = f" {text:>{width}}{ratio:>{len(self._last_head)}}"
        return [Segment(found)]


def _header(grid: Grid) -> int:
    return 2 if any(row.tower or row.member is not None for row in grid.rows) else 1


def _entries(grid: Grid) -> list[int | str]:
    """The lines: column numbers, and the name of each block before its columns if there are several."""
    blocks = dict.fromkeys(column.block for column in grid.columns)
    if len(blocks) < 2:
        return list(range(len(grid.columns)))
    found: list[int | str] = []
    for block in blocks:
        found += [block, *(n for n, column in enumerate(grid.columns) if column.block == block)]
    return found


def _clear(line: list[str], start: int, end: int) -> None:
    """Blank a part of a line, and all of any number that reaches into it."""
    end = min(end, len(line))
    start = max(0, start)
    while start > 0 and line[start] != " ":
        start -= 1
    while end < len(line) and line[end] != " ":
        end += 1
    line[start:end] = " " * (end - start)


def _half_block(pair: list[Cell | None]) -> tuple[str, Style]:
    """Two shades side by side; with one, the other half is background."""
    left, right = (cell.style.bgcolor if cell is not None else None for cell in [*pair, None][:2])
    if left is None:
        return "\u2590", Style.from_color(right)
    return "\u258c", Style.from_color(left, right)


def _braille(pair: list[Cell | None]) -> tuple[str, Style]:
    """Two bars side by side, of one to four dots."""
    dots = 0x2800
    for cell, bars in zip(pair, (_LEFT_DOTS, _RIGHT_DOTS), strict=False):
        if cell is not None and cell.level:
            dots |= bars[LEVELS.index(cell.level) // 2]
    return chr(dots), PLAIN

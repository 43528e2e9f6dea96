"""The column of a rank or a layer in a chart, and the rank at a column."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rich.text import Text

from .figure import Span


def pointer(column: int, name: str, width: int) -> Text:
    """A line of `width` columns that points at a column above it, with a name on the side that has room."""
    if column + 2 + len(name) <= width:
        return Text(" " * column + f"^ {name}", "bold", no_wrap=True)
    return Text(f"{name} ^".rjust(column + 1), "bold", no_wrap=True)


def ruled(line: Text, columns: Iterable[int], style: str) -> Text:
    """A line of a chart with a vertical rule in these columns, except over what is drawn."""
    for column in columns:
        line = line.copy()
        line.pad_right(max(0, column + 1 - len(line)))
        if line.plain[column] == " ":
            line = Text.assemble(line[:column], ("\u2502", style), line[column + 1 :], no_wrap=True)
    return line


@dataclass(frozen=True, slots=True)
class Ruler:
    """The x axis as drawn: a canvas of `columns`, each with two dots, that begins at column `left` and shows `span` of
    the ranks 1 ... `count`. Its `rows` begin at line `top`."""

    left: int
    columns: int
    span: Span
    log: bool
    count: int
    top: int = 0
    rows: int = 0

    def column(self, k: int) -> int | None:
        """The column of a rank in the chart's lines, None if the axis does not show it."""
        low, high = self.span
        return self.left + self._column(k) if 1 <= k <= self.count and low <= k <= high else None

    def mark(self, k: int, width: int) -> Text:
        """A line of `width` columns that points at a rank in the chart above it, or at the last rank for one beyond;
        empty if that is not shown."""
        k = min(k, self.count)
        at = self.column(k)
        return Text() if at is None else pointer(at, f"k {k}", width)

    def place(self, x: float) -> int:
        """The column of a place on the axis in the chart's lines, clamped to the axis."""
        return self.left + self._column(x)

    def step(self, k: int, columns: int) -> int:
        """The rank this many columns further, by at least one rank if there is one."""
        k = max(1, min(self.count, k))
        if not columns:
            return k
        there = self._rank(self._column(k) + columns)
        there = max(there, k + 1) if columns > 0 else min(there, k - 1)
        return max(1, min(self.count, there))

    def _column(self, k: float) -> int:
        low, high = self.span
        k_inside = max(low, min(high, k))
        place = math.log(k_inside / low) / math.log(high / low) if self.log else (k_inside - low) / (high - low)
        # Rounded as plotext does: to a dot, two of which make a column.
        return math.floor(round(0.5 + (2 * self.columns - 1) * place, 8)) // 2

    def _rank(self, column: int) -> int:
        """The rank in the middle of a column; in the outermost columns the first and the last."""
        if column <= 0:
            return 1
        if column >= self.columns - 1:
            return self.count
        low, high = self.span
        place = (2 * column + 0.5) / (2 * self.columns - 1)
        return round(low * (high / low) ** place if self.log else low + place * (high - low))

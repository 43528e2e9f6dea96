"""Where a rank stands under a chart, and which rank stands some columns further."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.text import Text

from .figure import Span


@dataclass(frozen=True, slots=True)
class Ruler:
    """The x axis as drawn: a canvas of `columns` with two dots each, right of `left` others, that shows `span` of
    the ranks 1 ... `count`."""

    left: int
    columns: int
    span: Span
    log: bool
    count: int

    def column(self, k: int) -> int | None:
        """The column in the chart's lines of a rank, None where the axis does not show it."""
        low, high = self.span
        return self.left + self._column(k) if 1 <= k <= self.count and low <= k <= high else None

    def mark(self, k: int, width: int) -> Text:
        """A line of `width` columns that points at a rank in the chart above it, at the last of them for one beyond;
        empty where that is not shown."""
        k = min(k, self.count)
        at = self.column(k)
        if at is None:
            return Text()
        name = f" k {k}"
        if at + 1 + len(name) <= width:
            return Text(" " * at + "^" + name, "bold", no_wrap=True)
        return Text(f"{name[1:]} ^".rjust(at + 1), "bold", no_wrap=True)

    def step(self, k: int, columns: int) -> int:
        """The rank so many columns further, at least one rank further where there is one."""
        k = max(1, min(self.count, k))
        if not columns:
            return k
        there = self._rank(self._column(k) + columns)
        there = max(there, k + 1) if columns > 0 else min(there, k - 1)
        return max(1, min(self.count, there))

    def _column(self, k: int) -> int:
        low, high = self.span
        k_inside = max(low, min(high, k))
        place = math.log(k_inside / low) / math.log(high / low) if self.log else (k_inside - low) / (high - low)
        # As plotext rounds: to a dot, of which a column has two.
        return math.floor(round(0.5 + (2 * self.columns - 1) * place, 8)) // 2

    def _rank(self, column: int) -> int:
        """The rank in the middle of a column; in the outermost the first and the last."""
        if column <= 0:
            return 1
        if column >= self.columns - 1:
            return self.count
        low, high = self.span
        place = (2 * column + 0.5) / (2 * self.columns - 1)
        return round(low * (high / low) ** place if self.log else low + place * (high - low))

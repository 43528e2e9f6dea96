"""Threshold ranks as Rich tables: layers x roles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankscope.engine.spectrum import Projection

from .grid import Column, Grid
from .text import percent


class _Console(Console):
    """Rich's console: bars and rules in ASCII outside UTF-8 locales, a closed pipe is left to the caller."""

    @property
    def encoding(self) -> str:
        return super().encoding if is_utf8_locale() else "ascii"

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(stderr: bool = False) -> Console:
    """A console that neither wraps nor colours what is piped."""
    console = _Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000
    return console


def is_utf8_locale() -> bool:
    """Whether the locale says that the terminal shows UTF-8."""
    ctype, lang = os.environ.get("LC_CTYPE", ""), os.environ.get("LANG", "")
    if ctype in ("C.UTF-8", "C.utf8") and lang in ("", "C", "POSIX"):
        ctype = ""  # set by Python itself where the user's locale is C (PEP 538)
    return "utf" in (os.environ.get("LC_ALL") or ctype or lang).lower()


def plain_table(console: Console) -> Table:
    """A table with rules on a terminal, bare columns when piped, ASCII outside UTF-8 locales."""
    style = None if not console.is_terminal else box.SIMPLE_HEAD if is_utf8_locale() else box.ASCII2
    return Table(box=style, pad_edge=False, show_edge=False, padding=(0, 1))


def add_columns(table: Table, *headings: str, right: Sequence[str] = ()) -> None:
    """Columns whose text is folded, never cut off, where the terminal is too narrow."""
    for heading in headings:
        table.add_column(Text(heading), justify="right" if heading in right else "left", overflow="fold")


def rank_tables(
    console: Console, grid: Grid, rank: Callable[[Projection], int | str], threshold: float
) -> Iterator[Table]:
    """Layers x roles of threshold ranks, with min, median and max over the layers below.

    `rank` gives the rank or a mark. A cell of several experts shows their median; blank is absent. On a
    terminal that is too narrow for all roles there are several tables.
    """
    labels = ["layer", *(row.label for row in grid.rows), *_OVER_LAYERS]
    columns = [[column.heading, *_cells(grid, column, rank)] for column in grid.columns]
    shown = percent(threshold)
    title: Text | None = Text(f"k{shown}: components for {shown} % of the energy (sum of sigma^2)")
    for chosen in _fitting(columns, console.width - _width(labels)):
        table = plain_table(console)
        table.title, table.title_justify = title, "left"
        for heading, *_ in (labels, *chosen):
            table.add_column(Text(heading), justify="right", no_wrap=True)
        rows = list(zip(*(cells for _, *cells in (labels, *chosen)), strict=True))
        for number, row in enumerate(rows):
            table.add_row(*map(Text, row), end_section=number == len(grid.rows) - 1)
        yield table
        title = None


_OVER_LAYERS: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "median": median, "max": max}


def _cells(grid: Grid, column: Column, rank: Callable[[Projection], int | str]) -> list[str]:
    """A column's text, layer by layer, and over the layers."""
    cells = [grid.cells.get((row, column), ()) for row in grid.rows]
    looks = [[rank(p) for p in members] for members in cells]
    known = [[k for k in look if isinstance(k, int)] for look in looks]
    shown = [
        _number(k) if k else "!" if "!" in look else "." if look else "" for k, look in zip(known, looks, strict=True)
    ]
    found = list(chain.from_iterable(known))
    return [*shown, *(f"{reduce(found):.0f}" if found else "" for reduce in _OVER_LAYERS.values())]


def _fitting(columns: Sequence[list[str]], width: int) -> Iterator[list[list[str]]]:
    """The columns in order, in groups that are not wider than `width` and not empty."""
    group: list[list[str]] = []
    for column in columns:
        if group and sum(map(_width, [*group, column])) > width:
            yield group
            group = []
        group.append(column)
    yield group


def _width(column: Sequence[str]) -> int:
    """Characters across, with the padding of both sides and a rule."""
    return max(map(len, column)) + 3


def _number(ranks: Sequence[float]) -> str:
    return f"{median(ranks):.0f}"

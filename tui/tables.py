"""Threshold ranks as Rich tables: layers x roles."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankscope.engine.spectrum import Projection

from .grid import Grid
from .text import percent


def make_console(stderr: bool = False) -> Console:
    """A console that neither wraps nor colours what is piped."""
    console = Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000
    return console


def is_utf8_locale() -> bool:
    """Whether the locale says that the terminal shows UTF-8."""
    named = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""
    return "utf" in named.lower()


def plain_table(console: Console) -> Table:
    """A table with rules on a terminal, bare columns when piped, ASCII outside UTF-8 locales."""
    style = None if not console.is_terminal else box.SIMPLE_HEAD if is_utf8_locale() else box.ASCII2
    return Table(box=style, pad_edge=False, show_edge=False, padding=(0, 1))


def rank_table(console: Console, grid: Grid, rank: Callable[[Projection], int | None], threshold: float) -> Table:
    """Layers x roles of threshold ranks, with the median over layers below.

    A cell of several experts shows their median; "." is not computed, blank is absent.
    """
    table = plain_table(console)
    shown = percent(threshold)
    table.title = Text(f"k{shown}: components for {shown} % of the energy (sum of sigma^2)")
    table.title_justify = "left"
    table.add_column("layer", justify="right")
    for column in grid.columns:
        table.add_column(Text(column.heading), justify="right")
    found: list[list[float]] = [[] for _ in grid.columns]
    for row in grid.rows:
        cells = []
        for column, collected in zip(grid.columns, found, strict=True):
            members = grid.cells.get((row, column), ())
            ranks = [k for p in members if (k := rank(p)) is not None]
            collected += ranks
            cells.append(_number(ranks) if ranks else "." if members else "")
        table.add_row(row.label, *cells)
    table.add_section()
    for name, reduce in (("min", min), ("median", median), ("max", max)):
        table.add_row(name, *(f"{reduce(ranks):.0f}" if ranks else "" for ranks in found))
    return table


def _number(ranks: Sequence[float]) -> str:
    return f"{median(ranks):.0f}"

"""What commands print with: a console, plain tables, and lines on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankscope.engine.errors import printable

from ..settings.encoding import shows_unicode
from ..settings.palette import Depth


def say(text: str) -> None:
    """Print a line for the user on stderr: stdout is for results."""
    sys.stderr.write(f"{printable(text, 1000)}\n")
    sys.stderr.flush()


class _Console(Console):
    """Rich's console with bars and rules in ASCII outside UTF-8, and closed pipes left to the caller."""

    @property
    def encoding(self) -> str:
        return super().encoding if shows_unicode() else "ascii"

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


_SYSTEMS: dict[Depth, Literal["256", "standard"] | None] = {
    Depth.MANY: "256",
    Depth.SIXTEEN: "standard",
    Depth.MONO: None,
}


def make_console(stderr: bool = False, depth: Depth | None = None) -> Console:
    """A console that neither wraps nor colours piped output, unless `depth` demands colours."""
    colours: Literal["auto", "256", "standard"] | None = "auto" if depth is None else _SYSTEMS[depth]
    no_colour = None if depth is None else False  # demanded colours come even if NO_COLOR is set
    console = _Console(
        stderr=stderr, highlight=False, emoji=False, soft_wrap=True, color_system=colours, no_color=no_colour
    )
    if not console.is_terminal:
        console.width = 10_000
    return console


def plain_table(console: Console) -> Table:
    """A table with rules on a terminal, bare columns when piped, ASCII outside UTF-8."""
    style = None if not console.is_terminal else box.SIMPLE_HEAD if shows_unicode() else box.ASCII2
    return Table(box=style, pad_edge=False, show_edge=False, padding=(0, 1))


def add_columns(table: Table, *headings: str, right: Sequence[str] = ()) -> None:
    """Add columns whose text is folded, never cut off, if the terminal is too narrow."""
    for heading in headings:
        table.add_column(Text(heading), justify="right" if heading in right else "left", overflow="fold")

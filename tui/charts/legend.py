"""The legend of a figure, in one line or two above it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from ..settings.palette import Palette
from .figure import Figure, signs
from .markers import sign_of


def legend(figure: Figure, palette: Palette, width: int, most: int) -> list[Text]:
    """Title, curves with their values, and notes in one line, with thinner marks if need be, else in `most`; then
    without the values, then without the title, which is selected anyway; what does not fit then is counted."""
    title = [Text(figure.title, "bold")] if figure.title else []
    thick = _entries(figure, palette, thin=False, valued=True)
    thin = _entries(figure, palette, thin=True, valued=True)
    bare = _entries(figure, palette, thin=True, valued=False)
    ways = [([*title, *entries], lines) for lines in range(1, most + 1) for entries in (thick, thin)]
    for parts, lines in (*ways, ([*title, *bare], most), (thin, most), (bare, most)):
        if len(found := _flow(parts, width)) <= lines:
            return found
    return _cut(bare, width, most)


def _entries(figure: Figure, palette: Palette, *, thin: bool, valued: bool) -> list[Text]:
    entries = []
    for sign in signs(figure):
        mark, colour = sign_of(sign, palette)
        entry = Text.assemble(
            (mark[0] if thin else mark, colour), " ", (sign.label, "bold" if sign.is_selected else "")
        )
        if valued and sign.value:
            entry.append(f" {sign.value}", colour or None)
        entries.append(entry)
    return [*entries, *(Text(note, "dim") for note in figure.notes)]


def _flow(parts: Sequence[Text], width: int) -> list[Text]:
    """The parts in as many lines as they take."""
    lines = [Text(no_wrap=True)]
    for part in parts:
        if lines[-1].cell_len and lines[-1].cell_len + 2 + part.cell_len > width:
            lines.append(Text(no_wrap=True))
        if lines[-1].cell_len:
            lines[-1].append("  ")
        lines[-1].append_text(part)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _cut(parts: Sequence[Text], width: int, most: int) -> list[Text]:
    """As many parts as fit into so many lines, and how many are left out."""
    kept = len(parts)
    while kept > 1:
        kept -= 1
        lines = _flow([*parts[:kept], Text(f"+{len(parts) - kept}", "dim")], width)
        if len(lines) <= most:
            break
    return lines

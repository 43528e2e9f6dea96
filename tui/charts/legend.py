"""The legend of a figure, one line or two above it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from ..settings.palette import Palette
from .figure import Figure, signs
from .markers import sign_of


def legend(figure: Figure, palette: Palette, width: int, most: int) -> list[Text]:
    """Title, curves with their values, and notes: in one line, with narrower marks if necessary, else in `most` lines.
    If they do not fit, values are dropped, then the title, as the selection is shown elsewhere too; what still does not
    fit is counted. Values that need an explanation are kept instead of the title and of that explanation."""
    title = [Text(figure.title, "bold")] if figure.title else []
    notes = [Text(note, "dim") for note in figure.notes]
    thick, thin = (_entries(figure, palette, thin=thin, valued=True) for thin in (False, True))
    bare = _entries(figure, palette, thin=True, valued=False)
    said = [Text(figure.values, "dim")] if figure.values else []
    ways = [([*title, *found, *said, *notes], n) for n in range(1, most + 1) for found in (thick, thin)]
    if said:
        ways += [([*thin, *said, *notes], most), ([*thin, *notes], most)]
    ways += [([*title, *bare, *notes], most), ([*thin, *notes], most), ([*bare, *notes], most)]
    for parts, lines in ways:
        if len(found := _flow(parts, width)) <= lines:
            return found
    return _cut([*bare, *notes], width, most)


def _entries(figure: Figure, palette: Palette, *, thin: bool, valued: bool) -> list[Text]:
    entries = []
    for sign in signs(figure):
        mark, colour = sign_of(sign, palette)
        label = sign.label, "bold" if sign.is_selected else ""
        entry = Text.assemble((mark[0] if thin else mark, colour), " ", label)
        if valued and sign.value:
            entry.append(f"{':' * sign.label[-1:].isdigit()} {sign.value}", colour or None)  # of a layer: `3: 107`
        entries.append(entry)
    return entries


def _flow(parts: Sequence[Text], width: int) -> list[Text]:
    """The parts, wrapped into lines."""
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
    """The parts that fit into `most` lines, and the number of those left out."""
    kept = len(parts)
    while kept > 1:
        kept -= 1
        lines = _flow([*parts[:kept], Text(f"+{len(parts) - kept}", "dim")], width)
        if len(lines) <= most:
            break
    return lines

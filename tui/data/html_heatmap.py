"""Layers x roles of one number as an HTML table, for notebooks: no script, no style sheet, all text escaped."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from rankscope.engine.errors import printable

from .grid import make_grid
from .lens import Lens
from .session import State
from .spread import even_limits, extent, known, middle_of
from .wording import MARKS, refusal, told

if TYPE_CHECKING:
    from rankscope.engine.spectrum import Projection, Values

PALE, DARK = (239, 243, 255), (8, 69, 148)
"""The lightest and the darkest shade: those of ColorBrewer's Blues."""
_CELL = "text-align:right;padding:1px 6px;border:0"
_EVEN_LIGHT = 0.179
"""The relative luminance on which black and white have the same contrast, by WCAG 2.1."""


@dataclass(frozen=True, slots=True)
class HtmlCell:
    """A cell: `text` is the number or a mark of the state; `note` is shown when the pointer is over it; `shade` goes
    from 0, pale, to 1, dark, None for no shade."""

    text: str = "-"
    note: str = ""
    shade: float | None = None


@dataclass(frozen=True, slots=True)
class HtmlHeatmap:
    """One number of every layer and role: `values` is float64, shape (layers, roles), NaN if unknown; the median over
    experts. `rows` and `columns` name the layers and the roles, `title` describes the number.

    A notebook shows it as a table.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Values
    cells: Sequence[Sequence[HtmlCell]] = field(repr=False)

    def _repr_html_(self) -> str:
        """Only shaded cells set text and background colours, so that the table is readable on a light page and on a
        dark one."""
        head = "".join(map(_heading, ("layer", *self.columns)))
        rows = zip(self.rows, self.cells, strict=True)
        body = "".join(f"<tr>{_heading(name)}{''.join(map(_cell, cells))}</tr>" for name, cells in rows)
        title = self.title if self.rows else f"{self.title}; no layers, see .table()"
        caption = f'<caption style="text-align:left;color:inherit">{_shown(title)}</caption>'
        return (
            f'<table style="border-collapse:collapse">{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table>"
        )


def heatmap_of(lens: Lens, projections: Sequence[Projection], title: str) -> HtmlHeatmap:
    """The heatmap of these projections through a lens that has loaded their numbers."""
    import numpy as np  # not needed for the first screen

    grid = make_grid(projections)
    row_at = {row: number for number, row in enumerate(grid.rows)}
    column_at = {column: number for number, column in enumerate(grid.columns)}
    values = np.full((len(grid.rows), len(grid.columns)), np.nan)
    cells = [[HtmlCell()] * len(grid.columns) for _ in grid.rows]
    shown = [p for members in grid.cells.values() for p in members]
    limits = lens.limits if lens.limits is not None else even_limits(extent(lens.tones(lens.pair.group(shown))))
    for (row, column), members in grid.cells.items():
        at = row_at[row], column_at[column]
        group = lens.pair.group(members)
        number = middle_of(found := known(lens.numbers(group)))
        if number is None:
            cells[at[0]][at[1]] = _unknown(lens, members)
            continue
        values[at] = number
        tone = middle_of(known(lens.tones(group)))
        shade = bisect_right(limits, tone) / len(limits) if tone is not None and limits else None
        if len(members) == 1:
            cells[at[0]][at[1]] = HtmlCell(lens.text(members[0]), members[0].address, shade)
            continue
        failed = sum(lens.pair.first.state(p) is State.FAILED for p in members)
        note = f"median of {len(found)} of {len(members)} experts{f', {failed} failed' * bool(failed)}"
        cells[at[0]][at[1]] = HtmlCell(f"{lens.written(number)}{' !' * bool(failed)}", note, shade)
    return HtmlHeatmap(title, tuple(r.label for r in grid.rows), tuple(c.heading for c in grid.columns), values, cells)


def _unknown(lens: Lens, members: Sequence[Projection]) -> HtmlCell:
    """A cell without a number: the state of its projections, a failure before all others."""
    session = lens.pair.first
    reasons: Mapping[str, str] = session.failures
    p = next((p for p in members if session.state(p) is State.FAILED), members[0])
    if p.problem is not None:
        return HtmlCell(refusal(p), told(p))
    state = session.state(p)
    text = "-" if session.has(p) else MARKS[state]
    return HtmlCell(text, f"{p.address}: {reasons.get(p.key, state)}")


def _heading(name: str) -> str:
    return f'<th style="{_CELL}">{_shown(name)}</th>'


def _cell(cell: HtmlCell) -> str:
    colours = "" if cell.shade is None else f";{_colours(cell.shade)}"
    return f'<td style="{_CELL}{colours}" title="{_shown(cell.note)}">{_shown(cell.text)}</td>'


def _colours(shade: float) -> str:
    """Background and text colour: black or white, whichever has more contrast."""
    ground = [round(pale + shade * (dark - pale)) for pale, dark in zip(PALE, DARK, strict=True)]
    linear = [(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in (part / 255 for part in ground)]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    text = "#000" if light > _EVEN_LIGHT else "#fff"
    return f"background-color:#{''.join(f'{part:02x}' for part in ground)};color:{text}"


def _shown(text: str) -> str:
    return escape(printable(text))

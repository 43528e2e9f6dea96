"""Heads x layers of one kind: rows of query, key or value, or a product of a head's matrices. View 7."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import BindingType
from textual.strip import Strip

from rankscope.engine.derive.head_matrices import KINDS, head_of
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ..data.contrast import Contrast
from ..data.grid import Column, Grid, Row, Selection
from ..data.head_rows import HeadRows, compares_with_noise, head_grid, label_of, lens_for
from ..drawing.cells import Look
from ..settings import keys
from .heatmap import Heatmap

if TYPE_CHECKING:
    from ..data.view_records import Content


class HeadMap(Heatmap, inherit_bindings=False):
    """The heatmap's overview for heads, with a separate look. It shows one `kind` (head_matrices.KINDS) at a time, and
    selects one head of one layer."""

    BINDINGS: ClassVar[list[BindingType]] = keys.HEADS

    def __init__(self, look: Look, **kwargs: str) -> None:
        self._main = look
        super().__init__(Look(look.lens, look.palette), **kwargs)
        self.overview = True
        self.heads = HeadRows({})
        self.kind = ""
        self.said = "finding the heads"
        self._parents: frozenset[str] = frozenset()
        self._reported = Selection()

    # What is shown

    @property
    def rows(self) -> tuple[Projection, ...]:
        """The heads of the kind that the filter shows."""
        found = self.heads.by_kind.get(self.kind, ())
        return tuple(p for p in found if any(q.address in self._parents for q in p.parents))

    def show_heads(self, heads: HeadRows) -> None:
        """Show other heads, of the same kind if they have it."""
        self.heads = heads
        self.said = "" if heads.every else next(iter(heads.unknown), "no attention has a known number of heads")
        self._set_kind(self.kind if self.kind in heads.by_kind else next(iter(heads.by_kind), ""))

    def _set_kind(self, kind: str) -> None:
        self.kind = kind
        self.grid = self.shown = head_grid(self.rows)
        self._turn()
        self._look.show(self.grid)
        self.cursor = self._inside(*self.cursor)
        self._arrange()
        if self.has_focus:
            self._travel(*self.cursor)

    def _turn(self) -> None:
        lens = lens_for(self._main.lens, self.kind)
        # All heads shown have the same role, and columns are heads.
        contrast = Contrast.MODEL if lens.contrast is Contrast.ROLE else lens.contrast
        self._look.lens = replace(lens, contrast=contrast)
        self._look.tells_noise = compares_with_noise(self._main.lens, self.kind)

    def set_rows(self, projections: Sequence[Projection], grid: Grid) -> None:  # noqa: ARG002 - the base class's
        """Show the heads of these projections."""
        self._parents = frozenset(q.address for p in projections for q in (p, *p.parents))
        self._set_kind(self.kind)

    def set_marks(self, marks: Sequence[Projection]) -> None:
        """Mark the heads among these."""
        self._look.marked = frozenset(p.key for p in marks)
        self._repaint(self._in_view)

    def update(self, keys: Iterable[str] | None = None) -> None:
        """Draw again what has changed in heads with these content keys, or for None in all."""
        self._turn()
        if self.grid.rows:  # there are none until heads have been found
            self._look.forget(keys)
            super().update(keys)

    def keys_in_view(self) -> tuple[str, ...]:
        """No keys: its numbers are loaded together."""
        return ()

    def load(self, projections: Sequence[Projection]) -> None:  # noqa: ARG002 - it shows heads, not these projections
        """Load the ranks of its heads for a threshold that the store does not keep. Reads files."""
        self._look.lens.load(self.rows)

    def title(self) -> str:
        """The kind of the heads, and the name of the number."""
        if not self.grid.rows:
            return printable(self.said)
        return f"{printable(label_of(self.rows))}: {super().title()}"

    def subtitle(self, room: int) -> Text:  # noqa: ARG002 - it is short
        """The shades, or why some heads are missing."""
        refused = next((p.problem for p in self.rows if p.problem), None)
        return Text(printable(refused)) if refused else self._shades()

    def content(self, content: Content) -> Content:
        """The heads to export."""
        lenses = [lens_for(lens, self.kind) for lens in content.lenses]
        return replace(content, lenses=lenses, heads=self.rows)

    def render_line(self, y: int) -> Strip:
        if self.grid.rows:
            return super().render_line(y)
        return Strip.blank(self.size.width, self.rich_style)

    # The selection

    def show_selection(self, selection: Selection) -> None:
        """Move the cursor to a selected head, or to its layer, without reporting it."""
        self._reported = selection
        single = selection.single
        head = head_of(single) if single is not None else None
        if head is not None and single is not None and single.layer is not None and head.kind == self.kind:
            self._point_at(Row(single.tower or "", single.layer), Column(single.block, str(head.number)))
        elif selection.row in self.grid.rows:
            self._point(Selection(), (self.grid.rows.index(selection.row), self.cursor[1]))

    def _point_at(self, row: Row, column: Column) -> None:
        if row in self.grid.rows and column in self.grid.columns:
            self._point(Selection(row, column), (self.grid.rows.index(row), self.grid.columns.index(column)))

    def on_focus(self) -> None:
        """Select the head under the cursor for other keys. If it is selected already, a message on screen stays."""
        if self.shown.rows and self._reported != self._selected():
            self._travel(*self.cursor)

    def _travel(self, row: int, column: int) -> None:
        if not self.shown.rows:
            return
        at = self._inside(row, column)
        place = self.shown.rows[at[0]], self.shown.columns[at[1]]
        self._point(Selection(*place), at)
        self.post_message(self.CellSelected(self._selected()))

    def action_layer(self, step: int) -> None:
        """Go to the same head in another layer."""
        self._travel(self.cursor[0] + step, self.cursor[1])

    def action_kind(self, step: int) -> None:
        """Show the next or previous kind; stop at the ends."""
        kinds = [kind for kind in KINDS if kind in self.heads.by_kind]
        if self.kind in kinds:
            self._set_kind(kinds[max(0, min(len(kinds) - 1, kinds.index(self.kind) + step))])

    def _selected(self) -> Selection:
        """The head under the cursor for other panes, with its layer and the role that it is part of."""
        row, column = self.shown.rows[self.cursor[0]], self.shown.columns[self.cursor[1]]
        found = self.shown.cells.get((row, column), ())
        if not found:
            return Selection(row)
        parent = found[0].parents[0]
        return Selection(row, Column(parent.block, parent.role), single=found[0])

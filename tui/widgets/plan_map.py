"""Layers x roles of the ranks that a plan gives. View 9."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.text import Text

from rankscope.engine.spectrum import Projection

from ..data.grid import Grid, Selection
from ..data.plan_shown import ShownPlan
from ..drawing.cells import Look
from ..drawing.plan_cells import PlanLook
from ..drawing.shade_key import shade_key
from .heatmap import Heatmap

if TYPE_CHECKING:
    from ..data.view_records import Content

_EMPTY = Grid((), (), {})


class PlanMap(Heatmap, inherit_bindings=False):
    """The heatmap of a plan, with the same keys; empty without a plan."""

    BINDINGS = Heatmap.BINDINGS

    def __init__(self, look: Look, **kwargs: str) -> None:
        self._plan_look = PlanLook(look)
        super().__init__(self._plan_look, **kwargs)
        self._every = _EMPTY

    def show_plan(self, plan: ShownPlan | None) -> None:
        """Show another plan, or none."""
        had_plan = self._plan_look.plan is not None
        self._plan_look.plan = plan
        if had_plan != (plan is not None):
            self._take_rows()
        else:
            self._plan_look.turn()
            super().update()

    def title(self) -> str:
        plan = self._plan_look.plan
        return "none yet: :plan 20% makes one" if plan is None else plan.title

    def subtitle(self, room: int) -> Text:  # noqa: ARG002 - it is short
        if self._plan_look.plan is None:
            return Text()
        return Text("shade % of the full rank ").append_text(shade_key(self._look))

    def set_rows(self, projections: Sequence[Projection], grid: Grid) -> None:  # noqa: ARG002 - the base class's
        self._every = grid
        self._take_rows()

    def _take_rows(self) -> None:
        grid = _EMPTY if self._plan_look.plan is None else self._every
        self._plan_look.show(grid)
        super().set_rows((), grid)
        self.show_selection(self.selection)

    def set_marks(self, marks: Sequence[Projection]) -> None:
        self._plan_look.marked = frozenset(p.key for p in marks)
        super().update()

    def update(self, keys: Iterable[str] | None = None) -> None:
        """Do nothing: a plan does not change when more is computed."""

    def text_of(self, selection: Selection) -> str:
        """What the plan does with the selected projection, "" unless one of the plan's is selected."""
        plan, found = self._plan_look.plan, selection.projections(self._every)
        row = plan.row(found[0]) if plan is not None and len(found) == 1 else None
        if row is None:
            return ""
        return f"rank {row.rank}, {100 * row.energy:.2f} % kept" if row.rank else "dense: stays as it is"

    def text_of_cell(self) -> str:
        found = self.selection.projections(self._every)
        return "\t".join(filter(None, map(self._plan_look.text, found)))

    def content(self, content: Content) -> Content:
        """The plan, least energy first."""
        plan = self._plan_look.plan
        return replace(content, ranks=() if plan is None else plan.worst)

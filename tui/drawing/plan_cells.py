"""What cells of a plan look like: the rank that a projection keeps, shaded by its share of the full rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import TYPE_CHECKING

from rankscope.engine.spectrum import Projection

from ..data.contrast import Contrast
from ..data.grid import Column, Row
from ..data.measures import BY_NAME
from ..data.pair import Side
from ..data.plan_shown import ShownPlan
from ..data.spread import half_range
from .cell import Cell, of_state, written_forms
from .cells import Look

if TYPE_CHECKING:
    from rankscope.engine.plan.plan_file import PlanRow

RANK_KEPT = replace(BY_NAME["k"], heading="rank", shaded_by="percent")
DENSE = ("dense", "=")


class PlanLook(Look):
    """Cells of projections in a plan of the first model, in the grid that is shown; `plan` is None without a plan."""

    last_head = "  kept"

    def __init__(self, look: Look) -> None:
        super().__init__(replace(look.lens, measure=RANK_KEPT, side=Side.A, contrast=Contrast.FIXED), look.palette)
        self.plan: ShownPlan | None = None

    @property
    def width(self) -> int:
        return max(super().width, len(DENSE[0]))

    def cell(self, row: Row, column: Column) -> Cell:
        """The rank of a projection; for experts the median, and half of the interquartile range after "~"; "dense" for
        what stays as it is, and for experts most of which do."""
        place = (row, column)
        found = self._cells.get(place)
        if found is None:
            found = self._cells[place] = self._planned(self._members(place))
        return found

    def last_number(self, row: Row, column: Column) -> float | None:
        """The share of energy that a cell keeps, the mean over its experts."""
        found = self._rows(self._members((row, column)))
        return fmean(one.energy for one in found) if found else None

    def text(self, p: Projection) -> str:
        """The rank of a projection as text, "" if it is not planned."""
        found = self._rows([p])
        return "" if not found else DENSE[0] if found[0].rank is None else str(found[0].rank)

    def _rows(self, members: Sequence[Projection]) -> list[PlanRow]:
        plan = self.plan
        return [row for p in members if (row := plan.row(p)) is not None] if plan is not None else []

    def _planned(self, members: Sequence[Projection]) -> Cell:
        found = self._rows(members)
        is_marked = any(p.key in self.marked for p in members)
        if self.plan is None or not found:
            return of_state("-", is_marked)
        ranks = [float(min(row.shape) if row.rank is None else row.rank) for row in found]
        middle = median(ranks)
        tone = median(100.0 * rank / max(1, min(row.shape)) for rank, row in zip(ranks, found, strict=True))
        is_dense = 2 * sum(row.rank is None for row in found) > len(found)
        forms: tuple[str, ...] = DENSE
        if not is_dense:
            forms = written_forms(f"{middle:.0f}", middle)
            if len(found) > 1:
                from numpy import array  # not imported for the first screen

                half = half_range(array(sorted(ranks)))
                forms = forms if half is None else (f"{forms[0]}~{half:.0f}", *forms)
        cell = self._shaded(forms, middle, tone, is_marked, is_dense)
        return replace(cell, has_failed=any(row.address in self.plan.planned.refused for row in found))

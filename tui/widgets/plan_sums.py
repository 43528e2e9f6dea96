"""What a plan comes to, and its projections with the least energy first: as many lines as fit."""

from __future__ import annotations

from textwrap import wrap

from rich.cells import cell_len
from rich.text import Text
from textual.events import Resize
from textual.widget import Widget

from ..data.plan_shown import ShownPlan
from ..data.wording import WHAT_A_PLAN_IS
from .heatmap_table import shortened

_NUMBERS = len("   12345   100.00 %")


class PlanSums(Widget):
    """Lies below the map of a plan. It has no keys: the map exports the whole list."""

    def __init__(self, **kwargs: str) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._plan: ShownPlan | None = None
        self.border_title = "worst first"
        self.border_subtitle = WHAT_A_PLAN_IS

    def show_plan(self, plan: ShownPlan | None) -> None:
        """Show another plan, or none."""
        self._plan = plan
        self.refresh()

    def on_resize(self, _: Resize) -> None:
        self.refresh()

    def render(self) -> Text:
        width, height = self.size
        plan = self._plan
        if plan is None:
            return Text()
        lines = [f" {part}" for line in plan.lines() for part in wrap(line, max(20, width - 1))]
        rows = plan.worst[: max(0, height - len(lines) - 1)]
        longest = max([len("address"), *(cell_len(row.address) for row in rows)])
        most = min(longest, max(len("address"), width - _NUMBERS - 1))
        text = Text("\n".join(shortened(line, width) for line in lines), no_wrap=True)
        text.append(f"\n {'address':<{most}}{'rank':>8}{'energy':>11}", "dim")
        for row in rows:
            name = shortened(row.address, most)
            rank = "dense" if row.rank is None else str(row.rank)
            text.append(f"\n {name}{' ' * (most - cell_len(name))}{rank:>8}{100 * row.energy:>9.2f} %")
        return text

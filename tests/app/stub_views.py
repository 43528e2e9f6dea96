"""Two views that no one asked for: what a new view is, as CONTRIBUTING.md says. A chart, and a pane over it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from rich.segment import Segment
from textual.strip import Strip

from rankscope.tui.charts.figure import Axis, Chart, Figure, Series
from rankscope.tui.charts.request import Request
from rankscope.tui.data import views
from rankscope.tui.data.pair import Pair
from rankscope.tui.data.view_records import Content
from rankscope.tui.data.views import ViewPlace, ViewSpec
from rankscope.tui.widgets.top_pane import TopPane


def draw(_: Pair, request: Request) -> tuple[Figure, None]:
    """The squares of 1 to 9, whatever is selected."""
    x = np.arange(1.0, 10.0)
    title = f"squares {request.width}"
    return Figure(title, (Chart(title, Axis("n"), Axis("n squared"), (Series("n^2", x, x * x, 0),)),)), None


def of_squares(_: Content) -> Iterator[dict[str, object]]:
    """The same as records."""
    yield from ({"n": n, "square": n * n} for n in range(1, 10))


class Counted(TopPane):
    """How many projections the filter shows."""

    count = 0

    @property
    def lines_needed(self) -> int:
        return 3

    def title(self) -> str:
        return "projections counted"

    def set_rows(self, projections: object, grid: object) -> None:  # noqa: ARG002
        self.count = len(projections)  # type: ignore[arg-type]
        self.refresh()

    def text_of_cell(self) -> str:
        return str(self.count)

    def render_line(self, y: int) -> Strip:
        return Strip([Segment(f"{self.count} projections" if y == 0 else "")]).adjust_cell_length(self.size.width)


def of_count(content: Content) -> Iterator[dict[str, object]]:
    """The number as a record."""
    yield {"projections": len(content.projections)}


STUBS = (
    ViewSpec(
        "squares",
        2,
        "Squares, of nothing",
        ViewPlace.CHART,
        title="n squared by n",
        axes=("curved", "curved", "curved"),
        draw="charts.stub:draw",
        csv="charts.stub:of_squares",
        text="cli.show:print_chart",
        picture="charts.picture:save_chart",
        options=("csv",),
    ),
    ViewSpec(
        "counted", 8, "How many projections", ViewPlace.TOP, widget="charts.stub:Counted", csv="charts.stub:of_count"
    ),
)


def add() -> None:
    """Add them, before anything else of the interface is imported."""
    sys.modules["rankscope.tui.charts.stub"] = sys.modules[__name__]
    # No key is left: they stand in the place of two others.
    views.VIEWS = (*(view for view in views.VIEWS if view.name not in ("energy", "delta")), *STUBS)
    views.BY_KEY.update({view.drawn_as: view for view in STUBS})
    views.BY_NAME.update({view.name: view for view in STUBS})

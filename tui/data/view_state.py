"""The state of the explorer as fields without a widget; state.py has the actions that change it.

Every change ends in `changed`, which tells the one listener what has changed; screens/explorer/repaint decides what is
drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rankscope.engine.catalogue.tree import matches
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from .changes import Change, ChangeListener, Keys
from .deltas import WithoutDifference
from .filter import find
from .grid import Grid, Selection
from .lens import Lens
from .pair import Pair
from .plan_shown import ShownPlan
from .reference_lines import ReferenceLine
from .session import Session
from .views import BY_KEY, View, ViewSpec


def _nobody(_: Change, __: Keys) -> None:
    """The default listener."""


@dataclass(slots=True)
class ViewState:
    """`grid` and `shown` are what the filter `pattern` matches, `others` those of them outside the grid, `further`
    matrices made of several, which no scan computes.

    `pane` has the focus, `top` is above the chart and `chart` is drawn (keys of data.views); `came_from` is the pane
    from which the focus came to the chart. `overview`: None lets the terminal's size decide. `full`: the focused pane
    alone. `small`: small multiples by layer in charts of spectra; `panels`: those by threshold in the view over layers.
    `relative`: singular values over sigma_1. `k` is the rank cursor, `origin` the selection where a walk over layers or
    roles began, `note` a sentence for the user until the next move. `version` counts the changes of the chart.
    `solving` is what a device began last, `plan` the latest one for what is shown. `unit_asked_for` is preselected in
    the menu of units, "" for the unit that is shown.
    """

    pair: Pair
    lens: Lens
    thresholds: tuple[float, ...]
    lines: tuple[ReferenceLine, ...] = ()
    listen: ChangeListener = _nobody
    selection: Selection = field(default_factory=Selection)
    origin: Selection | None = None
    pattern: str = ""
    shown: Sequence[Projection] = ()
    others: Sequence[Projection] = ()
    further: Sequence[Projection] = ()
    grid: Grid = field(default_factory=lambda: Grid((), (), {}))
    marks: dict[str, Projection] = field(default_factory=dict)
    k: int | None = None
    pane: int = View.TREE
    top: int = View.HEATMAP
    chart: int = View.SPECTRUM
    came_from: int = View.TREE
    overview: bool | None = None
    full: bool = False
    axes: int = 0
    small: bool = False
    panels: bool = False
    relative: bool = False
    note: str = ""
    version: int = 0
    loaded: bool = False
    is_starting: bool = False
    is_stopping: bool = False
    solving: tuple[Session, Projection] | None = None
    plan: ShownPlan | None = None
    unit_asked_for: str = ""

    def changed(self, what: Change, keys: Keys = None) -> None:
        """Tell the listener; `keys` are content keys of the first model, None: of any projection."""
        self.listen(what, keys)

    @property
    def session(self) -> Session:
        """The session of the model that tree and grid show."""
        return self.pair.first

    @property
    def threshold(self) -> float:
        """The energy threshold of all ranks on the screen."""
        return self.lens.threshold

    @property
    def chart_view(self) -> ViewSpec:
        """The view that is drawn."""
        return BY_KEY[self.chart]

    @property
    def shown_axes(self) -> int:
        """The kind of axes of the chart: its last one if another view has more."""
        return min(self.axes, len(self.chart_view.axes) - 1)

    @property
    def selected(self) -> tuple[Projection, ...]:
        """The selected projections, in model order."""
        return self.selection.projections(self.grid)

    @property
    def is_busy(self) -> bool:
        """Whether anything is queued or running."""
        return self.is_starting or any(s.progress is not None and s.progress.busy for s in self.pair.opened)

    @property
    def has_ranks(self) -> bool:
        """Whether the chart has an axis of ranks for the cursor."""
        return not (self.chart_view.over_layers or self.small)

    @property
    def compares(self) -> bool:
        """Whether the chart shows the marks instead of the selection."""
        return self.top == View.COMPARE and not self.chart_view.over_layers

    def usual_rank(self) -> int:
        """The median threshold rank of the selection; if none is known, half of the full rank."""
        known = sorted(k for p in self.selected if (k := self.session.rank(p, self.threshold)))
        return known[len(known) // 2] if known else max(1, max((p.count for p in self.selected), default=2) // 2)

    @property
    def shows_plan(self) -> bool:
        """Whether there is a plan, and its map is above the chart."""
        return self.plan is not None and self.top == View.PLAN

    @property
    def apart(self) -> Sequence[WithoutDifference]:
        """What has no difference between two models and is matched by the filter."""
        every = self.pair.apart
        if not (every and self.pattern):
            return every
        named = {p.address for p in find((p for item in every for p in item.projections), self.pattern)}
        return [item for item in every if item.address in named or matches(item.address, self.pattern)]

    def known_as(self, session: Session, keys: set[str]) -> set[str]:
        """The keys in the first model whose numbers change with these of a session, including those of twins and
        directions."""
        keys = session.with_weighted(keys | session.participations.matrices(keys))
        return self.pair.known_as(session, session.with_parents(keys) if self.lens.measure.needs_twin else keys)

    def say(self, text: str) -> None:
        """Show a sentence in place of the key hints, until the next move."""
        self.note = printable(text)
        self.changed(Change.LINES)

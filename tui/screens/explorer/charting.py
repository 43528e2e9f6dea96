"""The chart of the explorer: what it is asked to show, when it is drawn, and the rank cursor on it."""

from __future__ import annotations

from textual import on
from textual.timer import Timer

from ...charts.painter import Painter
from ...charts.request import Painting, Request
from ...data.pair import Pair
from ...settings.config import Config
from ...widgets.chart import ChartPane
from ..messages import ChartReady
from .layout import CHARTS, COMPARE, ENERGY, HEATMAP, LAYERS, SPECTRUM, TREE, Panes

AXES = 3
CHART_DELAY = 0.1
"""Seconds after the last move before a chart is drawn: 40 held keys cost 55 kB instead of 395."""


class Charting(Panes):
    """Asks the painter for charts, and keeps the rank cursor."""

    def __init__(self, pair: Pair, config: Config) -> None:
        super().__init__(pair, config)
        self._painting: Painting | None = None
        self._chart_timer: Timer | None = None
        self.painter = Painter(pair, self._deliver)

    # Views

    def action_pane(self, number: int) -> None:
        """Go to the tree (0), to what stands over the chart (3, 5, 6) or to a chart (1, 2, 4)."""
        if self._pane and not number:
            self.tree_pane.follow(self.selection)
        self._pane = number
        if number in CHARTS:
            self.view = number
        elif number != TREE:
            self.top = number
        self._arrange()
        self.set_focus(self.focused_pane)  # at once: the next key may be in the queue already
        self._titles()
        self._want_chart()

    def action_next_pane(self, step: int) -> None:
        """Tree, heatmap, chart, and round."""
        order = [TREE, self.top, self.view]
        self.action_pane(order[(order.index(self._pane) + step) % 3])

    def action_axes(self) -> None:
        """The next kind of axes."""
        self.axes = (self.axes + 1) % AXES
        self._charts_changed()

    def action_relative(self) -> None:
        """Singular values over sigma_1, or as they are."""
        self.relative = not self.relative
        self._charts_changed()

    def action_zoom(self) -> None:
        """In a chart: facets or one. Else: the overview or the table of the heatmap."""
        if self._pane in (SPECTRUM, ENERGY):
            self.facets = not self.facets
            self._charts_changed()
        elif self._pane == LAYERS:
            self.panels = not self.panels
            self._charts_changed()
        else:
            self.overview = not self.is_overview
            if self.top != HEATMAP:
                self.action_pane(HEATMAP)
            self._arrange()
            self._titles()

    def _charts_changed(self) -> None:
        self._titles()
        self._want_chart()

    # Charts

    def _deliver(self, painting: Painting) -> None:
        self.post_message(ChartReady(painting))

    @on(ChartReady)
    def _chart_ready(self, message: ChartReady) -> None:
        if message.painting.request == self._request():
            self._painting = message.painting
            self.chart.show(message.painting)
            self.chart.set_rank(self.k)

    @on(ChartPane.Resized)
    def _want_chart(self) -> None:
        """Ask for the chart once the cursor has rested."""
        if self._chart_timer is not None:
            self._chart_timer.stop()
        if self.loaded:
            self._chart_timer = self.set_timer(CHART_DELAY, self._rested)

    def _rested(self) -> None:
        """What costs many bytes: the chart, and the tree where another pane is moving."""
        if self._pane and self.tree_pane.display:
            self.tree_pane.follow(self.selection)
        width, height = self.chart.canvas
        if self.chart.display and width and height:
            self.painter.request(self._request())

    def _request(self) -> Request:
        width, height = self.chart.canvas
        return Request(
            selection=self.selection,
            view=self.view,
            threshold=self.threshold,
            thresholds=self.thresholds,
            axes=self.axes,
            width=width,
            height=height,
            version=self._version,
            side=self.lens.side,
            normalised=self.relative,
            facets=self.panels if self.view == LAYERS else self.facets,
            origin=self.origin,
            marks=tuple(self.marks.values()) if self.top == COMPARE or self.facets else (),
            compare=self.top == COMPARE and self.view != LAYERS,
            lines=self.lines,
            palette=self.config.palette,
            grid=self.grid,
        )

    # The rank cursor

    def action_rank(self, step: int) -> None:
        """The cursor so many ranks further; without one, it begins at the threshold rank."""
        if self._has_ranks():
            self.set_rank(self._first_rank() if self.k is None else min(self.k + step, self._most_ranks))

    @on(ChartPane.Walk)
    def _chart_walked(self, event: ChartPane.Walk) -> None:
        if self._has_ranks() and self._painting is not None and self._painting.ruler is not None:
            self.set_rank(self._first_rank() if self.k is None else self._painting.ruler.step(self.k, event.columns))

    def set_rank(self, rank: int | None) -> None:
        """Put the cursor at a rank, at least 1; a curve that has not so many says so. None: take it away."""
        self.k = None if rank is None else max(1, rank)
        self.chart.set_rank(self.k)

    @property
    def _most_ranks(self) -> int:
        """What the longest curve has."""
        return max((p.count for _, _, p in self._painting.curves), default=1) if self._painting else 1

    def _has_ranks(self) -> bool:
        if self.view == LAYERS or self.facets:
            self.say("the rank cursor moves on a spectrum or an energy curve: 1 or 2, z leaves facets")
            return False
        return self._painting is not None and bool(self._painting.curves)

    def _first_rank(self) -> int:
        """Where the cursor begins: the threshold rank of the first curve."""
        assert self._painting is not None
        _, session, projection = self._painting.curves[0]
        return session.rank(projection, self.threshold) or 1

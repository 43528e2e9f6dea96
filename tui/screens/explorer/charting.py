"""The chart of the explorer: what it shows, when it is drawn, and the rank cursor on it."""

from __future__ import annotations

from dataclasses import replace

from rich.text import Text
from textual import on
from textual.timer import Timer

from ...charts.painter import Painter
from ...charts.request import Painting, Request
from ...data.changes import Change
from ...data.kept_ranks import KeptRanks, rank_step
from ...data.measures import ENERGY
from ...data.pair import Pair
from ...data.views import View
from ...settings import keys
from ...settings.config import Config
from ...widgets.chart import ChartPane
from ..estimate import beginning
from ..messages import ChartReady
from .panes import ExplorerPanes

CHART_DELAY = 0.1
"""Seconds after the last move before a chart is drawn: then 40 presses of a held key send 55 kB instead of 395."""


class Charting(ExplorerPanes):
    """Requests charts from the painter, and moves the rank cursor."""

    def __init__(self, pair: Pair, config: Config) -> None:
        super().__init__(pair, config)
        self.painting: Painting | None = None
        self._chart_timer: Timer | None = None
        self.painter = Painter(pair, self._deliver)

    def _deliver(self, painting: Painting) -> None:
        self.post_message(ChartReady(painting))

    @on(ChartReady)
    def _chart_ready(self, message: ChartReady) -> None:
        if message.painting.request == self.request():
            self.painting = message.painting
            lines = self._beginning() or message.painting.lines
            self.chart.show(replace(message.painting, lines=lines))
            self.chart.set_rank(self.state.k)

    def _beginning(self) -> tuple[Text, ...]:
        """What to do and what there will be to see, while nothing is computed; otherwise nothing."""
        state = self.state
        session, is_one = state.session, self.pair.second is None
        if not is_one or state.is_busy or session.stored_keys or session.model.checkpoint is None or state.compares:
            return ()
        every, selected = (
            [p for p in session.sampled(found) if not p.problem] for found in (state.shown, state.selected)
        )
        names = (keys.first_key(ident, self.config.keymap) for ident in ("scan", "compute"))
        return beginning(session, every, selected, *names) if every and not session.failures else ()

    @on(ChartPane.Resized)
    def _resized(self) -> None:
        self.state.changed(Change.CHART)

    def want_chart(self) -> None:
        """Request the chart once the cursor has rested."""
        if self._chart_timer is not None:
            self._chart_timer.stop()
        if self.state.loaded:
            self._chart_timer = self.set_timer(CHART_DELAY, self._rested)

    def _rested(self) -> None:
        """Update what takes many bytes: the chart, the heatmap's border, and the tree if another pane has the focus."""
        self._chart_timer = None
        self.show_titles()
        if self.state.pane != View.TREE and self.tree_pane.display:
            self.tree_pane.follow(self.state.selection)
        width, height = self.chart.canvas
        if self.chart.display and width and height:
            self.painter.request(self.request())

    def request(self) -> Request:
        """The request for what the chart should show now."""
        state, palette = self.state, self.config.palette
        width, height = self.chart.canvas
        return Request(
            selection=state.selection,
            view=state.chart,
            threshold=state.threshold,
            thresholds=state.thresholds,
            axes=state.shown_axes,
            width=width,
            height=height,
            version=state.version,
            side=state.lens.side,
            normalised=state.relative,
            facets=state.panels if state.chart_view.over_layers else state.small,
            origin=state.origin,
            marks=tuple(state.marks.values()) if state.top == View.COMPARE or state.small else (),
            compare=state.compares,
            lines=state.lines,
            measure=state.lens.measure,
            palette=palette if self.app.current_theme.dark else palette.on_light(),
            grid=state.grid,
        )

    # The rank cursor

    def action_rank(self, step: int) -> None:
        """Move the cursor by steps of a hundredth of the rank; without a cursor, start at the threshold rank. While the
        energy of given ranks is shown, move these instead, whatever is drawn."""
        if self.state.lens.measure.needs_ranks:
            self.state.step_kept(step)
        elif self.can_walk():
            k = self.state.k
            self.state.set_rank(self._first_rank() if k is None else min(k + step * rank_step(k), self._most_ranks))

    def set_ranks(self, kept: KeptRanks) -> None:
        """Put the rank cursor at one rank, or set a rank for each role, whose energy is shown."""
        state = self.state
        if kept.roles:
            ranks = kept.named(dict.fromkeys(p.role for p in state.rows))
            state.keep(ranks)
            if not state.lens.measure.needs_ranks:
                state.unit_asked_for = ENERGY
                state.say(f"ranks {ranks.text}: u or :unit energy shows what they keep")
            return
        state.keep(kept)
        if state.lens.measure.needs_ranks or self.can_walk():
            state.set_rank(kept.common)

    @on(ChartPane.RankWalk)
    def _chart_walked(self, event: ChartPane.RankWalk) -> None:
        if self.state.chart_view.over_layers:
            self.state.step_layer(event.columns)
        elif self.can_walk() and self.painting is not None and self.painting.ruler is not None:
            k = self.state.k
            self.state.set_rank(self._first_rank() if k is None else self.painting.ruler.step(k, event.columns))

    def can_walk(self) -> bool:
        """Whether the chart has ranks to walk on; says where to find some if it has none."""
        if not self.state.has_ranks:
            self.state.say("the rank cursor moves on a spectrum or an energy curve: 1 or 2, z leaves facets")
            return False
        return self.painting is not None and bool(self.painting.curves)

    @property
    def _most_ranks(self) -> int:
        """The number of ranks of the longest curve."""
        return max((p.count for _, _, p in self.painting.curves), default=1) if self.painting else 1

    def _first_rank(self) -> int:
        """Where the cursor begins: the threshold rank of the first curve."""
        assert self.painting is not None
        _, session, projection = self.painting.curves[0]
        return session.rank(projection, self.state.threshold) or 1

"""The panes and lines of the explorer: what is shown, where, and how it is titled."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Resize
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import DEFAULT_THRESHOLDS, Projection

from .. import keys
from ..grid import Selection, make_grid
from ..look import LEGEND, Look
from ..messages import ChartReady
from ..painter import Painter, Painting, Request
from ..session import Session
from ..status import chart_title, heatmap_title, job_text, key_hints, model_text, selection_text, trouble
from ..widgets.chart import ChartPane
from ..widgets.heatmap import Heatmap, shade_key
from ..widgets.lines import Line, Prompt
from ..widgets.tree import ProjectionTree
from .dialogs import Help

SPECTRUM, ENERGY, HEATMAP, LAYERS = 1, 2, 3, 4
CHARTS = (SPECTRUM, ENERGY, LAYERS)
AXES = 3
CHART_LINES = 26
"""A chart that is as high as this gains less from more lines than the heatmap does."""
CHART_DELAY = 0.1
"""Seconds after the last move before a chart is drawn: 40 held keys cost 55 kB instead of 395."""


class Panes(Screen[None]):
    """Tree, heatmap and chart of one session, all showing the one selection."""

    BINDINGS: ClassVar[list[BindingType]] = keys.EXPLORER

    def __init__(self, session: Session, threshold: float) -> None:
        super().__init__()
        self.session = session
        self.thresholds = tuple(sorted({*DEFAULT_THRESHOLDS, threshold}))
        self.look = Look(session, threshold)
        self.view = SPECTRUM
        self.axes = 0
        self.pattern = ""
        self.selection = Selection()
        self.loaded = False
        self.note = ""
        self.is_stopping = False
        self._starting = False
        self._solving: Projection | None = None
        self._pane = 0
        self._version = 0
        self._chart_timer: Timer | None = None
        self.painter = Painter(session, self._deliver)
        self._scanned = session.model.tree.scanned()
        self._apply_filter("")
        self._layers = len({(row.tower, row.layer) for row in self.grid.rows})

    def compose(self) -> ComposeResult:
        yield Line(id="top")
        with Horizontal(id="body"):
            yield ProjectionTree(self.session.model.name, self.look, id="tree")
            with Vertical(id="right"):
                yield Heatmap(self.look.cell, id="heatmap")
                yield ChartPane(id="chart")
        yield Line(id="job")
        yield Prompt(id="prompt")
        yield Line(id="keys")

    def on_mount(self) -> None:
        self.tree_pane = self.query_one(ProjectionTree)
        self.heatmap = self.query_one(Heatmap)
        self.chart = self.query_one(ChartPane)
        self._show_grid()
        self.tree_pane.focus()
        self._titles()
        self._show_model()
        self._status()

    @property
    def threshold(self) -> float:
        """The energy threshold of all ranks on the screen."""
        return self.look.threshold

    @property
    def focused_pane(self) -> Widget:
        """The pane that the keys of tree, heatmap or chart go to."""
        return self.tree_pane if self._pane == 0 else self.heatmap if self._pane == HEATMAP else self.chart

    @property
    def is_busy(self) -> bool:
        """Whether anything is queued or running."""
        progress = self.session.progress
        return self._starting or (progress is not None and progress.busy)

    def check_action(self, action: str, _: tuple[object, ...]) -> bool | None:
        """In an open prompt digits, "/" and ":" are characters."""
        return not (keys.is_first(action) and self.query_one(Prompt).display)

    # What is shown

    def _apply_filter(self, pattern: str) -> None:
        tree = self.session.model.tree
        shown = tree.scanned(pattern or None)
        self.pattern = pattern
        self.grid = make_grid(shown)
        self.look.show(self.grid)
        placed = {p.key for cell in self.grid.cells.values() for p in cell}
        self.others = [p for p in (shown if pattern else tree.projections) if p.key not in placed]

    def _show_grid(self) -> None:
        self.heatmap.set_grid(self.grid)
        self.tree_pane.set_model(self.grid, self.others)

    # Views

    def action_pane(self, number: int) -> None:
        """Go to the tree (0), the heatmap (3) or a chart."""
        if self._pane and not number:
            self.tree_pane.follow(self.selection)
        self._pane = number
        if number in CHARTS:
            self.view = number
        self._arrange()
        self.set_focus(self.focused_pane)  # at once: the next key may be in the queue already
        self._titles()
        self._want_chart()

    def action_next_pane(self, step: int) -> None:
        """Tree, heatmap, chart, and round."""
        order = [0, HEATMAP, self.view]
        self.action_pane(order[(order.index(self._pane) + step) % 3])

    def action_axes(self) -> None:
        """The next kind of axes."""
        self.axes = (self.axes + 1) % AXES
        self._titles()
        self._want_chart()

    def action_help(self) -> None:
        """The keys of the focused pane and of the explorer."""
        pane = self.focused_pane.id or ""
        own = (f"in the {pane}", keys.PANES[pane])
        self.app.push_screen(Help([own, ("everywhere", [*keys.EXPLORER, *keys.APP])], LEGEND))

    # Charts

    def _deliver(self, painting: Painting) -> None:
        self.post_message(ChartReady(painting))

    @on(ChartReady)
    def _chart_ready(self, message: ChartReady) -> None:
        painting: Painting = message.painting
        if painting.request == self._request():
            self.chart.show(painting.lines, painting.readout)

    # Lines, titles, layout

    def say(self, text: str) -> None:
        """A sentence in place of the key hints, until the next move."""
        self.note = printable(text)
        self._status()

    def _show_model(self) -> None:
        self.query_one("#top", Line).set(*model_text(self.session, self._scanned, self._layers))

    def _status(self) -> None:
        state = "starting torch" if self._starting else "stopping" if self.is_stopping else ""
        left = selection_text(self.session, self.selection, self.grid, self.threshold)
        self.query_one("#job", Line).set(left, job_text(self.session, self._solving, state))
        found = self.selection.projections(self.grid)
        note = self.note or (printable(trouble(self.session, found[0])) if len(found) == 1 else "")
        hints = key_hints(self.size.width)
        self.query_one("#keys", Line).set(Text(f" {note}", "bold yellow") if note else hints)

    def _titles(self) -> None:
        filtered = f"  filter {printable(self.pattern)}" if self.pattern else ""
        self.tree_pane.border_title = Text(f"0 tree{filtered}")
        self.heatmap.border_title = Text(heatmap_title(self.threshold) + filtered)
        shades = Content.from_rich_text(shade_key())
        self.heatmap.border_subtitle = Content("shade k/k0 (k0: noise of this shape) ") + shades
        self.chart.border_title = chart_title(self.view, self.axes)

    def on_resize(self, _: Resize) -> None:
        self._arrange()
        self._status()

    def _arrange(self) -> None:
        """Wide and high: tree, heatmap over chart. Wide: tree and one. Narrow: one pane."""
        wide, high = self.size.width >= 120, self.size.height >= 30
        self.set_class(not wide, "one")
        self.set_class(self.size.width >= 160, "huge")
        self.tree_pane.display = wide or self._pane == 0
        on_right = self._pane if self._pane else HEATMAP
        self.query_one("#right").display = wide or self._pane != 0
        self.heatmap.display = (wide and high) or on_right == HEATMAP
        self.chart.display = (wide and high) or on_right != HEATMAP
        room = self.size.height - 3
        most = max(room // 2, room - CHART_LINES) if self.chart.display else room
        self.heatmap.styles.max_height = min(most, self.heatmap.lines_needed) if self.chart.display else None

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
            self.selection,
            self.view,
            self.threshold,
            self.thresholds,
            self.axes,
            width,
            height,
            self._version,
            self.grid,
        )

"""The panes and lines of the explorer: what is shown, where, and how it is titled."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Resize
from textual.screen import Screen
from textual.widget import Widget

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ...data.filter import find
from ...data.grid import Selection, make_grid
from ...data.pair import Lens, Pair
from ...data.session import Session
from ...data.wording import LEGEND
from ...drawing.cells import Look
from ...settings import keys
from ...settings.config import Config
from ...widgets.chart import ChartPane
from ...widgets.compare import Compare
from ...widgets.heatmap import Heatmap, shade_key
from ...widgets.line import Line
from ...widgets.prompt import Prompt
from ...widgets.table import MetricTable
from ...widgets.tree import ProjectionTree
from ..dialogs import Help
from ..status_lines import chart_title, job_text, key_hints, measure_title, model_text, selection_text, trouble

TREE, SPECTRUM, ENERGY, HEATMAP, LAYERS, TABLE, COMPARE = range(7)
CHARTS = (SPECTRUM, ENERGY, LAYERS)
TOPS = (HEATMAP, TABLE, COMPARE)
"""What stands over the chart where there is room for both."""
WIDE, HUGE, HIGH = 120, 160, 30
CHART_LINES = 26
"""A chart that is as high as this gains less from more lines than the heatmap does."""
LEAST_CHART = 11
"""Lines below which a chart under the overview tells nothing."""


class Panes(Screen[None]):
    """Tree, heatmap, table, compare and chart of one pair of models, all showing the one selection."""

    BINDINGS: ClassVar[list[BindingType]] = keys.EXPLORER

    def __init__(self, pair: Pair, config: Config) -> None:
        super().__init__()
        self.pair = pair
        self.session = pair.first
        self.config = config
        self.thresholds = tuple(sorted({*config.thresholds, config.threshold}))
        self.lens = Lens(pair, config.threshold, thresholds=self.thresholds)
        self.look = Look(self.lens, config.palette)
        self.view = SPECTRUM
        self.top = HEATMAP
        self.overview: bool | None = None  # None: as wide as the terminal is
        self.axes = 0
        self.facets = False
        """Small multiples by layer, in views 1 and 2."""
        self.panels = False
        """Small multiples by threshold, in view 4 where they do not fit side by side."""
        self.relative = False
        self.lines = config.lines
        self.pattern = ""
        self.selection = Selection()
        self.origin: Selection | None = None
        """Where a walk by J K H L began."""
        self.k: int | None = None
        """The rank cursor."""
        self.marks: dict[str, Projection] = {}
        self.loaded = False
        self.note = ""
        self.is_stopping = False
        self._starting = False
        self._solving: tuple[Session, Projection] | None = None
        self._pane = TREE
        self._version = 0
        self._shown_limits: tuple[float, ...] = ()
        self._scanned = self.session.model.tree.scanned()
        self._apply_filter("")
        self._layers = len({(row.tower, row.layer) for row in self.grid.rows})

    def compose(self) -> ComposeResult:
        yield Line(id="top")
        with Horizontal(id="body"):
            yield ProjectionTree(self.session.model.name, self.look, id="tree")
            with Vertical(id="right"):
                yield Heatmap(self.look, id="heatmap")
                yield MetricTable(self.look, id="table")
                yield Compare(self.look, id="compare")
                yield ChartPane(id="chart")
        yield Line(id="job")
        yield Prompt(id="prompt")
        yield Line(id="keys")

    def on_mount(self) -> None:
        self.tree_pane = self.query_one(ProjectionTree)
        self.heatmap = self.query_one(Heatmap)
        self.table = self.query_one(MetricTable)
        self.compare = self.query_one(Compare)
        self.chart = self.query_one(ChartPane)
        self._show_grid()
        self.tree_pane.focus()
        self._titles()
        self._show_model()
        self._status()

    @property
    def threshold(self) -> float:
        """The energy threshold of all ranks on the screen."""
        return self.lens.threshold

    @property
    def focused_pane(self) -> Widget:
        """The pane that the keys of tree, heatmap, table, compare or chart go to."""
        tops = {HEATMAP: self.heatmap, TABLE: self.table, COMPARE: self.compare}
        return self.tree_pane if self._pane == TREE else tops.get(self._pane, self.chart)

    @property
    def is_wide(self) -> bool:
        """Whether there is room for the tree beside another pane."""
        return self.size.width >= WIDE

    @property
    def is_overview(self) -> bool:
        """Whether the heatmap is turned: as the user chose, else where the terminal is narrow."""
        return not self.is_wide if self.overview is None else self.overview

    @property
    def is_busy(self) -> bool:
        """Whether anything is queued or running."""
        return self._starting or any(s.progress is not None and s.progress.busy for s in self.pair.sessions)

    def check_action(self, action: str, _: tuple[object, ...]) -> bool | None:
        """In an open prompt digits, "/" and ":" are characters."""
        return not (action in keys.NOT_IN_PROMPTS and self.query_one(Prompt).display)

    # What is shown

    def _apply_filter(self, pattern: str) -> None:
        everything = self.session.model.tree.projections
        self.shown = find(everything, pattern) if pattern else self.session.model.tree.scanned()
        self.pattern = pattern
        self.grid = make_grid(self.shown)
        self.look.show(self.grid)
        placed = {p.key for cell in self.grid.cells.values() for p in cell}
        self.others = [p for p in (self.shown if pattern else everything) if p.key not in placed]

    def _show_grid(self) -> None:
        self.heatmap.set_grid(self.grid)
        self.table.set_rows(self.shown, self.grid)
        ours, theirs = self.pair.unmatched()
        groups = {"other": self.others}
        if self.pair.second is not None and not self.pattern:
            groups |= {"only in A": ours, "only in B": theirs}
        self.tree_pane.set_model(self.grid, groups)

    def action_help(self) -> None:
        """The keys of the focused pane and of the explorer."""
        pane = self.focused_pane.id or ""
        own = (f"in the {pane}", keys.PANES[pane])
        everywhere = ("everywhere", [*keys.EXPLORER, *keys.APP])
        self.app.push_screen(Help([own, everywhere], LEGEND, self.config.keymap))

    # Lines, titles, layout

    def say(self, text: str) -> None:
        """A sentence in place of the key hints, until the next move."""
        self.note = printable(text)
        self._status()

    def _show_model(self) -> None:
        self.query_one("#top", Line).set(*model_text(self.pair, self._scanned, self._layers))

    def _status(self) -> None:
        state = "starting" if self._starting else "stopping" if self.is_stopping else ""
        left = selection_text(self.lens, self.selection, self.grid)
        marks = f"{len(self.marks)} marked" if self.marks else ""
        self.query_one("#job", Line).set(left, "  ".join(filter(None, [marks, self._job(state)])))
        found = self.selection.projections(self.grid)
        note = self.note or (printable(trouble(self.lens, found[0])) if len(found) == 1 else "")
        hints = key_hints(self.size.width, self.config.keymap)
        self.query_one("#keys", Line).set(Text(f" {note}", "bold yellow") if note else hints)

    def _job(self, state: str) -> str:
        """What is being computed, or how much has failed."""
        busy = next((s for s in self.pair.sessions if s.progress is not None and s.progress.busy), self.session)
        running = self._solving[1] if self._solving and self._solving[0] is busy else None
        letter = f"{'AB'[self.pair.sessions.index(busy)]} " if self.pair.second is not None and self.is_busy else ""
        return letter + job_text(busy, running, state)

    def _titles(self) -> None:
        filtered = f"  filter {printable(self.pattern)}" if self.pattern else ""
        self.tree_pane.border_title = Text(f"0 tree{filtered}")
        self.heatmap.border_title = Text(measure_title("3 heatmap", self.lens) + filtered)
        shades = Content.from_rich_text(shade_key(self.look))
        by = f"shade {self.lens.shade_title} " if self.lens.shade_title else ""
        self.heatmap.border_subtitle = Content(by) + shades
        self._shown_limits = self.look.limits
        self.table.border_title = Text(measure_title("5 table", self.lens) + filtered)
        self.compare.border_title = Text("6 compare  marked projections, differences to the first")
        self.chart.border_title = chart_title(
            self.view, self.threshold, self.axes, self.facets, self.relative, self.top == COMPARE
        )

    def on_resize(self, _: Resize) -> None:
        self._arrange()
        self._status()

    def _arrange(self) -> None:
        """Wide and high: tree, heatmap over chart. Wide: tree and one. Narrow: one pane, and under the
        overview, which is low, the chart of what is selected."""
        wide, high = self.is_wide, self.size.height >= HIGH
        self.set_class(not wide, "one")
        self.set_class(self.size.width >= HUGE, "huge")
        self.heatmap.set_overview(self.is_overview)
        self.tree_pane.display = wide or self._pane == TREE
        on_right = self._pane if self._pane != TREE else self.top
        self.query_one("#right").display = wide or self._pane != TREE
        room = self.size.height - 3
        least, full = self.heatmap.overview_lines
        below = on_right == HEATMAP and self.is_overview and room - least >= LEAST_CHART
        both = (wide and high) or below
        for number, pane in ((HEATMAP, self.heatmap), (TABLE, self.table), (COMPARE, self.compare)):
            pane.display = number == self.top and (both or on_right == number)
        self.chart.display = both or on_right in CHARTS
        most = max(room // 2, room - CHART_LINES) if self.chart.display else room
        tall = self.chart.display
        self.heatmap.styles.height = max(least, min(full, room - LEAST_CHART)) if below else "1fr"
        self.heatmap.styles.max_height = min(most, self.heatmap.lines_needed) if tall and not below else None
        self.table.styles.max_height = min(most, self.table.lines_needed) if tall else None
        self.compare.styles.max_height = min(most, self.compare.lines_needed) if tall else None

"""The panes and lines of the explorer: where they are, and their titles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.dom import DOMNode
from textual.events import Click, Resize
from textual.screen import Screen
from textual.widget import Widget

from rankscope.engine.errors import printable

from ...data.changes import Change
from ...data.named import resolve
from ...data.pair import Pair
from ...data.state import ExplorerState
from ...data.views import BY_KEY, View, ViewPlace, placed
from ...data.wording import LEGEND
from ...drawing.cells import Look
from ...settings import keys
from ...settings.config import Config
from ...widgets.chart import ChartPane
from ...widgets.compare import Compare
from ...widgets.heatmap import Heatmap
from ...widgets.heatmap_table import Layers
from ...widgets.line import Line
from ...widgets.plan_map import PlanMap
from ...widgets.plan_sums import PlanSums
from ...widgets.projection_tree import ProjectionTree
from ...widgets.prompt import Prompt
from ...widgets.table import MetricTable
from ...widgets.top_pane import TopPane
from ..dialogs import Help
from ..status_lines import (
    OUTLIER,
    ZOOM,
    Hint,
    chart_title,
    hint_at,
    job_text,
    key_line,
    model_text,
    selection_text,
    shown_hints,
    troubles,
    waiting_text,
)

WIDE, HUGE, HIGH = 120, 160, 30
TURNED = 100
"""The heatmap is turned on terminals with fewer columns, unless the user has chosen."""
MOST_SCREENS = 3
"""The heatmap is turned if its table would fill more screens, unless the user has chosen."""
LINES = 3
"""Lines above and below the panes."""
CHART_LINES = 26
"""A chart of this height gains less from more lines than the heatmap does."""
LEAST_CHART = 11
"""A chart below the overview is not useful with fewer lines."""


class ExplorerPanes(Screen[None]):
    """Tree, the view above the chart, and the chart of one pair of models, all showing the same state."""

    BINDINGS: ClassVar[list[BindingType]] = [*keys.EXPLORER, *keys.PLAN]

    def __init__(self, pair: Pair, config: Config) -> None:
        super().__init__()
        self.pair = pair
        self.config = config
        self.state = ExplorerState.of(pair, config.threshold, config.thresholds, config.lines)
        self.state.lens.contrast = config.contrast
        self.look = Look(self.state.lens, config.palette)
        self.look.show(self.state.grid)
        self.shown_limits: tuple[float, ...] = ()
        self._titles_of: dict[str, tuple[str, str | None]] = {}
        self._layers = len({(row.tower, row.layer) for row in self.state.grid.rows})

    def compose(self) -> ComposeResult:
        yield Line(id="top")
        with Horizontal(id="body"):
            yield ProjectionTree(self.pair.first.model.name, self.look, id="tree")
            with Vertical(id="right"):
                for view in placed(ViewPlace.TOP):
                    yield resolve(view.widget)(self.look, id=view.name)
                yield PlanSums(id="sums")
                yield ChartPane(id="chart")
        yield Line(id="tour")
        yield Line(id="job")
        yield Prompt(id="prompt")
        yield Line(id="keys")

    def on_mount(self) -> None:
        self.tree_pane = self.query_one(ProjectionTree)
        self.tops = {view.key: self.query_one(f"#{view.name}", TopPane) for view in placed(ViewPlace.TOP)}
        self.heatmap = self.query_one("#heatmap", Heatmap)
        self.plan_map = self.query_one(PlanMap)
        self.plan_sums = self.query_one(PlanSums)
        self.table = self.query_one(MetricTable)
        self.compare = self.query_one(Compare)
        self.chart = self.query_one(ChartPane)
        self.show_rows()
        self.set_focus(self.tree_pane)  # at once, as another pane may be restored next
        self.show_titles()
        self.show_model()
        self.show_lines()

    @property
    def focused_pane(self) -> Widget:
        """The pane that keys of the tree, a view or the chart go to."""
        pane = self.state.pane
        return self.tree_pane if pane == View.TREE else self.tops.get(pane, self.chart)

    @property
    def is_wide(self) -> bool:
        """Whether there is room for the tree beside another pane."""
        return self.size.width >= WIDE

    @property
    def is_overview(self) -> bool:
        """Whether the heatmap is turned: as the user chose, else on a narrow terminal, or if its table would fill
        several screens."""
        if self.state.overview is not None:
            return self.state.overview
        room = self.size.height - LINES
        is_shared = self.is_wide and self.size.height >= HIGH and not self.state.full
        page = (_beside_chart(room) if is_shared else room) - (Layers.header + 2)
        return self.size.width < TURNED or len(self.state.grid.rows) > MOST_SCREENS * max(1, page)

    def check_action(self, action: str, _: tuple[object, ...]) -> bool | None:
        """Whether a key works: in an open prompt digits, "/" and ":" are characters; a plan's keys need a plan."""
        if action == "cut":
            return self.state.shows_plan
        return not (action in keys.NOT_IN_PROMPTS and self.query_one(Prompt).display)

    def action_help(self) -> None:
        """Show the keys of the focused pane and of the explorer."""
        pane = self.focused_pane.id or ""
        own = [(f"in the {pane}", table)] if (table := keys.pane_table(pane)) else []
        own += [("while a plan shows", keys.PLAN)] if self.state.shows_plan else []
        everywhere = ("everywhere", [*keys.EXPLORER, *keys.at_any_time(self.config.suspend)])
        rows = self.state.grid.rows_are
        sections = [(title, keys.worded(table, rows)) for title, table in (*own, everywhere)]
        self.app.push_screen(Help(sections, LEGEND, self.config.keymap))

    def on_resize(self, _: Resize) -> None:
        self.state.changed(Change.LAYOUT)
        self.state.changed(Change.LINES)

    # What is shown

    def show_rows(self) -> None:
        """Show other projections in all panes."""
        state = self.state
        self._scanned = self.pair.first.model.tree.scanned()
        self.show_in_tops()
        ours, theirs = self.pair.unmatched()
        groups = {"other": state.others}
        if self.pair.second is not None and not state.pattern:
            groups |= {"only in A": ours, "only in B": theirs}
        self.tree_pane.set_model(state.grid, groups)

    def show_in_tops(self) -> None:
        """Show the projections in the views above the chart."""
        for pane in self.tops.values():
            pane.set_rows(self.state.rows, self.state.grid)

    def show_model(self) -> None:
        """Show the first line."""
        self.query_one("#top", Line).set(*model_text(self.pair, self._scanned, self._layers))

    def show_lines(self) -> None:
        """Show the lines below: what is selected and computed; then the keys, or a sentence."""
        state = self.state
        said = "starting" if state.is_starting else "stopping" if state.is_stopping else ""
        marks = f"{len(state.marks)} marked" if state.marks else ""
        left = selection_text(state.lens, state.selection, state.grid)
        if state.shows_plan and (planned := self.plan_map.text_of(state.selection)):
            left.append(f"  {planned}", "not bold")
        self.query_one("#job", Line).set(left, "  ".join(filter(None, [marks, self._job(said)])))
        self.query_one("#keys", Line).set(key_line(self.size.width, self._hints, self.config.keymap, self._note))

    @property
    def _note(self) -> str:
        """The sentence in place of the keys, if there is one."""
        return self.state.note or waiting_text(self.pair) or troubles(self.state.lens, self.state.selected)

    @property
    def _hints(self) -> tuple[Hint, ...]:
        is_busy = self.state.is_busy and not self.state.is_stopping
        zoom = ZOOM._replace(word=self._zooms_to)
        turns = (zoom,) if self.state.pane == View.HEATMAP or BY_KEY[self.state.pane].place is ViewPlace.CHART else ()
        own = (*(OUTLIER,) * (self.state.pane == View.HEATMAP), *turns)
        is_pair, is_weighted = self.pair.other is not None, bool(self.pair.weighting)
        rows = self.state.grid.rows_are
        return shown_hints(is_busy, is_pair, is_weighted, self.state.shows_plan, zoom, own, rows)

    @property
    def _zooms_to(self) -> str:
        """What the zoom key switches to, in a word or two."""
        state, view = self.state, BY_KEY[self.state.pane]
        if view.place is not ViewPlace.CHART:
            return "table" if self.is_overview else "overview"
        if view.over_layers:
            return "large charts" if state.panels else "small charts"
        return "one chart" if state.small else "facets"

    async def on_click(self, event: Click) -> None:
        """Go to the pane under a click, like the pane's key; in the line of keys, do what is written there."""
        panes: dict[DOMNode, int | None] = {self.tree_pane: View.TREE, self.chart: self.state.chart}
        panes |= {pane: key for key, pane in self.tops.items()}
        within = event.widget.ancestors_with_self if event.widget is not None else ()
        if (key := next((panes[node] for node in within if node in panes), None)) is not None:
            self.state.show(key)
        elif event.widget is self.query_one("#keys"):
            hint = hint_at(event.screen_x, self.size.width, self._hints, self.config.keymap, self._note)
            if hint is not None and hint.ident:
                await self.run_action(keys.actions()[hint.ident])

    def _job(self, said: str) -> str:
        """What is being computed, or how much has failed."""
        sessions = self.pair.opened
        busy = next((s for s in sessions if s.progress is not None and s.progress.busy), self.pair.first)
        solving = self.state.solving
        running = solving[1] if solving and solving[0] is busy else None
        letter = f"{'AB'[sessions.index(busy)]} " if len(sessions) > 1 and self.state.is_busy else ""
        return letter + job_text(busy, running, said)

    def show_titles(self) -> None:
        """Show the titles in the panes' borders."""
        state = self.state
        filtered = f"  filter {printable(state.pattern)}" if state.pattern else ""
        self.tree_pane.show_title(f"{View.TREE} tree{filtered}")
        for key, pane in self.tops.items():
            # In the lower border: in the upper one a long filter would cut off the formula. Marks do not depend on it.
            foot = Text("" if pane.compares_marks else filtered.strip())
            below = [pane.subtitle(pane.size.width - 2 - len(foot)), foot]
            self._title(pane, Text(f"{key} {pane.id}  {pane.title()}"), Text("  ").join(filter(None, below)))
        self.shown_limits = self.look.limits()
        drawn = chart_title(
            state.chart,
            state.lens.title,
            state.shown_axes,
            state.small,
            state.relative,
            state.compares,
            self.pair.shown_as,
            state.grid.rows_are,
        )
        self._title(self.chart, Text(drawn))

    def _title(self, pane: Widget, title: Text, subtitle: Text | None = None) -> None:
        """Set a changed title: Textual draws the pane again even if the title is the same."""
        written = title.plain, None if subtitle is None else subtitle.markup
        before = self._titles_of.get(pane.id or "", ("", None))
        self._titles_of[pane.id or ""] = written
        if written[0] != before[0]:
            pane.border_title = title
        if subtitle is not None and written[1] != before[1]:
            pane.border_subtitle = Content.from_rich_text(subtitle)

    def lay_out(self) -> None:
        """Show the panes that fit. Wide and high: the tree, and the view over the chart. Wide: the tree and one pane.
        Narrow or full screen: one pane. Under the turned heatmap, if there is room, the chart; under a plan always its
        sums."""
        alone = self.state.full
        wide, high = self.is_wide and not alone, self.size.height >= HIGH
        self.set_class(not wide, "one")
        self.set_class(wide and self.size.width >= HUGE, "huge")
        pane, top, on_right = self.state.pane, self.state.top, self._on_right
        maps: dict[int, Heatmap] = {View.HEATMAP: self.heatmap, View.PLAN: self.plan_map}
        for one in maps.values():
            one.set_overview(self.is_overview)
        self.tree_pane.display = wide or pane == View.TREE
        self.query_one("#right").display = wide or pane != View.TREE
        room = self.size.height - LINES - self.query_one("#tour").display
        least, full = maps.get(top, self.heatmap).overview_lines
        below = on_right in maps and self.is_overview and room - least >= LEAST_CHART and not alone
        sums = self.state.shows_plan and on_right == View.PLAN and not alone
        both = (wide and high) or below or sums
        for key, widget in self.tops.items():
            widget.display = key == top and (both or on_right == key)
        self.plan_sums.display = sums
        self.chart.display = not sums and (both or BY_KEY[on_right].place is ViewPlace.CHART)
        self._set_heights(maps, room, max(least, min(full, room - LEAST_CHART)) if below else None)
        self.call_after_refresh(self.show_titles)  # their length depends on the layout

    @property
    def _on_right(self) -> int:
        """The view to the right of the tree, or in its place."""
        return self.state.top if self.state.pane == View.TREE else self.state.pane

    def _set_heights(self, maps: Mapping[int, Heatmap], room: int, turned: int | None) -> None:
        """Divide `room` lines between the view and the chart or sums below it. `turned` is the height of a turned
        heatmap over its chart; None if there is none."""
        is_shared = self.chart.display or self.plan_sums.display
        most = _beside_chart(room) if is_shared else room
        for one in maps.values():
            one.styles.height = "1fr" if turned is None else turned
        for key, widget in self.tops.items():
            fits = is_shared and (turned is None or key not in maps)
            widget.styles.max_height = min(most, widget.lines_needed) if fits else None


def _beside_chart(room: int) -> int:
    """The most lines of a view above a chart."""
    return max(room // 2, room - CHART_LINES)

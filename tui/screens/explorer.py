"""The explorer: tree, heatmap and chart around one selection. All state of the interface is here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Resize
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Tree

from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import DEFAULT_THRESHOLDS, Projection

from .. import keys
from ..commands import parse_command
from ..grid import Column, Row, Selection, make_grid
from ..messages import ChartReady, EngineEvents, StoreLoaded
from ..painter import Painter, Painting, Request
from ..session import Session, State
from ..status import estimate, job_text, key_hints, model_text
from ..text import percent
from ..widgets.chart import ChartPane
from ..widgets.heatmap import Cell, Heatmap, fold, shade_key
from ..widgets.lines import Line, Prompt
from ..widgets.tree import Item, ProjectionTree
from .dialogs import Confirm, Help

if TYPE_CHECKING:
    from rankscope.engine.events import Event

SPECTRUM, ENERGY, HEATMAP, LAYERS = 1, 2, 3, 4
VIEW_NAMES = {SPECTRUM: "spectrum", ENERGY: "energy", LAYERS: "layers"}
AXES_NAMES = ("log x log", "log y", "linear")
CHART_DELAY = 0.1
"""Seconds after the last move before a chart is drawn: 40 held keys cost 55 kB instead of 395."""
MARKS = {
    State.NOT_COMPUTED: ".",
    State.QUEUED: ":", State.RUNNING: "*", State.STORED: "#", State.DONE: "#", State.FAILED: "!",
}  # fmt: skip


class Explorer(Screen[None]):
    """Shows one session; every pane shows the one selection."""

    BINDINGS: ClassVar[list[BindingType]] = keys.EXPLORER

    def __init__(self, session: Session, threshold: float) -> None:
        super().__init__()
        self.session = session
        self.thresholds = tuple(sorted({*DEFAULT_THRESHOLDS, threshold}))
        self.threshold = threshold
        self.view = SPECTRUM
        self.axes = 0
        self.pattern = ""
        self.selection = Selection()
        self.loaded = False
        self.note = ""
        self._pane = 0
        self._version = 0
        self._chart_timer: Timer | None = None
        self._arrangement = ""
        self.painter = Painter(session, self._deliver)
        self._apply_filter("")

    def compose(self) -> ComposeResult:
        yield Line(id="top")
        with Horizontal(id="body"):
            yield ProjectionTree(self.session.model.name, self.mark, self.rank, id="tree")
            with Vertical(id="right"):
                yield Heatmap(self.look, id="heatmap")
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
        self.call_after_refresh(self._select_first)
        self._titles()
        self._status()
        # The tree stands before numpy and h5py are imported (0.25 s) to fill the heatmap.
        self.call_after_refresh(self.painter.run, self._load_store)

    def _select_first(self) -> None:
        """Begin with the attention of the first layer, once the tree has its lines."""
        if self.grid.rows and self.grid.columns:
            self._select(Selection(self.grid.rows[0], block=self.grid.columns[0].block))

    # What a projection looks like

    def mark(self, projection: Projection) -> str:
        """The state as one character."""
        if projection.problem:
            return "?" if projection.rows else "-"
        return MARKS[self.session.state(projection)]

    def rank(self, projection: Projection) -> int | None:
        """The threshold rank at the current threshold."""
        return self.session.rank(projection, self.threshold)

    def look(self, row: Row, column: Column) -> Cell:
        """What the heatmap shows of a layer and role."""
        members = self.grid.cells.get((row, column), ())
        return fold([self._cell(p) for p in members]) if members else Cell("-")

    def _cell(self, p: Projection) -> Cell:
        rank = self.rank(p)
        if rank is None or self.session.state(p) is State.RUNNING:
            return Cell(self.mark(p))
        from rankscope.engine.null import null_rank

        return Cell("", rank, rank / null_rank(p.rows, p.cols, self.threshold))

    # Events from threads

    def _deliver(self, painting: Painting) -> None:
        self.post_message(ChartReady(painting))

    def _load_store(self) -> None:
        """In the painter's thread: what is stored, and ranks at a threshold the store does not keep."""
        self.session.load()
        self.session.load_ranks(self.session.model.tree.projections, self.threshold)
        self.post_message(StoreLoaded())

    @on(StoreLoaded)
    def _store_loaded(self) -> None:
        self.loaded = True
        self._changed()
        damaged = self.session.store.damaged
        if damaged:
            self.notify(f"{damaged[0][0].name}: {damaged[0][1]}", title="the store", severity="warning", markup=False)

    @on(EngineEvents)
    def _engine_events(self, message: EngineEvents) -> None:
        changed = self.session.apply(message.events)
        self._notices(message.events)
        if changed:
            self._changed(set(changed))
        self._status()

    def _notices(self, events: tuple[Event, ...]) -> None:
        from rankscope.engine.events import Notice

        for event in events:
            if isinstance(event, Notice):
                self.notify(event.text, severity="error" if event.fatal else "information", markup=False)

    def _changed(self, keys: set[str] | None = None) -> None:
        """States or ranks changed (of these keys, None: of any): draw what shows them."""
        self.heatmap.update_cells()
        self.tree_pane.update_marks()
        if keys is None or self.view == LAYERS or any(p.key in keys for p in self.selection.projections(self.grid)):
            self._version += 1
            self._want_chart()
        self._status()

    @on(ChartReady)
    def _chart_ready(self, message: ChartReady) -> None:
        painting: Painting = message.painting
        if painting.request == self._request():
            self.chart.show(painting.lines, painting.readout)

    # The selection

    def _select(self, selection: Selection) -> None:
        """Every pane shows another selection."""
        self.selection = selection
        self.note = ""
        self.tree_pane.follow(selection)
        self.heatmap.put_cursor(selection.row, selection.column)
        self._want_chart()
        self._status()

    @on(Tree.NodeHighlighted)
    def _tree_moved(self, event: Tree.NodeHighlighted[Item]) -> None:
        item = event.node.data
        if item is not None and item.selection is not None and item.selection != self.selection:
            self.selection = item.selection
            self.heatmap.put_cursor(item.selection.row, item.selection.column)
            self._want_chart()
            self._status()

    @on(Heatmap.Moved)
    def _heatmap_moved(self, event: Heatmap.Moved) -> None:
        self._select(Selection(event.row, event.column))

    @on(ChartPane.Step)
    def _chart_step(self, event: ChartPane.Step) -> None:
        self.action_step_layer(event.layers)

    def action_step_layer(self, step: int) -> None:
        """The same role, block or whole in another layer."""
        self._select(self.selection.step_layer(self.grid, step))

    def action_step_role(self, step: int) -> None:
        """Another role of the same layer, or another role over all layers."""
        self._select(self.selection.step_role(self.grid, step))

    def action_match(self, step: int) -> None:
        """The next projection in the grid."""
        cells = [Selection(r, c) for r in self.grid.rows for c in self.grid.columns if (r, c) in self.grid.cells]
        if cells:
            at = cells.index(self.selection) + step if self.selection in cells else 0
            self._select(cells[at % len(cells)])

    # The filter

    def _apply_filter(self, pattern: str) -> None:
        tree = self.session.model.tree
        shown = tree.scanned(pattern or None)
        self.pattern = pattern
        self.grid = make_grid(shown)
        placed = {p.key for cell in self.grid.cells.values() for p in cell}
        self.others = [p for p in (shown if pattern else tree.projections) if p.key not in placed]

    def _show_grid(self) -> None:
        self.heatmap.set_grid(self.grid)
        self.tree_pane.set_model(self.grid, self.others)

    def action_filter(self) -> None:
        """Ask for a filter."""
        self.query_one(Prompt).ask("/", self.pattern, "filter addresses: key, layers.3, *.mlp.*; empty shows all")

    def set_filter(self, pattern: str) -> None:
        """Show only what the filter names; a filter that names nothing is refused."""
        if pattern and not self.session.model.tree.scanned(pattern):
            self.say(f"no address matches {printable(pattern)!r}")
            return
        self._apply_filter(pattern)
        self._show_grid()
        self._select(Selection(self.grid.rows[0], self.grid.columns[0]) if pattern and self.grid.rows else Selection())
        self._titles()

    # Views

    def action_pane(self, number: int) -> None:
        """Go to the tree (0), the heatmap (3) or a chart."""
        self._pane = number
        if number in VIEW_NAMES:
            self.view = number
        self._arrange()
        (self.tree_pane if number == 0 else self.heatmap if number == HEATMAP else self.chart).focus()
        self._titles()
        self._want_chart()

    def action_next_pane(self, step: int) -> None:
        """Tree, heatmap, chart, and round."""
        order = [0, HEATMAP, self.view]
        at = order.index(self._pane) if self._pane in order else 0
        self.action_pane(order[(at + step) % 3])

    def action_threshold(self, step: int) -> None:
        """The next threshold of the list."""
        at = self.thresholds.index(self.threshold)
        self.set_threshold(self.thresholds[(at + step) % len(self.thresholds)])

    def set_threshold(self, threshold: float) -> None:
        """Show ranks at a threshold, which joins the list; ranks that the store does not keep are worked out."""
        self.threshold = threshold
        self.thresholds = tuple(sorted({*self.thresholds, threshold}))
        self._titles()
        self._changed()
        self.painter.run(self._load_store)

    def action_axes(self) -> None:
        """The next kind of axes."""
        self.axes = (self.axes + 1) % len(AXES_NAMES)
        self._titles()
        self._want_chart()

    def action_back(self) -> None:
        """Undo the filter, else go to the tree."""
        if self.pattern:
            self.set_filter("")
        else:
            self.action_pane(0)

    def action_help(self) -> None:
        """The keys of the focused pane and of the explorer."""
        pane = self.focused.id if self.focused else None
        own = {"tree": keys.TREE, "heatmap": keys.HEATMAP, "chart": keys.CHART}.get(pane or "", [])
        sections = [("everywhere", keys.EXPLORER)]
        self.app.push_screen(Help([(f"in the {pane}", own), *sections] if own else sections))

    # Computing

    def action_compute(self) -> None:
        """Compute the selection, before whatever waits."""
        selected = list(self.selection.projections(self.grid))
        missing = [p for p in selected if self.session.entry(p) is None]
        if not missing:
            if self.focused is self.tree_pane:
                self.tree_pane.action_toggle_node()
            return
        self._compute(missing, urgent=True)

    def action_scan(self) -> None:
        """Ask, then compute all that the filter leaves."""
        missing = [p for p in self.session.model.tree.scanned(self.pattern or None) if self.session.entry(p) is None]
        if not missing:
            self.say("everything that the filter leaves is computed" if self.pattern else "everything is computed")
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._compute(missing, urgent=False)

        self.app.push_screen(Confirm("scan", estimate(self.session, missing, self.pattern)), answered)

    def _compute(self, projections: list[Projection], urgent: bool) -> None:
        try:
            accepted = self.session.compute(projections, urgent=urgent)
        except InputError as error:
            self.say(str(error))
            return
        self._changed({p.key for p in accepted})

    def action_stop(self) -> None:
        """Stop after the running batch."""
        self.session.engine.stop()

    # The command line

    def action_command(self) -> None:
        """Ask for a command."""
        self.query_one(Prompt).ask(":", "", "12 goes to layer 12; t 97; filter key; scan; stop; quit")

    @on(Prompt.Answered)
    async def _prompt_answered(self, answer: Prompt.Answered) -> None:
        (self.tree_pane if self._pane == 0 else self.heatmap if self._pane == HEATMAP else self.chart).focus()
        self._status()
        if answer.text is None:
            return
        if answer.kind == "/":
            self.set_filter(answer.text.strip())
            return
        try:
            command, argument = parse_command(answer.text)
        except InputError as error:
            self.say(str(error))
            return
        await self._run_command(command, argument)

    async def _run_command(self, command: str, argument: str) -> None:
        match command:
            case "layer":
                self._go_to_layer(int(argument))
            case "threshold":
                self.set_threshold(float(argument))
            case "filter":
                self.set_filter(argument)
            case _:
                await self.run_action(command)

    def _go_to_layer(self, layer: int) -> None:
        tower = self.selection.row.tower if self.selection.row else self.grid.rows[0].tower if self.grid.rows else ""
        row = next((r for r in self.grid.rows if r == Row(tower, layer)), None)
        if row is None:
            self.say(f"there is no layer {layer} here")
        else:
            self._select(replace(self.selection, row=row, single=None))

    # Lines, titles, layout

    def say(self, text: str) -> None:
        """A sentence in the job line, until the next move."""
        self.note = text
        self._status()

    def _status(self) -> None:
        self.query_one("#top", Line).set(*model_text(self.session))
        left, right = job_text(self.session, self.selection, self.grid)
        self.query_one("#job", Line).set(Text(self.note, "yellow") if self.note else left, right)
        self.query_one("#keys", Line).set(key_hints(self.size.width))

    def _titles(self) -> None:
        name = percent(self.threshold)
        filtered = f"  filter {printable(self.pattern)}" if self.pattern else ""
        self.tree_pane.border_title = Text(f"0 tree{filtered}")
        self.heatmap.border_title = f"3 heatmap  k{name} = components for {name} % of the energy"
        shades = Content.from_rich_text(shade_key())
        self.heatmap.border_subtitle = Content("shade k/k0 (k0: noise of this shape) ") + shades
        axes = {SPECTRUM: AXES_NAMES[self.axes], ENERGY: "linear" if self.axes else "log x"}.get(self.view, "")
        self.chart.border_title = f"{self.view} {VIEW_NAMES[self.view]}  {axes}".rstrip()

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

    @on(ChartPane.Resized)
    def _want_chart(self) -> None:
        """Ask for the chart once the cursor has rested."""
        if self._chart_timer is not None:
            self._chart_timer.stop()
        if self.loaded:
            self._chart_timer = self.set_timer(CHART_DELAY, self._ask_chart)

    def _ask_chart(self) -> None:
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

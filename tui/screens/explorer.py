"""The explorer: moving, filtering and computing in the panes. All state of the interface is here and in Panes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from textual import on
from textual.widgets import Tree

from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import DEFAULT_THRESHOLDS, Projection

from ..commands import parse_command
from ..grid import Row, Selection
from ..messages import BackgroundFailed, EngineEvents, RanksLoaded, StoreLoaded
from ..status import estimate
from ..widgets.chart import ChartPane
from ..widgets.heatmap import Heatmap
from ..widgets.lines import Prompt
from ..widgets.tree import Item
from .dialogs import Confirm
from .panes import HEATMAP, LAYERS, Panes

if TYPE_CHECKING:
    from rankscope.engine.events import Event


class Explorer(Panes):
    """Shows one session and does what the keys ask."""

    def on_mount(self) -> None:
        super().on_mount()
        self.call_after_refresh(self._select_first)
        # The tree stands before numpy and h5py are imported (0.25 s) to fill the heatmap.
        self.call_after_refresh(self._in_background, self._load_store)

    def _select_first(self) -> None:
        """Begin with the attention of the first layer, once the tree has its lines."""
        if self.grid.rows:
            self._select(Selection(self.grid.rows[0], block=self.grid.columns[0].block))
        elif self.others:
            self._select(Selection(single=self.others[0]))

    # Events from threads

    def _in_background(self, work: Callable[[], None]) -> None:
        """Slow work in the painter's thread; what goes wrong there is said here."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the explorer goes on without the store
                self.post_message(BackgroundFailed(f"{type(error).__name__}: {error}"))

        self.painter.run(guarded)

    def _load_store(self) -> None:
        """What is stored, and ranks at a threshold the store does not keep."""
        try:
            self.session.load()
            self.session.load_ranks(self.session.model.tree.projections, self.threshold)
        finally:
            self.post_message(StoreLoaded())
        self.session.tidy()

    def _load_ranks(self, keys: set[str] | None = None) -> None:
        """Ranks (of these keys, None: of all) at the current threshold, where the store does not keep them."""
        wanted = [p for p in self.session.model.tree.projections if keys is None or p.key in keys]
        self.session.load_ranks(wanted, self.threshold)
        self.post_message(RanksLoaded(keys))

    @on(StoreLoaded)
    def _store_loaded(self) -> None:
        self.loaded = True
        self._changed()
        for path, reason in self.session.store.damaged[:1]:
            self.notify(f"{path.name}: {reason}", title="the store", severity="warning", markup=False)

    @on(RanksLoaded)
    def _ranks_loaded(self, message: RanksLoaded) -> None:
        self._changed(message.keys)

    @on(BackgroundFailed)
    def _background_failed(self, message: BackgroundFailed) -> None:
        self.notify(printable(message.reason), title="the store", severity="error", markup=False)

    @on(EngineEvents)
    def _engine_events(self, message: EngineEvents) -> None:
        from rankscope.engine.events import Started

        changed = set(self.session.apply(message.events))
        self._starting = False
        self._solving = next((e.projection for e in reversed(message.events) if isinstance(e, Started)), self._solving)
        if self.is_stopping and not self.is_busy:
            self.is_stopping = False
            self.note = "stopped; what is finished is saved"
        self._notices(message.events)
        if changed:
            self._changed(changed)
            if self.threshold not in DEFAULT_THRESHOLDS:
                self._in_background(partial(self._load_ranks, changed))
        self._status()

    def _notices(self, events: tuple[Event, ...]) -> None:
        from rankscope.engine.events import Notice

        for event in events:
            if isinstance(event, Notice):
                self.notify(event.text, severity="error" if event.fatal else "information", markup=False)

    def _changed(self, keys: set[str] | None = None) -> None:
        """States or ranks changed (of these keys, None: of any): draw what shows them."""
        self.look.forget(keys)
        self.heatmap.update_cells()
        self.tree_pane.update_marks()
        self._show_model()
        if keys is None or self.view == LAYERS or any(p.key in keys for p in self.selection.projections(self.grid)):
            self._version += 1
            self._want_chart()
        self._status()

    # The selection

    def _select(self, selection: Selection) -> None:
        """Every pane shows another selection; the tree, where it has not the focus, once the cursor has rested."""
        if self._pane == 0:
            self.tree_pane.follow(selection)
        self._show(selection)

    def _show(self, selection: Selection) -> None:
        """Every pane but the tree, where the user may be moving."""
        self.selection = selection
        self.note = ""
        self.heatmap.show_selection(selection)
        self._want_chart()
        self._status()

    @on(Tree.NodeHighlighted)
    def _tree_moved(self, event: Tree.NodeHighlighted[Item]) -> None:
        item = event.node.data
        if item is not None and item.selection is not None and item.selection != self.selection:
            self._show(item.selection)

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
        here = replace(self.selection, single=None)
        at = next((i for i, cell in enumerate(cells) if cell == here), None)
        if at is None:  # between the cells: from the first of this layer
            at = next((i for i, cell in enumerate(cells) if cell.row == here.row), 0) - (step > 0)
        if cells:
            self._select(cells[(at + step) % len(cells)])

    # The filter

    def action_filter(self) -> None:
        """Ask for a filter."""
        self.query_one(Prompt).ask("/", self.pattern, "filter addresses: key, layers.3, *.mlp.*; empty shows all")

    def set_filter(self, pattern: str) -> None:
        """Show only what the filter names; a filter that names nothing is refused."""
        if pattern and not self.session.model.tree.scanned(pattern):
            self.say(f"no address matches {printable(pattern)!r}")
            return
        self._apply_filter(pattern)
        self._version += 1  # charts of layers and roles are others now
        self._show_grid()
        self._arrange()
        if self.selection.projections(self.grid) and self.selection.single is None:
            self._select(self.selection)
        else:
            self._select_first()
        self._titles()

    def action_threshold(self, step: int) -> None:
        """The next threshold of the list."""
        at = self.thresholds.index(self.threshold)
        self.set_threshold(self.thresholds[(at + step) % len(self.thresholds)])

    def set_threshold(self, threshold: float) -> None:
        """Show ranks at a threshold, which joins the list; ranks that the store does not keep are worked out."""
        self.look.threshold = threshold
        self.thresholds = tuple(sorted({*self.thresholds, threshold}))
        self._titles()
        self._changed()
        if threshold not in DEFAULT_THRESHOLDS:
            self._in_background(self._load_ranks)

    def action_back(self) -> None:
        """Undo the filter, else go to the tree."""
        if self.pattern:
            self.set_filter("")
        else:
            self.action_pane(0)

    # Computing

    def action_compute(self) -> None:
        """Compute the selection, before whatever waits; open what is computed."""
        node = self.tree_pane.cursor_node
        in_group = self._pane == 0 and node is not None and (node.data is None or node.data.selection is None)
        missing = [p for p in self.selection.projections(self.grid) if self.session.entry(p) is None]
        sound = [p for p in missing if p.problem is None]
        if in_group or (not missing and self._pane == 0 and node is not None and node.allow_expand):
            self.tree_pane.action_toggle_node()
        elif sound and self.selection == Selection():
            self.action_scan()  # the whole model: not without a question
        elif sound:
            self._compute(sound, urgent=True)
        elif missing:
            self.say(missing[0].problem or "")
        elif self._pane in (0, HEATMAP):
            self.action_pane(self.view)

    def action_scan(self) -> None:
        """Ask, then compute all that the filter leaves."""
        left = self.session.model.tree.scanned(self.pattern or None)
        missing = [p for p in left if self.session.entry(p) is None and p.problem is None]
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
        self._starting = bool(accepted) and not self.is_busy
        self.is_stopping = False
        self.note = ""
        self._changed({p.key for p in accepted})

    def action_stop(self) -> None:
        """Stop after the running batch."""
        if not self.is_busy:
            self.say("nothing is being computed")
            return
        self.is_stopping = True
        self.session.stop()
        self.say("stopping after the running projection; ctrl+c quits")

    # The command line

    def action_command(self) -> None:
        """Ask for a command."""
        self.query_one(Prompt).ask(":", "", "12 goes to layer 12; t 97; filter key; scan; stop; quit")

    @on(Prompt.Answered)
    async def _prompt_answered(self, answer: Prompt.Answered) -> None:
        self.set_focus(self.focused_pane)
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
            self._select(self.selection.in_row(self.grid, row))

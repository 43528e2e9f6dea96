"""Changes of what the explorer shows: selection, lens, rank cursor, marks, filter, views and their forms.

Every change ends in `changed` of view_state.py, so a state can be built and changed without a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankscope.engine.catalogue.tree import model_order
from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from .changes import Change, Keys
from .comparison import MOST_MARKS
from .contrast import Contrast
from .filter import find
from .grid import Row, Selection, make_grid
from .kept_ranks import KeptRanks
from .lens import Lens
from .measures import BY_NAME, energy_of
from .model import Model
from .pair import Pair, Side
from .plan_shown import ShownPlan
from .reference_lines import ReferenceLine
from .session import Session
from .view_state import ViewState
from .views import BY_KEY, View, ViewPlace

ONE_MODEL = "only one model is open: :against org/name adds another to compare with"


@dataclass(slots=True)
class ExplorerState(ViewState):
    """A `ViewState` with the actions of keys and commands."""

    @classmethod
    def of(
        cls, pair: Pair, threshold: float, thresholds: Sequence[float], lines: tuple[ReferenceLine, ...] = ()
    ) -> ExplorerState:
        """The state in which the explorer opens."""
        every = tuple(sorted({*thresholds, threshold}))
        state = cls(pair, Lens(pair, threshold, thresholds=every), every, lines)
        state._show("")
        return state

    # The selection

    def select(self, selection: Selection, origin: Selection | None = None) -> None:
        """Show another selection in every pane; `origin` is the selection where a walk to it began."""
        if self.pane == View.TREE:
            self.selection = selection
            self.changed(Change.TREE)
        self.move_to(selection, origin)

    def move_to(self, selection: Selection, origin: Selection | None = None) -> None:
        """Show another selection, but leave the tree alone, where the user is moving."""
        self.selection = selection
        self.origin = origin
        self.note = ""
        self.changed(Change.SELECTION)

    def select_first(self) -> None:
        """Select the attention of the first layer."""
        if self.grid.rows:
            row, column = self.grid.rows[0], self.grid.columns[0]
            is_derived = column in self.grid.derived
            self.select(Selection(row, column) if is_derived else Selection(row, block=column.block))
        elif self.others:
            self.select(Selection(single=self.others[0]))

    def step_layer(self, step: int) -> None:
        """Select the same role, block or whole in another layer."""
        self._walk(self.selection.step_layer(self.grid, step))

    def step_role(self, step: int) -> None:
        """Select another role of the same layer, or another role over all layers."""
        self._walk(self.selection.step_role(self.grid, step))

    def _walk(self, there: Selection) -> None:
        """Move on; the chart shows the selection where the walk began as a dim line."""
        begin = self.origin or self.selection
        self.select(there, begin if begin != there else None)

    def step_match(self, step: int) -> None:
        """Select the next projection in the grid."""
        there = self.selection.step_cell(self.grid, step)
        if there is not None:
            self.select(there)

    def go_to_layer(self, layer: int) -> None:
        """Select the same in the layer with this number."""
        tower = self.selection.row.tower if self.selection.row else self.grid.rows[0].tower if self.grid.rows else ""
        row = next((r for r in self.grid.rows if r == Row(tower, layer)), None)
        if row is None:
            others = [r.layer for r in self.grid.rows if r.tower == tower and r.layer is not None]
            known = f": there are {min(others)} to {max(others)}" if others else ""
            self.say(f"there is no {self.grid.rows_are} {layer} here{known}")
        else:
            self.select(self.selection.in_row(self.grid, row))

    # The filter

    def set_filter(self, pattern: str) -> None:
        """Show only what the filter matches; refuse a filter that matches nothing."""
        if not self.narrow(pattern):
            self.say_unmatched(pattern)

    def say_unmatched(self, pattern: str) -> None:
        """Report that a filter matches nothing."""
        self.say(f"no address matches {printable(pattern)!r}")

    def narrow(self, pattern: str) -> bool:
        """Show only what the filter matches; if that is nothing, change nothing and return False."""
        found = self._named(pattern)
        if pattern and not any(found):
            return False
        self._show(pattern, found)
        self.version += 1  # charts of layers and roles change
        self.changed(Change.ROWS)
        if self.selected and self.selection.single is None:
            self.select(self.selection)
        else:
            self.select_first()
        return True

    def _named(self, pattern: str) -> tuple[Sequence[Projection], Sequence[Projection]]:
        """The projections of a scan, and the matrices made of several, that a filter matches."""
        model = self.session.model
        if not pattern:
            return model.tree.scanned(), model.further
        found, beside = find(model.every, pattern), {p.key for p in model.further}
        return [p for p in found if p.key not in beside], [p for p in found if p.key in beside]

    def _show(self, pattern: str, found: tuple[Sequence[Projection], Sequence[Projection]] | None = None) -> None:
        """Show what a filter matches; `found`, if it is known already."""
        tree = self.session.model.tree
        self.shown, self.further = found or self._named(pattern)
        self.pattern = pattern
        self.grid = make_grid(self.shown, self.further, shown=any(map(self.pair.has, self.further)))
        placed = {p.key for cell in self.grid.cells.values() for p in cell}
        self.others = [p for p in (self.shown if pattern else tree.projections) if p.key not in placed]

    @property
    def rows(self) -> Sequence[Projection]:
        """The rows of tables: what is shown, and those matrices made of several that have a column."""
        if not set(self.grid.derived) & set(self.grid.columns):
            return self.shown
        return sorted((*self.shown, *self.further), key=model_order)

    def _show_columns(self, keys: Keys) -> None:
        """Show the columns of matrices made of several once one of them (among these keys, None: any) is stored."""
        hidden = not set(self.grid.derived) <= set(self.grid.columns)
        if hidden and any(self.pair.has(p) for p in self.further if keys is None or p.key in keys):
            self.grid = make_grid(self.shown, self.further, shown=True)
            self.changed(Change.COLUMNS)

    # Marks

    def toggle_marks(self) -> None:
        """Mark the selection, or remove its marks if all of it is marked."""
        found = [p for p in self.selected if p.rows]
        if all(p.key in self.marks for p in found):
            self.set_marks({key: p for key, p in self.marks.items() if p not in found})
        elif len({*self.marks, *(p.key for p in found)}) > MOST_MARKS:
            self.say(f"{MOST_MARKS} marks at most: {len(self.marks)} are set, {len(found)} selected; M clears them")
        else:
            self.set_marks(self.marks | {p.key: p for p in found})

    def mark_matching(self, pattern: str) -> None:
        """Mark what a filter matches."""
        found = find(self.session.model.every, pattern)
        if not 0 < len(found) <= MOST_MARKS:
            self.say(f"{len(found)} addresses match {printable(pattern)!r}: 1 to {MOST_MARKS} can be marked")
        else:
            self.set_marks({p.key: p for p in found})

    def set_marks(self, marks: dict[str, Projection]) -> None:
        """Mark exactly these."""
        touched = {*self.marks, *marks}
        self.marks = marks
        self.note = ""
        self.changed(Change.MARKS)
        self.numbers_changed(touched)
        self.changed(Change.LAYOUT)
        if self.top == View.COMPARE:
            self.changed(Change.WANTED)

    # Which number

    def step_threshold(self, step: int) -> None:
        """Go to the next threshold of the list."""
        at = self.thresholds.index(self.threshold)
        self.set_threshold(self.thresholds[(at + step) % len(self.thresholds)])

    def set_threshold(self, threshold: float) -> None:
        """Show ranks at a threshold and add it to the list; ranks that the store lacks are computed."""
        self.thresholds = tuple(sorted({*self.thresholds, threshold}))
        self.lens.threshold = threshold
        self.lens_changed()

    def set_unit(self, name: str) -> None:
        """Show another number, if it exists under the weighting."""
        if not BY_NAME[name].exists(self.pair.shown_as):
            self.say(f"there is no {name} {self._without(BY_NAME[name].needs_raw)}")
            return
        self.unit_asked_for = ""
        self.lens.measure = BY_NAME[name]
        if self.lens.measure.needs_ranks:
            self.lens.ranks = self.lens.ranks or KeptRanks(self.k or self.usual_rank())
            self.lens.measure = energy_of(self.lens.ranks)
        self.lens_changed()
        if self.lens.measure.needs_ranks:
            self.say("energy kept at rank k: :k 512 or :k q=96 kv=64 sets k; comma, full stop move it")
        elif self.lens.measure.needs_twin and not self.lens.knows_any(self.shown):
            self.say("kf is the rank of the same weights with random signs: s computes these spectra")
        elif self.lens.measure.needs_directions and not any(s.has_directions for s in self.pair.sessions):
            self.say("no directions are computed yet: i on a projection computes its own")

    def set_contrast(self, contrast: Contrast) -> None:
        """Spread the shades over another range."""
        self.lens.contrast = contrast
        self.lens_changed()

    def _without(self, needs_raw: bool) -> str:
        """The state in which the number does not exist, and the key to one in which it does."""
        if needs_raw:
            return "without a weighting: w chooses one"
        if self.pair.weighting:
            return "under a weighting: w, none: the weights as they are"
        if self.session.model.against:
            return "of differences: d shows the models"
        return "in the fixed gauge: v shows the weights as they are"

    def show_under(self, models: Mapping[Session, Model]) -> None:
        """Show the projections of `models`, which are other states: under a weighting, or unmodified. Selection and
        marks stay."""
        for session, model in models.items():
            session.show(model)
        self.pair.renew()
        self.show_plan(None)
        if not self.lens.measure.exists(self.pair.shown_as):
            self.lens.measure = BY_NAME["k"]
        now = {p.address: p for p in self.session.model.every}
        if self.pair.second is not None:
            now = {p.address: p for p in self.pair.second.model.every} | now
        self.marks = {p.key: p for q in self.marks.values() if (p := now.get(q.address)) is not None}
        self._show(self.pattern)
        origin = self.origin and self.origin.found_in(now).in_columns(self.grid)
        self.changed(Change.ROWS)
        self.changed(Change.MARKS)
        self.select(self.selection.found_in(now).in_columns(self.grid), origin)
        self.lens_changed()
        self.numbers_changed()

    def next_side(self) -> None:
        """Go to the next of A, B, B/A."""
        if self.pair.second is None:
            self.say(ONE_MODEL)
            return
        sides = list(Side)
        self.lens.side = sides[(sides.index(self.lens.side) + 1) % len(sides)]
        self.lens_changed()

    def lens_changed(self) -> None:
        """Every number is another one; what is computed is unchanged."""
        self.note = ""
        self.changed(Change.LENS)
        self.version += 1
        self.changed(Change.CHART)
        if self.loaded:
            self.changed(Change.WANTED)

    def numbers_changed(self, keys: Keys = None) -> None:
        """States or numbers have changed (of these keys, None: of any): redraw what shows them."""
        self._show_columns(keys)
        self.changed(Change.NUMBERS, keys)
        drawn = [*self.selected, *self.marks.values()]
        if keys is None or self.chart_view.over_layers or any(p.key in keys for p in drawn):
            self.version += 1
            self.changed(Change.CHART)

    # Views

    def show(self, key: int) -> None:
        """Focus the tree, or show and focus a view above the chart or a chart."""
        if self.pane != View.TREE and key == View.TREE:
            self.changed(Change.TREE)
        view, before, self.pane = BY_KEY[key], self.pane, key
        if view.place is ViewPlace.CHART and BY_KEY[before].place is not ViewPlace.CHART:
            self.came_from = before
        if view.place is ViewPlace.CHART:
            self.chart = key
        elif view.place is ViewPlace.TOP:
            self.top = key
        if key == View.COMPARE and self.chart_view.over_layers:
            self.chart = View.SPECTRUM
        self.changed(Change.PANE)
        if view.from_values and self.loaded:
            self.changed(Change.WANTED)

    def go_back(self) -> None:
        """Go from a chart to the pane from which it was opened, else to the tree."""
        self.show(self.came_from if BY_KEY[self.pane].place is ViewPlace.CHART else View.TREE)

    def step_pane(self, step: int) -> None:
        """Focus the next of tree, view above the chart, and chart."""
        order = [View.TREE, self.top, self.chart]
        self.show(order[(order.index(self.pane) + step) % len(order)])

    def next_axes(self) -> None:
        """Show the next kind of axes that the chart has."""
        names, before = self.chart_view.axes, self.shown_axes
        later = [(before + step) % len(names) for step in range(1, len(names))]
        self.axes = next((axes for axes in later if names[axes] != names[before]), before)
        self.changed(Change.AXES)

    def toggle_relative(self) -> None:
        """Switch between singular values over sigma_1 and absolute ones."""
        self.relative = not self.relative
        self.changed(Change.AXES)

    def zoom(self, is_overview: bool) -> None:
        """In a chart: switch between small multiples and one chart. Elsewhere: switch between the heatmap's two
        forms."""
        view = BY_KEY[self.pane]
        if view.place is ViewPlace.CHART:
            if view.over_layers:
                self.panels = not self.panels
                several = "small charts, a threshold each, as many as fit: z goes back to large ones"
                one = "large charts, as many thresholds as fit beside each other: z makes them small"
            else:
                self.small = not self.small
                each = self.grid.rows_are
                several = f"a chart a {each}: z goes back to one chart of the selection"
                one = f"one chart of the selection: z shows a chart a {each}"
            self.changed(Change.AXES)
            self.say(several if (self.panels and view.over_layers) or (self.small and not view.over_layers) else one)
            return
        self.overview = not is_overview
        if self.top not in (View.HEATMAP, View.PLAN):
            self.show(View.HEATMAP)
        self.changed(Change.LAYOUT)
        self.changed(Change.TITLES)

    def toggle_full(self) -> None:
        """Switch between the focused pane alone and all panes."""
        self.full = not self.full
        self.changed(Change.LAYOUT)

    def leave_small(self) -> None:
        """Show one chart instead of small multiples by layer."""
        self.small = False
        self.changed(Change.AXES)

    def set_rank(self, rank: int | None) -> None:
        """Put the rank cursor at a rank, at least 1, with a note if a curve is shorter; None removes it. Unless roles
        have separate ranks, the energy that is shown follows the cursor."""
        self.k = None if rank is None else max(1, rank)
        self.changed(Change.RANK)
        if self.k is not None and not (self.lens.ranks and self.lens.ranks.roles):
            self.keep(KeptRanks(self.k))

    def keep(self, ranks: KeptRanks) -> None:
        """Show the energy that these ranks keep, wherever there is a column for it."""
        if ranks == self.lens.ranks:
            return
        self.lens.ranks = ranks
        if self.lens.measure.needs_ranks:
            self.lens.measure = energy_of(ranks)
            self.lens_changed()
        elif BY_KEY[self.top].from_values and self.loaded:  # the tables have a column of it
            self.changed(Change.LOADED)
            self.changed(Change.WANTED)

    def step_kept(self, steps: int) -> None:
        """Step the ranks whose energy is shown; the cursor moves along if all roles have one rank."""
        if self.lens.ranks is None:
            return
        there = self.lens.ranks.stepped(steps, max((p.count for p in self.rows), default=1))
        if there.roles:
            self.keep(there)
        else:
            self.set_rank(there.common)

    def show_plan(self, plan: ShownPlan | None) -> None:
        """Show another plan, or none."""
        if plan is not self.plan:
            self.plan = plan
            self.changed(Change.PLAN)

    def add_line(self, line: ReferenceLine) -> None:
        """Add a reference line to the view over layers."""
        self.lines = (*self.lines, line)
        self.version += 1
        self.show(View.LAYERS)

"""Moving, filtering and marking: what is selected, and which numbers are shown of it."""

from __future__ import annotations

from dataclasses import replace

from textual import on
from textual.widgets import Tree

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ...data.comparison import MOST_MARKS
from ...data.filter import find
from ...data.grid import Row, Selection
from ...data.measures import BY_NAME, UNITS
from ...data.pair import Side
from ...settings.values import reference_line
from ...widgets.chart import ChartPane
from ...widgets.heatmap import Heatmap
from ...widgets.table import MetricTable
from ...widgets.tree import Item
from ..dialogs import Choice
from .background import Loading
from .layout import COMPARE, SPECTRUM


class Choosing(Loading):
    """The one selection, the filter, the marks, and the lens through which numbers are seen."""

    # The selection

    @on(Tree.NodeHighlighted)
    def _tree_moved(self, event: Tree.NodeHighlighted[Item]) -> None:
        item = event.node.data
        if item is not None and item.selection is not None and item.selection != self.selection:
            self.origin = None
            self._show(item.selection)

    @on(Heatmap.Moved)
    @on(MetricTable.Moved)
    def _moved(self, event: Heatmap.Moved | MetricTable.Moved) -> None:
        self._select(event.selection)

    @on(ChartPane.Step)
    def _chart_step(self, event: ChartPane.Step) -> None:
        self.action_step_layer(event.layers)

    def action_step_layer(self, step: int) -> None:
        """The same role, block or whole in another layer."""
        self._walk(self.selection.step_layer(self.grid, step))

    def action_step_role(self, step: int) -> None:
        """Another role of the same layer, or another role over all layers."""
        self._walk(self.selection.step_role(self.grid, step))

    def _walk(self, there: Selection) -> None:
        """Go on; where the walk began stays as a dim line in the chart."""
        begin = self.origin or self.selection
        self._select(there)
        self.origin = begin if begin != there else None

    def action_match(self, step: int) -> None:
        """The next projection in the grid."""
        cells = [Selection(r, c) for r in self.grid.rows for c in self.grid.columns if (r, c) in self.grid.cells]
        here = replace(self.selection, single=None)
        at = next((i for i, cell in enumerate(cells) if cell == here), None)
        if at is None:  # between the cells: from the first of this layer
            at = next((i for i, cell in enumerate(cells) if cell.row == here.row), 0) - (step > 0)
        if cells:
            self._select(cells[(at + step) % len(cells)])

    def go_to_layer(self, layer: int) -> None:
        """The same in the layer of this number."""
        tower = self.selection.row.tower if self.selection.row else self.grid.rows[0].tower if self.grid.rows else ""
        row = next((r for r in self.grid.rows if r == Row(tower, layer)), None)
        if row is None:
            self.say(f"there is no layer {layer} here")
        else:
            self._select(self.selection.in_row(self.grid, row))

    # The filter

    def set_filter(self, pattern: str) -> None:
        """Show only what the filter names; a filter that names nothing is refused."""
        before = self.pattern
        self._apply_filter(pattern)
        if pattern and not self.shown:
            self._apply_filter(before)
            self.say(f"no address matches {printable(pattern)!r}")
            return
        self._version += 1  # charts of layers and roles are others now
        self._show_grid()
        self._arrange()
        if self.selection.projections(self.grid) and self.selection.single is None:
            self._select(self.selection)
        else:
            self._select_first()
        self._titles()

    def action_back(self) -> None:
        """Undo what was done last of: the rank cursor, opened experts, facets, the filter; else go to the tree."""
        if self.k is not None and self._pane != 0:
            self.set_rank(None)
        elif self.heatmap.has_focus and self.heatmap.fold():
            self._arrange()
        elif self.facets and self._pane != 0:
            self.facets = False
            self._charts_changed()
        elif self.pattern:
            self.set_filter("")
        else:
            self.action_pane(0)

    # Marks

    def action_mark(self) -> None:
        """Mark what is selected, or take its marks away where all of it is marked."""
        found = [p for p in self.selection.projections(self.grid) if p.rows]
        if all(p.key in self.marks for p in found):
            self.set_marks({key: p for key, p in self.marks.items() if p not in found})
        elif len({*self.marks, *(p.key for p in found)}) > MOST_MARKS:
            self.say(f"{MOST_MARKS} marks at most: {len(self.marks)} are set, {len(found)} selected; M clears them")
        else:
            self.set_marks(self.marks | {p.key: p for p in found})

    def action_clear_marks(self) -> None:
        """Take all marks away."""
        self.set_marks({})

    def mark_matching(self, pattern: str) -> None:
        """Mark what a filter names."""
        found = find(self.session.model.tree.projections, pattern)
        if not 0 < len(found) <= MOST_MARKS:
            self.say(f"{len(found)} addresses match {printable(pattern)!r}: 1 to {MOST_MARKS} can be marked")
        else:
            self.set_marks({p.key: p for p in found})

    def set_marks(self, marks: dict[str, Projection]) -> None:
        """Mark these and no others."""
        changed = {*self.marks, *marks}
        self.marks = marks
        self.look.marked = self.table.marked = frozenset(marks)
        self.compare.set_marks(tuple(marks.values()))
        self.note = ""
        self._changed(changed)
        self._arrange()
        if self.top == COMPARE:
            self._load_numbers()

    # Threshold, unit, side

    def action_threshold(self, step: int) -> None:
        """The next threshold of the list."""
        at = self.thresholds.index(self.threshold)
        self.set_threshold(self.thresholds[(at + step) % len(self.thresholds)])

    def set_threshold(self, threshold: float) -> None:
        """Show ranks at a threshold, which joins the list; ranks that the store does not keep are worked out."""
        self.thresholds = tuple(sorted({*self.thresholds, threshold}))
        self.lens.threshold = threshold
        self._lens_changed()

    def action_unit(self) -> None:
        """Ask for the unit of the heatmap."""
        rows = [(m.titled(self.threshold), m.explained(self.threshold)) for m in UNITS]

        def chosen(number: int | None) -> None:
            if number is not None:
                self.set_unit(UNITS[number].name)

        at = UNITS.index(self.lens.measure) if self.lens.measure in UNITS else 0
        self.app.push_screen(Choice("unit", rows, at), chosen)

    def set_unit(self, name: str) -> None:
        """Show another number."""
        self.lens.measure = BY_NAME[name]
        self._lens_changed()
        if name == "k/kf" and not any(self.lens.number(p) is not None for p in self.shown):
            self.say("kf is the rank of the same weights with random signs: s computes these spectra")

    def action_side(self) -> None:
        """A, B, B/A."""
        if self.pair.second is None:
            self.say("there is one model: :against org/name holds another against it")
            return
        sides = list(Side)
        self.lens.side = sides[(sides.index(self.lens.side) + 1) % len(sides)]
        self._lens_changed()

    def _lens_changed(self) -> None:
        self.note = ""
        self._changed()
        self._titles()
        if self.loaded:
            self._load_numbers()

    def add_line(self, text: str) -> None:
        """A reference line in the layers view."""
        self.lines = (*self.lines, reference_line(text))
        self._version += 1
        self.action_pane(4)

    def action_pane(self, number: int) -> None:
        super().action_pane(number)
        if number in (5, COMPARE) and self.loaded:
            self._load_numbers()
        if number == COMPARE and self.view not in (SPECTRUM, 2):
            self.view = SPECTRUM
            self._charts_changed()

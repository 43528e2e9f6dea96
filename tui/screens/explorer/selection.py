"""Keys and panes that change the selection, the filter, the marks and the lens."""

from __future__ import annotations

from textual import on
from textual.widgets import Tree

from ...data.changes import Change
from ...data.grid import Selection
from ...data.measures import units
from ...data.outliers import FAR, next_of, outliers
from ...data.pair import Side
from ...data.views import BY_KEY, View, ViewPlace
from ...widgets.chart import ChartPane
from ...widgets.heatmap import Heatmap
from ...widgets.projection_tree import TreeItem
from ...widgets.table import MetricTable
from ..dialogs import Choice
from .background import Background


class SelectionKeys(Background):
    """Actions that change the state, and moves in the panes."""

    @on(Tree.NodeHighlighted)
    def _tree_moved(self, event: Tree.NodeHighlighted[TreeItem]) -> None:
        item = event.node.data
        if not self.tree_pane.has_focus:
            return  # the tree was filled again, and its cursor is on another node
        if item is not None and item.selection is not None and item.selection != self.state.selection:
            self.state.move_to(item.selection)

    @on(Heatmap.CellSelected)
    @on(MetricTable.RowSelected)
    def _moved(self, event: Heatmap.CellSelected | MetricTable.RowSelected) -> None:
        self.state.select(event.selection)
        if self.state.top == View.HEADS:
            self.show_titles()  # heads of another kind may be selected
        if not self.painter.is_idle:
            self.loader.in_view = self.tops[self.state.top].keys_in_view()

    @on(ChartPane.LayerStep)
    def _chart_step(self, event: ChartPane.LayerStep) -> None:
        self.state.step_layer(event.layers)

    def action_step_layer(self, step: int) -> None:
        """Go to the same role, block or whole in another layer."""
        self.state.step_layer(step)

    def action_step_role(self, step: int) -> None:
        """Go to another role of the same layer, or over all layers."""
        self.state.step_role(step)

    def action_match(self, step: int) -> None:
        """Go to the next projection in the grid."""
        self.state.step_match(step)

    def action_outlier(self, step: int) -> None:
        """Go to the next outlier of a role, and say how far out its number is."""
        state, lens = self.state, self.state.lens
        found = outliers(state.grid, self.look.numbers, ranks=lens.is_rank)
        if not found:
            known = "" if lens.knows_any(state.shown) else ": none is known yet"
            state.say(f"no {lens.title} is more than {FAR:g} MAD from its role's median over the layers{known}")
            return
        at = next_of(found, state.grid, state.selection, step)
        one = found[at]
        state.select(one.selection)
        number, middle = lens.written(one.number), lens.written(one.middle)
        far = f"{abs(one.deviations):.1f} MAD {'above' if one.deviations > 0 else 'below'}"
        state.say(f"{at + 1} of {len(found)}: {one.where}: {lens.title} {number}, median {middle}, {far}")

    def action_mark(self) -> None:
        """Mark what is selected, or remove its marks."""
        self.state.toggle_marks()

    def action_clear_marks(self) -> None:
        """Remove all marks."""
        self.state.set_marks({})

    def action_back(self) -> None:
        """Undo the first of: full screen, rank cursor, opened experts, facets; from a chart go back to where it was
        opened; undo the filter; else go to the tree."""
        state = self.state
        if state.full:
            state.toggle_full()
        elif state.k is not None and state.pane != View.TREE:
            state.set_rank(None)
        elif isinstance(pane := self.focused_pane, Heatmap) and pane.fold():
            state.changed(Change.LAYOUT)
        elif state.small and state.pane != View.TREE:
            state.leave_small()
        elif state.pattern and BY_KEY[state.pane].place is not ViewPlace.CHART:
            state.set_filter("")
        else:
            state.go_back()

    # Computing

    def action_compute(self) -> None:
        """Compute the selection before anything that waits; open what is computed."""
        self.catch_up()
        if self._opens():
            return
        state = self.state
        found = state.selected
        side = state.lens.side if self.pair.second is not None else Side.A
        missing = self.scanner.missing(state.session.sampled(found), side)
        refused = next((p.problem for p in found if p.problem), None)
        if missing and state.selection == Selection():
            self.scanner.scan()  # the whole model, so ask first
        elif missing:
            self.scanner.compute(missing)
        elif refused and all(p.problem for p in found):
            state.say(refused)
        elif state.pane == View.COMPARE and state.marks:
            self.scanner.compute(self.scanner.missing(state.marks.values(), Side.RATIO))
        elif BY_KEY[state.pane].place is not ViewPlace.CHART and state.pane != View.COMPARE:
            state.show(state.chart)

    def _opens(self) -> bool:
        """Open what enter opens: experts in the heatmap, or a node of the tree without a projection. Return whether it
        did."""
        state = self.state
        if isinstance(pane := self.focused_pane, Heatmap) and pane.unfold():
            state.changed(Change.LAYOUT)
            return True
        node = self.tree_pane.cursor_node
        if state.pane != View.TREE or node is None or not node.allow_expand:
            return False
        is_group = node.data is None or node.data.selection is None
        if is_group or all(state.session.entry(p) is not None or p.problem for p in state.selected):
            self.tree_pane.action_toggle_node()
            return True
        return False

    def action_scan(self) -> None:
        """Ask, then compute all that the filter shows."""
        self.catch_up()
        self.scanner.scan()

    def action_stop(self) -> None:
        """Stop after the running batch."""
        self.scanner.stop()

    # Threshold, unit, side

    def action_threshold(self, step: int) -> None:
        """Go to the next threshold of the list."""
        self.state.step_threshold(step)

    def action_unit(self) -> None:
        """Offer the units of the heatmap."""
        lens = self.state.lens
        has_directions = any(session.has_directions for session in self.pair.sessions)
        found = units(self.pair.shown_as, has_directions=has_directions)
        rows = [(m.titled(lens.threshold), m.explained(lens.threshold, self.pair.weighting)) for m in found]

        def chosen(number: int | None) -> None:
            if number is not None:
                self.state.set_unit(found[number].name)

        first = self.state.unit_asked_for or lens.measure.name
        at = next((n for n, m in enumerate(found) if m.name == first), 0)
        self.app.push_screen(Choice("unit", rows, at), chosen)

    # Views

    def action_pane(self, key: int) -> None:
        """Go to the view of a key."""
        self.state.show(key)

    def action_next_pane(self, step: int) -> None:
        """Go to the next of tree, view and chart, in a circle."""
        self.state.step_pane(step)

    def action_axes(self) -> None:
        """Switch to the next kind of axes."""
        self.state.next_axes()

    def action_relative(self) -> None:
        """Show singular values over sigma_1, or as they are."""
        self.state.toggle_relative()

    def action_full(self) -> None:
        """Show only the focused pane, or all of them."""
        self.state.toggle_full()

    def action_zoom(self) -> None:
        """In a chart: show facets or one chart. Elsewhere: show the overview or the table of the heatmap."""
        self.state.zoom(self.is_overview)

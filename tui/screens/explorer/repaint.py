"""The table of what to draw again for each change of the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...data.changes import Change, Keys
from .background import Background

Repaint = Callable[[Background, Keys], None]


def repaint(screen: Background, what: Change, keys: Keys) -> None:
    """Draw what depends on a change, in the order of the table."""
    for paint in TABLE[what]:
        paint(screen, keys)


def _selection(screen: Background, _: Keys) -> None:
    for pane in screen.tops.values():
        pane.show_selection(screen.state.selection)


def _tree(screen: Background, _: Keys) -> None:
    screen.tree_pane.follow(screen.state.selection)


def _rows(screen: Background, _: Keys) -> None:
    screen.look.show(screen.state.grid)
    screen.show_rows()


def _columns(screen: Background, keys: Keys) -> None:
    screen.look.show(screen.state.grid)
    screen.show_in_tops()
    _selection(screen, keys)


def _numbers(screen: Background, keys: Keys) -> None:
    screen.look.forget(keys)
    screen.heatmap.update(keys)
    # New numbers may widen the range of the shades, and change what ranks come to.
    if screen.look.limits() != screen.shown_limits or screen.state.lens.measure.needs_ranks:
        screen.show_titles()
    screen.tree_pane.update_marks()
    _loaded(screen, keys)


def _loaded(screen: Background, keys: Keys) -> None:
    for pane in screen.tops.values():
        if pane is not screen.heatmap:
            pane.update(keys)


def _lens(screen: Background, _: Keys) -> None:
    screen.look.turn()
    screen.heatmap.update()
    screen.tree_pane.update_marks()
    _loaded(screen, None)


def _marks(screen: Background, _: Keys) -> None:
    marks = screen.state.marks
    screen.look.marked = frozenset(marks)
    for pane in screen.tops.values():
        pane.set_marks(tuple(marks.values()))


def _apart(screen: Background, _: Keys) -> None:
    for pane in screen.tops.values():
        pane.set_apart(screen.state.apart)


def _heads(screen: Background, _: Keys) -> None:
    screen.header.want()


def _layout(screen: Background, _: Keys) -> None:
    screen.lay_out()


def _focus(screen: Background, _: Keys) -> None:
    screen.set_focus(screen.focused_pane)  # at once: the next key may be in the queue already


def _titles(screen: Background, _: Keys) -> None:
    screen.show_titles()


def _model(screen: Background, _: Keys) -> None:
    screen.show_model()


def _lines(screen: Background, _: Keys) -> None:
    screen.show_lines()


def _chart(screen: Background, _: Keys) -> None:
    screen.want_chart()


def _rank(screen: Background, _: Keys) -> None:
    screen.chart.set_rank(screen.state.k)


def _plan(screen: Background, _: Keys) -> None:
    screen.plan_map.show_plan(screen.state.plan)
    screen.plan_sums.show_plan(screen.state.plan)


def _load(screen: Background, keys: Keys) -> None:
    screen.load_numbers(keys)


TABLE: Mapping[Change, tuple[Repaint, ...]] = {
    Change.SELECTION: (_selection, _chart, _lines),
    Change.TREE: (_tree,),
    Change.ROWS: (_rows, _apart, _heads, _layout, _titles, _model),
    Change.COLUMNS: (_columns, _layout, _titles),
    Change.NUMBERS: (_numbers, _model, _lines),
    Change.LOADED: (_loaded,),
    Change.LENS: (_lens, _titles, _lines),
    Change.MARKS: (_marks,),
    Change.PANE: (_layout, _focus, _heads, _titles, _chart, _lines),
    Change.LAYOUT: (_layout,),
    Change.TITLES: (_titles,),
    Change.CHART: (_chart,),
    Change.AXES: (_titles, _chart),
    Change.RANK: (_rank,),
    Change.LINES: (_lines,),
    Change.PLAN: (_plan, _layout, _titles, _lines),
    Change.WANTED: (_load,),
}

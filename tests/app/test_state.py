"""The explorer's state without a terminal: built, changed and read; and the changes that it reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from app_models import LLAMA, fill, llama_weights, matrix, rank_in, save_model, spectrum_of

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Saved
from rankscope.engine.derive.flip import flipped
from rankscope.tui.data.changes import Change, Keys
from rankscope.tui.data.grid import Column, Row, Selection
from rankscope.tui.data.model import open_model
from rankscope.tui.data.pair import Pair, Side
from rankscope.tui.data.reference_lines import ReferenceLine
from rankscope.tui.data.session import Session
from rankscope.tui.data.state import ExplorerState
from rankscope.tui.data.views import View
from rankscope.tui.screens.explorer.repaint import TABLE

KEY = Column("attention", "key")


class Heard(list[tuple[Change, Keys]]):
    """The changes that the state has reported since the last look."""

    def __call__(self, what: Change, keys: Keys) -> None:
        self.append((what, keys))

    def kinds(self) -> list[Change]:
        found = [what for what, _ in self]
        self.clear()
        return found


def session_of(folder: Path, root: Path, *, stored: bool = True) -> Session:
    session = Session(
        fill(folder, root) if stored else open_model(str(folder), root), root, lambda _: None, ComputeSettings()
    )
    session.load()
    return session


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def state(llama: Path, root: Path, heard: Heard) -> ExplorerState:
    """The state of the llama with everything stored, at 90 %."""
    state = ExplorerState.of(Pair(session_of(llama, root)), 0.9, (0.6, 0.8, 0.9))
    state.listen = heard
    state.loaded = True
    return state


def test_it_opens_on_the_attention_of_the_first_layer(state: ExplorerState, heard: Heard) -> None:
    assert (state.pane, state.top, state.chart) == (View.TREE, View.HEATMAP, View.SPECTRUM)
    assert len(state.shown) == 42
    assert state.others[0].tensor == "model.embed_tokens.weight"
    state.select_first()
    assert state.selection.label(state.grid) == "layers.0.attention"
    assert heard.kinds() == [Change.TREE, Change.SELECTION]
    assert not state.is_busy


def test_a_walk_remembers_where_it_began_and_forgets_it_there(state: ExplorerState, heard: Heard) -> None:
    start = Selection(Row("", 2), KEY)
    state.show(View.HEATMAP)
    state.select(start)
    heard.clear()
    state.step_layer(1)
    state.step_layer(1)
    assert (state.selection.label(state.grid), state.origin) == ("layers.4.attention.key", start)
    state.step_layer(-1)
    state.step_layer(-1)
    assert (state.selection, state.origin) == (start, None)
    state.step_role(-1)
    assert (state.selection.label(state.grid), state.origin) == ("layers.2.attention.query", start)
    state.select(start)
    assert state.origin is None
    assert set(heard.kinds()) == {Change.SELECTION}  # the tree waits while another pane has the focus


def test_moving_in_the_tree_does_not_move_the_tree(state: ExplorerState, heard: Heard) -> None:
    state.say("read me")
    state.move_to(Selection(Row("", 1)))
    assert heard.kinds() == [Change.LINES, Change.SELECTION]
    assert state.note == ""


def test_matches_go_round_and_begin_beside_what_is_selected(state: ExplorerState) -> None:
    state.set_filter("key")
    state.step_match(-1)
    assert state.selection.label(state.grid) == "layers.5.attention.key"
    state.step_match(1)
    assert state.selection.label(state.grid) == "layers.0.attention.key"
    state.select(Selection(Row("", 3), block="attention"))
    state.step_match(1)
    assert state.selection.label(state.grid) == "layers.3.attention.key"
    state.select(Selection(Row("", 3), block="attention"))
    state.step_match(-1)
    assert state.selection.label(state.grid) == "layers.2.attention.key"


def test_a_layer_that_is_not_there_is_said(state: ExplorerState) -> None:
    state.select(Selection(Row("", 0), KEY))
    state.go_to_layer(5)
    assert state.selection == Selection(Row("", 5), KEY)
    state.go_to_layer(6)
    said = "there is no layer 6 here: there are 0 to 5"
    assert (state.selection, state.note) == (Selection(Row("", 5), KEY), said)


def test_a_filter_leaves_rows_and_one_that_names_nothing_changes_none(state: ExplorerState, heard: Heard) -> None:
    state.select(Selection(Row("", 2), KEY))
    state.set_filter("layers.2")
    assert (len(state.shown), state.grid.rows, state.version) == (7, (Row("", 2),), 1)
    assert state.selection == Selection(Row("", 2), KEY)
    heard.clear()
    state.set_filter("nothing")
    assert (state.pattern, len(state.shown), state.note) == ("layers.2", 7, "no address matches 'nothing'")
    assert heard.kinds() == [Change.LINES]
    state.set_filter("layers.4")
    assert state.selection.label(state.grid) == "layers.4.attention"
    state.set_filter("")
    assert len(state.shown) == 42


def test_marks_are_set_taken_away_and_never_more_than_eight(state: ExplorerState, heard: Heard) -> None:
    state.select(Selection(Row("", 0)))
    state.toggle_marks()
    assert len(state.marks) == 7
    state.select(Selection(Row("", 1), KEY))
    heard.clear()
    state.toggle_marks()
    assert [p.address for p in state.marks.values()][-1] == "layers.1.attention.key"
    kinds = heard.kinds()
    assert kinds == [Change.MARKS, Change.NUMBERS, Change.CHART, Change.LAYOUT]
    state.select(Selection(Row("", 2)))
    state.toggle_marks()
    assert (len(state.marks), state.note) == (8, "8 marks at most: 8 are set, 7 selected; M clears them")
    state.select(Selection(Row("", 1), KEY))
    state.toggle_marks()
    assert len(state.marks) == 7
    state.mark_matching("layers.*.key")
    assert [p.layer for p in state.marks.values()] == [0, 1, 2, 3, 4, 5]
    state.mark_matching("*")
    assert (len(state.marks), state.note) == (6, "43 addresses match '*': 1 to 8 can be marked")
    state.show(View.COMPARE)
    heard.clear()
    state.set_marks({})
    assert heard.kinds()[-1] is Change.WANTED


def test_thresholds_go_round_and_a_new_one_joins_them(state: ExplorerState, llama: Path) -> None:
    found = []
    for _ in range(3):
        state.step_threshold(1)
        found.append(state.threshold)
    assert found == [0.6, 0.8, 0.9]
    state.set_threshold(0.7)
    assert state.thresholds == (0.6, 0.7, 0.8, 0.9)
    key = state.grid.cells[Row("", 3), KEY][0]
    assert state.lens.number(key) is None  # not in the stored table: computed on demand
    state.lens.load([key])
    assert state.lens.number(key) == rank_in(llama, 3, "key", 0.7)
    state.step_threshold(-1)
    assert state.threshold == 0.6


def test_another_unit_tells_that_numbers_are_wanted_once_the_store_is_read(state: ExplorerState, heard: Heard) -> None:
    state.set_unit("k/k0")
    assert heard.kinds() == [Change.LENS, Change.CHART, Change.WANTED]
    state.loaded = False
    state.set_unit("k/kf")
    assert heard.kinds() == [Change.LENS, Change.CHART, Change.LINES]
    assert state.note == "kf is the rank of the same weights with random signs: s computes these spectra"


def test_only_what_the_chart_shows_draws_it_again(state: ExplorerState, heard: Heard) -> None:
    state.select(Selection(Row("", 0), KEY))
    shown, other = (state.grid.cells[Row("", layer), KEY][0].key for layer in (0, 1))
    heard.clear()
    state.numbers_changed({other})
    assert (heard.kinds(), state.version) == ([Change.NUMBERS], 0)
    state.numbers_changed({shown})
    assert (heard.kinds(), state.version) == ([Change.NUMBERS, Change.CHART], 1)
    state.show(View.LAYERS)
    heard.clear()
    state.numbers_changed({other})  # the view over layers shows all of them
    assert (heard.kinds(), state.version) == ([Change.NUMBERS, Change.CHART], 2)


def test_views_change_places(state: ExplorerState, heard: Heard) -> None:
    state.show(View.LAYERS)
    assert (state.pane, state.top, state.chart, state.has_ranks) == (4, 3, 4, False)
    heard.clear()
    state.show(View.COMPARE)  # curves of the marks replace roles by layer
    assert (state.pane, state.top, state.chart, state.compares) == (6, 6, 1, True)
    assert heard.kinds() == [Change.PANE, Change.WANTED]
    state.step_pane(1)
    assert state.pane == View.SPECTRUM
    state.step_pane(1)
    assert (state.pane, heard.kinds()) == (View.TREE, [Change.PANE, Change.TREE, Change.PANE])
    state.step_pane(-1)
    state.step_pane(-1)
    assert state.pane == View.COMPARE
    state.show(View.TREE)
    heard.clear()
    state.show(View.TREE)  # the cursor may be on a group: it stays there
    assert heard.kinds() == [Change.PANE]


def test_zoom_is_of_the_pane_that_has_the_focus(state: ExplorerState) -> None:
    state.show(View.ENERGY)
    state.zoom(is_overview=False)
    assert (state.small, state.panels, state.overview, state.has_ranks) == (True, False, None, False)
    assert state.note.startswith("a chart a layer")
    state.leave_small()
    state.show(View.LAYERS)
    state.zoom(is_overview=False)
    assert (state.small, state.panels) == (False, True)
    assert state.note.startswith("small charts")
    state.zoom(is_overview=False)
    assert not state.panels
    assert state.note.startswith("large charts")
    state.show(View.TABLE)
    state.zoom(is_overview=True)
    assert (state.overview, state.top, state.pane) == (False, View.HEATMAP, View.HEATMAP)
    state.zoom(is_overview=False)
    assert state.overview


def test_axes_rank_and_lines(state: ExplorerState, heard: Heard) -> None:
    for expected in (1, 2, 0):
        state.next_axes()
        assert state.axes == expected
    state.toggle_relative()
    assert state.relative
    assert set(heard.kinds()) == {Change.AXES}
    state.set_rank(-3)
    assert (state.k, heard.kinds()) == (1, [Change.RANK])
    state.set_rank(None)
    assert state.k is None
    state.add_line(ReferenceLine("target", 5.0))
    assert (state.chart, state.lines, state.version) == (View.LAYERS, (ReferenceLine("target", 5.0),), 1)


def test_the_second_model_has_sides_and_tells_of_the_first(state: ExplorerState, tmp_path: Path, root: Path) -> None:
    state.next_side()
    assert state.note == "only one model is open: :against org/name adds another to compare with"
    other = save_model(tmp_path / "other", llama_weights(4), LLAMA)
    second = session_of(other, root, stored=False)
    state.pair.hold(second)
    sides = []
    for _ in range(3):
        state.next_side()
        sides.append(state.lens.side)
    assert sides == [Side.B, Side.RATIO, Side.A]
    theirs = second.model.tree.scanned()[1]
    ours = next(p for p in state.shown if p.address == theirs.address)
    assert state.known_as(second, {theirs.key}) == {ours.key, theirs.key}
    assert state.known_as(state.session, {ours.key}) == {ours.key}


def test_a_saved_twin_changes_its_projection_only_in_the_unit_that_needs_it(state: ExplorerState) -> None:
    p = state.shown[0]
    twin = flipped(p)
    changed = set(state.session.apply([Saved(replace(spectrum_of(p, matrix((48, 48), 3)), projection=twin))]))
    assert changed == {twin.key}
    assert state.known_as(state.session, changed) == {twin.key}
    state.set_unit("k/kf")
    assert state.known_as(state.session, changed) == {twin.key, p.key}


def test_every_change_has_a_row_in_the_table_of_who_draws() -> None:
    assert set(TABLE) == set(Change)
    assert all(TABLE.values())

"""The chart's pane: its lines, and what it redraws when the cursor moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from app_models import fill
from chart_looking import ask, select, session_of, texts
from textual.app import App, ComposeResult
from textual.geometry import Region
from textual.message import Message
from textual.pilot import Pilot

from rankscope.tui.charts.painter import Painter, paint
from rankscope.tui.charts.readout import rank_readout
from rankscope.tui.charts.request import Painting
from rankscope.tui.data.pair import Pair
from rankscope.tui.widgets.chart import ChartPane

SIZE = (80, 22)


class Alone(App[None]):
    """An app with a chart pane and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Message] = []

    def compose(self) -> ComposeResult:
        yield ChartPane(id="chart")

    @property
    def chart(self) -> ChartPane:
        return self.query_one(ChartPane)

    def on_chart_pane_layer_step(self, message: Message) -> None:
        self.heard.append(message)

    on_chart_pane_rank_walk = on_chart_pane_resized = on_chart_pane_layer_step


def shown(pane: ChartPane) -> list[str]:
    return [pane.render_line(y).text.rstrip() for y in range(pane.size.height)]


@pytest.fixture
def pair(llama: Path, root: Path) -> Pair:
    """A computed llama."""
    fill(llama, root)
    return Pair(session_of(llama, root))


@pytest.fixture
def painting(pair: Pair) -> Painting:
    return paint(pair, ask(pair, select(0, "attention", "key")))


async def test_the_chart_leaves_two_lines_and_nothing_jumps_when_the_cursor_comes(painting: Painting) -> None:
    app = Alone()
    async with app.run_test(size=SIZE) as pilot:
        pane = app.chart
        assert pane.canvas == (80, 20)
        pane.show(painting)
        await pilot.pause()
        lines = [line.rstrip() for line in texts(painting.lines)]
        assert shown(pane) == [*lines, "", painting.readout.plain]
        pane.set_rank(7)
        await pilot.pause()
        assert shown(pane)[:20] == lines
        assert painting.ruler is not None
        assert shown(pane)[20].index("^") == painting.ruler.column(7)
        assert shown(pane)[21] == pane.readout.plain == rank_readout(painting, 7, 80).plain
        pane.set_rank(None)
        await pilot.pause()
        assert shown(pane) == [*lines, "", painting.readout.plain]


async def test_a_moved_cursor_redraws_only_its_two_lines(painting: Painting, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Alone()
    async with app.run_test(size=SIZE) as pilot:
        pane = app.chart
        pane.show(painting)
        pane.set_rank(3)
        await pilot.pause()
        drawn: list[tuple[Region, ...]] = []
        monkeypatch.setattr(ChartPane, "refresh", lambda _, *regions, **__: drawn.append(regions))
        pane.set_rank(4)
        pane.set_rank(4)
        pane.show(replace(painting))
        assert drawn == [(Region(0, 20, 80, 1),), (Region(0, 21, 80, 1),)]
        pane.show(replace(painting, lines=painting.lines[::-1]))
        assert drawn[2:] == [()]


def ruled(pane: ChartPane, column: int | None) -> set[int]:
    """The canvas lines that have a rule in a column."""
    assert column is not None
    return {y for y, line in enumerate(shown(pane)[:18]) if line.ljust(80)[column] == "\u2502"}


async def comes(pilot: Pilot[None], seen: Callable[[], bool]) -> None:
    for _ in range(1000):
        if seen():
            return
        await pilot.pause(0.01)
    pytest.fail("it did not come")


async def test_a_rule_goes_through_the_chart_where_the_cursor_rests(painting: Painting) -> None:
    app = Alone()
    async with app.run_test(size=SIZE) as pilot:
        pane = app.chart
        pane.show(painting)
        await pilot.pause()
        assert painting.ruler is not None
        bare = [line.ljust(80) for line in texts(painting.lines)]
        before: int | None = None
        for k in (7, 20):
            column = painting.ruler.column(k)
            pane.set_rank(k)
            await comes(pilot, lambda column=column: len(ruled(pane, column)) > 10)  # type: ignore[misc]
            assert ruled(pane, column) == {y for y in range(1, 18) if bare[y][column or 0] == " "}
            assert before is None or not ruled(pane, before)
            before = column
        pane.set_rank(None)
        await comes(pilot, lambda: shown(pane)[:20] == [line.rstrip() for line in bare])


async def test_a_moving_cursor_moves_no_rule(painting: Painting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankscope.tui.widgets.chart.REST", 60.0)
    app = Alone()
    async with app.run_test(size=SIZE) as pilot:
        app.chart.show(painting)
        for k in (3, 4, 5):
            app.chart.set_rank(k)
            await pilot.pause()
            assert shown(app.chart)[:20] == [line.rstrip() for line in texts(painting.lines)]


async def test_the_cursor_stays_over_charts_and_hides_where_there_are_no_ranks(pair: Pair) -> None:
    key, energy, layers = (
        paint(pair, ask(pair, select(0, "attention", "key"), view, width=80, height=20)) for view in (1, 2, 4)
    )
    app = Alone()
    async with app.run_test(size=SIZE) as pilot:
        pane = app.chart
        pane.set_rank(9)
        for painting, cursor in ((key, True), (layers, False), (energy, True)):
            pane.show(painting)
            await pilot.pause()
            assert ("^ k 9" in shown(pane)[20]) == cursor
            assert shown(pane)[21].startswith("k 9  ") == cursor


async def test_the_keys_ask_for_layers_and_columns() -> None:
    app = Alone()
    async with app.run_test(size=SIZE) as pilot:
        app.chart.focus()
        app.heard.clear()
        await pilot.press("j", "k", "l", "h")
        steps = [m.layers for m in app.heard if isinstance(m, ChartPane.LayerStep)]
        walks = [m.columns for m in app.heard if isinstance(m, ChartPane.RankWalk)]
        assert (steps, walks) == ([1, -1], [1, -1])
        await pilot.resize_terminal(100, 30)
        for _ in range(50):
            await pilot.pause()
            if any(isinstance(m, ChartPane.Resized) for m in app.heard):
                break
        assert any(isinstance(m, ChartPane.Resized) for m in app.heard)
        assert app.chart.canvas == (100, 28)


# The painter's thread


def test_the_painter_delivers_what_paint_draws_and_remembers_it(pair: Pair) -> None:
    request = ask(pair, select(0, "attention"))
    delivered: list[Painting] = []
    painter = Painter(pair, delivered.append)
    painter.request(request)
    painter._thread.shutdown()
    assert [p.request for p in delivered] == [request]
    assert texts(delivered[0].lines) == texts(paint(pair, request).lines)
    painter.request(replace(request))  # from memory: no thread is left
    assert delivered[1] is delivered[0]


def test_an_error_in_a_chart_is_its_read_out(pair: Pair) -> None:
    delivered: list[Painting] = []
    painter = Painter(pair, delivered.append)
    painter.request(ask(pair, select(0, "attention"), axes=99))
    painter._thread.shutdown()
    (painting,) = delivered
    assert painting.readout.plain.startswith("this chart cannot be drawn: ValueError: 99 is not a valid Axes")
    assert (painting.lines, painting.ruler) == ((), None)


def test_requests_that_show_the_same_are_the_same(pair: Pair) -> None:
    request = ask(pair, select(0, "attention"))
    assert hash(request) == hash(replace(request))
    for change in ({"normalised": True}, {"facets": True}, {"origin": select(1)}, {"compare": True}, {"version": 1}):
        assert replace(request, **change) != request  # type: ignore[arg-type]

"""The metric table on a screen: keys in, lines out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from app_models import llama_weights, rank_in, spectrum_of
from app_sheets import Sheets, column, find, lines, press, session_of, until, words, written
from safetensors.numpy import load_file
from textual.pilot import Pilot

from rankscope.engine.compute.events import Failed, Saved
from rankscope.tui.data.grid import Column, Grid, Row, Selection
from rankscope.tui.data.measures import from_values
from rankscope.tui.data.pair import Pair, Side
from rankscope.tui.data.table_rows import TableRows, fields_of, load
from rankscope.tui.data.view_records import of_table
from rankscope.tui.widgets.heatmap_table import shortened
from rankscope.tui.widgets.table import MetricTable

ADDRESSES = ("layers.1.attention.key", "layers.1.attention.value")


@asynccontextmanager
async def table_of(pair: Pair, size: tuple[int, int] = (120, 40)) -> AsyncIterator[tuple[Sheets, Pilot[None]]]:
    app = Sheets(pair)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield app, pilot


def at_cursor(app: Sheets) -> str:
    """The address on the cursor's line, the only line that is marked so."""
    (line,) = [line for line in lines(app.table) if line.startswith(">")]
    return line.split()[1]


@pytest.fixture
def pair(llama: Path, root: Path) -> Pair:
    return Pair(session_of(llama, root))


async def test_it_opens_in_model_order_with_the_ranks_of_numpy(pair: Pair, llama: Path) -> None:
    async with table_of(pair) as (app, _):
        header, first, second, *_ = words(app.table)
        assert header[:8] == ["address", "^", "shape", "k60", "k80", "k90", "k95", "k99"]
        assert first[:3] == [">", "layers.0.attention.query", "48x48"]
        ranks = [str(rank_in(llama, 0, "key", t)) for t in (0.6, 0.8, 0.9, 0.95, 0.99)]
        assert second[:7] == ["layers.0.attention.key", "24x48", *ranks]
        assert lines(app.table)[-2].strip() == "address: in model order"


async def test_o_sorts_by_the_column_under_the_cursor_and_again_the_other_way(pair: Pair, llama: Path) -> None:
    ranks = [rank_in(llama, n, role, 0.8) for n in range(6) for role in ("query", "key", "value", "output")]
    ranks += [rank_in(llama, n, role, 0.8) for n in range(6) for role in ("gate", "up", "down")]
    async with table_of(pair) as (app, pilot):
        await press(pilot, "l", "l", "l", "o", "g")
        assert "v k80" in lines(app.table)[0]
        page = len(column(app.table, "k80")) - 2  # without the foot and the scroll bar
        assert column(app.table, "k80")[:page] == [str(k) for k in sorted(ranks, reverse=True)[:page]]
        await press(pilot, "o", "g")
        assert "^ k80" in lines(app.table)[0]
        assert column(app.table, "k80")[:page] == [str(k) for k in sorted(ranks)[:page]]
        await press(pilot, "h", "h", "h", "o")
        assert words(app.table)[0][:2] == ["address", "^"]


async def test_sorting_goes_to_the_first_row_and_selects_it(pair: Pair) -> None:
    async with table_of(pair) as (app, pilot):
        await press(pilot, "G", *"l" * 4, "o")
        assert app.table.cursor == (0, 4)
        (first,) = app.moves[-1].projections(app.grid)
        assert words(app.table)[1][:2] == [">", first.address]
        await press(pilot, "j", "o")
        assert app.table.cursor == (0, 4)


async def test_moving_selects_the_projection(pair: Pair) -> None:
    async with table_of(pair) as (app, pilot):
        await press(pilot, "j", "l", "G", "ctrl+u", "g")
        grid = app.grid
        found = [selection.projections(grid) for selection in app.moves if isinstance(selection, Selection)]
        assert [len(one) for one in found] == [1] * 4  # the column is not a number
        assert found[0] == (app.shown[1],)
        assert found[1] == (app.shown[-1],)
        assert found[3] == (app.shown[0],)
        assert all(isinstance(s, Selection) and s.single is None for s in app.moves)


async def test_an_expert_is_selected_alone_and_so_is_what_stands_in_no_layer(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(1)
    for expert in range(2):
        weights[f"model.layers.0.mlp.experts.{expert}.gate_proj.weight"] = np.eye(8, dtype=np.float32)
    session = session_of(tmp_path / "m", root, weights)
    async with table_of(Pair(session)) as (app, pilot):
        (other,) = find(session, "other.model.embed_tokens.weight")
        app.shown.append(other)
        app.table.set_rows(app.shown, app.grid)
        await press(pilot, "G", "k")
        place, expert = (Row("", 0), Column("expert", "gate")), app.shown[-2]
        assert expert.expert == 1
        assert app.moves == [Selection(single=other), Selection(*place, single=expert)]


async def test_a_selection_moves_the_cursor_without_a_message(pair: Pair) -> None:
    async with table_of(pair, (120, 20)) as (app, pilot):
        app.table.show_selection(Selection(app.grid.rows[4], app.grid.columns[2]))
        await pilot.pause()
        assert app.moves == []
        assert at_cursor(app) == "layers.4.attention.value"
        app.table.show_selection(Selection(app.grid.rows[4]))  # the cursor's row is still listed: it stays
        app.table.show_selection(Selection())
        await pilot.pause()
        assert at_cursor(app) == "layers.4.attention.value"
        app.table.show_selection(Selection(column=app.grid.columns[0]))
        await pilot.pause()
        assert at_cursor(app) == "layers.0.attention.query"


async def test_the_address_stays_in_view_when_the_rest_scrolls(pair: Pair) -> None:
    pair.first.load_facts(pair.first.model.tree.scanned(), from_values())
    async with table_of(pair, (80, 24)) as (app, pilot):
        before = lines(app.table)
        assert "stable" not in before[0]
        await press(pilot, *"l" * 30)
        after = lines(app.table)
        assert after[0].split()[-1] == "k*"
        assert [line.split()[0] for line in after[1:5]] == [line.split()[0] for line in before[1:5]]
        assert after[-2].strip().startswith("k*: m n / (m + n)")
        await press(pilot, *"h" * 30)
        assert lines(app.table)[1:5] == before[1:5]


async def test_what_is_not_known_is_a_mark_until_it_is(llama: Path, root: Path) -> None:
    session = session_of(llama, root, addresses=ADDRESSES)
    async with table_of(Pair(session)) as (app, pilot):
        table, shown = app.table, app.shown
        assert column(table, "k90")[0] == "."
        session.apply([Failed(shown[0], "no"), Saved(spectrum_of(shown[1], np.eye(24, 48)))])
        table.update({shown[0].key, shown[1].key})
        await pilot.pause()
        assert column(table, "k90")[:2] == ["!", "22"]
        table.show_selection(Selection(app.grid.rows[1], app.grid.columns[1]))
        await press(pilot, *"l" * 14)
        assert "nuc/spec" in table.foot()
        assert table.text_of_cell() == ""
        load(fields_of(app.lens), shown)
        table.update()
        await pilot.pause()
        weights = load_file(llama / "model.safetensors")["model.layers.1.self_attn.k_proj.weight"]
        ratio = np.linalg.norm(weights, "nuc") / np.linalg.norm(weights, 2)
        assert float(table.text_of_cell()) == pytest.approx(ratio, abs=0.051)


async def test_a_scan_draws_the_rows_that_changed_and_no_others(llama: Path, root: Path) -> None:
    session = session_of(llama, root, addresses=ADDRESSES)
    async with table_of(Pair(session)) as (app, pilot):
        drawn: list[int] = []
        draw = app.table.render_line
        app.table.render_line = lambda y: drawn.append(y) or draw(y)  # type: ignore[method-assign, func-returns-value]
        session.apply([Saved(spectrum_of(app.shown[2], np.eye(24, 48)))])
        app.table.update({app.shown[2].key})
        await pilot.pause()
        assert set(drawn) == {3}
        drawn.clear()
        app.table.update({app.shown[-1].key})  # out of view
        await pilot.pause()
        assert drawn == []
        await press(pilot, "j")
        assert set(drawn) == {1, 2}


async def test_the_cursor_stays_on_its_projection_when_rows_move(pair: Pair) -> None:
    async with table_of(pair) as (app, pilot):
        await press(pilot, *"l" * 4, "o")
        app.table.show_selection(Selection(app.grid.rows[0], Column("attention", "value")))
        await pilot.pause()
        assert at_cursor(app) == "layers.0.attention.value"
        ahead = app.table.cursor[0]
        app.table.set_rows(app.shown[1:3], app.grid)
        await pilot.pause()
        assert at_cursor(app) == "layers.0.attention.value"
        assert app.table.cursor[0] < ahead
        app.lens.threshold = 0.85
        app.table.update()
        await pilot.pause()
        assert words(app.table)[0].index("k90") == words(app.table)[0].index("k85") + 2  # "v" comes before k90
        assert app.table.foot().startswith("k90:")


async def test_marks_stand_before_the_address(pair: Pair) -> None:
    async with table_of(pair) as (app, pilot):
        app.table.marked = frozenset({app.shown[0].key, app.shown[2].key})
        app.table.update()
        await pilot.pause()
        assert [line[:3].strip() for line in lines(app.table)[1:4]] == [">+l", "l", "+l"]


async def test_the_side_of_the_lens_decides(pair: Pair, tmp_path: Path, root: Path) -> None:
    second = session_of(tmp_path / "b", root, llama_weights(2) | {"model.embed_tokens.weight": np.eye(9)})
    both = Pair(pair.first, second, by_depth=False)
    async with table_of(both) as (app, pilot):
        app.lens.side = Side.RATIO
        app.table.update()
        await pilot.pause()
        assert column(app.table, "k90")[:14] == ["1.000"] * 14  # the first layers have equal weights
        assert column(app.table, "k90")[14:16] == ["-", "-"]


async def test_out_of_sight_nothing_is_worked_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async with table_of(pair) as (app, pilot):
        await press(pilot, "l", "l", "l", "o")
        app.table.display = False
        await pilot.pause()
        asked: list[object] = []
        with monkeypatch.context() as patch:
            patch.setattr(TableRows, "_settle", lambda rows: asked.append(rows))
            app.table.update()
            app.table.update({app.shown[0].key})
            app.table.set_rows(app.shown, app.grid)
            app.table.show_selection(Selection(app.grid.rows[2], app.grid.columns[1]))
            await pilot.pause()
        assert asked == []
        app.table.display = True
        app.table.focus()
        await until(pilot, lambda: [">", "layers.2.attention.key"] in [row[:2] for row in words(app.table)])


async def test_hidden_and_shown_between_two_layouts_it_is_up_to_date(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Textual then sends no Show event."""
    async with table_of(pair, (120, 20)) as (app, pilot):
        with monkeypatch.context() as patch:
            patch.setattr(MetricTable, "is_on_screen", False)
            app.table.show_selection(Selection(app.grid.rows[5], app.grid.columns[1]))
            app.table.update()
        app.table.refresh(layout=True)  # as `display` does
        await until(pilot, lambda: at_cursor(app) == "layers.5.attention.key")


async def test_an_empty_table_answers_every_key(pair: Pair) -> None:
    async with table_of(pair, (40, 10)) as (app, pilot):
        app.table.set_rows([], Grid((), (), {}))
        await press(pilot, "j", "k", "l", "h", "o", "g", "G", "ctrl+d", "ctrl+u")
        assert app.moves == []
        assert app.table.text_of_cell() == ""
        assert list(of_table(written(app.table))) == []


async def test_as_many_lines_as_it_says_show_every_row(pair: Pair) -> None:
    async with table_of(pair) as (app, pilot):
        app.table.set_rows(app.shown[:5], app.grid)
        await pilot.pause()
        app.table.styles.height = app.table.lines_needed
        await pilot.pause()
        assert app.table.max_scroll_y == 0
        assert lines(app.table)[5].split()[0] == app.shown[4].address


@pytest.mark.parametrize("width", [10, 12, 40])
def test_a_long_address_loses_its_middle(width: int) -> None:
    for address in ("layers.12.expert.117.gate", "other.\u6a21\u578b.\u6743\u91cd.weight", "short"):
        shown = shortened(address, width)
        assert sum(2 if ord(c) > 0x2E80 else 1 for c in shown) <= width
        head, _, end = shown.partition("\u2026")
        assert shown == address or (
            address.startswith(head.rstrip()) and address.endswith(end.strip()) and head and end
        )

"""The heatmap as a table: moving, scrolling, experts, and how little is drawn again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from heatmap_fakes import Eyes, Seen, layers, moe, projection, ranked, showing
from textual.strip import Strip

from rankscope.tui.data.grid import Column, Row, Selection, make_grid
from rankscope.tui.data.session import State
from rankscope.tui.settings.palette import Depth
from rankscope.tui.widgets.heatmap import difference

ROLES = ("query", "key", "value", "output", "gate", "up", "down")
UP = Column("expert", "up")


def row_of(eyes: Eyes, line: int) -> list[str]:
    """The words of a line of the table, from its label on."""
    return eyes.lines[2 + line].lstrip(" >").split()


# The table


async def test_layers_are_rows_and_roles_are_columns() -> None:
    async with showing(ranked(layers(6))) as eyes:
        assert eyes.lines[0].split("\u2500 ")[1].startswith("attention \u2500")
        assert eyes.lines[1].split() == ["layer", *ROLES]
        assert row_of(eyes, 3) == ["3", *(str(300 + n) for n in range(1, 8))]
        ends = {line.rstrip().find("303") + 3 for line in eyes.lines if "303" in line}
        assert ends == {eyes.lines[1].find("value") + 5}
        assert eyes.heatmap.lines_needed == 6 + 2 + 2


async def test_moves_are_told_and_stay_inside() -> None:
    async with showing(ranked(layers(3))) as eyes:
        await eyes.press("j", "l")
        assert eyes.selected == Selection(Row("", 1), Column("attention", "key"))
        assert "[102]" in eyes.lines[3]
        assert eyes.lines[3].startswith(">    1")
        await eyes.press("G", *"llllllll")
        assert eyes.selected == Selection(Row("", 2), Column("mlp", "down"))
        await eyes.press("g", *"hhhhhhhh", "k")
        assert eyes.selected == Selection(Row("", 0), Column("attention", "query"))


async def test_a_selection_from_elsewhere_is_marked_and_not_told() -> None:
    async with showing(ranked(layers(6))) as eyes:
        eyes.heatmap.show_selection(Selection(Row("", 4), block="mlp"))
        assert [line.count("[") for line in eyes.lines[2:8]] == [0, 0, 0, 0, 3, 0]
        assert eyes.heatmap.cursor == (4, 4)
        eyes.heatmap.show_selection(Selection(column=Column("mlp", "up")))
        assert [line.count("[") for line in eyes.lines[2:8]] == [1] * 6
        eyes.heatmap.show_selection(Selection())
        assert not any("[" in line for line in eyes.lines)
        assert eyes.app.moves == []


async def test_one_move_draws_only_what_it_changes() -> None:
    async with showing(ranked(layers(30)), (120, 40)) as eyes:
        await eyes.press("j")
        with eyes.drawing() as regions:
            await eyes.press("j")
        assert [(r.y, r.height) for r in regions] == [(3, 1), (4, 1)]
        assert sum(r.area for r in regions) < 60  # in 118 x 38: two labels and two cells
        with eyes.drawing() as regions:
            await eyes.press("l")
        assert [r.y for r in regions] == [1, 4]


async def test_a_scan_draws_only_the_cells_that_change() -> None:
    seen = ranked(layers(30))
    async with showing(seen, (120, 40)) as eyes:
        with eyes.drawing() as regions:
            seen.told.tell({"layers.7.mlp.gate": 888})
            seen.look.forget(["layers.7.mlp.gate"])
            eyes.heatmap.update()
            eyes.heatmap.update()
        assert [(r.y, r.height) for r in regions] == [(9, 1)]
        assert regions[0].width <= 12
        assert "888" in eyes.lines[9]


async def test_another_unit_is_drawn_where_it_differs() -> None:
    seen = ranked(layers(30))
    async with showing(seen, (120, 40)) as eyes:
        seen.unit("k/k0")
        eyes.heatmap.update()
        assert all("." in word for word in row_of(eyes, 3)[1:])
        with eyes.drawing() as regions:
            eyes.heatmap.update()
        assert regions == []


async def test_the_view_jumps_half_a_page_when_the_cursor_leaves_it() -> None:
    async with showing(ranked(layers(90)), (80, 24)) as eyes:
        page = 20  # 24 lines less border and headings
        await eyes.press(*"j" * (page - 1))
        assert eyes.lines[-1].startswith(f">   {page - 1}")
        await eyes.press("j")
        assert eyes.heatmap.scroll_offset.y == page // 2
        assert eyes.lines[2 + page // 2].startswith(f">   {page}")
        with eyes.drawing() as regions:
            await eyes.press("j")
        assert sum(r.area for r in regions) < 60
        await eyes.press("ctrl+d", "ctrl+d")
        assert eyes.heatmap.cursor[0] == page + 1 + 2 * (page // 2)
        await eyes.press("ctrl+u")
        assert eyes.heatmap.cursor[0] == page + 1 + page // 2
        assert row_of(eyes, 3)[1] == str(100 * int(row_of(eyes, 3)[0]) + 1)


async def test_an_update_leaves_the_view_where_the_user_scrolled_it() -> None:
    async with showing(ranked(layers(90)), (80, 24)) as eyes:
        eyes.heatmap.scroll_to(0, 50, animate=False, immediate=True)
        eyes.heatmap.update()
        assert row_of(eyes, 0)[0] == "50"


async def test_many_roles_scroll_sideways_and_the_layer_stays() -> None:
    names = [f"module{i:02}" for i in range(20)]
    seen = ranked([projection(n, "other", name) for n in range(3) for name in names])
    async with showing(seen) as eyes:
        for name in names:
            assert name in eyes.lines[1]
            assert eyes.lines[2].count("[") == (eyes.app.moves != [])
            assert eyes.lines[2].startswith(">    0")
            await eyes.press("l")
        assert names[0] not in eyes.lines[1]


async def test_a_long_name_loses_its_middle_and_no_number() -> None:
    long = "block_sparse_moe.weight_list.inner"
    seen = ranked([projection(n, "cross_attention", long) for n in range(3)])
    async with showing(seen) as eyes:
        assert eyes.lines[1].split()[1] == "block_spa\u2026ist.inner"
        assert row_of(eyes, 2) == ["2", "201"]
        assert len({len(line) for line in eyes.lines}) == 1


@pytest.mark.parametrize("block", ["attention", "linear_attention"])
async def test_a_blocks_name_is_whole_over_one_column_beside_free_ones(block: str) -> None:
    async with showing(ranked([projection(n, block, "up") for n in range(3)])) as eyes:
        assert eyes.lines[0].split() == [block]
        assert row_of(eyes, 2) == ["2", "201"]
    roles = [f"role_number_{n}" for n in range(9)]
    filled = [*(projection(0, "attention", role) for role in roles), projection(0, block, "up")]
    async with showing(ranked(filled)) as eyes:
        assert len({len(line) for line in eyes.lines}) == 1


async def test_shades_are_bars_where_there_are_no_colours() -> None:
    seen = ranked(layers(3), depth=Depth.MONO)
    seen.told.tell({"layers.1.attention.key": 780, "layers.1.attention.value": 9})
    del seen.told.ranks["layers.1.attention.query"]
    async with showing(seen) as eyes:
        assert row_of(eyes, 1)[1:4] == [".", "780\u2587", "9\u2581"]
        ends = [eyes.lines[y].find(text) + len(text) for y, text in ((2, "1\u2581"), (3, ". "), (4, "201\u2581"))]
        assert len(set(ends)) == 1  # a state takes the place of the last digits


async def test_a_marked_cell_has_a_plus() -> None:
    seen = ranked(layers(3))
    seen.look.marked = frozenset({"layers.1.attention.key"})
    async with showing(seen) as eyes:
        assert row_of(eyes, 1)[2] == "+102"
        await eyes.press("j", "l")
        assert "[+102]" in eyes.lines[3]


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60), (20, 6), (3, 3)])
@pytest.mark.parametrize("overview", [False, True])
async def test_nothing_at_all_and_nothing_computed_can_be_shown(size: tuple[int, int], overview: bool) -> None:
    for projections in ([], layers(1), layers(126)):
        async with showing(Seen(projections), size, overview) as eyes:
            await eyes.press("j", "l", "G", "g", "ctrl+d")
            assert not eyes.heatmap.unfold()
            assert all(len(line) == eyes.heatmap.size.width for line in eyes.lines)
            assert (eyes.app.moves == []) is (projections == [])


# Experts


async def test_the_farthest_expert_is_shown_where_it_fits() -> None:
    seen = Seen(moe(1, 4))
    seen.told.tell({f"layers.0.expert.{e}.gate": rank for e, rank in enumerate((500, 1000, 1500, 1900))})
    for size, cells in (((88, 24), ["1250", "^500"]), ((70, 24), ["1250"])):
        async with showing(seen, size) as eyes:
            assert row_of(eyes, 0)[5 : 5 + len(cells)] == cells
            assert len(row_of(eyes, 0)) == 7 + len(cells)


async def test_a_sample_of_experts_is_counted_in_the_cell_where_it_fits() -> None:
    seen = Seen(moe(1, 256))
    seen.told.experts = 8
    seen.told.tell({f"layers.0.expert.{e}.gate": 1000 + e for e in range(0, 256, 32)})
    for size, cells in (((100, 24), ["1112", "8/256"]), ((80, 24), ["1112", "8/256"]), ((70, 24), ["1112"])):
        async with showing(seen, size) as eyes:
            assert row_of(eyes, 0)[5 : 5 + len(cells)] == cells


async def test_enter_unfolds_the_experts_of_a_cell_and_back() -> None:
    async with showing(ranked(moe(3, 16)), (120, 40)) as eyes:
        await eyes.press("j")
        assert not eyes.heatmap.unfold()  # attention has one query
        assert eyes.heatmap.unfolded is None
        await eyes.press(*"lllll")
        assert eyes.heatmap.unfold()
        await eyes.pilot.pause()
        assert eyes.heatmap.unfolded == Row("", 1)
        assert eyes.lines[0].split()[:2] == ["layer", "1"]
        assert eyes.lines[1].split() == ["expert", "gate", "up", "down"]
        assert [row_of(eyes, row)[0] for row in range(4)] == ["e0", "e15", "e1", "e14"]  # the farthest first
        assert row_of(eyes, 2) == ["e1", "108", "109", "110"]
        assert eyes.heatmap.lines_needed == 16 + 2 + 2
        assert eyes.selected.single is not None
        assert eyes.selected.single.address == "layers.1.expert.0.up"
        await eyes.press("j", "j", "l")
        assert eyes.selected == Selection(Row("", 1), Column("expert", "down"), None, eyes.selected.single)
        assert eyes.selected.single is not None
        assert eyes.selected.single.address == "layers.1.expert.1.down"
        assert [line.count("[") for line in eyes.lines[2:6]] == [0, 0, 1, 0]
        assert not eyes.heatmap.unfold()
        assert eyes.heatmap.fold()
        await eyes.pilot.pause()
        assert eyes.selected == Selection(Row("", 1), Column("expert", "down"))
        assert eyes.lines[1].split()[0] == "layer"
        assert eyes.heatmap.cursor == (1, 6)
        assert not eyes.heatmap.fold()


async def test_an_expert_selected_elsewhere_is_found() -> None:
    seen = ranked(moe(3, 16))
    single = next(p for p in seen.told.model.tree.projections if p.address == "layers.1.expert.9.up")
    async with showing(seen) as eyes:
        eyes.heatmap.show_selection(Selection(Row("", 1), UP, single=single))
        assert eyes.heatmap.unfold()
        at = [row_of(eyes, row)[0] for row in range(16)]
        assert eyes.heatmap.cursor == (at.index("e9"), 1)
        other = replace(single, address="layers.1.expert.12.up")
        eyes.heatmap.show_selection(Selection(Row("", 1), UP, single=other))
        assert eyes.heatmap.cursor == (at.index("e12"), 1)
        assert [line.count("[") for line in eyes.lines].index(1) == 2 + at.index("e12")
        eyes.heatmap.show_selection(Selection(Row("", 1), UP))
        assert [line.count("[") for line in eyes.lines[2:18]] == [1] * 16


async def test_a_walk_through_the_layers_keeps_the_experts_unfolded() -> None:
    seen = ranked([*moe(2, 4), *layers(1, tower="vision"), projection(2, "expert", "up", 0)])
    async with showing(seen) as eyes:
        eyes.heatmap.show_selection(Selection(Row("", 0), UP))
        eyes.heatmap.unfold()
        await eyes.press("j")
        there = eyes.selected.step_layer(seen.grid, 1)
        eyes.heatmap.show_selection(there)
        assert eyes.heatmap.unfolded == Row("", 1)
        assert eyes.heatmap.cursor == (1, 1)
        assert row_of(eyes, 1) == ["e3", "114", "[115]", "116"]
        eyes.heatmap.show_selection(Selection(Row("", 2), UP))
        assert eyes.heatmap.unfolded is None  # one expert makes no group
        assert "[201]" in eyes.lines[2 + 3]


@pytest.mark.parametrize(
    "there",
    [Selection(Row("", 1), Column("attention", "key")), Selection(column=UP), Selection(Row("", 1), block="attention")],
)
async def test_a_selection_outside_the_experts_folds_them(there: Selection) -> None:
    async with showing(ranked(moe(2, 4))) as eyes:
        eyes.heatmap.show_selection(Selection(Row("", 0), UP))
        eyes.heatmap.unfold()
        eyes.heatmap.show_selection(there)
        assert eyes.heatmap.unfolded is None
        assert eyes.lines[1].split()[:2] == ["layer", "query"]


async def test_another_grid_keeps_the_experts_that_it_has() -> None:
    seen = ranked(moe(2, 4))
    every = list(seen.told.model.tree.projections)
    async with showing(seen) as eyes:
        eyes.heatmap.show_selection(Selection(Row("", 1), UP))
        eyes.heatmap.unfold()
        for left, unfolded in (
            ([p for p in every if p.role == "up"], Row("", 1)),
            ([p for p in every if p.layer == 0], None),
        ):
            grid = make_grid(left)
            seen.look.show(grid)
            eyes.heatmap.set_rows((), grid)
            assert eyes.heatmap.unfolded == unfolded
            assert all(word.lstrip("^")[0].isdigit() for word in row_of(eyes, 1 if unfolded else 0)[1:])


async def test_a_computed_expert_is_drawn_alone() -> None:
    seen = ranked(moe(2, 4))
    async with showing(seen) as eyes:
        eyes.heatmap.show_selection(Selection(Row("", 1), UP))
        eyes.heatmap.unfold()
        await eyes.pilot.pause()
        with eyes.drawing() as regions:
            seen.told.states["layers.1.expert.3.gate"] = State.RUNNING
            seen.look.forget(["layers.1.expert.3.gate"])
            eyes.heatmap.update()
        assert [r.y for r in regions] == [2 + 1]  # as far from the median as expert 0
        assert row_of(eyes, 1)[:2] == ["e3", "*"]


async def test_opened_experts_are_sorted_by_the_role_they_were_opened_from_unknown_ones_last() -> None:
    seen = Seen(moe(1, 4))
    seen.told.tell({f"layers.0.expert.{e}.gate": rank for e, rank in enumerate((100, 105, 400, 90))})
    seen.told.tell({f"layers.0.expert.{e}.up": rank for e, rank in enumerate((100, 900, 110, 105))})
    seen.told.tell({"layers.0.expert.3.down": 7})
    async with showing(seen, (120, 40)) as eyes:
        for role, order in (("gate", "2301"), ("up", "1023"), ("down", "3012")):
            eyes.heatmap.show_selection(Selection(Row("", 0), Column("expert", role)))
            assert eyes.heatmap.unfold()
            assert [row.label for row in eyes.heatmap.shown.rows] == [f"e{number}" for number in order]
            assert eyes.heatmap.fold()


# Lines


def strip(text: str) -> Strip:
    from rich.segment import Segment

    return Strip([Segment(c) for c in text])


@pytest.mark.parametrize(
    ("old", "new", "span"),
    [("abcdef", "abXdef", (2, 3)), ("abcdef", "XbcdeY", (0, 6)), ("abab", "baba", (0, 4)), ("abc", "abX", (2, 3))],
)
def test_the_difference_of_two_lines_is_as_short_as_can_be(old: str, new: str, span: tuple[int, int]) -> None:
    assert difference(strip(old), strip(new)) == span


def test_equal_lines_differ_nowhere_and_wide_characters_everywhere() -> None:
    start, end = difference(strip("abc"), strip("abc"))
    assert start >= end
    assert difference(strip("a\u6f22c"), strip("a\u6f22d")) == (0, 4)

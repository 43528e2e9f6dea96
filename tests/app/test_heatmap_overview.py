"""The heatmap turned: every layer in view, from numbers to several shades in one character."""

from __future__ import annotations

import pytest
from heatmap_fakes import Eyes, Seen, layers, moe, projection, ranked, showing
from rich.segment import Segment

from rankscope.engine.null import null_rank
from rankscope.tui.data.grid import Column, Row, Selection
from rankscope.tui.data.measures import RATIO_LIMITS
from rankscope.tui.data.pair import Side
from rankscope.tui.data.session import State
from rankscope.tui.settings.palette import Depth, palette
from rankscope.tui.widgets.heatmap_overview import Slots

KEY = Column("attention", "key")


def role(eyes: Eyes, name: str) -> str:
    """The line of a role."""
    return next(line for line in eyes.lines if line[1:].startswith(f"{name} "))


def pieces(eyes: Eyes, name: str) -> list[Segment]:
    """The same as it is drawn, one piece a character."""
    y = eyes.lines.index(role(eyes, name))
    return [Segment(c, s.style) for s in eyes.heatmap.render_line(y) for c in s.text]


def background(segment: Segment) -> int | None:
    return segment.style.bgcolor.number if segment.style and segment.style.bgcolor else None


def shade(rank: int) -> int | None:
    style = palette(Depth.MANY).shade(rank / null_rank(1024, 4096, 0.9), RATIO_LIMITS, True)
    return style.bgcolor.number if style.bgcolor else None


async def test_roles_are_rows_and_layers_are_columns() -> None:
    async with showing(ranked(layers(8)), overview=True) as eyes:
        assert eyes.lines[0].split() == ["layer", *(str(n) for n in range(8)), "min", "med", "max", "k:k0"]
        assert role(eyes, "value").split()[1:9] == [str(100 * n + 3) for n in range(8)]
        assert [line.split()[0] for line in eyes.lines if "\u2500" in line] == ["attention", "mlp"]
        assert eyes.heatmap.lines_needed == 1 + 2 + 7 + 2


async def test_the_summary_is_of_the_layers() -> None:
    async with showing(ranked(layers(8)), overview=True) as eyes:
        ratio = 353 / null_rank(1024, 4096, 0.9)
        assert role(eyes, "value").split()[-4:] == ["3", "353", "703", f"{ratio:.2f}"]
        eyes.app.seen.unit("percent")
        eyes.heatmap.update()
        assert role(eyes, "value").split()[-4:] == ["0.3", "34.5", "68.7", f"{ratio:.2f}"]


@pytest.mark.parametrize("layers_shown", [1, 12, 30, 126])
@pytest.mark.parametrize("is_overview", [True, False])
async def test_a_grey_cell_stays_grey_under_the_cursor(layers_shown: int, is_overview: bool) -> None:
    """1000 x 1000 breaks even at 500."""
    seen = Seen([projection(n, "attention", "key", shape=(1000, 1000)) for n in range(layers_shown)], "k/k*")
    for rank in (499, 501):
        seen.told.tell({p.key: rank for p in seen.told.model.tree.projections})
        seen.look.forget()
        async with showing(seen, overview=is_overview) as eyes:
            await eyes.press("g", "l", "h")
            eyes.heatmap.show_selection(Selection(Row("", 0), KEY))
            header = 1 if is_overview else 2
            lines = [eyes.heatmap.render_line(y) for y in range(header, eyes.heatmap.size.height)]
            reverse = [s.style for line in lines for s in line if s.style and s.style.reverse and s.text.strip()]
            assert [bool(style.dim) for style in reverse] == [rank > 500]


async def test_a_summary_of_noise_ratios_has_their_median_once() -> None:
    seen = ranked(layers(8), "k/k0")
    async with showing(seen, overview=True) as eyes:
        ratios = [f"{k / null_rank(1024, 4096, 0.9):.2f}" for k in (3, 353, 703)]
        assert eyes.lines[0].split()[-4:] == ["7", "min", "med", "max"]
        assert role(eyes, "value").split()[-4:] == [role(eyes, "value").split()[8], *ratios]
        seen.against(layers(8), Side.RATIO).tell(seen.told.ranks)
        seen.look.forget()
        eyes.heatmap.update()
        assert role(eyes, "value").split()[-4:] == ["1.000"] * 3 + [ratios[1]]  # another number: that of A


async def test_the_name_of_a_small_tower_is_whole_where_there_is_room() -> None:
    async with showing(ranked([*layers(30), *layers(2, tower="vision_tower")]), overview=True) as eyes:
        assert " vision_tower " in f"{eyes.lines[0]} "


async def test_the_summary_of_two_models_says_whose_noise() -> None:
    seen = ranked(layers(4))
    other = seen.against(layers(4), Side.RATIO)
    other.tell({key: 2 * rank for key, rank in seen.told.ranks.items()})
    seen.look.forget()
    async with showing(seen, overview=True) as eyes:
        assert eyes.lines[0].split()[-2:] == ["A", "k:k0"]
        assert role(eyes, "value").split()[-4:-1] == ["2.000"] * 3


async def test_the_keys_keep_their_meaning_on_the_screen() -> None:
    async with showing(ranked(layers(30)), overview=True) as eyes:
        for key, cursor in (
            ("l", (1, 0)),
            ("right", (2, 0)),
            ("h", (1, 0)),
            ("j", (1, 1)),
            ("down", (1, 2)),
            ("k", (1, 1)),
        ):
            await eyes.press(key)
            assert eyes.heatmap.cursor == cursor
        assert eyes.selected == Selection(Row("", 1), KEY)
        for key, layer in (("ctrl+d", 16), ("G", 29), ("ctrl+u", 14), ("g", 0)):
            await eyes.press(key)
            assert eyes.selected == Selection(Row("", layer), KEY)
        await eyes.press(*"jjjjjjjjj", *"hh")
        assert eyes.selected == Selection(Row("", 0), Column("mlp", "down"))


async def test_numbers_give_way_to_shades_one_a_layer() -> None:
    async with showing(ranked(layers(30)), overview=True) as eyes:
        found = pieces(eyes, "key")
        assert [background(s) for s in found[10:40]] == [shade(100 * n + 2) for n in range(30)]
        assert "".join(s.text for s in found[10:40]).isspace()
        assert eyes.lines[0].split()[:7] == ["layer", "0", "5", "10", "15", "20", "25"]
        await eyes.pilot.resize_terminal(200, 24)
        await eyes.pilot.pause()
        assert role(eyes, "key").split()[1:31] == [str(100 * n + 2) for n in range(30)]


async def test_eighty_layers_are_told_apart_in_eighty_columns() -> None:
    seen = ranked(layers(80))
    seen.told.tell({f"layers.{n}.attention.key": 10 * n for n in range(80)})
    async with showing(seen, overview=True) as eyes:
        found = pieces(eyes, "key")[10:50]
        assert {s.text for s in found} == {"\u258c"}
        halves = [c for s in found if s.style and s.style.color for c in (s.style.color.number, background(s))]
        assert halves == [shade(10 * n) for n in range(80)]
        assert role(eyes, "key").split()[-4:-1] == ["0", "395", "790"]


async def test_beyond_that_a_half_is_the_median_of_several_layers() -> None:
    seen = Seen(layers(126))
    ranks = {f"layers.{n}.attention.key": 100 + 600 * (n % 2) for n in range(126)}
    seen.told.tell(ranks)
    async with showing(seen, overview=True) as eyes:
        assert {background(s) for s in pieces(eyes, "key")[10:41]} == {shade(400)}
        seen.told.states["layers.64.attention.key"] = State.FAILED
        del seen.told.ranks["layers.64.attention.key"]
        seen.look.forget(["layers.64.attention.key"])
        eyes.heatmap.update()
        assert role(eyes, "key")[10:42].index("!") == 64 // 4
        await eyes.press("G")
        assert eyes.lines[0].split()[-5] == "125"  # the number of the layer under the cursor, in any case


async def test_two_shades_where_one_is_not_known() -> None:
    seen = Seen(layers(80))
    seen.told.tell({"layers.0.attention.key": 300, "layers.3.attention.key": 600})
    async with showing(seen, overview=True) as eyes:
        left, right, none = pieces(eyes, "key")[10:13]
        colours = [s.style.color.number for s in (left, right) if s.style and s.style.color]
        assert (left.text, right.text, none.text) == ("\u258c", "\u2590", ".")
        assert colours == [shade(300), shade(600)]


async def test_bars_where_there_are_no_colours() -> None:
    seen = ranked(layers(30), depth=Depth.MONO)
    seen.told.tell({f"layers.{n}.attention.key": 26 * (n + 1) for n in range(30)})
    async with showing(seen, overview=True) as eyes:
        bars = role(eyes, "key")[10:40]
        assert (bars[0], bars[-1], sorted(bars)) == ("\u2581", "\u2587", list(bars))
    seen = Seen(layers(80), depth=Depth.MONO)
    seen.told.tell({"layers.0.attention.key": 1, "layers.1.attention.key": 1000})
    async with showing(seen, overview=True) as eyes:
        assert role(eyes, "key")[10] == "\u28f8"


async def test_the_cell_under_the_cursor_stands_out() -> None:
    for count, text in ((8, "  302"), (30, "\u2503"), (80, "\u2503")):
        async with showing(ranked(layers(count)), overview=True) as eyes:
            await eyes.press("j", *"lll")
            reversed_ = [s.text for s in pieces(eyes, "key") if s.style and s.style.reverse]
            assert "".join(reversed_) == text
            bold = [s.text for s in eyes.heatmap.render_line(0) if s.style and s.style.bold]
            assert "".join(bold) == "3"


async def test_a_role_over_all_layers_keeps_its_shades() -> None:
    async with showing(ranked(layers(30)), overview=True) as eyes:
        eyes.heatmap.show_selection(Selection(column=KEY))
        found = pieces(eyes, "key")
        assert {s.text for s in found if s.style and s.style.reverse} == set(">key ")
        assert [background(s) for s in found[10:40]] == [shade(100 * n + 2) for n in range(30)]


async def test_signs_over_shades() -> None:
    seen = ranked([projection(n, "attention", "key", shape=(1000, 1000)) for n in range(40)], "k/k*")
    seen.told.tell({"layers.5.attention.key": 501})
    seen.told.states["layers.3.attention.key"] = State.FAILED
    del seen.told.ranks["layers.3.attention.key"]
    seen.told.ranks = {key: min(rank, 501) for key, rank in seen.told.ranks.items() if "layers.6." not in key}
    seen.told.tell({"layers.4.attention.key": 100})
    seen.look.marked = frozenset({"layers.1.attention.key"})
    async with showing(seen, overview=True) as eyes:
        assert role(eyes, "key")[10:17] == " + ! \u2591."


async def test_a_long_name_loses_its_middle_and_the_summary_nothing() -> None:
    long = "block_sparse_moe.weight_list.inner"
    seen = ranked([projection(n, block, long) for n in range(80) for block in ("attention", "expert")])
    async with showing(seen, overview=True) as eyes:
        line = eyes.lines[2]
        assert line.split()[0].startswith(">block_")
        assert "\u2026" in line
        assert line.split()[-4:-1] == ["1", "3951", "7901"]


@pytest.mark.parametrize("unit", ["k", "percent", "k/k0", "k/kf", "effective_rank", "stable_rank", "sigma_1"])
async def test_the_summary_is_in_view_at_eighty_columns_in_every_unit(unit: str) -> None:
    seen = ranked(layers(80))
    seen.unit(unit)
    async with showing(seen, overview=True) as eyes:
        heads = ["min", "med", "max", *["k:k0"] * (unit != "k/k0")]
        assert eyes.lines[0].split()[-len(heads) :] == heads
        assert eyes.lines[0].rstrip().endswith(heads[-1])


async def test_a_low_pane_gives_headings_up_and_scrolls() -> None:
    async with showing(ranked(moe(8, 2)), (80, 7), overview=True) as eyes:
        assert [line[1:].split()[0] for line in eyes.lines[1:]] == ["query", "key", "value", "output"]
        await eyes.press(*"jjjjj")
        assert any(line.startswith(">expert.up") for line in eyes.lines)
        assert eyes.lines[0].startswith(" layer")
        assert eyes.heatmap.lines_needed == 1 + 2 + 7 + 2


async def test_towers_are_named_over_their_layers() -> None:
    async with showing(ranked([*layers(8, tower="vision"), *layers(6)]), (120, 24), overview=True) as eyes:
        first, second = eyes.lines[:2]
        assert [word for word in first.split() if word.isalpha()] == ["vision", "layers"]
        assert second.split()[1:15] == [*(str(n) for n in range(8)), *(str(n) for n in range(6))]


async def test_experts_are_columns_too() -> None:
    async with showing(ranked(moe(3, 16)), (120, 24), overview=True) as eyes:
        eyes.heatmap.show_selection(Selection(Row("", 1), Column("expert", "up")))
        assert eyes.heatmap.unfold()
        await eyes.pilot.pause()
        assert "experts of layer 1" in eyes.lines[0]
        order = [end for n in range(8) for end in (n, 15 - n)]  # the farthest from the median first
        assert eyes.lines[1].split()[:17] == ["expert", *(str(n) for n in order)]
        assert role(eyes, "gate").split()[1:17] == [str(105 + 3 * n) for n in order]
        await eyes.press("l", "l", "j")
        assert eyes.selected.single is not None
        assert eyes.selected.single.address == "layers.1.expert.1.down"
        eyes.heatmap.show_selection(Selection(Row("", 1), Column("expert", "up")))
        reversed_ = {s.text for s in pieces(eyes, "up") if s.style and s.style.reverse}
        assert reversed_ == set(">up ")


async def test_a_folded_cell_has_its_farthest_expert_where_all_have_room() -> None:
    async with showing(ranked(moe(3, 16)), (80, 24), overview=True) as eyes:  # 105 + 3 n in layer 1, and so on
        assert role(eyes, "gate").split()[1:7] == ["28", "^50", "128", "^150", "228", "28"]
        ends = [line.rstrip().rfind(each) for line in eyes.lines for each in ("101", "128") if each in line.split()]
        assert len(set(ends)) == 1  # what is beside a number does not move it
        assert role(eyes, "query").split()[1:4] == ["1", "101", "201"]
        assert eyes.lines[0].split()[:4] == ["layer", "0", "1", "2"]
    async with showing(ranked(moe(8, 16)), (80, 24), overview=True) as eyes:
        assert role(eyes, "gate").split()[1:9] == [str(100 * n + 28) for n in range(8)]


async def test_one_move_draws_only_what_it_changes() -> None:
    async with showing(ranked(layers(80)), overview=True) as eyes:
        await eyes.press("l", "j")
        with eyes.drawing() as regions:
            await eyes.press("l")
        assert sum(r.area for r in regions) < 10
        with eyes.drawing() as regions:
            await eyes.press("j")
        assert len({r.y for r in regions}) == 2
        assert sum(r.area for r in regions) < 40


async def test_turning_keeps_cursor_and_selection() -> None:
    async with showing(ranked(layers(30))) as eyes:
        await eyes.press("j", "j", "l")
        eyes.heatmap.set_overview(True)
        assert eyes.heatmap.cursor == (2, 1)
        assert role(eyes, "key")[12] == "\u2503"
        eyes.heatmap.set_overview(False)
        assert "[202]" in eyes.lines[4]


def test_slots_are_as_wide_as_there_is_room_for() -> None:
    assert Slots.fitting(8, 45, 5) == Slots(8, 1, 5)
    assert Slots.fitting(20, 45, 5) == Slots(20, 1, 2)
    assert Slots.fitting(80, 45, 5) == Slots(80, 1, 0)
    assert Slots.fitting(126, 45, 5) == Slots(126, 2, 0)
    for layers_, room in ((1, 1), (45, 45), (46, 45), (91, 45), (1000, 45), (7, 0)):
        slots = Slots.fitting(layers_, room, 5)
        assert slots.total <= max(1, room)
        assert [n for group in slots.groups() for n in group] == list(range(layers_))


async def test_the_number_of_the_cursors_layer_touches_no_other() -> None:
    async with showing(ranked(layers(126)), overview=True) as eyes:
        for layer in range(1, 126):
            await eyes.pilot.press("l")
            before, here, after = [s.text for s in eyes.heatmap.render_line(0)][:3]
            assert (here, before[-1], after[0]) == (str(layer), " ", " ")


async def test_where_there_is_no_room_for_both_the_summary_gives_way() -> None:
    async with showing(ranked(layers(30)), (40, 24), overview=True) as eyes:
        assert "min" not in eyes.lines[0]
        assert role(eyes, "key")[10:25] == "\u258c" * 15

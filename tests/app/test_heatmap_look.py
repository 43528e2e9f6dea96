"""How a cell looks: numbers, spreads, states, shades; at every depth of colour, for one model and for two."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from statistics import median
from types import SimpleNamespace

import pytest
from heatmap_fakes import Seen, layers, moe, projection

from rankscope.engine.null import null_rank
from rankscope.tui.data.contrast import Contrast
from rankscope.tui.data.grid import Column, Row, Selection, unfolded
from rankscope.tui.data.measures import MODELS_LIMITS, RATIO_LIMITS
from rankscope.tui.data.pair import Side
from rankscope.tui.data.session import State
from rankscope.tui.drawing.cell import Count
from rankscope.tui.drawing.shade_key import shade_key
from rankscope.tui.settings.palette import LEVELS, Depth, luminance, palette

KEY = Column("attention", "key")
GATE = Column("expert", "gate")
ADDRESS = "layers.0.attention.key"


def gates(*ranks: int | None) -> Seen:
    """One layer with experts whose gates have these ranks."""
    seen = Seen(moe(1, len(ranks)))
    seen.told.tell({f"layers.0.expert.{e}.gate": rank for e, rank in enumerate(ranks) if rank is not None})
    return seen


def lightness(colour: int) -> float:
    """The lightness L* of a colour (CIE)."""
    return 116 * luminance(colour) ** (1 / 3) - 16


def contrast(text: int, background: int) -> float:
    light, dark = sorted((luminance(text), luminance(background)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# Colours


@pytest.mark.parametrize("name", ["sequential", "below", "above"])
def test_every_shade_of_256_colours_carries_readable_text(name: str) -> None:
    for colour in getattr(palette(Depth.MANY), name):
        style = type(palette(Depth.MANY))(sequential=(colour,)).shade(1.0, (2.0,), False)
        assert style.color is not None
        assert contrast(style.color.number or 0, colour) >= 4.5


def test_shades_of_256_colours_rise_in_even_steps_of_lightness() -> None:
    many = palette(Depth.MANY)
    for ramp in (many.sequential, many.below, many.above[::-1]):
        steps = [lightness(b) - lightness(a) for a, b in pairwise(ramp)]
        assert min(steps) > 10
        assert max(steps) < 18


@pytest.mark.parametrize("depth", [Depth.MANY, Depth.SIXTEEN])
@pytest.mark.parametrize("limits", [RATIO_LIMITS, MODELS_LIMITS])
def test_a_diverging_shade_is_of_one_hue_below_1_and_of_another_above(depth: Depth, limits: tuple[float, ...]) -> None:
    colours = palette(depth)
    for value in (0.01, *limits, 99.0):
        background = colours.shade(value, limits, True).bgcolor
        assert background is not None
        assert background.number in (colours.below if value <= 1 else colours.above)
    nearest = [colours.shade(value, limits, True).bgcolor for value in (1.0, 1.0001)]
    assert [b.number for b in nearest if b] == [colours.below[-1], colours.above[0]]


def test_palettes_of_any_length_have_a_shade_for_every_step() -> None:
    short = type(palette(Depth.MANY))(sequential=(21,), below=(22,), above=(23,))
    for value in (0.1, 0.95, 1.05, 3.0):
        assert short.shade(value, RATIO_LIMITS, True) != short.shade(value, RATIO_LIMITS, False)


def test_shades_without_colours_are_bars_that_rise() -> None:
    mono = palette(Depth.MONO)
    assert not mono.shade(0.7, RATIO_LIMITS, True)
    assert [mono.level(v, RATIO_LIMITS) for v in (0.1, *(limit + 0.01 for limit in RATIO_LIMITS))] == list(LEVELS)


# Numbers


def test_a_cell_shows_the_number_and_the_shade_of_noise_of_its_shape() -> None:
    seen = Seen(layers(1))
    seen.told.tell({ADDRESS: 400})
    cell = seen.look.cell(Row("", 0), KEY)
    assert (cell.text, cell.tone) == ("400", 400 / null_rank(1024, 4096, 0.9))
    assert cell.style == palette(Depth.MANY).shade(cell.tone or 0, RATIO_LIMITS, True)
    seen.unit("k/k0")
    assert seen.look.cell(Row("", 0), KEY).text == f"{cell.tone:.2f}"


@pytest.mark.parametrize(("state", "mark"), [(State.RUNNING, "*"), (State.QUEUED, ":"), (State.FAILED, "!")])
def test_a_state_stands_where_there_is_no_number(state: State, mark: str) -> None:
    seen = Seen(layers(1))
    assert seen.look.cell(Row("", 0), KEY).text == "."
    seen.told.states[ADDRESS] = state
    seen.look.forget([ADDRESS])
    assert seen.look.cell(Row("", 0), KEY).text == mark
    assert seen.look.cell(Row("", 0), Column("mlp", "none")).text == "-"


def test_a_projection_that_is_computed_again_shows_that_it_runs() -> None:
    seen = Seen(layers(1))
    seen.told.tell({ADDRESS: 400})
    seen.told.states[ADDRESS] = State.RUNNING
    assert seen.look.cell(Row("", 0), KEY).text == "*"


def test_experts_fold_to_their_median_and_the_farthest_from_it() -> None:
    """Only one of 32 is odd: quartiles would not show it."""
    one = gates(*(29 + n % 2 for n in range(31)), 133).look.cell(Row("", 0), GATE)
    assert one.text == "30 ^133"
    cell = gates(100, 104, 110, 120, 96).look.cell(Row("", 0), GATE)
    assert (cell.text, cell.number, cell.fitting(7)) == ("104 ^120", 104, "104")


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ((90, 100, 110), "100 ^110"), ((80, 120), "100 ^120"), ((89, 100, 110), "100 ^89"), ((9, 9, 9, 9), "9"),
        ((91, 100, 109), "100"), ((9, 9, 10), "9"), ((9, 9, 11), "9 ^11"), ((0, 0, 1), "0"), ((0, 0, 2), "0 ^2"),
    ],
)  # fmt: skip
def test_a_median_that_stands_for_all_is_alone_and_of_two_as_far_the_larger_is_named(
    known: tuple[int, ...], text: str
) -> None:
    assert gates(*known).look.cell(Row("", 0), GATE).text == text


@pytest.mark.parametrize(
    ("asked", "text", "narrow"), [(None, "107 2/4", "."), (2, "107 2/4", "107"), (3, "107 2/4", ".")]
)
def test_a_sample_of_experts_says_how_many_of_how_many(asked: int | None, text: str, narrow: str) -> None:
    """A sample of two experts takes 0 and 2 of 4, one of three 0, 1 and 2."""
    seen = gates(104, None, 110, None)
    seen.told.experts = asked
    cell = seen.look.cell(Row("", 0), GATE)
    assert (cell.text, cell.fitting(6)) == (text, narrow)


def test_experts_that_are_not_all_there_say_so_or_give_no_number() -> None:
    seen = gates(100, None, 110, None)
    cell = seen.look.cell(Row("", 0), GATE)
    assert (cell.text, cell.fitting(6)) == ("105 2/4", ".")
    seen.told.states["layers.0.expert.3.gate"] = State.FAILED
    seen.look.forget(["layers.0.expert.3.gate"])
    cell = seen.look.cell(Row("", 0), GATE)
    assert (cell.fitting(6), cell.sign) == ("!", "!")
    assert gates(None, None).look.cell(Row("", 0), GATE).text == "."


def test_a_number_too_long_for_its_place_loses_digits_and_is_never_cut() -> None:
    seen = Seen(layers(1), "sigma_1")
    seen.told.entries[ADDRESS] = SimpleNamespace(sigma_max=12345.678)
    cell = seen.look.cell(Row("", 0), KEY)
    assert [cell.fitting(width) for width in (9, 8, 6, 4)] == ["1.235e+04", "1.2e+04", "1e+04", "#"]


def test_grey_says_that_factors_cost_more() -> None:
    seen = Seen([projection(0, "attention", "key", shape=(1000, 1000))], "k/k*", Depth.MONO)
    seen.told.tell({ADDRESS: 499})
    assert not seen.look.cell(Row("", 0), KEY).style.dim
    seen.told.tell({ADDRESS: 501})
    seen.look.forget([ADDRESS])
    cell = seen.look.cell(Row("", 0), KEY)
    assert (cell.is_greyed, cell.style.dim, cell.text, cell.level) == (True, True, "1.00", "\u2587")


def test_a_mark_underlines_its_cell_and_its_group() -> None:
    seen = gates(100, 104)
    assert not seen.look.cell(Row("", 0), GATE).is_marked
    seen.look.marked = frozenset({"layers.0.expert.1.gate"})
    cell = seen.look.cell(Row("", 0), GATE)
    assert (cell.is_marked, cell.style.underline, cell.sign) == (True, True, "+")
    seen.look.marked = frozenset()
    assert not seen.look.cell(Row("", 0), GATE).is_marked


def test_the_twin_with_random_signs_has_its_own_state() -> None:
    from rankscope.engine.derive.flip import flipped

    seen = Seen(layers(1), "k/kf")
    p = next(p for p in seen.told.model.tree.projections if p.key == ADDRESS)
    seen.told.tell({ADDRESS: 300})
    assert seen.look.cell(Row("", 0), KEY).text == "."
    seen.told.states[flipped(p).key] = State.QUEUED
    seen.look.forget()
    assert seen.look.cell(Row("", 0), KEY).text == ":"
    seen.told.tell({flipped(p).key: 400})
    seen.look.forget()
    assert seen.look.cell(Row("", 0), KEY).text == "0.75"


# Shades spread over what there is


def told_sigmas(*sigmas: float) -> Seen:
    seen = Seen([projection(n, "attention", "key") for n in range(9)], "sigma_1")
    for n, sigma in enumerate(sigmas):
        seen.told.entries[f"layers.{n}.attention.key"] = SimpleNamespace(sigma_max=sigma)
    return seen


def test_five_limits_at_even_distances_of_their_logarithms() -> None:
    assert told_sigmas(1.0, 64.0, 8.0).look.limits() == pytest.approx((2, 4, 8, 16, 32))
    assert told_sigmas().look.limits() == ()
    assert told_sigmas(3.0).look.limits() == (3.0,)
    assert told_sigmas(math.inf, 0.0, 2.0, 128.0).look.limits() == pytest.approx((4, 8, 16, 32, 64))


def test_the_key_of_break_even_shows_every_look_that_cells_have_and_no_other() -> None:
    """1024 x 4096 breaks even at 819.2; half of four experts may lie above."""
    ranks = range(20, 1024, 20)
    gate, up = ({f"layers.0.expert.{e}.{role}": 400 if e < 2 else 900 for e in range(4)} for role in ("gate", "up"))
    single = [projection(n, "attention", "key") for n in range(len(ranks))]
    experts = [projection(0, "expert", role, e) for e in range(4) for role in ("gate", "up")]
    seen = Seen([*single, *experts], "k/k*")
    seen.told.tell({p.key: rank for p, rank in zip(single, ranks, strict=True)} | gate | up)
    key = shade_key(seen.look)
    shown = {str(span.style) for span in key.spans if not key.plain[span.start : span.end].strip(" \u2591")}
    assert {str(seen.look.cell(*place).style) for place in seen.grid.cells} == shown
    seen.against([*single, *experts], Side.RATIO)
    seen.look.forget()
    assert shade_key(seen.look).plain.split()[-2:] == ["1.25", "2"]  # for B/A nothing is grey


def test_limits_stay_until_a_number_lies_outside() -> None:
    seen = told_sigmas(1.0, 64.0)
    rows = [Row("", n) for n in range(9)]
    before = seen.look.cell(rows[1], KEY)
    limits = seen.look.limits()
    seen.told.entries["layers.2.attention.key"] = SimpleNamespace(sigma_max=5.0)
    seen.look.forget(["layers.2.attention.key"])
    assert seen.look.limits() == limits
    seen.told.entries["layers.3.attention.key"] = SimpleNamespace(sigma_max=4096.0)
    seen.look.forget(["layers.3.attention.key"])
    assert seen.look.limits() == pytest.approx((4, 16, 64, 256, 1024))
    assert seen.look.cell(rows[1], KEY).style != before.style  # the largest is no longer the same
    del seen.told.entries["layers.3.attention.key"]
    seen.look.forget()
    assert seen.look.limits() == limits


def test_the_key_shows_the_limits_between_the_shades() -> None:
    seen = Seen(layers(1))
    key = shade_key(seen.look)
    assert key.plain.split() == [".5", ".6", ".7", ".8", ".9", "1", "1.1"]
    shades = [palette(Depth.MANY).shade(v, RATIO_LIMITS, True) for v in (*RATIO_LIMITS, 9.0)]
    assert [span.style for span in key.spans if key.plain[span.start : span.end].isspace()] == shades
    assert shade_key(Seen(layers(1), depth=Depth.MONO).look).plain == (
        "\u2581.5\u2582.6\u2583.7\u2584.8\u2585.9\u25861\u25871.1\u2588"
    )
    assert shade_key(told_sigmas().look).plain == ""
    assert shade_key(Seen(layers(1), "k/k*", Depth.MONO).look).plain.endswith("1\u2591\u2591")
    assert shade_key(told_sigmas(1e-9, 1e9).look).cell_len < 45


@pytest.mark.parametrize(
    ("low", "high"), [(0.99, 1.01), (99.0, 101.0), (1240.0, 1241.0), (2.0, 2.0 + 1e-9), (1e-3, 1e9), (5e-324, 1.7e308)]
)
def test_no_two_limits_of_the_key_read_alike(low: float, high: float) -> None:
    """Limits have as few digits as tell them apart; where six do not, one limit is left without a number."""
    for contrast in Contrast:
        seen = told_sigmas(low, high)
        seen.look.lens.contrast = contrast
        limits = seen.look.limits(KEY)
        assert all(math.isfinite(limit) and low <= limit <= high for limit in limits)
        texts = shade_key(seen.look, KEY).plain.split()
        assert len(set(texts)) == len(texts) >= 1
        assert len(texts) == len(limits) or high - low < 1e-6 * low
        numbers = [float(text.removesuffix("k")) * (1000 if text.endswith("k") else 1) for text in texts]
        assert numbers == pytest.approx(limits[: len(numbers)], rel=0.06)
        assert "e+02" not in "".join(texts)


# Two models


def test_the_other_model_and_the_ratio() -> None:
    seen = Seen(layers(2))
    seen.told.tell({ADDRESS: 400, "layers.1.attention.key": 300})
    other = seen.against(layers(1), Side.B)
    look, first, second = seen.look, Row("", 0), Row("", 1)
    assert [look.cell(row, KEY).text for row in (first, second)] == [".", "-"]
    other.tell({ADDRESS: 500})
    look.forget([ADDRESS])
    assert look.cell(first, KEY).text == "500"
    assert look.count(Selection(second)) == Count(0, 0, 0)
    seen.lens.side = Side.RATIO
    look.forget()
    assert [look.cell(row, KEY).text for row in (first, second)] == ["1.250", "-"]
    assert look.cell(first, KEY).style == palette(Depth.MANY).shade(1.25, MODELS_LIMITS, True)
    assert look.last_number(first, KEY) == 400 / null_rank(1024, 4096, 0.9)


# Groups


def test_counts_follow_what_changes() -> None:
    seen = gates(100, 104, None)
    whole = Selection(Row("", 0), block="expert")
    assert seen.look.count(whole) == Count(2, 0, 9)
    seen.told.states["layers.0.expert.2.gate"] = State.FAILED
    assert seen.look.count(whole) == Count(2, 0, 9)
    seen.look.forget(["layers.0.expert.2.gate"])
    assert seen.look.count(whole) == Count(2, 1, 9)


def test_a_ratio_of_two_shapes_has_a_sign_and_no_other_has() -> None:
    wide = [projection(0, "expert", "up", e, (1024, 4096)) for e in range(2)]
    seen = Seen([projection(0, "attention", "key"), projection(0, "attention", "value"), *wide])
    narrow = [projection(0, "attention", "key", shape=(512, 4096)), projection(0, "attention", "value")]
    other = seen.against([*narrow, wide[0], replace(wide[1], rows=2048)], Side.RATIO)
    ranks = {p.key: 200 for p in [*narrow, *wide]}
    seen.told.tell(ranks)
    other.tell({key: 2 * rank for key, rank in ranks.items()})
    seen.look.forget()
    row, value, up = Row("", 0), Column("attention", "value"), Column("expert", "up")
    assert seen.look.cell(row, KEY).forms == ("\u22602.000", "\u22602", "\u22602e+00", "#")
    assert (seen.look.cell(row, KEY).sign, seen.look.cell(row, value).sign) == ("\u2260", " ")
    assert (seen.look.cell(row, value).text, seen.look.cell(row, up).text) == ("2.000", "\u22602.000")
    assert seen.look.number_text(narrow[0]) == "\u22602.000"
    assert [seen.lens.shape(p) for p in narrow] == ["1024x4096 \u2260 512x4096", "1024x4096"]
    seen.lens.side = Side.B
    seen.look.forget()
    assert (seen.look.cell(row, KEY).text, seen.lens.shape(narrow[0])) == ("400", "512x4096")


def test_noise_ratios_of_a_cell_are_those_of_its_members_in_any_unit() -> None:
    seen = gates(100, 104, 120)
    expected = median(k / null_rank(2048, 4096, 0.9) for k in (100, 104, 120))
    for unit in ("k", "k/k0", "percent", "k/k*"):
        seen.unit(unit)
        assert seen.look.last_number(Row("", 0), GATE) == pytest.approx(expected)


# Experts


def test_unfolded_experts_are_rows_with_one_projection_in_a_cell() -> None:
    seen = gates(100, 104, 110)
    inner = unfolded(seen.grid, Row("", 0), "expert")
    assert [row.label for row in inner.rows] == ["e0", "e1", "e2"]
    assert [column.role for column in inner.columns] == ["gate", "up", "down"]
    assert inner.cells[inner.rows[1], GATE][0].address == "layers.0.expert.1.gate"
    seen.look.show_experts(inner)
    assert [seen.look.cell(row, GATE).text for row in inner.rows] == ["100", "104", "110"]
    seen.told.tell({"layers.0.expert.1.gate": 99})
    seen.look.forget(["layers.0.expert.1.gate"])
    assert seen.look.cell(inner.rows[1], GATE).text == "99"
    assert seen.look.cell(Row("", 0), GATE).text == "100 ^110"


def test_projections_without_a_number_of_their_own_are_rows_in_their_order() -> None:
    twice = [projection(0, "other", "lora"), projection(0, "other", "lora")]
    inner = unfolded(Seen(twice).grid, Row("", 0), "other")
    assert [row.label for row in inner.rows] == ["e0", "e1"]


def test_shades_spread_over_a_model_or_over_each_role() -> None:
    """Keys from 100 to 110 and values from 200 to 400: on one common scale all keys look alike."""
    seen = Seen([p for p in layers(6, mlp=False) if p.role in ("key", "value")])
    for layer in range(6):
        seen.told.tell({f"layers.{layer}.attention.key": 100 + 2 * layer})
        seen.told.tell({f"layers.{layer}.attention.value": 200 + 40 * layer})
    value = Column("attention", "value")

    def shades(column: Column) -> int:
        return len({seen.look.cell(Row("", layer), column).style.bgcolor for layer in range(6)})

    found = {}
    for contrast in Contrast:
        seen.look.lens.contrast = contrast
        seen.look.turn()
        found[contrast] = shades(KEY), shades(value)
    assert found == {Contrast.FIXED: (1, 2), Contrast.MODEL: (1, 4), Contrast.ROLE: (6, 5)}
    ratio = [k / null_rank(1024, 4096, 0.9) for k in (100, 110)]
    assert seen.look.limits(KEY) == pytest.approx([ratio[0] * 1.1 ** (step / 6) for step in range(1, 6)])
    seen.told.tell({"layers.5.attention.key": 900})
    seen.look.forget(["layers.5.attention.key"])
    assert seen.look.limits(KEY)[-1] == pytest.approx(ratio[0] * 9 ** (5 / 6))
    assert shade_key(seen.look, KEY).plain.split() != shade_key(seen.look, value).plain.split()

"""The interface's sentences, word for word: one table for each function that writes them, with its edge cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from heatmap_fakes import Seen, layers, moe, projection, ranked

from rankscope.engine.compute.events import Again, Progress
from rankscope.engine.derive.flip import flipped
from rankscope.engine.errors import InputError
from rankscope.tui.charts.request import Request
from rankscope.tui.charts.spectrum_charts import hint
from rankscope.tui.charts.ticks import tick_text, ticks
from rankscope.tui.data.comparison import difference, headings_of
from rankscope.tui.data.contrast import Contrast
from rankscope.tui.data.grid import Column, Row, Selection
from rankscope.tui.data.measures import MEASURES, units
from rankscope.tui.data.pair import Side
from rankscope.tui.data.phrases import byte_size, share
from rankscope.tui.data.session import State
from rankscope.tui.data.table_rows import fields_of
from rankscope.tui.data.wording import describe, duration, percent, solved_again
from rankscope.tui.drawing.cell import Count
from rankscope.tui.screens.command_line import parse_command
from rankscope.tui.screens.explorer.screen import FIRST_KEYS
from rankscope.tui.screens.messages import BackgroundFailed
from rankscope.tui.screens.status_lines import (
    HINTS,
    OUTLIER,
    ZOOM,
    bits,
    job_text,
    key_line,
    model_text,
    selection_text,
    shown_hints,
    trouble,
)
from rankscope.tui.settings.config import Config
from rankscope.tui.settings.palette import Depth, Palette, luminance, palette
from rankscope.tui.settings.terminal import set_up

WORDS: list[tuple[Callable[..., str], tuple[Any, ...], str]] = [
    (duration, (0,), "0 s"),
    (duration, (59.4,), "59 s"),
    (duration, (59.6,), "1 min 00 s"),
    (duration, (605,), "10 min 05 s"),
    (duration, (3599.4,), "59 min 59 s"),
    (duration, (3600,), "1 h 00 min"),
    (duration, (7384,), "2 h 03 min"),
    (duration, (360_000,), "100 h 00 min"),
    (byte_size, (0,), "0 B"),
    (byte_size, (999,), "999 B"),
    (byte_size, (1000,), "1.0 kB"),
    (byte_size, (85_249_999,), "85.2 MB"),
    (byte_size, (10**12,), "1.0 TB"),
    (share, (0, 999), "0/999 B"),
    (share, (1_249_999_999, 3_200_000_000), "1.2/3.2 GB"),
    (share, (500, 3_000_000), "0.0/3.0 MB"),
    (percent, (0.9,), "90"),
    (percent, (0.995,), "99.5"),
    (percent, (1.0,), "100"),
    (bits, ("Q4_1",), "4-bit (Q4_1)"),
    (bits, ("IQ2_XXS",), "2-bit (IQ2_XXS)"),
    (bits, ("bitsandbytes nf4",), "4-bit (bitsandbytes nf4)"),
    (bits, ("gptq v2",), "2-bit (gptq v2)"),
    (bits, ("e",), "e"),
    (tick_text, (0,), "0"),
    (tick_text, (-0.25,), "-0.25"),
    (tick_text, (0.0001,), "0.0001"),
    (tick_text, (0.00005,), "5e-5"),
    (tick_text, (9999.4,), "9999"),
    (tick_text, (12_345.6,), "12346"),
    (tick_text, (999_999,), "999999"),
    (tick_text, (1_000_000,), "1e6"),
    (tick_text, (2e-10,), "2e-10"),
]


@pytest.mark.parametrize(("speak", "given", "said"), WORDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_words(speak: Callable[..., str], given: tuple[Any, ...], said: str) -> None:
    assert speak(*given) == said


def test_progress_says_what_is_left_only_while_there_is_work() -> None:
    busy = Progress(143, 2, 210, 31.26, 3600.0, ("cpu",), True, 1_200_000_000, 3_200_000_000)
    assert describe(busy) == "143/210  31.3/s  ETA 1 h 00 min  1.2/3.2 GB  2 failed"
    assert describe(replace(busy, busy=False)) == "143/210  31.3/s  1.2/3.2 GB  2 failed"
    assert describe(replace(busy, eta=0.0, to_fetch=0)) == "143/210  31.3/s  ETA 0 s  2 failed"


def test_progress_names_what_is_solved_again() -> None:
    second = Progress(210, 0, 210, 31.26, None, ("cuda:0",), True, again=Again(4, 2, 1, 0.7))
    assert describe(second) == "210/210  solving 2 of 4 again, ill-conditioned  0 failed"
    assert describe(replace(second, done=209, eta=1.0)) == "209/210  31.3/s  ETA 1 s  0 failed"
    assert describe(replace(second, busy=False)) == "210/210  31.3/s  0 failed"
    assert solved_again(Again(4, 2, 1, 61.0)) == "1 of 4 bounds solved again in 1 min 01 s"


def test_the_job_line_says_what_runs_and_what_failed() -> None:
    (p,) = layers(1)[:1]
    session = SimpleNamespace(progress=None, failures={}, state=lambda _: State.RUNNING)
    job = lambda running, state: job_text(cast(Any, session), running, state)  # noqa: E731
    assert job(None, "") == ""
    session.progress = Progress(1, 1, 3, 2.0, 65.0, ("cuda:0", "cuda:1"), True)
    assert job(p, "") == "cuda:0, cuda:1  layers.0.attention.query  1/3  2/s  ETA 1 min 05 s  1 failed"
    assert job(p, "stopping") == "cuda:0, cuda:1  stopping  1/3  2/s  ETA 1 min 05 s  1 failed"
    session.state = lambda _: State.DONE
    assert job(p, "") == "cuda:0, cuda:1  1/3  2/s  ETA 1 min 05 s  1 failed"
    session.progress = Progress(2, 1, 3, 2.0, None, ("cuda:0",), False)
    session.failures = {p.key: "why"}
    assert job(p, "") == "cuda:0  1 failed"


def _told(seen: Seen) -> Any:
    """A fake session to which a test adds failures."""
    session = cast(Any, seen.told)
    session.failures = {}
    return session


def test_the_selection_of_experts_counts_those_that_are_known() -> None:
    """Eight experts, with k90 known of none, of some and of all."""
    seen = Seen(moe(2, 8))
    cell = Selection(Row("", 1), Column("expert", "up"))
    tail = "experts: median ^a tenth off or more; enter opens them"
    for known, count in ((0, "8"), (1, "1/8"), (7, "7/8"), (8, "8")):
        seen.told.ranks = {f"layers.1.expert.{e}.up": 100 + e for e in range(known)}
        said = selection_text(seen.lens, cell, seen.grid).plain
        assert said == f"layers.1.expert.up  {count} {tail}"


def test_the_selection_of_one_says_its_shape_and_its_number_or_state() -> None:
    seen = ranked(layers(2))
    session = _told(seen)
    p = seen.grid.cells[Row("", 1), Column("attention", "key")][0]
    say = lambda: selection_text(seen.lens, Selection(Row("", 1), Column("attention", "key")), seen.grid).plain  # noqa: E731
    assert say() == "layers.1.attention.key  1024x4096  k90 102"
    del session.ranks[p.key]
    assert say() == "layers.1.attention.key  1024x4096  not computed"
    session.states[p.key] = State.RUNNING
    assert say() == "layers.1.attention.key  1024x4096  running"
    session.entries[p.key] = SimpleNamespace()
    assert say() == "layers.1.attention.key  1024x4096  k90 not known"
    session.failures[p.key] = "the weights hold NaN"
    assert say() == "layers.1.attention.key  1024x4096  failed"
    assert trouble(seen.lens, p) == "the weights hold NaN"
    odd = replace(p, problem="packed", rows=0, cols=0)
    assert selection_text(seen.lens, Selection(single=odd), seen.grid).plain == "layers.1.attention.key  unsupported"
    assert trouble(seen.lens, odd) == "packed"
    assert selection_text(seen.lens, Selection(Row("", 1), block="mlp"), seen.grid).plain == "layers.1.mlp"
    assert selection_text(seen.lens, Selection(), seen.grid).plain == "all projections over 2 layers"


def test_in_a_second_model_that_lacks_it_the_selection_says_so() -> None:
    seen = Seen(layers(1))
    _told(seen)
    other = cast(Any, seen.against(layers(1)[:1], Side.B))
    other.failures = {}
    for role, said in (("query", "not computed"), ("key", "not in B")):
        text = selection_text(seen.lens, Selection(Row("", 0), Column("attention", role)), seen.grid).plain
        assert text == f"layers.0.attention.{role}  1024x4096  {said}"


def test_a_count_leaves_out_what_the_side_does_not_have() -> None:
    """A second model has two of three experts, one computed and one failed."""
    experts = [projection(0, "expert", "up", e) for e in range(3)]
    seen = Seen(experts)
    assert seen.look.count(Selection()) == Count(0, 0, 3)
    seen.told.tell({p.key: 7 for p in experts})
    seen.look.forget()
    assert seen.look.count(Selection(Row("", 0))) == Count(3, 0, 3)
    other = seen.against(experts[:2], Side.B)
    other.tell({experts[0].key: 7})
    other.states[experts[1].key] = State.FAILED
    seen.look.forget()
    assert seen.look.count(Selection(column=Column("expert", "up"))) == Count(1, 1, 2)
    assert seen.look.count(Selection(Row("", 0), block="mlp")) == Count()


def test_an_empty_chart_says_what_to_do() -> None:
    seen = Seen(layers(1))
    session = _told(seen)
    request = cast(Request, SimpleNamespace(side=Side.A, compare=False))
    marked = cast(Request, SimpleNamespace(side=Side.A, compare=True))
    query, key, value, *_ = layers(1)
    say = lambda *wanted, to=request: hint(seen.lens.pair, to, wanted, "enter computes it")  # noqa: E731
    assert say() == "nothing is selected"
    assert say(to=marked) == "nothing marked: space marks the selection"
    assert say(query, key) == "not computed: enter computes it"
    session.failures[query.key] = "NaN"
    assert say(query, key) == "not computed: enter computes it"  # one of several cannot be computed
    assert say(query, replace(key, problem="packed")) == "it cannot be computed: the line below says why"
    session.states[value.key] = State.QUEUED
    assert say(query, key, value) == "being computed: the curve appears once it is saved"
    session.states[value.key] = State.RUNNING
    assert say(value) == "being computed: the curve appears once it is saved"
    session.states.clear()
    cast(Any, seen.against([query], Side.B)).failures = {}
    request.side = Side.B  # type: ignore[misc]
    assert say(projection(9, "attention", "key")) == "this model has no projection of this name"
    assert say(key) == "not computed: enter computes it"  # the first has it


def test_what_is_far_from_its_base_is_a_factor_from_ten_on() -> None:
    lens = Seen(layers(1), "stable_rank").lens
    pairs = ((9.9, 1.0), (10.0, 1.0), (1.0, 10.0), (1.01, 10.0), (25.0, 1.0), (1.0, 1.0), (1.0, 0.0))
    found = [difference(number, base, lens) for number, base in pairs]
    assert found == ["+890 %", "x 10", "x 0.1", "-90 %", "x 25", "+0.0 %", ""]
    counts = Seen(layers(1)).lens
    assert [difference(number, 12.0, counts) for number in (24.0, 12.0, 3.0)] == ["+12", "+0", "-9"]


def test_the_most_telling_state_stands_for_several() -> None:
    """The order is running, failed, queued; a number, where there is one, comes before them all."""
    experts = [projection(0, "expert", "up", e) for e in range(2)]
    place = Row("", 0), Column("expert", "up")
    seen = Seen(experts)
    for states, mark in (
        ((State.RUNNING, State.FAILED), "*"),
        ((State.FAILED, State.QUEUED), "!"),
        ((State.QUEUED, State.NOT_COMPUTED), ":"),
        ((State.NOT_COMPUTED, State.NOT_COMPUTED), "."),
    ):
        seen.told.states = {p.key: state for p, state in zip(experts, states, strict=True)}
        seen.look.forget()
        assert seen.look.cell(*place).forms == (mark,)
    seen.told.states = {experts[1].key: State.FAILED}
    seen.told.tell({experts[0].key: 104})
    seen.look.forget()
    assert seen.look.cell(*place).forms == ("104 1/2", "!")


@pytest.mark.parametrize(("dear", "is_grey"), [(1, False), (2, False), (3, True)])
def test_more_than_half_of_the_experts_make_a_cell_grey(dear: int, is_grey: bool) -> None:
    """Four experts: 1024 x 4096 breaks even at 819.2."""
    experts = [projection(0, "expert", "up", e) for e in range(4)]
    seen = Seen(experts, "k/k*")
    seen.told.tell({p.key: 900 if n < dear else 400 for n, p in enumerate(experts)})
    seen.look.forget()
    assert seen.look.cell(Row("", 0), Column("expert", "up")).is_greyed is is_grey


def test_a_ratio_to_nothing_is_no_number() -> None:
    """A zero matrix has rank 0 under any signs."""
    (p, *_) = layers(1)
    seen = Seen(layers(1), "k/kf")
    seen.told.tell({p.key: 0, flipped(p).key: 0})
    assert seen.lens.number(p) is None
    seen.told.tell({p.key: 60, flipped(p).key: 80})
    assert seen.lens.number(p) == 0.75


def test_columns_are_as_wide_as_their_numbers_may_get() -> None:
    widths = {field.name: field.width for field in fields_of(Seen(layers(1)).lens)}
    assert widths["sigma_1"] == len("1.234e-05") + 2
    assert widths["condition_number"] == len("> 2.581e+10") + 2
    assert widths["numerical_rank"] == len(">= 14336") + 2
    assert {
        width for name, width in widths.items() if name not in ("sigma_1", "condition_number", "numerical_rank")
    } == {8}


def test_the_first_line_says_what_is_open() -> None:
    session = SimpleNamespace(stored=lambda found: len(found) - 1, weighting=("", ""), gauge="")
    pair = cast(Any, SimpleNamespace(first=session, second=None))
    for count, said in ((1, "1 layer"), (2, "2 layers"), (0, "0 layers")):
        session.model = SimpleNamespace(name="org/m\x1b", checkpoint=None, tree=None, parts={}, against="")
        text = model_text(pair, layers(1), count)
        assert text == (f"org/m\\x1b  stored spectra only, no weights  {said}", "6/7 stored")
    session.model.checkpoint = SimpleNamespace(commit="", config={}, is_remote=False, quantisation="Q4_1")
    session.model.tree = SimpleNamespace(known=False)
    assert model_text(pair, layers(1), 3)[0] == "org/m\\x1b  no config.json  4-bit (Q4_1) weights  3 layers"
    session.model.checkpoint = SimpleNamespace(commit="a" * 40, config={"x": 1}, is_remote=True, quantisation="")
    session.size = 16_100_000_000
    assert model_text(pair, layers(1), 3)[0] == "org/m\\x1b  aaaaaaaa  16.1 GB, not downloaded  3 layers"


def test_as_many_key_hints_as_fit() -> None:
    two = " 0-9 view  enter compute"
    for width, said in ((9, ""), (10, " 0-9 view"), (24, " 0-9 view"), (25, two), (32, two), (33, f"{two}  s scan")):
        assert key_line(width, HINTS, {}).plain == said
    assert key_line(25, HINTS, {"compute": "c"}).plain == " 0-9 view  c compute"
    assert key_line(25, HINTS, {}, "why").plain == " why"


def test_the_first_line_fits_80_columns_and_names_b() -> None:
    assert len(FIRST_KEYS) < 80
    assert "  b outlier  " in FIRST_KEYS


@pytest.mark.parametrize("width", [25, 80, 120, 200])
def test_while_something_is_computed_the_line_of_keys_begins_with_how_to_stop_it(width: int) -> None:
    hints = shown_hints(True, False)
    assert key_line(width, hints, {}).plain.startswith(" x stop  0-9 view")
    assert "scan" not in key_line(200, hints, {}).plain
    assert key_line(width, hints, {"stop": "X"}, "a note").plain == " X stop  a note"
    assert key_line(max(width, 40), shown_hints(False, True), {}).plain.startswith(" d A, B, B/A, delta  0-9 view")


def test_in_the_heatmap_there_is_a_key_to_what_stands_out_and_zoom_says_where_it_goes() -> None:
    zoom = ZOOM._replace(word="table")
    own = (OUTLIER, zoom)
    line = key_line(200, shown_hints(False, False, zoom=zoom, own=own), {"outlier.next": "o"}).plain
    assert "  q quit  o outlier  z table  JK layer" in line
    assert line.count("z table") == 1
    assert key_line(80, shown_hints(False, False, zoom=zoom, own=own), {}).plain.endswith("  q quit")
    line = key_line(200, shown_hints(False, False, True, zoom=zoom), {}).plain
    assert "  q quit  t threshold  JK layer" in line
    assert "  z table  f full screen" in line


def test_a_rank_is_a_whole_number_from_one_on() -> None:
    for right in ("1", "q=1536 kv=512", "query=8,64"):
        assert parse_command(f"k {right}") == ("k", right)
    for wrong in ("0", "-1", "1.5", "x", "q=", "=4", "q=0"):
        with pytest.raises(InputError) as refused:
            parse_command(f"k {wrong}")
        assert str(refused.value).startswith(f"{wrong!r} is not a rank: write 512, or by role query=1536,key_value=512")
    for wrong in ("1 2", "q=1 q=2"):
        with pytest.raises(InputError, match="twice"):
            parse_command(f"k {wrong}")


def test_a_contrast_is_one_of_three() -> None:
    assert [parse_command(f"contrast {name}") for name in Contrast] == [("contrast", name) for name in Contrast]
    with pytest.raises(InputError, match="no contrast 'x': fixed model role"):
        parse_command("contrast x")


def test_marks_are_told_apart_in_the_fewest_words() -> None:
    towers = [projection(3, "attention", "key", tower=tower) for tower in ("", "vision")]
    experts = [projection(1, "expert", "gate", e) for e in (2, 17)]
    both = [projection(0, "attention", "output"), projection(0, "cross_attention", "output")]
    assert headings_of(towers) == ["3 key", "vision.3 key"]
    assert headings_of(experts) == ["e2 gate", "e17 gate"]
    assert headings_of(both) == ["attention.output", "cross_attention.output"]
    assert headings_of(layers(1)[:1]) == ["query"]
    assert headings_of([*layers(1)[:1], *layers(1)[:1]]) == ["layers.0.attention.query"] * 2


def test_no_measure_but_those_of_the_menu_is_a_unit() -> None:
    names = "k percent k/k0 k/kf k/k* k/raw energy effective_rank stable_rank sigma_1 u1_participation"
    assert [unit.name for unit in units(has_directions=False)] == [
        name for name in names.split() if name not in ("k/raw", "u1_participation")
    ]
    assert [unit.name for unit in units()] == [name for name in names.split() if name != "k/raw"]
    assert [unit.name for unit in units("norm")] == [name for name in names.split() if name != "k/kf"]
    for name in {measure.name for measure in MEASURES} - set(names.split()) | {"zzz"}:
        with pytest.raises(InputError) as refused:
            parse_command(f"unit {name}")
        assert str(refused.value) == f"no unit {name!r}: {names}"
    assert [parse_command(f"u {short}")[1] for short in ("%", "effective", "stable")] == [
        "percent", "effective_rank", "stable_rank",
    ]  # fmt: skip


def test_a_failure_carries_what_went_wrong_and_what_was_being_done() -> None:
    error = OSError("disk")
    message = BackgroundFailed(error, "writing a.csv")
    assert (message.error, message.doing) == (error, "writing a.csv")


# Ticks


@pytest.mark.parametrize(
    ("span", "log", "most", "whole", "found"),
    [
        ((0.0, 10.0), False, 5, False, [0, 2, 4, 6, 8, 10]),
        ((0.0, 10.0), False, 4, False, [0, 5, 10]),
        ((2.0, 3.0), False, 4, False, [2, 2.5, 3]),
        ((0.0, 3.0), False, 9, True, [0, 1, 2, 3]),
        ((1.0, 10.0), True, 4, False, [1, 2, 5, 10]),
        ((1.0, 10.0), True, 3, False, [1, 10]),
        ((1.0, 9.0), True, 3, False, [1, 2, 5]),
        ((2.0, 5.0), True, 1, False, [2, 5]),
        ((1.0, 1000.0), True, 4, False, [1, 10, 100, 1000]),
        ((1.0, 1000.0), True, 3, False, [1, 100]),
        ((1.0, 1e6), True, 3, False, [1, 1000, 1e6]),
        ((6.0, 9.0), True, 5, False, [6, 9]),
    ],
)  # fmt: skip
def test_ticks_at_the_edges(span: tuple[float, float], log: bool, most: int, whole: bool, found: list[float]) -> None:
    assert ticks(span, log, most, whole=whole) == pytest.approx(found)


# Colours


@pytest.mark.parametrize(
    ("colour", "ink"),
    [(4, 15), (7, 0), (15, 0), (8, 15), (16, 231), (231, 16), (232, 231), (255, 16), (53, 231), (191, 16)],
)
def test_what_is_written_on_a_colour_is_of_the_same_kind(colour: int, ink: int) -> None:
    """For one of the first 16, the terminal's colours, another of these; black on light, white on dark."""
    style = Palette(sequential=(colour,)).shade(1.0, (), diverges=False)
    assert style.bgcolor is not None
    assert style.color is not None
    assert (style.bgcolor.number, style.color.number) == (colour, ink)


def test_the_luminance_of_the_cubes_corners_and_of_the_greys_ends() -> None:
    """16 and 231 are black and white, 232 and 255 the greys 8 and 238 (WCAG's formula, linear below 10)."""
    greys = [8 / 255 / 12.92, ((238 / 255 + 0.055) / 1.055) ** 2.4]
    assert [luminance(n) for n in (16, 231, 232, 255)] == pytest.approx([0.0, 1.0, *greys])
    assert [luminance(n) for n in (196, 46, 21)] == pytest.approx([0.2126, 0.7152, 0.0722])  # red, green, blue


def test_the_16th_colour_is_the_last_that_a_terminal_of_16_has() -> None:
    for highest, fits in ((15, True), (16, False)):
        chosen = Palette(sequential=(1,) * 6, below=(2,) * 6, above=(3,) * 4, series=(highest,) * 8)
        found = set_up(Config(palette=chosen), {"TERM": "linux"}).palette
        assert found.series == (chosen if fits else palette(Depth.SIXTEEN)).series
        assert found.dim == 8


def test_shades_part_at_one_and_end_where_there_are_no_more() -> None:
    limits = (0.5, 0.75, 1.0, 1.25)
    colours = Palette(below=(20, 25, 32), above=(224, 160))
    found = [colours.shade(v, limits, diverges=True).bgcolor for v in (0.4, 0.5, 0.6, 0.9, 1.0, 1.1, 1.3, 99.0)]
    assert [c.number if c else None for c in found] == [20, 20, 25, 32, 32, 224, 160, 160]
    assert [palette(Depth.MONO).level(v, limits) for v in (0.1, 0.6, 2.0)] == ["\u2581", "\u2583", "\u2588"]
    assert palette(Depth.MONO).shade(0.4, limits, diverges=True).bgcolor is None


@pytest.mark.parametrize(
    ("config", "environ", "told"),
    [
        (Config(theme="nord"), {"TERM": "xterm-256color"}, ("256", "nord")),
        (Config(theme="nord"), {"TERM": "xterm-256color", "TEXTUAL_THEME": "dracula"}, ("256", "nord")),
        (Config(), {"TERM": "xterm-256color", "TEXTUAL_THEME": "dracula"}, ("256", "dracula")),
        (Config(), {"TERM": "linux", "TEXTUAL_THEME": "dracula"}, ("standard", "dracula")),
        (Config(), {"TERM": "xterm-256color"}, ("256", None)),
    ],
)
def test_the_theme_of_the_settings_goes_before_that_of_textual(
    config: Config, environ: dict[str, str], told: tuple[str, str | None]
) -> None:
    set_up(config, environ)
    assert (environ["TEXTUAL_COLOR_SYSTEM"], environ.get("TEXTUAL_THEME")) == told
    assert "NO_COLOR" not in environ

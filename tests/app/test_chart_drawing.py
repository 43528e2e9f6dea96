"""A figure as lines of a terminal: where its dots are, what its legend says, and what is under the ruler."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from chart_looking import colour_at, colours_of, dots, texts

from rankscope.tui.charts.figure import Axis, Chart, Figure, Level, Series, Stroke
from rankscope.tui.charts.plot import draw
from rankscope.tui.charts.ruler import Ruler
from rankscope.tui.charts.ticks import tick_text, ticks
from rankscope.tui.settings.palette import Depth, Palette, palette

MANY = Palette()


def ramp(label: str = "ramp", number: int | None = 0, count: int = 100, **more: Stroke) -> Series:
    """A curve that falls from `count` to 1."""
    x = np.arange(1.0, count + 1)
    return Series(label, x, x[::-1].copy(), number, **more)


def figure(*series: Series, log: tuple[bool, bool] = (False, False), levels: tuple[Level, ...] = ()) -> Figure:
    chart = Chart("title", Axis("k", log=log[0]), Axis("sigma", log=log[1]), series, levels)
    return Figure("title", (chart,))


def spike(k: int, count: int, log: bool) -> Figure:
    """1 everywhere but at rank k."""
    x = np.arange(1.0, count + 1)
    return figure(Series("spike", x, np.where(x == k, 100.0, 1.0), 0), log=(log, False))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("width", "count"), [(80, 60), (158, 140), (40, 60)])
def test_the_ruler_points_at_the_dots(width: int, count: int, log: bool) -> None:
    for k in (1, 2, 5, count // 3, count // 2, count - 1, count):
        drawing = draw(spike(k, count, log), MANY, width, 16)
        assert drawing.ruler is not None
        top = min(row for _, row in dots(drawing.lines))
        columns = {column // 2 for column, row in dots(drawing.lines) if row == top}
        assert drawing.ruler.column(k) in columns


@pytest.mark.parametrize("log", [False, True])
def test_a_step_goes_so_many_columns_and_at_least_one_rank(log: bool) -> None:
    ruler = Ruler(5, 75, (1.0, 4096.0), log, 4096)
    assert [ruler.column(k) for k in (0, 1, 4096, 4097)] == [None, 5, 79, None]
    k = 1
    while k < 4096:
        further = ruler.step(k, 1)
        before, after = ruler.column(k), ruler.column(further)
        assert before is not None
        assert after is not None
        assert further > k
        assert after == before + 1 or further == k + 1
        assert ruler.step(further, -1) < further
        k = further
    assert ruler.step(4096, 1) == ruler.step(4000, 100) == 4096
    assert ruler.step(1, -1) == ruler.step(3, -100) == 1
    assert ruler.step(9999, 0) == 4096


def test_ten_columns_back_and_forth_is_the_same_column() -> None:
    ruler = Ruler(5, 75, (1.0, 576.0), False, 576)
    for k in range(90, 480, 7):
        there = ruler.step(k, 10)
        assert ruler.column(there) == (ruler.column(k) or 0) + 10
        assert ruler.column(ruler.step(there, -10)) == ruler.column(k)


def test_the_ruler_of_a_short_curve_ends_with_it() -> None:
    ruler = Ruler(5, 75, (1.0, 576.0), True, 192)
    assert ruler.column(193) is None
    assert ruler.step(192, 1) == 192


def test_the_mark_stands_under_its_column_with_its_name_where_there_is_room() -> None:
    ruler = Ruler(5, 75, (1.0, 576.0), True, 576)
    for k in (1, 64, 300, 576):
        line = ruler.mark(k, 80).plain
        assert line.index("^") == ruler.column(k)
        assert f"k {k}" in line
        assert len(line) <= 80
    assert ruler.mark(5000, 80).plain == ruler.mark(576, 80).plain  # the read-out says that it is the last
    assert Ruler(5, 75, (1.0, 100.0), True, 576).mark(577, 80).plain == ""


@pytest.mark.parametrize("log", [(True, True), (False, True), (False, False), (True, False)])
def test_a_curve_begins_and_ends_in_its_corners(log: tuple[bool, bool]) -> None:
    drawing = draw(figure(ramp(), log=log), MANY, 80, 20)
    found = dots(drawing.lines)
    ruler = drawing.ruler
    assert ruler is not None
    lowest, highest = max(row for _, row in found), min(row for _, row in found)
    assert min(column // 2 for column, row in found if row == highest) == ruler.column(1)
    assert max(column // 2 for column, row in found if row == lowest) == ruler.column(100)
    assert (highest // 4, lowest // 4) == (1, 17)  # below the legend, above the axis


def test_a_point_alone_is_seen_as_a_whole_cell() -> None:
    one = Series("one", np.array([3.0]), np.array([7.0]), 0)
    assert "\u28ff" in "".join(texts(draw(figure(one), MANY, 80, 20).lines))


def test_dim_curves_lie_under_the_others_and_are_broken() -> None:
    drawing = draw(figure(ramp(), ramp("same", None)), MANY, 80, 20)
    assert colours_of(drawing.lines) == {MANY.series[0]}
    whole = len(dots(draw(figure(ramp("whole", None)), MANY, 80, 20).lines))
    for stroke in (Stroke.DASHED, Stroke.DOTTED):
        broken = draw(figure(ramp("broken", None, stroke=stroke)), MANY, 80, 20)
        assert 0 < len(dots(broken.lines)) < 0.7 * whole
        assert colours_of(broken.lines) == {MANY.dim}


def test_the_legend_is_above_the_canvas_and_names_every_curve_once() -> None:
    series = (ramp("key"), ramp("noise", None, 50, stroke=Stroke.DOTTED), ramp("noise", None, stroke=Stroke.DOTTED))
    level = Level(30.0, "edge", "edge", Stroke.DASHED)
    lines = texts(draw(figure(*series, levels=(level,)), MANY, 80, 20).lines)
    assert lines[0] == "title  \u2501\u2501 key  \u2508\u2508 noise  \u254c\u254c edge"
    assert [line for line in lines[1:] if "key" in line or "noise" in line] == []
    assert [line[:4] for line in lines[1:] if "\u254c" * 9 in line] == ["edge"]


def test_a_legend_gives_way_in_steps() -> None:
    names = [f"layers.{n}.attention.key" for n in range(8)]
    chart = figure(*(ramp(name, n) for n, name in enumerate(names)))
    wide = texts(draw(chart, MANY, 260, 20).lines)[0]
    assert wide.startswith("title  \u2501\u2501 layers.0")
    two = texts(draw(chart, MANY, 130, 20).lines)
    assert [sum(name in line for name in names) for line in two[:3]] == [4, 4, 0]
    low = texts(draw(chart, MANY, 130, 12).lines)
    assert len(low[0]) <= 130
    assert low[0].endswith("+4")
    assert low[0].count("layers.") == 4


def test_without_colours_curves_are_told_apart_by_markers_that_the_legend_shows() -> None:
    mono = palette(Depth.MONO)
    chart = figure(*(ramp(f"c{n}", n, 40 + 8 * n) for n in range(3)), ramp("from", None, 90))
    drawing = draw(chart, mono, 100, 20)
    lines = texts(drawing.lines)
    assert lines[0] == "title  \u2812\u2812 c0  ++ c1  xx c2  .. from"
    canvas = "".join(line.partition("\u2502")[2] for line in lines[1:])
    assert all(marker in canvas for marker in "+x.")
    assert dots(drawing.lines)
    assert colours_of(drawing.lines) == {None}


def test_sixteen_colours_are_those_of_the_palette() -> None:
    few = palette(Depth.SIXTEEN)
    drawing = draw(figure(ramp("a", 0), ramp("b", 1, 60)), few, 80, 20)
    assert colours_of(drawing.lines) == set(few.series[:2])


def test_the_current_level_is_brighter_and_keeps_its_label() -> None:
    levels = tuple(Level(v, f"{v:g} %", is_bright=v == 95.0) for v in (80.0, 94.0, 95.0))
    lines = draw(figure(ramp(), levels=levels), MANY, 80, 20).lines
    named = {match[1]: line for line in lines if (match := re.match(r" *(\S+ %)", line.plain))}
    assert list(named) == ["95 %", "80 %"]
    assert [colour_at(line, 70) for line in named.values()] == [None, MANY.dim]
    assert all(line.plain[70] == "\u2500" for line in named.values())


@pytest.mark.parametrize("values", [[2.0], [0.0] * 5, [], [1.0, 0.0], [3.0, 3.0], [1e-300, 1e-301], [1e200, 1.0]])
def test_odd_values_are_no_error_and_nothing_leaves_its_room(values: list[float]) -> None:
    series = Series("x", np.arange(1.0, len(values) + 1), np.array(values), 0)
    for log in ((True, True), (False, True), (False, False)):
        for mode in Depth:
            for width, height in ((78, 18), (20, 6), (3, 2), (140, 30)):
                lines = draw(figure(series, log=log), palette(mode), width, height).lines
                assert len(lines) == height
                assert all(line.cell_len <= width for line in lines)


def test_zeros_on_a_log_axis_are_explained() -> None:
    zeros = Series("x", np.arange(1.0, 6), np.zeros(5), 0)
    lines = texts(draw(figure(zeros, log=(True, True)), MANY, 80, 20).lines)
    assert any("all values are 0" in line for line in lines)


def test_an_empty_chart_says_what_to_do_in_its_middle() -> None:
    lines = texts(draw(Figure("layers.0", empty="not computed: enter computes it"), MANY, 80, 21).lines)
    assert lines[0] == "layers.0"
    (number,) = [n for n, line in enumerate(lines) if line.strip() and n]
    assert number == 10
    left, sentence = re.fullmatch(r"( *)(.*)", lines[number]).groups()  # type: ignore[union-attr]
    assert (len(left), sentence) == (24, "not computed: enter computes it")


def test_small_multiples_share_numbers_at_the_edges_and_have_one_legend() -> None:
    chart = figure(ramp(), ramp("other", 1, 50)).charts[0]
    panels = tuple(Chart(f"layer {n}", chart.x, chart.y, chart.series) for n in range(8))
    for width, height in ((80, 18), (200, 54)):
        lines = texts(draw(Figure("attention", panels, columns=4, shared=True), MANY, width, height).lines)
        assert len(lines) == height
        assert all(len(line) <= width for line in lines)
        assert lines[0] == "attention  \u2501\u2501 ramp  \u2501\u2501 other"
        heads = [line.split() for line in lines if "layer" in line]
        assert heads == [f"layer {n} layer {n + 1} layer {n + 2} layer {n + 3}".split() for n in (0, 4)]
        assert len({line.index("layer") for line in lines if "layer" in line}) == 1
        assert sum(bool(re.search(r"\d", line.replace("layer", ""))) for line in lines[-1:]) == 1
        assert lines[-1].split() == lines[-1].split()[: len(lines[-1].split()) // 4] * 4
        between = lines[lines.index(next(line for line in lines if "layer 4" in line)) - 1]
        assert not re.search(r"\d", between)


def test_ticks_are_round_numbers_inside() -> None:
    assert ticks((0.0, 100.0), False, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks((1.0, 48.0), False, 5, whole=True) == [10, 20, 30, 40]
    assert ticks((0.0, 1.0), False, 5, whole=True) == [0, 1]
    assert ticks((1.0, 576.0), True, 12) == [1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert ticks((1.0, 576.0), True, 5) == [1, 10, 100]
    assert ticks((1.0, 14336.0), True, 3) == [1, 100, 10000]
    assert ticks((3.0, 4.0), True, 5) == [3.0, 4.0]
    for low, high in ((1e-9, 1e9), (0.3, 0.9), (1.0, 1.001), (5.0, 6000.0)):
        for most in (2, 5, 9):
            found = ticks((low, high), True, most)
            assert found == sorted(found)
            assert all(low * 0.999 <= value <= high * 1.001 for value in found)
    assert [tick_text(v) for v in (0, 0.1, 512, 14336, 2e7, 1e-5)] == ["0", "0.1", "512", "14336", "2e7", "1e-5"]


def test_a_long_curve_is_thinned_without_losing_its_shape() -> None:
    x = np.arange(1.0, 4097)
    long = Series("long", x, 1e3 * x**-0.7, 0)
    drawing = draw(figure(long, log=(True, True)), MANY, 80, 20)
    ruler = drawing.ruler
    assert ruler is not None
    rows = {}
    for column, row in dots(drawing.lines):
        rows.setdefault(column // 2, []).append(row)
    # A power law is a straight line on log axes: from the first row of dots to the last.
    first, last = min(map(min, rows.values())), max(map(max, rows.values()))
    for k in (1, 3, 10, 77, 500, 4096):
        column = ruler.column(k)
        assert column is not None
        expected = first + (last - first) * math.log(k) / math.log(4096)
        assert min(abs(row - expected) for row in rows[column]) <= 1.5


def test_a_log_axis_of_less_than_a_decade_has_ticks_between() -> None:
    assert ticks((1.1, 8.0), True, 6) == [1.5, 2, 3, 5, 7]
    assert ticks((60.0, 400.0), True, 6) == pytest.approx([70, 100, 150, 200, 300])
    assert ticks((1.0, 8.0), True, 9, whole=True) == [1, 2, 3, 5, 7]
    assert ticks((1.0, 8.0), True, 4) == [1, 2, 5]
    assert ticks((1.0, 500.0), True, 9) == [1, 2, 5, 10, 20, 50, 100, 200, 500]

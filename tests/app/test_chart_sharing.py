"""Curves that share cells: each of them stays visible."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from app_models import llama_weights
from chart_looking import ask, colour_at, dots, saved, select, texts

from rankscope.tui.charts.figure import Axis, Chart, Figure, Series, drawable, spans
from rankscope.tui.charts.painter import figure_of
from rankscope.tui.charts.picture import svg_of
from rankscope.tui.charts.plot import draw
from rankscope.tui.data.pair import Pair
from rankscope.tui.settings.palette import Depth, Palette, palette

MANY = Palette()
LEAST = 0.4
"""The share of its cells that a curve keeps, unless it takes turns in all of them."""
# k90 of the demo's 30 layers; gate, up and down, and key and value, lie in the same cells over long stretches.
DEMO = {
    "query": "68 238 235 224 246 237 231 226 222 205 231 231 198 208 185 "
    "176 209 157 150 193 156 173 165 118 157 221 183 218 190 209",
    "key": "32 120 120 115 113 115 113 109 107 112 121 119 109 107 92 "
    "93 105 84 86 107 81 90 92 63 78 112 101 110 96 112",
    "value": "128 135 134 136 142 135 135 123 134 121 141 137 135 139 129 "
    "135 131 118 137 130 131 126 125 105 103 136 140 151 136 137",
    "output": "188 217 214 237 256 235 243 226 242 243 249 226 234 241 234 "
    "214 234 208 199 194 208 214 200 183 246 251 250 244 239 222",
    "gate": "394 386 393 390 387 383 383 381 386 386 381 375 372 354 354 "
    "356 355 362 348 360 353 356 362 346 352 360 365 364 373 364",
    "up": "396 396 399 399 401 401 396 394 396 397 395 393 390 382 382 "
    "382 383 384 379 386 383 374 379 364 370 370 374 372 374 376",
    "down": "388 403 398 389 377 382 379 382 384 394 394 389 388 363 366 "
    "364 347 346 362 359 378 367 356 373 383 377 379 379 381 370",
}


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A computed llama of 80 layers."""
    folder = tmp_path_factory.mktemp("tall")
    return Pair(saved(folder / "m", folder / "store", llama_weights(80)))


def cells(chart: Chart, width: int, height: int, kept: Sequence[Series]) -> dict[int, set[tuple[int, int]]]:
    """The cells of these curves of a chart, by curve number, on the axes of all curves."""
    x, y = spans(drawable(chart))
    alike = replace(chart, x=replace(chart.x, span=x), y=replace(chart.y, span=y), series=tuple(kept), levels=())
    named = (replace(s, label="", dot=None) for s in kept)
    lines = draw(Figure("t", (replace(alike, series=tuple(named)),)), MANY, width, height).lines
    found: dict[int, set[tuple[int, int]]] = {s.number: set() for s in kept if s.number is not None}
    for x_dot, y_dot in dots(lines):
        colour = colour_at(lines[y_dot // 4], x_dot // 2)
        if colour in MANY.series:
            found[MANY.series.index(colour)].add((x_dot // 2, y_dot // 4))
    return found


def check(chart: Chart, width: int, height: int) -> None:
    """Check that every curve has enough of the cells that only it has, or at least three quarters of its share."""
    curves = [s for s in drawable(chart).series if s.number is not None]
    together = cells(chart, width, height, curves)
    alone = {s.number: cells(chart, width, height, [s])[s.number] for s in curves if s.number is not None}
    assert set().union(*together.values()) == set().union(*alone.values())
    for number, own in alone.items():
        fair = sum(1 / sum(cell in other for other in alone.values()) for cell in own)
        assert len(together[number]) >= min(LEAST * len(own), 0.75 * fair), (number, len(own))


@pytest.mark.parametrize(("width", "height"), [(78, 18), (86, 19), (150, 40)])
def test_every_curve_of_the_demo_by_layer_is_seen(width: int, height: int) -> None:
    ranks = {role: np.array(text.split(), float) for role, text in DEMO.items()}
    curves = [Series(role, np.arange(30.0), ranks[role], number) for number, role in enumerate(ranks)]
    check(Chart("k90", Axis("layer"), Axis("k"), tuple(curves)), width, height)


@pytest.mark.parametrize(("width", "height"), [(78, 18), (150, 40)])
@pytest.mark.parametrize(("view", "facets"), [(1, False), (2, False), (4, False), (1, True), (2, True)])
def test_every_curve_of_every_view_is_seen(tall: Pair, view: int, facets: bool, width: int, height: int) -> None:
    request = ask(tall, select(0, "attention"), view, width=width, height=height, facets=facets)
    figure, _ = figure_of(tall, request)
    down = -(-len(figure.charts) // figure.columns)
    for chart in figure.charts:
        check(chart, width // figure.columns, height // down)


def ramps(count: int, selected: int | None = None, points: int = 100) -> Figure:
    """`count` curves in the same place."""
    x = np.arange(1.0, points + 1)
    same = [Series(f"c{n}", x, x[::-1].copy(), n, is_selected=n == selected) for n in range(count)]
    return Figure("same", (Chart("same", Axis("k"), Axis("sigma"), tuple(same)),))


def colours(figure: Figure) -> list[int]:
    """The numbers of the curves from left to right."""
    drawn = draw(figure, MANY, 80, 20).lines
    found = {x // 2: colour_at(drawn[y // 4], x // 2) for x, y in dots(drawn)}
    return [MANY.series.index(found[x] or 0) for x in sorted(found)]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_curves_in_the_same_place_go_round_in_runs_of_three(count: int) -> None:
    found = colours(ramps(count))
    changes = [i for i in range(1, len(found)) if found[i] != found[i - 1]]
    assert {b - a for a, b in pairwise(changes)} <= {2, 3}
    assert max(found.count(n) for n in range(count)) - min(found.count(n) for n in range(count)) <= 6


def test_what_is_selected_has_twice_as_many_turns() -> None:
    found = colours(ramps(2, selected=0))
    assert 0.6 < found.count(0) / len(found) < 0.72
    assert found.count(1)


def test_without_colours_markers_alternate() -> None:
    lines = texts(draw(ramps(3), palette(Depth.MONO), 80, 20).lines)
    canvas = "".join(line.partition("\u2502")[2] for line in lines[1:])
    counts = [canvas.count("+"), canvas.count("x"), sum("\u2800" < c < "\u28ff" for c in canvas)]
    assert min(counts) > 0.25 * sum(counts)


def test_in_an_svg_too() -> None:
    figure = ramps(2)
    plain = replace(figure, charts=tuple(replace(c, series=c.series[:1]) for c in figure.charts))
    hues = set(re.findall("#[0-9a-f]{6}", svg_of(draw(figure, MANY, 80, 20).lines[1:], 80, "two")))
    assert len(hues - set(re.findall("#[0-9a-f]{6}", svg_of(draw(plain, MANY, 80, 20).lines[1:], 80, "one")))) == 1

"""One colour for each role: in every view, for every model, and on paper."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from app_models import fill, llama_weights
from chart_looking import ask, at, colour_at, colours_of, saved, select, session_of, texts

from rankscope.tui.charts.figure import Stroke
from rankscope.tui.charts.hues import BY_CURVE, of_columns
from rankscope.tui.charts.painter import figure_of, paint
from rankscope.tui.charts.picture import INKS, save_picture
from rankscope.tui.data.grid import Column, Selection, make_grid
from rankscope.tui.data.pair import Pair, Side
from rankscope.tui.settings.palette import Palette

MANY = Palette()
HUES = dict(zip(("query", "key", "value", "output", "gate", "up", "down"), MANY.series, strict=False))


@pytest.fixture(scope="module")
def two(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The llama and another of half its strength with only five layers."""
    folder = tmp_path_factory.mktemp("two")
    fill(llama, folder / "store")
    other = {name: w / 2 for name, w in llama_weights(5).items()}
    return Pair(session_of(llama, folder / "store"), saved(folder / "b", folder / "store", other))


@pytest.fixture(scope="module")
def pair(two: Pair) -> Pair:
    return Pair(two.first)


def legend(pair: Pair, selection: Selection, view: int, **more: object) -> dict[str, int | None]:
    """The colour of every mark in a legend, by the word after it."""
    first = paint(pair, ask(pair, selection, view, width=300, **more)).lines[0]
    marks = re.finditer("(\u2501+|\u254d+) (\\S+(?: [AB]\\b)?)", first.plain)
    return {mark[2]: colour_at(first, mark.start()) for mark in marks}


@pytest.mark.parametrize(("view", "facets"), [(1, False), (2, False), (1, True), (2, True)])
def test_a_role_has_the_same_colour_in_every_view(pair: Pair, view: int, facets: bool) -> None:
    by_layer = legend(pair, Selection(), 4, facets=True)
    assert {role.split()[0]: colour for role, colour in by_layer.items()} == HUES
    for block in ("attention", "mlp"):
        found = legend(pair, select(2, block), view, facets=facets)
        assert found == {role: HUES[role] for role in found}
    for role in () if facets else ("key", "up"):
        block = "mlp" if role == "up" else "attention"
        drawn = paint(pair, ask(pair, select(2, block, role), view)).lines
        assert colours_of(drawn) - {MANY.dim} == {HUES[role]}


def test_a_filter_changes_no_colour(pair: Pair) -> None:
    wanted = [c for c in pair.first.model.tree.scanned() if c.role in ("value", "down")]
    drawn = paint(pair, ask(pair, Selection(), 4, width=70, grid=make_grid(wanted))).lines
    assert colours_of(drawn) - {MANY.dim} == {HUES["value"], HUES["down"]}


def test_a_second_model_has_the_same_hue_dashed(two: Pair) -> None:
    figure = figure_of(two, ask(two, select(0, "mlp"), 2, side=Side.RATIO))[0]
    found = {s.label: (s.number, s.stroke) for s in figure.charts[0].series if s.number is not None}
    for number, role in ((4, "gate"), (5, "up"), (6, "down")):
        assert found[f"{role} A"] == (number, Stroke.SOLID)
        assert found[f"{role} B"] == (number, Stroke.DASHED)
    marks = legend(two, select(0, "mlp"), 2, side=Side.RATIO)
    assert marks["gate A"] == marks["gate B"] == HUES["gate"]
    line = paint(two, ask(two, select(0, "mlp"), 2, side=Side.RATIO, width=140)).lines[0].plain
    assert "\u2501\u2501 gate A" in line
    assert "\u254d\u254d gate B" in line


def test_curves_of_one_role_have_a_colour_each_and_the_legend_says_so(pair: Pair) -> None:
    marks = (at(pair, 0, "key"), at(pair, 3, "key"), at(pair, 4, "query"))
    for request in (
        ask(pair, Selection(column=Column("attention", "key"))),
        ask(pair, Selection(), marks=marks, compare=True),
    ):
        painting = paint(pair, request)
        assert BY_CURVE in "".join(texts(painting.lines[:2]))
        numbers = [s.number for s in figure_of(pair, request)[0].charts[0].series if s.number is not None]
        assert numbers == list(range(len(painting.curves)))
    plain = paint(pair, ask(pair, Selection(), marks=(at(pair, 0, "key"), at(pair, 3, "up", "mlp")), compare=True))
    assert BY_CURVE not in "".join(texts(plain.lines[:2]))
    assert colours_of(plain.lines) - {MANY.dim} == {HUES["key"], HUES["up"]}


def test_on_paper_too(pair: Pair, tmp_path: Path) -> None:
    save_picture(pair, ask(pair, select(0, "mlp"), 2), tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    assert {ink for ink in INKS if ink in drawn} == set(INKS[4:7])


MODELS = {
    "two attentions": ("attention: query key value output", "cross_attention: query key value output", "mlp: up down"),
    "experts": (
        "attention: query_a query_b kv_a key_rope key_b value_b output",
        "mlp: gate up down", "expert: gate up down", "shared_expert: gate up down",
    ),
    "gated attention": ("attention: query key value gate output", "mlp: gate up down"),
    "linear": ("linear_attention: query key value z a b output", "attention: query key value output", "mlp: up down"),
    "odd": ("attention: q1 q2 q3 q4 q5 q6 q7 q8 q9 q10",),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_no_two_roles_that_are_drawn_together_share_a_colour(name: str) -> None:
    blocks = [line.partition(": ") for line in MODELS[name]]
    columns = [Column(block, role) for block, _, roles in blocks for role in roles.split()]
    drawn = [[c for c in columns if c.block == block] for block, _, _ in blocks]
    several = columns[:: -(-len(columns) // 8)]
    for together in (*drawn, several, columns[-8:]):
        numbers = list(of_columns(together, columns).values())
        assert len(set(numbers)) == len(together)
        assert max(numbers[:8]) < 8
    attention = [c for c in columns if c.block == "attention" and c.role in HUES and c.role != "gate"]
    assert all(MANY.series[n] == HUES[c.role] for c, n in of_columns(attention, columns).items())

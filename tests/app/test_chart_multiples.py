"""Several charts side by side: components by layer, and facets of layers."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from app_models import LLAMA, fill, llama_weights, matrix, numpy_rank, rank_in, save_model
from chart_looking import ask, at, colours_of, saved, select, session_of, sigma_of, texts

from rankscope.tui.charts.by_layer import layer_columns, lines_of_roles
from rankscope.tui.charts.figure import Figure, Stroke, spans
from rankscope.tui.charts.painter import figure_of, paint
from rankscope.tui.charts.request import Request
from rankscope.tui.data.grid import Column, Grid, Selection
from rankscope.tui.data.measures import BY_NAME
from rankscope.tui.data.pair import Pair, Side
from rankscope.tui.data.reference_lines import KEY_VALUE, ReferenceLine

FIVE = (0.6, 0.8, 0.9, 0.95, 0.99)
SPECTRUM, ENERGY, LAYERS = 1, 2, 4


@pytest.fixture(scope="module")
def pair(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A computed llama of six layers."""
    root = tmp_path_factory.mktemp("store")
    fill(llama, root)
    return Pair(session_of(llama, root))


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A computed llama of eleven layers."""
    folder = tmp_path_factory.mktemp("tall")
    return Pair(saved(folder / "m", folder / "store", llama_weights(11)))


def figure(pair: Pair, request: Request) -> Figure:
    return figure_of(pair, request)[0]


# By layer


def test_components_by_layer_are_the_ranks_that_numpy_finds(pair: Pair, llama: Path) -> None:
    (chart,) = figure(pair, ask(pair, Selection(), LAYERS, width=70, height=13)).charts
    assert [s.label for s in chart.series] == ["query", "key", "value", "output", "gate", "up", "down"]
    for series in chart.series:
        assert list(series.x) == list(range(6))
        assert list(series.y) == [rank_in(llama, layer, series.label, 0.9) for layer in range(6)]


@pytest.mark.parametrize(
    ("width", "current", "expected"),
    [
        (79, 0.9, [0.9]), (80, 0.9, [0.8, 0.9]), (119, 0.6, [0.6, 0.8]), (120, 0.6, [0.6, 0.8, 0.9]),
        (400, 0.99, [0.8, 0.9, 0.99]), (400, 0.9, [0.6, 0.8, 0.9]), (20, 0.8, [0.8]),
    ],
)  # fmt: skip
def test_as_many_thresholds_as_fit_the_notebooks_beside_the_current(
    pair: Pair, width: int, current: float, expected: list[float]
) -> None:
    request = ask(pair, Selection(), LAYERS, width=width, threshold=current, thresholds=FIVE)
    assert [c.title for c in figure(pair, request).charts] == [f"k{100 * t:g} by layer" for t in expected]


@pytest.mark.parametrize(
    ("thresholds", "current", "expected"),
    [
        ((0.6, 0.95), 0.95, [0.6, 0.95]), ((0.5, 0.7, 0.85, 0.95), 0.95, [0.7, 0.85, 0.95]),
        ((0.95,), 0.9, [0.9, 0.95]), ((0.5, 0.8, 0.9, 0.99), 0.99, [0.8, 0.9, 0.99]),
    ],
)  # fmt: skip
def test_thresholds_that_the_user_did_not_set_are_not_drawn(
    pair: Pair, thresholds: tuple[float, ...], current: float, expected: list[float]
) -> None:
    request = ask(pair, Selection(), LAYERS, width=400, threshold=current, thresholds=thresholds)
    assert [c.title for c in figure(pair, request).charts] == [f"k{100 * t:g} by layer" for t in expected]


@pytest.mark.parametrize(
    ("size", "rows"), [((76, 16), [3]), ((54, 12), [3]), ((40, 16), [2, 1]), ((40, 11), [2]), ((20, 18), [1, 1, 1])]
)
def test_small_multiples_of_thresholds_need_little_room(pair: Pair, size: tuple[int, int], rows: list[int]) -> None:
    width, height = size
    painting = paint(pair, ask(pair, Selection(), LAYERS, width=width, height=height, facets=True))
    lines = texts(painting.lines)
    assert [n for line in lines if (n := line.count(" by layer"))] == rows
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)


def test_a_threshold_that_is_not_stored_is_worked_out(pair: Pair, llama: Path) -> None:
    (chart,) = figure(pair, ask(pair, Selection(), LAYERS, width=60, threshold=0.73)).charts
    assert [s.y[2] for s in chart.series if s.label == "up"] == [rank_in(llama, 2, "up", 0.73)]


def test_reference_lines_are_drawn_for_their_role_or_named_where_they_lie_too_far_above(pair: Pair) -> None:
    (plain,) = figure(pair, ask(pair, Selection(), LAYERS, width=60)).charts
    top = max(float(s.y.max()) for s in plain.series)
    lines = (
        ReferenceLine("near", round(1.4 * top)), ReferenceLine("far", round(1.6 * top)),
        ReferenceLine("mine", 7, "key"), ReferenceLine("none", 5, "router"),
    )  # fmt: skip
    found = figure(pair, ask(pair, Selection(), LAYERS, width=60, lines=lines))
    assert [(v.value, v.label, v.name, v.stroke) for v in found.charts[0].levels] == [
        (round(1.4 * top), f"{1.4 * top:.0f}", f"near {1.4 * top:.0f}", Stroke.DASHED),
        (7, "7", "mine 7", Stroke.DASHED),
    ]
    painted = texts(paint(pair, ask(pair, Selection(), LAYERS, width=150, height=24, lines=lines[2:])).lines)
    assert "\u254c mine 7" in painted[0] + painted[1]
    assert not any("far" in line or "router" in line for line in painted)


KV = ReferenceLine("kv_lora_rank", 9, KEY_VALUE)


@pytest.mark.parametrize(
    ("roles", "drawn"),
    [("query key", False), ("kv_a kv_b", True), ("key_value kv_a", True), ("kv", True), ("key value", False)],
)
def test_the_rank_of_keys_and_values_is_drawn_where_they_are_one_matrix_else_named(roles: str, drawn: bool) -> None:
    columns = [Column("attention", role) for role in roles.split()]
    request = Request(Selection(), LAYERS, 0.9, (0.9,), 0, 80, 20, 0, Grid((), (), {}), lines=(KV,))
    assert lines_of_roles(columns, request) == (([KV], []) if drawn else ([], ["kv_lora_rank 9"]))


def test_a_line_of_no_role_is_one_of_every_role(pair: Pair) -> None:
    found = figure(pair, ask(pair, Selection(), LAYERS, width=60, lines=(ReferenceLine("kv_lora_rank", 9), KV)))
    assert [v.name for v in found.charts[0].levels] == ["kv_lora_rank 9"]
    assert found.notes == ("kv_lora_rank 9",)


def test_a_line_that_one_of_the_charts_has_room_for_is_not_called_above(pair: Pair) -> None:
    charts = figure(pair, ask(pair, Selection(), LAYERS, width=120)).charts
    tops = [max(float(s.y.max()) for s in chart.series) for chart in charts]
    assert tops[2] > 1.5 * tops[0]
    found = figure(pair, ask(pair, Selection(), LAYERS, width=120, lines=(ReferenceLine("r", tops[2]),)))
    assert [len(chart.levels) for chart in found.charts] == [0, tops[2] <= 1.5 * tops[1], 1]
    assert found.notes == ()


def test_of_more_roles_than_can_be_told_apart_the_selected_block_is_drawn(pair: Pair) -> None:
    own = ask(pair, Selection()).grid.columns
    many = Grid((), (*own, *(Column("expert", role) for role in ("gate", "up", "down"))), {})
    assert layer_columns(many, Selection(block="expert")) == list(many.columns[-3:])
    assert layer_columns(many, Selection(column=own[0])) == list(own[:4])
    assert layer_columns(many, Selection(single=at(pair, 0, "up", "mlp"))) == list(own[4:])
    assert layer_columns(many, Selection()) == list(many.columns[:8])


@pytest.fixture(scope="module")
def two(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("second")
    other = {n: w + 0.3 * matrix(w.shape, 4) if w.ndim == 2 else w for n, w in llama_weights(6).items()}
    fill(llama, folder / "store")
    return Pair(session_of(llama, folder / "store"), saved(folder / "b", folder / "store", other))


def test_b_and_b_over_a_by_layer(two: Pair, llama: Path) -> None:
    partner = two.partner(at(two, 0, "key"))
    assert partner is not None
    second = Path(partner.source.repo)
    a = np.array([rank_in(llama, n, "key", 0.9) for n in range(6)])
    b = np.array([rank_in(second, n, "key", 0.9) for n in range(6)])
    assert list(a) != list(b)
    asked = {side: ask(two, Selection(), LAYERS, width=60, side=side, lines=(ReferenceLine("r", 9),)) for side in Side}
    found = {side: figure(two, request).charts[0] for side, request in asked.items()}
    keys = {side: next(s.y for s in chart.series if s.label == "key") for side, chart in found.items()}
    assert list(keys[Side.A]) == list(a)
    assert list(keys[Side.B]) == list(b)
    np.testing.assert_allclose(keys[Side.RATIO], b / a)
    assert {side: chart.title for side, chart in found.items()} == {
        Side.A: "k90 of A by layer", Side.B: "k90 of B by layer", Side.RATIO: "k90 B/A by layer",
    }  # fmt: skip
    ratio = found[Side.RATIO]
    assert [v.value for v in ratio.levels] == [1.0]  # a rank line has no place among ratios
    assert ratio.y.span is not None
    values = np.concatenate([s.y for s in ratio.series])
    assert 0 < ratio.y.span[0] < min(1.0, values.min())
    assert ratio.y.span[1] > max(1.0, values.max())


def test_the_readout_has_smallest_median_and_largest(pair: Pair, llama: Path) -> None:
    line = paint(pair, ask(pair, Selection(), LAYERS, width=300)).readout.plain
    for role in ("query", "key", "down"):
        ranks = sorted(rank_in(llama, n, role, 0.9) for n in range(6))
        assert f"{role} {ranks[0]}/{(ranks[2] + ranks[3]) / 2:.0f}/{ranks[5]}" in line
    short = paint(pair, ask(pair, Selection(), LAYERS, width=60)).readout.plain
    assert len(short) <= 60
    assert line.startswith(short)
    assert line[len(short) :].startswith("  ")  # a part that does not fit is left out as a whole


def test_the_legend_has_smallest_median_and_largest_on_a_small_screen_too(pair: Pair, llama: Path) -> None:
    for width in (70, 200):
        painting = paint(pair, ask(pair, Selection(), LAYERS, width=width, height=16, facets=True))
        seen = "  ".join(texts(painting.lines)[:2]) + "  "
        for role in ("query", "key", "value", "output", "gate", "up", "down"):
            ranks = sorted(rank_in(llama, n, role, 0.9) for n in range(6))
            assert seen.count(f"{role} {ranks[0]}/{(ranks[2] + ranks[3]) / 2:.0f}/{ranks[5]}  ") == 1
        assert "k90 min/median/max" in seen


@pytest.mark.parametrize(
    ("unit", "form", "panels"), [("k", ".0f", 3), ("k/k*", ".2f", 3), ("percent", ".1f", 3), ("stable_rank", ".2f", 1)]
)
def test_the_view_follows_the_unit(pair: Pair, unit: str, form: str, panels: int) -> None:
    found = figure(
        pair, ask(pair, Selection(), LAYERS, width=200, measure=BY_NAME[unit], lines=(ReferenceLine("r", 7),))
    )
    assert len(found.charts) == panels
    chart = next(c for c in found.charts if panels == 1 or c.title.startswith("k90"))
    for series in chart.series:
        block = "mlp" if series.label in ("gate", "up", "down") else "attention"
        for layer, y in zip(series.x, series.y, strict=True):
            sigma = sigma_of(p := at(pair, int(layer), series.label, block))
            squares = sigma**2
            k = int(np.searchsorted(np.cumsum(squares) / squares.sum(), 0.9) + 1)
            expected = {
                "k": k, "k/k*": k * (p.rows + p.cols) / (p.rows * p.cols), "percent": 100 * k / min(p.rows, p.cols),
                "stable_rank": squares.sum() / squares[0],
            }  # fmt: skip
            assert y == pytest.approx(expected[unit], rel=1e-5)
    assert [level.value for level in chart.levels] == {"k": [7], "k/k*": [1.0]}.get(unit, [])
    line = paint(pair, ask(pair, select(2), LAYERS, width=200, measure=BY_NAME[unit])).readout.plain
    value = next(s.y[2] for s in chart.series if s.label == "key")
    assert f"key {value:{form}}".replace(" 0.", " .") in line


def test_the_selected_layer_is_read_out_and_stands_in_every_chart(pair: Pair, llama: Path) -> None:
    painting = paint(pair, ask(pair, select(2, "attention"), LAYERS, width=130))
    ranks = {role: rank_in(llama, 2, role, 0.9) for role in ("query", "key", "value", "output", "gate", "up", "down")}
    assert painting.readout.plain == "layer 2: " + "  ".join(f"{role} {k}" for role, k in ranks.items())
    columns = painting.columns(None)
    assert painting.at is not None
    assert painting.at[:2] == (2.0, "layer 2")
    assert {len(found) for found in columns.values()} == {3}  # one for each of the three charts
    axis = painting.lines[-1].plain
    assert [axis[x] for x in sorted(columns.popitem()[1])] == ["2", "2", "2"]
    assert paint(pair, ask(pair, Selection(), LAYERS, width=130)).at is None


def test_a_folded_row_of_experts_is_a_band(tmp_path: Path) -> None:
    experts = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"
    weights = {name: w for name, w in llama_weights(3).items() if ".mlp." not in name}
    for layer, expert, (n, shape) in product(range(3), range(4), enumerate([(80, 48), (48, 80), (80, 48)])):
        weights[experts.format(layer, expert, f"w{n + 1}")] = matrix(shape, 12 * layer + 3 * expert + n)
    config = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4}
    model = save_model(tmp_path / "moe", weights, config)
    fill(model, tmp_path / "store")
    moe = Pair(session_of(model, tmp_path / "store"))
    chart = figure(moe, ask(moe, Selection(), LAYERS, width=60)).charts[0]
    (up,) = (s for s in chart.series if s.label.endswith("up"))
    assert up.band is not None
    for layer in range(3):
        ranks = [numpy_rank(weights[experts.format(layer, expert, "w3")], 0.9) for expert in range(4)]
        assert (up.band[0][layer], up.y[layer], up.band[1][layer]) == (min(ranks), np.median(ranks), max(ranks))
    assert all(s.band is None for s in chart.series if s.label in ("query", "key"))
    y = spans(chart)[1]
    assert y[1] >= up.band[1].max()


def test_a_legend_that_cannot_hold_the_ranks_keeps_the_roles(pair: Pair) -> None:
    lines = texts(paint(pair, ask(pair, Selection(), LAYERS, width=40, height=16)).lines)
    assert "".join(lines[:2]).count("\u2501\u2501 ") + "".join(lines[:2]).count("\u2501 ") >= 7
    assert "+" not in "".join(lines[:2])


def test_what_failed_is_not_called_not_computed(llama: Path, tmp_path: Path) -> None:
    fill(llama, tmp_path, ["layers.0.mlp.none"])
    failed = Pair(session_of(llama, tmp_path))
    for p in failed.first.model.tree.projections:
        failed.first.failures[p.key] = "nan in the weights"
    for view, facets in ((SPECTRUM, True), (ENERGY, True), (LAYERS, False), (LAYERS, True), (SPECTRUM, False)):
        painting = paint(failed, ask(failed, select(0, "mlp"), view, facets=facets))
        assert "it cannot be computed: the line below says why" in "".join(texts(painting.lines))
        assert painting.readout.plain.endswith(" failed: nan in the weights")


def test_one_layer_is_a_point_that_can_be_seen(tmp_path: Path) -> None:
    alone = Pair(saved(tmp_path / "m", tmp_path / "store", llama_weights(1)))
    painting = paint(alone, ask(alone, Selection(), LAYERS, width=70))
    assert "\u28ff" in "".join(texts(painting.lines))
    assert painting.lines[-1].plain.split() == ["0"]


# Facets


def test_facets_are_the_first_and_last_four_layers_of_the_block(tall: Pair) -> None:
    found = figure(tall, ask(tall, select(3, "mlp", "up"), SPECTRUM, facets=True, axes=2))
    assert [c.title for c in found.charts] == [f"layer {n}" for n in (0, 1, 2, 3, 7, 8, 9, 10)]
    assert (found.columns, found.shared) == (4, True)
    assert found.title == "mlp, 8 of 11 layers"
    for chart, layer in zip(found.charts, (0, 1, 2, 3, 7, 8, 9, 10), strict=True):
        assert [(s.label, s.number) for s in chart.series] == [("gate", 4), ("up", 5), ("down", 6)]
        for series in chart.series:
            np.testing.assert_allclose(series.y, sigma_of(at(tall, layer, series.label, "mlp")), rtol=1e-6)


def test_facets_have_common_axes_that_hold_every_curve(tall: Pair) -> None:
    for view in (SPECTRUM, ENERGY):
        charts = figure(tall, ask(tall, select(0), view, facets=True)).charts
        assert len({c.x for c in charts}) == len({c.y for c in charts}) == 1
        x, y = charts[0].x.span, charts[0].y.span
        assert x is not None
        assert y is not None
        for series in (s for c in charts for s in c.series):
            assert x[0] <= series.x.min() <= series.x.max() <= x[1]
            assert y[0] <= series.y.min() <= series.y.max() <= y[1] + 1e-9


def test_the_energy_facets_have_the_current_threshold(tall: Pair) -> None:
    charts = figure(tall, ask(tall, select(0), ENERGY, facets=True, threshold=0.8)).charts
    assert [[v.label for v in c.levels] for c in charts] == [["80 %"]] * 8
    squares = sigma_of(at(tall, 8, "key")) ** 2
    energy = next(s.y for s in charts[5].series if s.label == "key")
    np.testing.assert_allclose(energy, 100 * np.cumsum(squares) / squares.sum(), rtol=1e-6)


def test_marks_in_several_layers_choose_the_facets(tall: Pair) -> None:
    for marked, expected in (((5, 2, 9), (2, 5, 9)), ((5,), (0, 1, 2, 3, 7, 8, 9, 10))):
        marks = tuple(at(tall, layer, "key") for layer in marked)
        charts = figure(tall, ask(tall, Selection(), facets=True, marks=marks)).charts
        assert [c.title for c in charts] == [f"layer {n}" for n in expected]
        assert [s.label for s in charts[0].series] == ["query", "key", "value", "output"]


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((78, 17), (4, 2)),
        ((200, 57), (4, 2)),
        ((76, 12), (4, 2)),
        ((78, 18), (4, 2)),
        ((76, 11), (2, 1)),
        ((60, 30), (2, 4)),
        ((60, 12), (2, 2)),
        ((30, 18), (1, 3)),
    ],
)
def test_as_many_facets_as_fit_and_their_count(tall: Pair, size: tuple[int, int], shape: tuple[int, int]) -> None:
    width, height = size
    painting = paint(tall, ask(tall, select(0, "attention"), SPECTRUM, facets=True, width=width, height=height))
    lines = texts(painting.lines)
    heads = [line.count("layer ") for line in lines[1:] if "layer " in line]
    assert (heads[0], len(heads)) == shape
    count = shape[0] * shape[1]
    assert any(f"{count} of 8 fit" in line for line in lines[:2]) == (count < 8)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)
    assert len(colours_of(painting.lines)) >= 3
    assert (painting.ruler, painting.curves) == (None, ())


def test_fewer_layers_are_fewer_facets(pair: Pair) -> None:
    found = figure(pair, ask(pair, select(0, "attention"), facets=True, width=120))
    assert [c.title for c in found.charts] == [f"layer {n}" for n in range(6)]
    assert found.columns == 3


def test_a_role_keeps_its_colour_where_another_is_missing(llama: Path, tmp_path: Path) -> None:
    fill(llama, tmp_path, ["layers.0.attention.key", "layers.1.attention.query", "layers.1.attention.key"])
    half = Pair(session_of(llama, tmp_path))
    charts = figure(half, ask(half, select(0, "attention"), facets=True)).charts
    assert [[(s.label, s.number) for s in c.series] for c in charts] == [[("key", 1)], [("query", 0), ("key", 1)]]


def test_the_title_counts_what_is_drawn_and_what_is_lacking(llama: Path, tmp_path: Path) -> None:
    fill(llama, tmp_path, [f"layers.{n}.attention.{role}" for n in (1, 4) for role in ("query", "key", "value")])
    half = Pair(session_of(llama, tmp_path))
    for view in (SPECTRUM, ENERGY):
        found = figure(half, ask(half, select(0, "attention"), view, facets=True))
        assert [c.title for c in found.charts] == ["layer 1", "layer 4"]
        assert found.title == "attention, 2 of 6 layers, 18 of 24 curves not computed"
    assert figure(half, ask(half, select(0, "mlp"), facets=True)).title == (
        "mlp, 0 of 6 layers, 18 of 18 curves not computed"
    )


def test_two_models_share_the_facets(two: Pair) -> None:
    charts = figure(two, ask(two, select(0, "mlp"), facets=True, side=Side.RATIO)).charts
    assert [(s.label, s.number, s.stroke) for s in charts[0].series] == [
        (f"{role} {letter}", number, stroke)
        for number, role in ((4, "gate"), (5, "up"), (6, "down"))
        for letter, stroke in (("A", Stroke.SOLID), ("B", Stroke.DASHED))
    ]

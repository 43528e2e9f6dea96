"""What the charts of singular values and of energy show, held against LAPACK and against sampled noise."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from app_models import LLAMA, fill, llama_weights, matrix, rank_in, save_model
from chart_looking import ask, at, colour_at, grid_of, saved, select, session_of, sigma_of, texts
from numpy.typing import NDArray

from rankscope.tui.charts.figure import Chart, Series, Stroke
from rankscope.tui.charts.painter import figure_of, paint
from rankscope.tui.charts.request import Request
from rankscope.tui.data.grid import Selection
from rankscope.tui.data.pair import Pair, Side

LOG, LOG_Y, LINEAR = 0, 1, 2
KEY = "layers.0.attention.key"


@pytest.fixture(scope="module")
def pair(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A computed llama."""
    root = tmp_path_factory.mktemp("store")
    fill(llama, root)
    return Pair(session_of(llama, root))


@pytest.fixture(scope="module")
def two(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A computed llama against one with other weights."""
    folder = tmp_path_factory.mktemp("second")
    other = {name: 2.0 * w + 0.1 * matrix(w.shape, 5) if w.ndim == 2 else w for name, w in llama_weights(6).items()}
    fill(llama, folder / "store")
    return Pair(session_of(llama, folder / "store"), saved(folder / "b", folder / "store", other))


def chart(pair: Pair, request: Request) -> Chart:
    figure, _ = figure_of(pair, request)
    return figure.charts[0]


def curves(found: Chart) -> dict[str, Series]:
    return {s.label: s for s in found.series if s.number is not None}


def dim(found: Chart) -> dict[str, list[Series]]:
    labels = dict.fromkeys(s.label for s in found.series if s.number is None)
    return {label: [s for s in found.series if s.number is None and s.label == label] for label in labels}


def in_layer(layer: int, role: str) -> Selection:
    return select(layer, "attention", role)


# Singular values


def test_a_block_is_its_singular_values_as_lapack_finds_them(pair: Pair) -> None:
    found = curves(chart(pair, ask(pair, select(2, "attention"), axes=LINEAR)))
    assert list(found) == ["query", "key", "value", "output"]
    assert [s.number for s in found.values()] == [0, 1, 2, 3]
    for role, series in found.items():
        np.testing.assert_allclose(series.y, sigma_of(at(pair, 2, role)), rtol=1e-6)
        assert list(series.x) == list(range(1, len(series.y) + 1))


@pytest.mark.parametrize("axes", [LOG, LOG_Y, LINEAR])
def test_the_axes_are_logarithmic_or_linear_and_have_room_for_every_rank(pair: Pair, axes: int) -> None:
    found = chart(pair, ask(pair, in_layer(0, "key"), axes=axes))
    assert (found.x.log, found.y.log) == (axes == LOG, axes != LINEAR)
    assert found.x.span == (1.0, 24.0)


def test_normalised_curves_begin_at_one_and_keep_their_form(pair: Pair) -> None:
    plain = chart(pair, ask(pair, select(0, "attention"), axes=LINEAR))
    over = chart(pair, ask(pair, select(0, "attention"), axes=LINEAR, normalised=True))
    for role, series in curves(over).items():
        np.testing.assert_allclose(series.y, curves(plain)[role].y / curves(plain)[role].y[0])
    assert "largest" in over.y.name
    assert "largest" in texts(paint(pair, ask(pair, select(0), normalised=True, width=150)).lines)[0]


def test_noise_of_the_same_shape_and_strength_lies_on_the_noise_curve(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weights = llama_weights(1)
    noise = 0.3 * rng.standard_normal(weights["model.layers.0.self_attn.q_proj.weight"].shape)
    weights["model.layers.0.self_attn.q_proj.weight"] = noise.astype(np.float32)
    alone = Pair(saved(tmp_path / "m", tmp_path / "store", weights))
    found = chart(alone, ask(alone, in_layer(0, "query"), axes=LINEAR))
    (curve,) = dim(found)["noise"]
    assert curve.stroke is Stroke.DOTTED
    # The mean of 400 sampled matrices is what the law says to 1 % of the largest value at this size.
    sampled = np.mean([np.linalg.svd(rng.standard_normal((48, 48)), compute_uv=False) for _ in range(400)], axis=0)
    strength = np.median(curves(found)["query"].y) / np.median(sampled)
    np.testing.assert_allclose(curve.y, strength * sampled, atol=0.015 * strength * sampled[0] + 0.01)
    (edge,) = found.levels
    assert (edge.label, edge.name, edge.stroke) == ("edge", f"edge {edge.value:.3g}", Stroke.DASHED)
    assert edge.value == pytest.approx(strength * 2 * np.sqrt(48), rel=0.03)


def test_several_curves_have_noise_of_at_most_two_shapes_and_no_edge(pair: Pair) -> None:
    one = chart(pair, ask(pair, in_layer(0, "key"), axes=LINEAR))
    both = chart(pair, ask(pair, select(0, "attention"), axes=LINEAR))
    every = chart(pair, ask(pair, select(0), axes=LINEAR))
    assert [len(dim(c)["noise"]) for c in (one, both, every)] == [1, 2, 2]
    assert [len(c.levels) for c in (one, both, every)] == [1, 0, 0]
    assert sorted(int(s.x[-1]) for s in dim(both)["noise"]) == [24, 48]
    # For the two of one shape it is as strong as the geometric mean of what each has alone.
    alone = [dim(chart(pair, ask(pair, in_layer(0, r), axes=LINEAR)))["noise"][0] for r in ("key", "value")]
    (short,) = [s for s in dim(both)["noise"] if s.x[-1] == 24]
    k = 11  # seen in all three
    expected = np.sqrt(np.prod([s.y[s.x == k][0] for s in alone]))
    assert short.y[short.x == k][0] == pytest.approx(expected)


def test_noise_and_edge_are_scaled_with_the_curve(pair: Pair) -> None:
    plain = chart(pair, ask(pair, in_layer(0, "key"), axes=LINEAR))
    over = chart(pair, ask(pair, in_layer(0, "key"), axes=LINEAR, normalised=True))
    top = curves(plain)["key"].y[0]
    np.testing.assert_allclose(dim(over)["noise"][0].y * top, dim(plain)["noise"][0].y)
    assert over.levels[0].value * top == pytest.approx(plain.levels[0].value)


@pytest.fixture
def low_rank(tmp_path: Path) -> Pair:
    """A key of rank 8, whose other values are known only to lie below 1e-3."""
    weights = llama_weights(1)
    rng = np.random.default_rng(3)
    factors: list[NDArray[np.float64]] = [rng.standard_normal((24, 8)), rng.standard_normal((8, 48))]
    weights["model.layers.0.self_attn.k_proj.weight"] = (factors[0] @ factors[1]).astype(np.float32)
    return Pair(saved(tmp_path / "m", tmp_path / "store", weights, floor=1e-3))


def test_values_below_the_floor_are_dim_and_squash_nothing(low_rank: Pair) -> None:
    for axes in (LOG, LOG_Y):
        found = chart(low_rank, ask(low_rank, in_layer(0, "key"), axes=axes))
        known, below = curves(found)["key"], dim(found)["below floor"][0]
        assert list(known.x) == list(range(1, 9))
        assert list(below.x) == list(range(9, 25))
        np.testing.assert_allclose(below.y, known.y[-1] / 10)
        assert "noise" not in dim(found)  # its scale would be made of values that nobody knows
    lines = texts(paint(low_rank, ask(low_rank, in_layer(0, "key"))).lines)
    assert lines[0].endswith("\u2501\u2501 key 6  \u2500\u2500 below floor")
    linear = dim(chart(low_rank, ask(low_rank, in_layer(0, "key"), axes=LINEAR)))["below floor"][0]
    assert linear.y.max() < 1e-3


def test_a_matrix_of_zeros_is_explained(tmp_path: Path) -> None:
    weights = llama_weights(1)
    weights["model.layers.0.self_attn.k_proj.weight"][:] = 0
    zeros = Pair(saved(tmp_path / "m", tmp_path / "store", weights))
    for view in (1, 2):
        for facets in (False, True):
            for axes in (LOG, LINEAR):
                painting = paint(zeros, ask(zeros, in_layer(0, "key"), view, axes=axes, facets=facets))
                assert len(painting.lines) == 20
    assert any("all values are 0" in line for line in texts(paint(zeros, ask(zeros, in_layer(0, "key"))).lines))


def test_a_steep_end_does_not_press_the_rest_into_the_top(tmp_path: Path) -> None:
    weights = llama_weights(1)
    u, s, v = np.linalg.svd(weights["model.layers.0.self_attn.q_proj.weight"].astype(np.float64))
    s[-1] = 1e-5 * s[-2]
    weights["model.layers.0.self_attn.q_proj.weight"] = (u * s @ v).astype(np.float32)
    steep = Pair(saved(tmp_path / "m", tmp_path / "store", weights))
    found = curves(chart(steep, ask(steep, in_layer(0, "query"))))["query"]
    assert len(found.x) < 48
    assert found.y[-1] > 1e-3 * found.y[0]
    assert len(curves(chart(steep, ask(steep, in_layer(0, "query"), axes=LINEAR)))["query"].x) == 48


# What is shown


def test_where_a_walk_began_stays_as_dim_lines(pair: Pair) -> None:
    request = ask(pair, in_layer(3, "key"), axes=LINEAR, origin=in_layer(0, "key"), width=120)
    found = chart(pair, request)
    (origin,) = dim(found)[f"from {KEY}"]
    values = sigma_of(at(pair, 0, "key"))
    np.testing.assert_allclose(origin.y, values[values <= 2 * curves(found)["key"].y[0]], rtol=1e-6)
    assert f"\u2500\u2500 from {KEY}" in texts(paint(pair, request).lines)[0]
    block = ask(pair, select(3, "attention"), 2, origin=select(0, "attention"))
    assert len(dim(chart(pair, block))["from layers.0.attention"]) == 4


def test_an_origin_that_is_selected_or_has_no_room_is_left_out(pair: Pair) -> None:
    for origin in (in_layer(3, "key"), None):
        assert list(dim(chart(pair, ask(pair, in_layer(3, "key"), origin=origin)))) == ["noise"]
    seven = ask(pair, select(3), origin=select(0))
    assert [label for label in dim(chart(pair, seven)) if label.startswith("from")] == []


def test_two_models_give_a_and_b_of_each(two: Pair) -> None:
    asked = {side: ask(two, in_layer(0, "key"), axes=LINEAR, side=side) for side in Side}
    names = {side: list(curves(chart(two, request))) for side, request in asked.items()}
    assert names == {Side.A: ["key A"], Side.B: ["key B"], Side.RATIO: ["key A", "key B"]}
    b = curves(chart(two, asked[Side.RATIO]))["key B"]
    assert two.second is not None
    partner = two.partner(at(two, 0, "key"))
    assert partner is not None
    np.testing.assert_allclose(b.y, sigma_of(partner), rtol=1e-6)
    layer = paint(two, ask(two, select(0), side=Side.RATIO))
    assert len(layer.curves) == 8
    assert "(4 of 7)" in texts(layer.lines)[0]


def test_marks_are_drawn_instead_of_the_selection(pair: Pair, two: Pair) -> None:
    marks = (at(pair, 0, "key"), at(pair, 2, "key"), at(pair, 2, "gate", "mlp"))
    found = paint(pair, ask(pair, select(5), compare=True, marks=marks))
    assert [name for name, _, _ in found.curves] == ["0 key", "2 key", "2 gate"]
    assert texts(found.lines)[0].startswith("3 marked  \u2501\u2501 0 key")
    one_role = paint(pair, ask(pair, select(5), compare=True, marks=marks[:2]))
    assert [name for name, _, _ in one_role.curves] == ["0", "2"]
    assert texts(one_role.lines)[0].startswith("2 marked  attention.key")
    both = (at(two, 0, "key"), at(two, 2, "gate", "mlp"))
    names = [name for name, _, _ in paint(two, ask(two, select(5), 2, compare=True, marks=both)).curves]
    assert names == ["0 key A", "0 key B", "2 gate A", "2 gate B"]


def test_more_than_eight_are_thinned_and_counted(pair: Pair) -> None:
    found = paint(pair, ask(pair, Selection()))
    assert len(found.curves) == 8
    assert "(8 of 42)" in texts(found.lines)[0]
    addresses = [p.address for _, _, p in found.curves]
    assert (addresses[0], addresses[-1]) == ("layers.0.attention.query", "layers.5.mlp.down")


def test_the_curves_of_a_painting_come_with_their_session_values_and_ruler(pair: Pair) -> None:
    found = paint(pair, ask(pair, select(1, "attention"), 2, origin=select(0, "mlp")))
    assert [(name, s is pair.first) for name, s, _ in found.curves] == [
        (name, True) for name in ("query", "key", "value", "output")
    ]
    for (_, _, p), values in zip(found.curves, found.values, strict=True):
        np.testing.assert_allclose(values, sigma_of(p), rtol=1e-6)
    assert found.ruler is not None
    assert found.ruler.count == 48
    short = paint(pair, ask(pair, in_layer(1, "key"), origin=in_layer(1, "query")))
    assert short.ruler is not None
    assert (short.ruler.count, short.ruler.span) == (24, (1.0, 48.0))


def test_an_empty_chart_says_what_to_do(llama: Path, tmp_path: Path) -> None:
    model = fill(llama, tmp_path / "store", ["layers.0.mlp.up"])
    empty = Pair(session_of(llama, tmp_path / "store"))
    assert model.name == empty.first.model.name
    cases = {
        "not computed: enter computes it": ask(empty, select(0, "attention")),
        "nothing marked: space marks the selection": ask(empty, select(0, "attention"), compare=True),
        "not computed: s scans what is marked": ask(empty, select(0), compare=True, marks=(at(empty, 0, "key"),)),
        "not computed: s scans the model": ask(empty, select(0, "attention"), 2, facets=True),
    }
    for sentence, request in cases.items():
        painting = paint(empty, request)
        assert [line.strip() for line in texts(painting.lines)[1:] if line.strip()] == [sentence]
        assert (painting.ruler, painting.curves) == (None, ())
    assert len(paint(empty, ask(empty, select(0, "mlp"))).curves) == 1  # what there is
    assert grid_of(empty).columns


# Energy


def test_energy_is_the_running_sum_of_squares_with_the_thresholds(pair: Pair) -> None:
    found = chart(pair, ask(pair, select(2, "mlp"), 2, threshold=0.8))
    for role, series in curves(found).items():
        squares = sigma_of(at(pair, 2, role, "mlp")) ** 2
        np.testing.assert_allclose(series.y, 100 * np.cumsum(squares) / squares.sum(), rtol=1e-6)
    assert [(v.value, v.label, v.is_bright) for v in found.levels] == [
        (60.0, "60 %", False), (80.0, "80 %", True), (90.0, "90 %", False),
    ]  # fmt: skip
    assert (found.y.span, found.y.log, found.x.log) == ((0.0, 100.0), False, True)
    assert not chart(pair, ask(pair, select(2, "mlp"), 2, axes=LINEAR)).x.log


def test_the_curve_of_noise_reaches_a_threshold_at_the_mean_rank_of_sampled_noise(pair: Pair) -> None:
    rng = np.random.default_rng(2)
    found = dim(chart(pair, ask(pair, select(2, "attention"), 2)))["noise"]
    assert [int(s.x[-1]) for s in found] == [48, 24]
    for series, shape in zip(found, ((48, 48), (24, 48)), strict=True):
        squares = np.linalg.svd(rng.standard_normal((300, *shape)), compute_uv=False) ** 2
        shares = 100 * np.cumsum(squares, axis=1) / squares.sum(axis=1, keepdims=True)
        for t in (80, 90, 95):
            needed = (shares < t).sum(axis=1).mean() + 1
            assert np.interp(t, series.y, series.x) == pytest.approx(needed, abs=0.25)


def test_half_computed_models_and_saved_stores_agree(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", llama_weights(2), LLAMA)
    fill(folder, tmp_path / "store", ["layers.0.attention.key", "layers.0.attention.output"])
    half = Pair(session_of(folder, tmp_path / "store"))
    painting = paint(half, ask(half, select(0, "attention"), 2))
    assert [name for name, _, _ in painting.curves] == ["key", "output"]
    assert painting.readout.plain.startswith("2 of 4 computed  k90 ")


@pytest.mark.parametrize("threshold", [0.6, 0.9])
@pytest.mark.parametrize("view", [1, 2])
def test_the_legend_has_the_rank_of_every_curve_and_a_dot_stands_at_it(
    pair: Pair, llama: Path, view: int, threshold: float
) -> None:
    found = paint(pair, ask(pair, select(2, "attention"), view, threshold=threshold))
    ranks = {role: rank_in(llama, 2, role, threshold) for role in ("query", "key", "value", "output")}
    for role, rank in ranks.items():
        assert f" {role} {rank}  " in found.lines[0].plain + "  "
        at = found.lines[0].plain.index(f"{role} {rank}") + len(role) + 1
        assert colour_at(found.lines[0], at) == colour_at(found.lines[0], at - len(role) - 4)
    assert found.ruler is not None
    dots_at = {x for line in found.lines for x, char in enumerate(line.plain) if char == "\u25cf"}
    assert dots_at <= {found.ruler.column(rank) for rank in ranks.values()}
    assert len(dots_at) >= len({found.ruler.column(rank) for rank in ranks.values()}) - 1


def test_the_dot_of_an_energy_curve_lies_on_the_threshold(pair: Pair, llama: Path) -> None:
    (series,) = curves(chart(pair, ask(pair, in_layer(1, "key"), 2, threshold=0.8))).values()
    rank = rank_in(llama, 1, "key", 0.8)
    assert (series.value, series.dot) == (str(rank), (rank, series.y[rank - 1]))
    assert series.y[rank - 2] < 80 <= series.y[rank - 1]


def test_values_give_way_before_the_names_of_curves(pair: Pair) -> None:
    lines = texts(paint(pair, ask(pair, select(0, "attention"), 2, width=44, height=12)).lines)
    assert all(role in lines[0] for role in ("query", "key", "value", "output"))
    assert not re.search("[0-9]", lines[0].replace("layers.0", ""))


def test_energy_above_noise_is_the_difference_of_the_two(pair: Pair) -> None:
    found = chart(pair, ask(pair, select(2, "attention"), 2, axes=3))
    for role, series in curves(found).items():
        p = at(pair, 2, role)
        squares = sigma_of(p) ** 2
        rng = np.random.default_rng(5)
        noise = np.mean(
            [np.linalg.svd(rng.standard_normal((p.rows, p.cols)), compute_uv=False) ** 2 for _ in range(60)], axis=0
        )
        expected = 100 * (np.cumsum(squares) / squares.sum() - np.cumsum(noise) / noise.sum())
        np.testing.assert_allclose(series.y, expected, atol=2.0)
        assert series.y[-1] == pytest.approx(0.0, abs=1e-9)
    assert [(level.value, level.label) for level in found.levels] == [(0.0, "noise")]
    assert not dim(found)
    lines = texts(paint(pair, ask(pair, select(2, "attention"), 2, axes=3, facets=True)).lines)
    assert any(line.lstrip().startswith("noise") for line in lines)

"""Layers that stand out of their role: told apart by the median absolute deviation, and gone through by keys."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from app_looking import SMALL, exploring
from app_models import LLAMA, TENSORS, fill, llama_weights, numpy_rank, save_model
from heatmap_fakes import layers, moe

from rankscope.engine.spectrum import Projection
from rankscope.tui.data.grid import Column, Grid, Row, Selection, make_grid
from rankscope.tui.data.outliers import FAR, Role, by_distance, next_of, outliers
from rankscope.tui.data.series_model import of_series

KEY = Column("attention", "key")
GATE = Column("expert", "gate")


def of(*numbers: float, ranks: bool = False) -> list[tuple[int, float]]:
    """The layers of a role that stand out by these numbers, and by how many deviations."""
    grid = make_grid(layers(len(numbers), mlp=False))
    role = Role(grid, grid.rows, KEY, lambda row, _: (numbers[row.layer],), ranks=ranks)
    return [(s.row.layer, round(s.deviations, 9)) for s in role.outliers()]


def of_experts(each: int, numbers: dict[tuple[int, int, str], float]) -> tuple[Grid, list[tuple[str, float]]]:
    """Layers of experts of which these numbers (by layer, expert, role) are not 36, and what stands out of them."""
    grid = make_grid([p for p in moe(6, each) if p.expert is not None])

    def number(p: Projection) -> float:
        return numbers.get((p.layer or 0, p.expert or 0, p.role), 36.0)

    found = outliers(grid, lambda *place: [number(p) for p in grid.cells[place]], ranks=True)
    return grid, [(s.where, s.number) for s in found]


def test_three_deviations_from_the_median_are_not_yet_too_far() -> None:
    numbers = (10.0, 11.0, 9.0, 13.0, 14.0, math.nan, 10.0)  # median 10.5, of the distances 1.0
    assert of(*numbers) == [(4, 3.5)]
    assert of(10.0, 11.0, 9.0, 13.5, 10.0, 11.0) == [(3, 6.0)]
    assert of(1.0, 2.0, 3.0, 4.0, 8.0) == [(4, 5.0)]
    assert of(1.0, 2.0, 3.0, 4.0, 6.0) == []


def test_few_numbers_equal_ones_and_none_have_no_outlier() -> None:
    assert of(1.0, 1.0, 90.0) == []
    assert of(math.nan, math.nan) == []
    assert of(100.0, 100.0, 100.0, 100.0 * (1 + 1e-15)) == []
    assert of(0.0, 0.0, 0.0, 0.0) == []


def test_numbers_that_are_nearly_all_equal_deviate_by_a_rank_or_a_hundredth_of_the_median() -> None:
    assert of(32.0, 32.0, 32.0, 33.0, ranks=True) == []
    assert of(32.0, 32.0, 32.0, 35.0, ranks=True) == []
    assert of(32.0, 32.0, 32.0, 36.0, ranks=True) == [(3, 4.0)]
    assert of(2000.0, 2000.0, 2000.0, 2004.0, ranks=True) == [(3, 4.0)]
    assert of(2.0, 2.0, 2.0, 2.05) == []
    assert of(2.0, 2.0, 2.0, 1.9) == [(3, -5.0)]


def test_an_expert_stands_out_of_all_layers_and_experts_of_its_role() -> None:
    far = {(4, 11, "gate"): 17.0, (4, 2, "gate"): 20.0, (1, 3, "gate"): 37.0, (5, 0, "down"): 60.0}
    grid, found = of_experts(16, far)
    assert found == [
        ("layer 4 expert 11 gate", 17.0),
        ("layer 4 expert 2 gate", 20.0),
        ("layer 5 expert 0 down", 60.0),
    ]
    rows = by_distance(grid, GATE, lambda row, _: ((36.0, 39.0, math.nan, 5.0, 36.0, 35.0)[row.layer],))
    assert [row.layer for row in rows] == [3, 1, 5, 0, 4, 2]


def test_of_a_series_the_model_and_layer_are_named_else_the_address() -> None:
    experts = [p for p in moe(1, 6) if p.role == "gate"]
    layers_of = [of_series(p, 0, "step", 500) for p in layers(6) if p.role == "gate"]
    experts_of = [of_series(p, 0, "step", 500) for p in experts]
    nameless = [replace(p, expert=None) for p in experts]
    for projections, where in (
        (layers_of, "step.500 layer 3 gate"),
        (experts_of, "step.500 layer 0 expert 3 gate"),
        (nameless, "layers.0.expert.3.gate"),
    ):
        grid = make_grid(projections)
        found = outliers(grid, lambda *_: (9.0, 9.0, 9.0, 30.0, 9.0, 9.0), ranks=True)
        assert [s.where for s in found] == [where]


def test_towers_have_layers_of_their_own_and_the_order_is_that_of_the_grid() -> None:
    grid = make_grid([*layers(6, mlp=False), *layers(6, mlp=False, tower="vision")])
    far = {(Row("", 4), KEY), (Row("", 1), Column("attention", "value")), (Row("vision", 2), KEY)}

    def numbers(row: Row, column: Column) -> tuple[float]:
        return (1000 * bool(row.tower) + row.layer / 10 + 50 * ((row, column) in far),)

    found = outliers(grid, numbers, ranks=False)
    places = [(s.row, s.column) for s in found]
    assert places == [(Row("", 1), Column("attention", "value")), (Row("", 4), KEY), (Row("vision", 2), KEY)]
    walk = {
        Selection(): (0, 2),
        Selection(Row("", 1)): (0, 2),
        Selection(*places[0]): (1, 2),
        Selection(Row("", 4), KEY): (2, 0),
        Selection(*places[2]): (0, 1),
    }
    for here, (after, before) in walk.items():
        assert (next_of(found, grid, here, 1), next_of(found, grid, here, -1)) == (after, before), here


async def test_the_keys_go_through_them_and_the_foot_names_the_ends(tmp_path: Path) -> None:
    weights = llama_weights(8)
    odd = np.outer(np.arange(24.0), np.ones(48)).astype(np.float32)
    weights[f"model.layers.5.{TENSORS['key']}.weight"] = odd + np.eye(24, 48, dtype=np.float32) / 100
    folder = save_model(tmp_path / "tiny-llama", weights, LLAMA)
    ranks = {
        role: [numpy_rank(weights[f"model.layers.{layer}.{name}.weight"], 0.9) for layer in range(8)]
        for role, name in TENSORS.items()
    }
    fill(folder, tmp_path / "store")
    expected = []
    for layer in range(8):
        for role, numbers in ranks.items():
            spread = max(1, np.median(np.abs(np.array(numbers) - np.median(numbers))))
            if abs(numbers[layer] - np.median(numbers)) > FAR * spread:
                expected.append((layer, role))
    assert (5, "key") in expected
    async with exploring(folder, tmp_path / "store", SMALL) as view:
        await view.press("3")
        for at, (layer, role) in enumerate([*expected, expected[0]]):
            await view.press("b")
            assert view.selected.split(".")[1::2] == [str(layer), role]
            place = f"{at % len(expected) + 1} of {len(expected)}"
            assert f"{place}: layer {layer} {role}: k90 {ranks[role][layer]}, median " in view.foot
        await view.press("B")
        assert view.selected.split(".")[1::2] == [str(expected[-1][0]), expected[-1][1]]
        await view.press("colon")
        await view.type("5")
        await view.press("slash")
        await view.type("key")
        low, high = min(ranks["key"]), max(ranks["key"])
        await view.sees(f"key min {low}@{ranks['key'].index(low)}  max {high}@{ranks['key'].index(high)}")


async def test_a_folded_place_hides_no_expert_from_the_keys(tmp_path: Path) -> None:
    """One of 30 experts has half the inner size: the median of its layer does not tell."""
    rng = np.random.default_rng(3)
    shapes = {"w1": (32, 24), "w3": (32, 24), "w2": (24, 32)}
    weights, gates = {}, []
    for layer, expert in product(range(5), range(6)):
        for name, (rows, cols) in shapes.items():
            inner = 6 if (layer, expert, name) == (3, 4, "w1") else 20
            made = rng.standard_normal((rows, inner)) @ rng.standard_normal((inner, cols))
            weights[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"] = made.astype(np.float32)
            if name == "w1":
                gates.append(numpy_rank(made, 0.9))
    folder = save_model(tmp_path / "tiny", weights, LLAMA | {"model_type": "mixtral", "num_local_experts": 6})
    fill(folder, tmp_path / "store")
    few, middle = min(gates), f"{np.median(gates):.0f}"
    async with exploring(folder, tmp_path / "store", SMALL) as view:
        await view.press("3", "b")
        assert f"1 of 1: layer 3 expert 4 gate: k90 {few}, median {middle}, " in view.foot
        assert view.selected == "layers.3.expert.4.gate"
        await view.sees(f"expert.gate min {few}@3.e4 ")
        await view.press("enter")
        await view.sees("experts of layer 3")
        await view.press("b")
        assert view.selected == "layers.3.expert.4.gate"

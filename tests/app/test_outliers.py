"""Layers that stand out of their role: told apart by the median absolute deviation, and gone through by keys."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from app_looking import SMALL, exploring
from app_models import LLAMA, TENSORS, fill, llama_weights, numpy_rank, save_model
from heatmap_fakes import layers

from rankscope.tui.data.grid import Column, Row, Selection, make_grid
from rankscope.tui.data.outliers import FAR, next_of, outliers, standings

KEY = Column("attention", "key")


def of(*numbers: float | None) -> list[tuple[float, bool]]:
    """Where these numbers of one role stand, and whether they stand out."""
    rows = [Row("", n) for n in range(len(numbers))]
    return [(s.deviations, s.is_outlier) for s in standings(rows, KEY, lambda row, _: numbers[row.layer])]


def test_three_deviations_from_the_median_are_not_yet_too_far() -> None:
    numbers = (10.0, 11.0, 9.0, 13.0, 14.0, None, 10.0)  # median 10.5, of the distances 1.0
    assert of(*numbers) == [(-0.5, False), (0.5, False), (-1.5, False), (2.5, False), (3.5, True), (-0.5, False)]
    assert of(10.0, 11.0, 9.0, 13.5, 10.0, 11.0)[3] == (6.0, True)
    assert of(1.0, 2.0, 3.0, 4.0, 8.0)[4][1]
    assert of(1.0, 2.0, 3.0, 4.0, 6.0)[4] == (3.0, False)


def test_few_numbers_equal_ones_and_none_have_no_outlier() -> None:
    assert [is_out for _, is_out in of(1.0, 1.0, 90.0)] == [False] * 3
    assert of(None, None) == []
    assert [is_out for _, is_out in of(100.0, 100.0, 100.0, 100.0 * (1 + 1e-15))] == [False] * 4
    assert of(100.0, 100.0, 100.0, 99.0)[3] == (-math.inf, True)


def test_towers_have_layers_of_their_own_and_the_order_is_that_of_the_grid() -> None:
    grid = make_grid([*layers(6, mlp=False), *layers(6, mlp=False, tower="vision")])
    far = {(Row("", 4), KEY), (Row("", 1), Column("attention", "value")), (Row("vision", 2), KEY)}

    def number(row: Row, column: Column) -> float:
        return 1000 * bool(row.tower) + row.layer / 10 + 50 * ((row, column) in far)

    found = [(s.row, column) for s, column in outliers(grid, number)]
    assert found == [(Row("", 1), Column("attention", "value")), (Row("", 4), KEY), (Row("vision", 2), KEY)]
    walk = {
        Selection(): (0, 2),
        Selection(Row("", 1)): (0, 2),
        Selection(*found[0]): (1, 2),
        Selection(Row("", 4), KEY): (2, 0),
        Selection(*found[2]): (0, 1),
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
            spread = np.median(np.abs(np.array(numbers) - np.median(numbers)))
            if abs(numbers[layer] - np.median(numbers)) > FAR * spread:
                expected.append((layer, role))
    assert (5, "key") in expected
    async with exploring(folder, tmp_path / "store", SMALL) as view:
        await view.press("3")
        for layer, role in [*expected, expected[0]]:
            await view.press("b")
            assert view.selected.split(".")[1::2] == [str(layer), role]
            assert f"k90 {ranks[role][layer]}: " in view.foot
            assert f"; {len(expected)} stand out" in view.app.explorer.state.note
        await view.press("B")
        assert view.selected.split(".")[1::2] == [str(expected[-1][0]), expected[-1][1]]
        await view.press("colon")
        await view.type("5")
        await view.press("slash")
        await view.type("key")
        low, high = min(ranks["key"]), max(ranks["key"])
        await view.sees(f"key min {low}@{ranks['key'].index(low)}  max {high}@{ranks['key'].index(high)}")

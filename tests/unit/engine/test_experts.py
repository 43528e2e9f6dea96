"""A sample of experts in each layer: which ones, and always the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_fakes import saved

from rankscope.engine.catalogue.experts import sample
from rankscope.engine.spectrum import Projection


@pytest.fixture
def projections(tmp_path: Path) -> list[Projection]:
    """Two layers with attention, one of 16 and one of 6 experts with two projections each."""
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    for layer, count in enumerate((16, 6)):
        names += [f"model.layers.{layer}.mlp.experts.{e}.{p}_proj" for e in range(count) for p in ("up", "down")]
    return saved(tmp_path, {f"{name}.weight": torch.ones(2, 3) for name in names}, {"model_type": "mixtral"})[1]


def experts(projections: list[Projection], layer: int, role: str = "up") -> list[int | None]:
    return [p.expert for p in projections if p.layer == layer and p.role == role]


def test_they_are_evenly_spread_and_the_same_in_each_role(projections: list[Projection]) -> None:
    found = sample(projections, 4)
    assert experts(found, 0) == experts(found, 0, "down") == [0, 4, 8, 12]
    assert experts(found, 1) == [0, 1, 3, 4]
    assert sum(p.role == "query" for p in found) == 2
    assert sample(projections[::-1], 4) == found[::-1]


def test_twice_as_many_hold_the_same_again(projections: list[Projection]) -> None:
    assert set(sample(projections, 2)) < set(sample(projections, 4)) < set(sample(projections, 8)) < set(projections)


@pytest.mark.parametrize("count", [None, 16, 1000])
def test_all_of_them(projections: list[Projection], count: int | None) -> None:
    assert sample(projections, count) == projections


def test_of_what_a_filter_leaves(projections: list[Projection]) -> None:
    left = [p for p in projections if p.expert in (7, 11, None)]
    assert experts(sample(left, 1), 0) == [7]

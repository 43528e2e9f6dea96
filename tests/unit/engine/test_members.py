"""Experts of unequal widths and packed stacks of experts are checked against their names as others are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lapack_reference import assert_same_spectrum, compute
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint

D, F = 10, 17


def _opened(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], **config: Any
) -> tuple[Checkpoint, Tree, dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(4)
    arrays = {f"layers.0.{path}": rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(folder))
    return checkpoint, build_tree(checkpoint), arrays


@pytest.mark.parametrize("widths", [(F, F, F), (F, 7, 5), (5, F, F)])
def test_experts_of_any_width_are_mended_each_by_itself(tmp_path: Path, widths: tuple[int, ...]) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for e, width in enumerate(widths):  # w1 and w2 of EVA-02 have the width that down, w3, takes
        paths = {"w1": (width, D), "w2": (width, D), "w3": (D, width)}
        shapes |= {f"mlp.experts.{e}.{name}.weight": shape for name, shape in paths.items()}
    _, tree, _ = _opened(tmp_path, shapes)
    found = {p.tensor: p.role for p in tree.projections}
    roles = {"w1": "gate", "w2": "up", "w3": "down"}
    assert found == {f"layers.0.mlp.experts.{e}.{n}.weight": role for e in range(3) for n, role in roles.items()}


def test_one_expert_that_contradicts_itself_is_told_and_the_others_keep_their_names(tmp_path: Path) -> None:
    shapes = {f"mlp.experts.{e}.{n}_proj.weight": (F, D) for e in range(3) for n in ("gate", "up")}
    shapes |= {f"mlp.experts.{e}.down_proj.weight": (D, F + (e == 1)) for e in range(3)}
    _, tree, _ = _opened(tmp_path, shapes)
    assert {p.expert for p in tree.projections if p.note} == {1}
    assert [p.role for p in tree.projections] == ["gate", "up", "down"] * 3


@pytest.mark.parametrize("turned", [False, True])
def test_a_fused_stack_that_contradicts_its_down_is_unstacked_whole(tmp_path: Path, turned: bool) -> None:
    fused, down = ((3, D, 2 * F), (3, F + 1, D)) if turned else ((3, 2 * F, D), (3, D, F + 1))
    shapes = {"mlp.experts.gate_up_proj": fused, "mlp.experts.down_proj": down}
    checkpoint, tree, arrays = _opened(tmp_path, shapes, hidden_size=D)
    assert all(p.note.startswith("shapes contradict the names of one block") for p in tree.projections)
    found = [p for p in tree.scanned() if p.role == "gate_up_proj"]
    assert [p.address for p in found] == [f"layers.0.expert.{e}.gate_up_proj" for e in range(3)]
    for p in found:
        assert_same_spectrum(compute(checkpoint, p), arrays["layers.0.mlp.experts.gate_up_proj"][p.expert])


@pytest.mark.parametrize("turned", [False, True])
def test_a_fused_stack_that_fits_its_down_is_split_either_way_it_stands(tmp_path: Path, turned: bool) -> None:
    fused, down = ((3, D, 2 * F), (3, F, D)) if turned else ((3, 2 * F, D), (3, D, F))
    shapes = {"mlp.experts.gate_up_proj": fused, "mlp.experts.down_proj": down}
    checkpoint, tree, arrays = _opened(tmp_path, shapes, hidden_size=D)
    assert not any(p.note for p in tree.projections)
    assert [(p.role, p.rows, p.cols) for p in tree.scanned()] == [("gate", F, D), ("up", F, D), ("down", D, F)] * 3
    planes = arrays["layers.0.mlp.experts.gate_up_proj"]
    for p in (p for p in tree.scanned() if p.role != "down"):
        halves = np.split(planes[p.expert].T if turned else planes[p.expert], 2)
        assert_same_spectrum(compute(checkpoint, p), halves[p.role == "up"])

"""Input features that GGUF has in another order: what the converter does to the weights, undone on their moments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_files import Stats, write_gguf, write_moments
from lapack_reference import lapack
from numpy.typing import NDArray
from test_calibration_names import opened, saved

from rankscope.engine.calibration.channels import SHUFFLED, order_of
from rankscope.engine.errors import WeightsError
from rankscope.engine.spectrum import Projection

# groups, heads in each, width of a head; and the numbers of config.json that say so
SHAPES = {
    "plamo": ((8, 5, 4), {"n_shared_head": 8, "num_attention_heads": 40}),
    "qwen3_5_text": ((2, 3, 7), {"linear_num_key_heads": 2, "linear_num_value_heads": 6}),
    "qwen3_5_moe": ((4, 2, 3), {"text_config": {"linear_num_key_heads": 4, "linear_num_value_heads": 8}}),
}


def as_converted(weights: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """The columns as llama.cpp's converter places them: an axis of groups and one of heads change places."""
    groups, heads, width = SHAPES[kind][0]
    return weights.reshape(-1, groups, heads, width).swapaxes(1, 2).reshape(len(weights), -1)


def projection_of(tmp_path: Path, kind: str) -> tuple[Projection, dict[str, Any]]:
    row = next(row for row in SHUFFLED if kind in row.model_types)
    _, projections = opened(
        saved(tmp_path / "m", "llama"),
        write_gguf(tmp_path / "a", {"blk.0.x": Stats(np.ones((1, 4), np.float32), (3,))}),
    )
    (shape, numbers), path = SHAPES[kind], {"attention": "self_attn.o_proj", "linear_attention": "linear_attn.out_proj"}
    output = replace(
        projections[0],
        address=f"layers.0.{row.block}.{row.role}",
        tensor=f"model.layers.0.{path[row.block]}.weight",
        block=row.block,
        role=row.role,
        cols=int(np.prod(shape)),
    )
    return output, {"model_type": kind, **numbers}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("way", ["imatrix on the model's own file", "moments on its GGUF"])
def test_the_spectrum_does_not_change_with_the_format(tmp_path: Path, kind: str, way: str) -> None:
    rng = np.random.default_rng(5)
    output, config = projection_of(tmp_path, kind)
    own = rng.standard_normal((9, output.cols))
    moments = rng.uniform(0.1, 9, output.cols)
    theirs, placed = as_converted(own, kind), as_converted(moments[None], kind)[0]
    assert not np.array_equal(moments, placed)
    expected = lapack(own * np.sqrt(moments))
    if way.startswith("imatrix"):
        order = order_of(output, config, "blk.0.any.weight")
        found = lapack(own * np.sqrt(placed[order]))
    else:
        order = order_of(replace(output, tensor="blk.0.any.weight"), config, output.tensor)
        found = lapack(theirs * np.sqrt(moments[order]))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", SHAPES)
def test_nothing_moves_between_files_of_one_kind_or_in_other_matrices(tmp_path: Path, kind: str) -> None:
    output, config = projection_of(tmp_path, kind)
    assert order_of(output, config, output.tensor) is None
    assert order_of(replace(output, tensor="blk.0.attn_output.weight"), config, "blk.0.attn_output.weight") is None
    for role in ("query", "key", "value"):
        assert order_of(replace(output, role=role), config, "blk.0.attn_q.weight") is None
    assert order_of(output, {**config, "model_type": "llama", "text_config": {}}, "blk.0.attn_output.weight") is None


def test_an_order_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    output, config = projection_of(tmp_path, "qwen3_5_text")
    for numbers in ({"linear_num_key_heads": None}, {"linear_num_value_heads": 7}, {"linear_num_key_heads": 4}):
        with pytest.raises(
            WeightsError, match=r"linear_attn\.out_proj\.weight: GGUF stores its input features in another order"
        ):
            order_of(output, {**config, **numbers}, "blk.0.ssm_out.weight")


def test_an_imatrix_and_moments_through_the_whole_way(tmp_path: Path) -> None:
    groups, heads, width = 2, 2, 7
    model = saved(tmp_path / "model", "qwen3_5_text")
    squares = np.arange(1, 29, dtype=np.float32)
    placed = squares.reshape(groups, heads, width).swapaxes(0, 1).reshape(1, -1)
    held = {"blk.0.ssm_out.weight": Stats(placed * 4, (4,))}
    weighting, projections = opened(model, write_gguf(tmp_path / "imatrix.gguf", held))
    output = next(p for p in projections if p.address == "layers.0.linear_attention.output")
    (operand,) = weighting.moment(output).operands
    assert operand.load is not None
    np.testing.assert_array_equal(operand.load(), squares)
    name = "model.layers.0.linear_attn.out_proj.weight"
    products = np.outer(squares, squares).astype(np.float64) + np.diag(squares)
    order = np.argsort(placed[0])  # of 1, 2, 3 ...: where the file has each
    theirs = np.empty_like(products)
    theirs[np.ix_(order, order)] = products
    for stem, sums in ((name, products), ("blk.0.ssm_out.weight", theirs)):
        file = write_moments(tmp_path / "m.safetensors", {f"{stem}.xx": sums, f"{stem}.count": np.array(1.0)})
        weighting, _ = opened(model, file)
        (operand,) = weighting.moment(output).operands
        assert operand.load is not None
        np.testing.assert_array_equal(operand.load(), products)

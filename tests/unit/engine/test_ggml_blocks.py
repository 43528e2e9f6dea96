"""ggml's blocks: bit by bit equal to the gguf package's dequantiser, in numpy and in torch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quant
from numpy.typing import NDArray

from rankscope.engine.formats.ggml_blocks import FORMULAS
from rankscope.engine.formats.gguf_blocks import gguf_matrix
from rankscope.engine.weights import Packed, host_array

# Positive, negative, the smallest and the largest subnormal, zeros of both signs, infinities, NaN.
HALVES = np.array([0x3C01, 0xB555, 0x0001, 0x83FF, 0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E00], np.uint16)
HALF_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "MXFP4": (), "NVFP4": (),
}  # fmt: skip
"""Where the float16 numbers of a block begin."""


def _rows(name: str) -> NDArray[np.uint8]:
    """Random blocks that include every pair of special scales, and every byte where scales are bytes."""
    _, size = gguf.GGML_QUANT_SIZES[Quant[name]]
    blocks = np.random.default_rng(5).integers(0, 256, (len(HALVES) ** 2 * 4, size), np.uint8)
    for number, at in enumerate(HALF_AT[name]):
        chosen = HALVES[np.arange(len(blocks)) // len(HALVES) ** number % len(HALVES)]
        blocks[:, at : at + 2] = chosen[:, None].view(np.uint8)
    if not HALF_AT[name]:
        blocks[:256, 0] = np.arange(256)
    return blocks.reshape(4, -1)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("name", FORMULAS)
def test_every_bit_is_that_of_the_package(name: str) -> None:
    rows = _rows(name)
    theirs = gguf.quants.dequantize(rows, Quant[name])
    assert not np.isfinite(theirs).all() or not HALF_AT[name]
    places = [rows, torch.from_numpy(rows)]
    places += [torch.from_numpy(rows).cuda()] if torch.cuda.is_available() else []
    for blocks in places:
        ours = gguf_matrix(blocks.reshape(-1), name, theirs.shape)
        if isinstance(ours, Packed):  # on a GPU
            ours = ours.reshape(*ours.shape)
        assert type(ours) is type(blocks)
        _assert_same_bits(host_array(ours), theirs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "IQ2_XXS", "IQ1_S"])
def test_scales_that_are_no_numbers_give_such_weights_without_a_warning(name: str) -> None:
    block, size = gguf.GGML_QUANT_SIZES[Quant[name]]
    for half in (0x7C00, 0xFFFF, 0x7C01):  # infinite, NaN, and a signalling NaN
        rows = np.full((4, size // 2), half, np.uint16).view(np.uint8)
        assert not np.isfinite(host_array(gguf_matrix(rows.reshape(-1), name, (4, block)))).any()


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "MXFP4"])
def test_a_matrix_of_a_stack_is_made_when_it_is_taken(name: str) -> None:
    rng = np.random.default_rng(8)
    block, size = gguf.GGML_QUANT_SIZES[Quant[name]]
    rows = rng.integers(0, 60, (3, 5, 256 // block * size), np.uint8)
    theirs = gguf.quants.dequantize(rows, Quant[name])
    for blocks in (rows, torch.from_numpy(rows)):
        stack = gguf_matrix(blocks.reshape(-1), name, (3, 5, 256))
        assert stack.shape == (3, 5, 256)
        _assert_same_bits(host_array(stack[2]), theirs[2])
        _assert_same_bits(host_array(stack.reshape(15, 256)), theirs.reshape(15, 256))


def _assert_same_bits(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    is_number = ~np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), ~is_number)
    assert np.array_equal(ours[is_number].view(np.uint32), theirs[is_number].view(np.uint32))

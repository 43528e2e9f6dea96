"""float8 weights with a scale: computed with it or refused in words, never as the bare float8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import saved
from lapack_reference import assert_same_spectrum, compute

STEM = "model.layers.0.self_attn.q_proj."
ROWS, COLS, BLOCK = 13, 22, 4


def _blocks() -> torch.Tensor:
    """One scale for each 4 x 4 block, the last of both axes ragged."""
    return 0.01 + torch.rand(-(-ROWS // BLOCK), -(-COLS // BLOCK))


def _apply_blocks(weights: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    full = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return weights * full[:ROWS, :COLS].double()


BY_BLOCK = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
BY_FLOAT = {"quant_method": "compressed-tensors", "format": "float-quantized"}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "block": ("weight_scale_inv", BY_BLOCK),
    "channel": ("weight_scale", BY_FLOAT),
    "tensor": ("weight_scale", BY_FLOAT),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model_type", ["llama", "newcomer"])
def test_a_scale_is_never_left_out(tmp_path: Path, scheme: str, model_type: str) -> None:
    torch.manual_seed(4)
    weights = torch.randn(ROWS, COLS).to(torch.float8_e4m3fn)
    scale = {"block": _blocks(), "channel": 0.01 + torch.rand(ROWS, 1), "tensor": torch.tensor([0.03])}[scheme]
    name, quantisation = SCHEMES[scheme]
    config = {"model_type": model_type, "quantization_config": quantisation}
    checkpoint, scanned = saved(tmp_path, {f"{STEM}weight": weights, f"{STEM}{name}": scale}, config)
    (projection,) = [p for p in scanned if p.tensor == f"{STEM}weight"]
    if projection.problem is not None:
        assert "quantisation" in projection.problem
        return
    true = _apply_blocks(weights.double(), scale) if scheme == "block" else weights.double() * scale.double()
    assert_same_spectrum(compute(checkpoint, projection), true)

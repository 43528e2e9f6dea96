"""Quantised weights in the explorer: marked in the tree, named in the read-out, or reported as not supported."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from app_looking import HUGE, WIDE, exploring
from app_models import LLAMA, llama_weights
from safetensors.torch import save_file


def _saved(folder: Path, parts: dict[str, torch.Tensor]) -> Path:
    """A llama layer whose key projection consists of these tensors."""
    weights = {name: torch.from_numpy(array) for name, array in llama_weights(1).items() if "k_proj" not in name}
    stem = "model.layers.0.self_attn.k_proj."
    folder.mkdir()
    save_file(weights | {stem + name: part for name, part in parts.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


async def test_dequantised_weights_are_marked(tmp_path: Path, root: Path) -> None:
    parts = {"weight": torch.randn(24, 48).to(torch.float8_e4m3fn), "weight_scale": torch.rand(24, 1)}
    async with exploring(_saved(tmp_path / "fp8", parts), root, HUGE) as view:
        await view.press("3", "l")
        await view.chart("24x48  fp8, per row  not computed")
        await view.press("enter")
        await view.chart("24x48", "from fp8, per row")
        await view.press("1", *"llll")
        assert any(label.startswith("# key      24x48~") for label in view.labels)
        assert not [label for label in view.labels if "query" in label and "~" in label]
        assert "8-bit (fp8) weights" in view.lines[0]


async def test_what_is_not_read_is_named(tmp_path: Path, root: Path) -> None:
    parts = {"W_q": torch.ones(24, 24, dtype=torch.uint8), "scale": torch.rand(24, 1), "zero": torch.rand(24, 1)}
    async with exploring(_saved(tmp_path / "hqq", parts), root, WIDE) as view:
        await view.press("3", "l")
        assert view.cells(0)[1] == "?"
        assert view.foot == "HQQ quantisation is not supported"
        await view.press("enter")
        assert not view.has_engine

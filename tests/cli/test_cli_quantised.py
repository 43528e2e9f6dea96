"""A quantised model on the command line: tree, warnings and export name the type that its weights are read as."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import torch
from cli_models import CONFIG
from cli_process import Run
from safetensors.torch import save_file

STEM = "model.layers.0.self_attn.q_proj."


def test_provenance_says_what_the_weights_are_read_as(tmp_path: Path, cli: Run) -> None:
    scale = 0.5 + torch.rand(6, 6)
    stored = {
        STEM + "weight": torch.randn(24, 22).to(torch.float8_e4m3fn),
        STEM + "weight_scale_inv": scale,
        "model.layers.0.self_attn.k_proj.weight": torch.eye(12, 24),
        "model.layers.0.self_attn.v_proj.W_q": torch.ones(12, 12, dtype=torch.uint8),
        "model.layers.0.self_attn.v_proj.zero": torch.ones(12, 1),
    }
    model = tmp_path / "m"
    model.mkdir()
    save_file(stored, model / "model.safetensors")
    quantisation = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    (model / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": quantisation}))
    scanned = cli("scan", model)
    assert scanned.code == 1
    assert "these are spectra of its fp8 weights" in scanned.err
    assert "layers.0.attention.value: HQQ quantisation is not supported" in scanned.err
    tree = cli("tree", model).out
    assert "fp8, 4x4 blocks" in tree
    assert "HQQ quantisation is not supported" in tree
    assert "weight_scale_inv" not in tree
    assert "1 are not computed" in cli("export", model, "-o", tmp_path / "all.h5").err
    with h5py.File(tmp_path / "all.h5") as file:
        found = {row["address"].decode(): row for row in file["index"][:]}
    query, key = (found[f"layers.0.attention.{role}"] for role in ("query", "key"))
    assert (query["dequantisation"], key["dequantisation"]) == (b"fp8, 4x4 blocks", b"")
    blocks = scale.double().repeat_interleave(4, 0).repeat_interleave(4, 1)[:, :22]
    wanted = np.linalg.svd((stored[STEM + "weight"].double() * blocks).numpy(), compute_uv=False)
    assert abs(query["sigma_max"] - wanted[0]) <= 1e-10 * wanted[0]

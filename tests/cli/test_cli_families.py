"""Fused and stacked families through the commands: scanned, stored with their slices, and found again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import lapack
from cli_process import Run
from numpy.typing import NDArray
from safetensors.numpy import save_file

Arrays = dict[str, NDArray[np.float32]]
RNG = np.random.default_rng(9)
D, HEADS, KV, HD, INNER, E = 24, 6, 2, 4, 10, 3


def _random(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def falcon() -> tuple[dict[str, Any], Arrays, Arrays]:
    """Each group holds three queries, a key and a value."""
    fused, output = _random((HEADS + 2 * KV) * HD, D), _random(D, HEADS * HD)
    parts = fused.reshape(KV, HEADS // KV + 2, HD, D)
    split = {"query": parts[:, :-2], "key": parts[:, -2], "value": parts[:, -1]}
    config = {
        "model_type": "falcon",
        "new_decoder_architecture": True,
        "num_attention_heads": HEADS,
        "num_kv_heads": KV,
    }
    stem = "transformer.h.0.self_attention."
    stored = {f"{stem}query_key_value.weight": fused, f"{stem}dense.weight": output}
    wanted = {f"layers.0.attention.{role}": part.reshape(-1, D) for role, part in split.items()}
    return config | {"hidden_size": D}, stored, wanted | {"layers.0.attention.output": output}


def gpt_oss() -> tuple[dict[str, Any], Arrays, Arrays]:
    """Experts are stored as (expert, in, out), with gates and ups in alternate columns; the router is no projection."""
    fused, down = _random(E, D, 2 * INNER), _random(E, INNER, D)
    stem = "model.layers.0.mlp."
    stored = {
        f"{stem}experts.gate_up_proj": fused,
        f"{stem}experts.down_proj": down,
        f"{stem}router.weight": _random(E, D),
    }
    wanted = {}
    for e in range(E):
        parts = {"gate": fused[e, :, ::2].T, "up": fused[e, :, 1::2].T, "down": down[e].T}
        wanted |= {f"layers.0.expert.{e}.{role}": part for role, part in parts.items()}
    return {"model_type": "gpt_oss", "hidden_size": D}, stored, wanted


def deepseek() -> tuple[dict[str, Any], Arrays, Arrays]:
    """Latent attention: config.json's head_dim is wrong and must not be used."""
    latent, rope, nope, width = 9, 4, 5, 7
    shapes = {
        "q_proj": (HEADS * (nope + rope), D),
        "kv_a_proj_with_mqa": (latent + rope, D),
        "o_proj": (D, HEADS * width),
    }
    stem = "model.layers.0.self_attn."
    stored = {f"{stem}{name}.weight": _random(*shape) for name, shape in shapes.items()}
    stored |= {
        f"{stem}kv_b_proj.weight": _random(HEADS * (nope + width), latent),
        f"{stem}kv_a_layernorm.weight": _random(latent),
    }
    kv_a, key_rope = np.split(stored[f"{stem}kv_a_proj_with_mqa.weight"], [latent])
    key_b, value_b = np.split(stored[f"{stem}kv_b_proj.weight"].reshape(HEADS, nope + width, latent), [nope], axis=1)
    wanted = {"query": stored[f"{stem}q_proj.weight"], "output": stored[f"{stem}o_proj.weight"]}
    wanted |= {
        "kv_a": kv_a,
        "key_rope": key_rope,
        "key_b": key_b.reshape(-1, latent),
        "value_b": value_b.reshape(-1, latent),
    }
    config = {"model_type": "deepseek_v3", "num_attention_heads": HEADS, "head_dim": rope, "hidden_size": D}
    return config, stored, {f"layers.0.attention.{role}": part for role, part in wanted.items()}


@pytest.mark.parametrize("family", [falcon, gpt_oss, deepseek])
def test_a_family_is_scanned_stored_and_exported(tmp_path: Path, cli: Run, family: Any) -> None:
    config, stored, wanted = family()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    save_file(stored, tmp_path / "m" / "model.safetensors")
    ran = cli("scan", tmp_path / "m", "--json")
    assert ran.code == 0
    assert {row["address"] for row in ran.rows} == wanted.keys()
    for row in ran.rows:
        sigma = lapack(wanted[row["address"]])
        assert (row["rows"], row["cols"]) == wanted[row["address"]].shape
        assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-10)
        assert row["sigma_min"] == pytest.approx(sigma[-1], abs=1e-9 * sigma[0])
    again = cli("scan", tmp_path / "m", "--json")
    assert _slices(again.rows) == _slices(ran.rows)
    assert set(again.states.values()) == {"stored"}


def _slices(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {row["address"]: (row["slice"], row["expert"]) for row in rows}

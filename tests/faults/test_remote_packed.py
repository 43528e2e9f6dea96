"""Packed matrices of files that are not downloaded: the tensors that describe the packing come with the headers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer
from remote_models import NAME, scan
from safetensors.numpy import save

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint import descriptions
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint

pytestmark = pytest.mark.usefixtures("short_first_range")
BLOCK = 64
SHAPES = {"self_attn.q_proj": (64, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}
NAMES = [f"model.layers.{layer}.{name}" for layer in range(2) for name in SHAPES]
STATE = "weight.quant_state.bitsandbytes__nf4"
ELSEWHERE = "which is not here: use --download"


def half_bytes(stem: str, rng: np.random.Generator) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """A matrix as bitsandbytes stores it, and its values: entries of a table times the largest of a block."""
    rows, cols = SHAPES[stem.split(".", 3)[3]]
    codes, table = rng.integers(0, 16, rows * cols), np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    largest = rng.uniform(0.5, 2, rows * cols // BLOCK).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": [rows, cols]}
    parts = {
        "weight": (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None],
        "weight.absmax": largest,
        "weight.quant_map": table,
        STATE: np.frombuffer(json.dumps(state).encode(), np.uint8),
    }
    matrix = (table[codes].astype(np.float64) * np.repeat(largest, BLOCK)).reshape(rows, cols)
    return {f"{stem}.{name}": part for name, part in parts.items()}, matrix


def pushed(hub: HubServer) -> dict[str, np.ndarray[Any, Any]]:
    """A llama of such matrices in two shards on the Hub; return the matrices by name."""
    rng, matrices = np.random.default_rng(3), {}
    config = {"model_type": "llama", "hidden_size": 64, "quantization_config": {"quant_method": "bitsandbytes"}}
    files = {"config.json": json.dumps(config).encode()}
    for layer in range(2):
        held: dict[str, np.ndarray[Any, Any]] = {}
        for stem in NAMES[3 * layer : 3 * layer + 3]:
            parts, matrices[f"{stem}.weight"] = half_bytes(stem, rng)
            held |= parts
        files[f"model-0000{layer + 1}-of-00002.safetensors"] = save(held)
    hub.push(NAME, files)
    return matrices


def problems(checkpoint: Checkpoint) -> set[str]:
    return {tensor.problem for tensor in checkpoint.tensors}


def test_half_bytes_are_read_by_range(hub: HubServer) -> None:
    matrices = pushed(hub)
    far = open_checkpoint(NAME)
    assert {t.name: t.shape for t in far.tensors} == {name: matrix.shape for name, matrix in matrices.items()}
    there = scan(far, build_tree(far).scanned())
    assert (len(there.sink.kept), there.failed) == (6, {})
    for spectrum in there.sink.kept.values():
        exact = np.linalg.svd(matrices[spectrum.projection.tensor], compute_uv=False)
        np.testing.assert_allclose(spectrum.values, exact, rtol=1e-9)
    assert there.progress.fetched == there.progress.to_fetch == far.bytes
    near = open_checkpoint(NAME, Access.DOWNLOAD)
    assert build_tree(near).projections == build_tree(far).projections
    assert scan(near, build_tree(near).scanned(), there.sink).accepted == []


def test_what_lies_close_together_is_one_request(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(hub)
    for gap, requests in ((1 << 16, 2), (0, 6)):
        monkeypatch.setattr(descriptions, "_GAP", gap)
        hub.requests.clear()
        assert problems(open_checkpoint(NAME)) == {""}
        asked = [r.range.removeprefix("bytes=") for r in hub.requests if r.file.endswith(".safetensors")]
        assert len([text for text in asked if not text.startswith(("0-", "1000-"))]) == requests


@pytest.mark.parametrize(("limit", "most"), [("_MOST_REQUESTS", 1), ("_MOST_BYTES", 100)])
def test_too_many_of_them_are_not_fetched(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    """Nor is a local file of the same name used."""
    pushed(hub)
    monkeypatch.setattr(descriptions, limit, most)
    hub.requests.clear()
    with open("model-00001-of-00002.safetensors", "wb") as local:
        local.write(b'{"shape": [2, 2048], "blocksize": 64}' * 1000)
    opened = open_checkpoint(NAME)
    assert {problem.partition(", ")[2] for problem in problems(opened)} == {ELSEWHERE}
    assert len([r for r in hub.requests if r.file.endswith(".safetensors")]) == 4  # the headers, two requests each


def test_the_shapes_of_packed_integers_are_read_by_range(hub: HubServer) -> None:
    """compressed-tensors: 20 columns of 4 bits take three words a row, the last of them not full."""
    rng = np.random.default_rng(4)
    codes, scale = rng.integers(0, 16, (8, 20)), rng.uniform(0.5, 2, (8, 1)).astype(np.float32)
    padded = np.pad(codes, ((0, 0), (0, 4))).reshape(8, 3, 8).astype(np.int64)
    words = (padded << np.arange(0, 32, 4)).sum(axis=-1).astype(np.uint32).view(np.int32)
    stem = "model.layers.0.self_attn.q_proj"
    tensors = {
        f"{stem}.weight_packed": words,
        f"{stem}.weight_scale": scale,
        f"{stem}.weight_shape": np.array([8, 20], np.int64),
    }
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}
    quantised = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    config = {"model_type": "llama", "hidden_size": 20, "quantization_config": quantised}
    hub.push(NAME, {"config.json": json.dumps(config).encode(), "model.safetensors": save(tensors)})
    opened = open_checkpoint(NAME)
    assert [(t.name, t.shape, t.problem) for t in opened.tensors] == [(f"{stem}.weight", (8, 20), "")]
    np.testing.assert_allclose(opened.read(opened.tensors[0])[0], (codes - 8) * scale.astype(np.float64), rtol=1e-15)

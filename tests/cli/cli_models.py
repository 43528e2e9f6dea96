"""Models that the tests write, and their singular values by LAPACK."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from safetensors.numpy import save_file

Arrays = dict[str, NDArray[Any]]

HIDDEN, KV, INNER = 24, 12, 40
SHAPES = {
    "attention.query": ("self_attn.q_proj", (HIDDEN, HIDDEN)),
    "attention.key": ("self_attn.k_proj", (KV, HIDDEN)),
    "attention.value": ("self_attn.v_proj", (KV, HIDDEN)),
    "attention.output": ("self_attn.o_proj", (HIDDEN, HIDDEN)),
    "mlp.gate": ("mlp.gate_proj", (INNER, HIDDEN)),
    "mlp.up": ("mlp.up_proj", (INNER, HIDDEN)),
    "mlp.down": ("mlp.down_proj", (HIDDEN, INNER)),
}
EMBEDDING = "other.model.embed_tokens.weight"
KEYS = [
    *("address", "tensor", "slice", "tower", "layer", "block", "role", "expert", "rows", "cols", "dtype"),
    *("state", "error", "ranks", "effective_rank", "stable_rank", "sigma_max", "sigma_min", "frobenius_norm"),
    *("solver", "error_bound", "noise_floor", "device", "seconds", "sigma_min_is_bound", "null"),
    *("weighting", "gauge", "derived"),
]
CONFIG = {"model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2}


def tensor_name(address: str) -> str:
    """The tensor that a projection of `write_llama` is stored in."""
    _, layer, place = address.split(".", 2)
    return f"model.layers.{layer}.{SHAPES[place][0]}.weight"


def addresses(layers: int = 2) -> list[str]:
    """The projections of `write_llama`, in model order."""
    return [f"layers.{layer}.{place}" for layer in range(layers) for place in SHAPES]


def write_llama(
    folder: Path, layers: int = 2, seed: int = 0, changes: Mapping[str, NDArray[Any]] | None = None
) -> Arrays:
    """A llama of a few layers with norms and an embedding; `changes` replace or add tensors by name."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {"model.embed_tokens.weight": rng.standard_normal((50, HIDDEN)).astype(np.float32)}
    for layer in range(layers):
        for leaf, (rows, cols) in SHAPES.values():
            decay = np.exp(-rng.uniform(0.0, 4.0, cols))
            weights = (rng.standard_normal((rows, cols)) * decay).astype(np.float32)
            arrays[f"model.layers.{layer}.{leaf}.weight"] = weights
        arrays[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(HIDDEN, np.float32)
    arrays |= changes or {}
    write(folder, arrays)
    return arrays


def write(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A folder with config.json and model.safetensors, written by the reference package."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(dict(arrays), folder / "model.safetensors")


def lapack(weights: NDArray[Any]) -> NDArray[np.float64]:
    """Singular values by LAPACK in float64, descending."""
    values: NDArray[np.float64] = scipy.linalg.svdvals(weights.astype(np.float64))
    return values


def threshold_rank(values: NDArray[np.float64], threshold: float) -> int:
    """The rank as the reference notebook counts it: the first index where the running energy reaches the threshold."""
    energy = np.cumsum(values**2) / np.sum(values**2)
    return int(np.argmax(energy >= threshold)) + 1


def rows_of(text: str) -> list[dict[str, Any]]:
    """The rows of JSON lines, parsed strictly: NaN and Infinity are not JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]

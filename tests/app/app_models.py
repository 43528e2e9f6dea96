"""Tiny checkpoints on disk, stores filled without torch, and the ranks that numpy finds."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rankscope.engine.spectrum import Projection, Provenance, Run, Spectrum
from rankscope.store.spectra import SpectraStore
from rankscope.tui.data.model import Model, open_model

Weights = dict[str, NDArray[np.float32]]

LLAMA = {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES = {
    "self_attn.q_proj": (48, 48), "self_attn.k_proj": (24, 48), "self_attn.v_proj": (24, 48),
    "self_attn.o_proj": (48, 48), "mlp.gate_proj": (80, 48), "mlp.up_proj": (80, 48), "mlp.down_proj": (48, 80),
}  # fmt: skip
TENSORS = {
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
RUN = Run("r", "rankscope-tui 0", "-", "-", "-", "here", "tests", "2026-11-23T00:00:00Z")


def matrix(shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
    """A matrix whose singular values fall off, so that its ranks differ between thresholds and seeds."""
    rng = np.random.default_rng(seed)
    falling = np.exp(-np.linspace(0.0, 1.0 + seed % 5, shape[1]))
    return (rng.standard_normal(shape) * falling).astype(np.float32)


def llama_weights(layers: int) -> Weights:
    """The tensors that a llama of `layers` layers stores: seven projections a layer, embeddings and norms."""
    weights: Weights = {"model.embed_tokens.weight": matrix((100, 48), 99)}
    for layer in range(layers):
        for number, (name, shape) in enumerate(SHAPES.items()):
            weights[f"model.layers.{layer}.{name}.weight"] = matrix(shape, 7 * layer + number)
        weights[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(48, np.float32)
    return weights


def save_model(folder: Path, weights: Mapping[str, NDArray[np.generic]], config: Mapping[str, object]) -> Path:
    """A checkpoint folder."""
    folder.mkdir(parents=True)
    save_file(dict(weights), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_named(file: Path, tensors: Mapping[str, NDArray[np.float32]]) -> Path:
    """A safetensors file written by hand: its names may be anything."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = values.tobytes()
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def numpy_rank(weights: NDArray[np.floating], threshold: float) -> int:
    """The number of components that hold this share of the sum of squared singular values, by LAPACK in float64."""
    squares = np.linalg.svd(weights.astype(np.float64), compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(squares) / squares.sum(), threshold) + 1)


def rank_in(folder: Path, layer: int, role: str, threshold: float) -> int:
    """The threshold rank of a llama's projection, computed from the file."""
    weights = load_file(folder / "model.safetensors")
    return numpy_rank(weights[f"model.layers.{layer}.{TENSORS[role]}.weight"], threshold)


def spectrum_of(projection: Projection, weights: NDArray[np.floating]) -> Spectrum:
    """The spectrum that numpy computes."""
    values = np.linalg.svd(weights.astype(np.float64), compute_uv=False)
    norm = float(np.linalg.norm(weights.astype(np.float64)))
    provenance = Provenance(norm, "numpy", 1, "float64", 1e-12, 1e-12, "cpu", 0.01)
    return Spectrum(projection, values, provenance, "2026-11-23T00:00:00Z", ("",), RUN)


def fill(folder: Path, root: Path, addresses: Iterable[str] | None = None) -> Model:
    """Store spectra of an unfused model (by default all that a scan would compute), without torch. The store's files
    are made once for each model and choice of addresses; an empty store gets a copy."""
    model = open_model(str(folder), root)
    wanted = None if addresses is None else frozenset(addresses)
    stored = root / model.folder
    state = (folder / "model.safetensors").stat()
    made = (folder, state.st_ino, state.st_mtime_ns, wanted)
    if stored.exists():
        _store_spectra(model, folder, root, wanted)
    elif made in _FILES:
        for name, data in _FILES[made].items():
            stored.mkdir(parents=True, exist_ok=True)
            (stored / name).write_bytes(data)
    else:
        _store_spectra(model, folder, root, wanted)
        _FILES[made] = {file.name: file.read_bytes() for file in stored.glob("*")}
    return model


_FILES: dict[tuple[object, ...], dict[str, bytes]] = {}
"""By model file and addresses, the files that the store then has in the model's folder."""


def _store_spectra(model: Model, folder: Path, root: Path, wanted: frozenset[str] | None) -> None:
    weights = load_file(folder / "model.safetensors")
    with SpectraStore(root, model.folder) as store:
        for p in model.tree.scanned():
            if wanted is None or p.address in wanted:
                store.put(spectrum_of(p, weights[p.tensor]))

"""A store of 210 spectra that an earlier version wrote is read whole: no key of an unweighted spectrum has changed.

`version_1_210.h5.gz` is the merged volume of `rankscope scan` on `write_model`, by the version before weightings.
"""

from __future__ import annotations

import gzip
import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rankscope.store.spectra import SpectraStore
from rankscope.tui.cli.main import main
from rankscope.tui.data.model import open_model

HERE = Path(__file__).parent
SHAPES = {
    "self_attn.q_proj": (6, 6),
    "self_attn.k_proj": (2, 6),
    "self_attn.v_proj": (2, 6),
    "self_attn.o_proj": (6, 6),
    "mlp.gate_proj": (8, 6),
    "mlp.up_proj": (8, 6),
    "mlp.down_proj": (6, 8),
}
CONFIG = {"model_type": "llama", "hidden_size": 6, "num_attention_heads": 3, "num_key_value_heads": 1}


def weights(layer: int, number: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    entries = np.arange(shape[0] * shape[1]) * (37 + layer) % 101 - 50 + number
    return (entries / 8).astype(np.float32).reshape(shape)


def write_model(cache: Path) -> Path:
    """Write 30 layers in the layout of the Hub's cache, where the name of the blob is the identity of the file."""
    snapshot = cache / "models--org--small" / "snapshots" / ("c" * 40)
    blobs = snapshot.parents[1] / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    tensors = {
        f"model.layers.{layer}.{name}.weight": weights(layer, number, shape)
        for layer in range(30)
        for number, (name, shape) in enumerate(SHAPES.items())
    }
    save_file(tensors, blobs / ("b" * 64))
    (snapshot / "model.safetensors").symlink_to(blobs / ("b" * 64))
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    return snapshot


def test_all_210_are_served_and_none_is_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot, root = write_model(tmp_path), tmp_path / "store"
    model = open_model(str(snapshot), root)
    data = gzip.decompress((HERE / "version_1_210.h5.gz").read_bytes())
    folder = root / model.folder
    folder.mkdir(parents=True)
    (folder / f"vol-{blake2b(data, digest_size=16).hexdigest()}.h5").write_bytes(data)
    store = SpectraStore(root, model.folder)
    projections = model.tree.scanned()
    assert len(projections) == 210
    assert sum(store.has(p.key) for p in projections) == 210
    for p in projections[::23]:
        matrix = weights(p.layer or 0, projections.index(p) % 7, (p.rows, p.cols))
        sigma = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(store.get(p.key).values, sigma, rtol=0, atol=1e-7 * sigma[0])
    assert main(["scan", str(snapshot), "--store", str(root), "--device", "cpu", "--json"]) == 0
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["stored"] * 210

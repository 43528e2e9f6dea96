"""Files of an earlier version: `version_1` holds a segment written when there were twins but no derived rows."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.random import PCG64
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.derive.flip import flipped
from rankscope.engine.spectrum import Provenance, Slice, Source
from rankscope.store import layout, segments
from rankscope.store.models import stored_models
from rankscope.store.spectra import SpectraStore
from rankscope.tui.data.model import Model, open_stored
from rankscope.tui.data.session import Session, State

WRITTEN = Path(__file__).parent / "version_1"
NAME = "seg-6179995df259f2056fe27491e8e45b9f.h5"
CONFIG = {"model_type": "phi3", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 2}
ROWS = {"query": slice(0, 6), "key": slice(6, 8), "value": slice(8, 10)}


BOUNDS = ("error_bound", "noise_floor")
"""The columns that are read differently from what was written: see engine/bounds.py."""


def weights(rows: int, cols: int) -> NDArray[np.float32]:
    return ((np.arange(rows * cols) * 37 % 101 - 50) / 8).astype(np.float32).reshape(rows, cols)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(WRITTEN, tmp_path / "store" / "m")
    return tmp_path / "store"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """The scanned model, in the layout of the Hub's cache, where the name of the blob is the identity."""
    cache = tmp_path / "models--org--tiny"
    snapshot = cache / "snapshots" / ("c" * 40)
    for folder in (snapshot, cache / "blobs"):
        folder.mkdir(parents=True)
    prefix = "model.layers.0.self_attn."
    tensors = {f"{prefix}qkv_proj.weight": weights(10, 5), f"{prefix}o_proj.weight": weights(5, 6)}
    save_file(tensors, cache / "blobs" / ("a" * 64))
    (snapshot / "model.safetensors").symlink_to(cache / "blobs" / ("a" * 64))
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    checkpoint = open_checkpoint(str(snapshot))
    return Model("tiny", checkpoint, build_tree(checkpoint), "m")


def test_every_projection_and_twin_is_found_with_lapacks_values(model: Model, root: Path) -> None:
    session = Session(model, root, lambda _: None, ComputeSettings())
    session.load()
    projections = model.tree.scanned()
    assert [p.role for p in projections] == ["query", "key", "value", "output"]
    for p in projections:
        matrix = weights(10, 5)[ROWS[p.role]] if p.role in ROWS else weights(5, 6)
        twin = flipped(p)
        word = int(PCG64(int(twin.key, 16)).random_raw(1)[0])  # at most 30 entries: one bit for each
        signs = np.array([-1 if word >> n & 1 else 1 for n in range(matrix.size)]).reshape(matrix.shape)
        assert [session.state(q) for q in (p, twin)] == [State.STORED, State.STORED]
        session.load_values([p, twin])
        for q, wanted in ((p, matrix), (twin, np.abs(matrix) * signs)):
            sigma = np.linalg.svd(wanted.astype(np.float64), compute_uv=False)
            np.testing.assert_allclose(session.values(q), sigma, rtol=0, atol=1e-12 * sigma[0])
            entry = session.entry(q)
            assert entry is not None
            assert entry.provenance.frobenius_norm == pytest.approx(np.linalg.norm(matrix), rel=1e-14)


def test_every_column_keeps_its_meaning(root: Path) -> None:
    store = SpectraStore(root, "m")
    assert store.damaged == []
    assert [e.projection.null for e in store.entries()].count("flip") == 4
    entry = store.entry("e" * 32)
    assert entry is not None
    p, made = entry.projection, entry.provenance
    assert (p.address, p.tensor, p.slice) == ("layers.1.expert.3.gate", "stack", Slice(0, 1, 0, 3, 3))
    assert (p.tower, p.layer, p.block, p.role, p.expert) == ("vision", 1, "expert", "gate", 3)
    assert (p.rows, p.cols, p.dtype, p.dequantisation, p.transposed) == (6, 5, "Q4_1", "gguf Q4_1", True)
    assert p.source == Source("/models/a", "", "b.safetensors", "9" * 32, 500, False)
    assert (p.derived, p.null) == (None, "")
    assert made == Provenance(
        frobenius_norm=19.953853011386048,
        solver="svdvals",
        solver_version=1,
        compute_dtype="float64",
        error_bound=1.947343867357497e-14,
        noise_floor=1.947343867357497e-14,
        device="cpu",
        seconds=0.0006742379998740944,
    )
    assert entry.weights_digests == ("d" * 32,)
    assert (entry.run.host, entry.run.command) == ("host", "rankscope scan org/tiny --null flip")
    assert entry.computed_at == "2026-11-26T11:08:17.168267Z"
    assert entry.ranks == {0.6: 2, 0.8: 2, 0.9: 2, 0.95: 3, 0.99: 4}


def test_old_bounds_that_do_not_hold_are_worked_out_anew(root: Path) -> None:
    """From the shape, the largest and smallest value and the norm; values and what follows from them stay."""
    with h5py.File(WRITTEN / NAME) as file:
        stored = {row["key"].decode(): row for row in file["index"][()]}
    store = SpectraStore(root, "m")
    by_gram = [entry for entry in store.entries() if entry.provenance.solver == "gram-eigvalsh"]
    assert len(by_gram) == 7
    for entry in by_gram:
        p, made, row = entry.projection, entry.provenance, stored[entry.projection.key]
        values = store.values([p.key])[p.key]
        assert values.tobytes() == file_values(row).tobytes()
        top, low, small, long = values[0], values[-1], p.count, max(p.rows, p.cols)
        alike = 2.0**-55 * (long + long / 16384)
        each = 1e-15 + 4e-16 * math.sqrt(small) + alike * float((values**2).mean()) / top**2
        assert low > made.noise_floor == pytest.approx(math.sqrt(10 * each) * top, rel=1e-12)
        of_the_smallest = each * top**2 / (2 * low)
        of_the_largest = (1e-15 + 4e-16 * math.sqrt(small) + alike) * top / 2
        assert made.error_bound == pytest.approx(max(of_the_smallest, of_the_largest), rel=1e-9)
        assert made.error_bound > row["error_bound"]
        assert made.solver_version == row["solver_version"] == 1
        assert (entry.sigma_max, made.seconds, entry.stable_rank) == (top, row["seconds"], row["stable_rank"])
    assert (root / "m" / NAME).read_bytes() == (WRITTEN / NAME).read_bytes()


def file_values(row: np.void) -> NDArray[np.float64]:
    with h5py.File(WRITTEN / NAME) as file:
        return np.asarray(file["values"][row["offset"] : row["offset"] + row["count"]])


def test_lists_count_the_weights_alone(root: Path) -> None:
    ((found,), stored) = stored_models(root), open_stored("m", root)
    assert found.spectra == 5
    assert stored is not None
    assert len(stored.tree.projections) == 5


def test_the_same_spectra_are_written_as_they_were(root: Path, tmp_path: Path) -> None:
    store = SpectraStore(root, "m")
    before = segments.load_part(WRITTEN / NAME)
    values = store.values(e.projection.key for e in before.entries)
    image = layout.build(list(before.entries), [values[e.projection.key] for e in before.entries])
    (tmp_path / "now.h5").write_bytes(image.data)
    with h5py.File(WRITTEN / NAME) as old, h5py.File(tmp_path / "now.h5") as new:
        assert set(old) == set(new)
        for name in old:
            assert old[name].dtype == new[name].dtype
            if name != "index":
                assert old[name][()].tobytes() == new[name][()].tobytes()
        for name in old["index"].dtype.names:
            assert name in BOUNDS or old["index"][name].tobytes() == new["index"][name].tobytes()
        kept = set(old.attrs) - {"created_at", "software"}
        assert kept == {"format", "format_version", "description"}
        assert all(old.attrs[name] == new.attrs[name] for name in kept - {"description"})
        assert set(old.attrs["description"].split()) <= set(new.attrs["description"].split())  # more may be noted
    assert list(image.part.entries) == list(before.entries)
    assert image.part.version == before.version

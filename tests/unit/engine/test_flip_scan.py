"""`rankscope scan --null flip` and the session behind it: twins beside the projections, never among them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_fakes import llama
from lapack_reference import lapack
from numpy.random import PCG64
from safetensors.torch import load_file

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.store.models import stored_models
from rankscope.store.spectra import SpectraStore
from rankscope.tui.cli.main import main
from rankscope.tui.data.model import open_model, open_stored
from rankscope.tui.data.session import Session

Row = dict[str, Any]
Scan = Callable[..., list[Row]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    folder.mkdir()
    llama(folder, 3)
    return folder


@pytest.fixture
def scan(model: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> Scan:
    """The rows of a scan that succeeds."""

    def run(*words: str) -> list[Row]:
        assert main(["scan", str(model), "--store", str(root), "--device", "cpu", "--json", *words]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def states(rows: list[Row]) -> dict[tuple[int, str | None], str]:
    return {(row["layer"], row["null"]): row["state"] for row in rows}


def computed(root: Path) -> dict[tuple[int | None, str], str]:
    """The time at which each stored spectrum was computed."""
    (found,) = stored_models(root)
    entries = SpectraStore(root, found.folder).entries()
    return {(e.projection.layer, e.projection.null): e.computed_at for e in entries}


def session_of(name: Path, root: Path) -> Session:
    session = Session(open_model(str(name), root), root, lambda _: None, ComputeSettings())
    session.load()
    return session


def test_rows_of_twins_are_lapacks(model: Path, scan: Scan, root: Path) -> None:
    rows = scan("--null", "flip")
    assert len(rows) == 6
    assert states(rows) == {(layer, null): "done" for layer in range(3) for null in (None, "flip")}
    twins = {row["address"]: row for row in rows if row["null"]}
    weights = load_file(model / "model.safetensors")
    session = session_of(model, root)
    for p in session.model.tree.scanned():
        matrix, twin = weights[p.tensor].double().numpy(), session.twin(p)
        words = PCG64(int(twin.key, 16)).random_raw(1)  # 7 x 9 entries: one bit of this word each
        bits = np.array([int(words[0]) >> n & 1 for n in range(63)]).reshape(7, 9)
        sigma = lapack(np.where(bits, -1, 1) * np.abs(matrix))
        row, entry = twins[p.address], session.entry(twin)
        assert entry is not None
        assert row["sigma_max"] == entry.sigma_max == pytest.approx(sigma[0], rel=1e-12)
        assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(matrix), rel=1e-12)
        session.load_values([twin])
        np.testing.assert_allclose(session.values(twin), sigma, atol=1e-10 * sigma[0])
        running = np.cumsum(sigma**2) / np.sum(sigma**2)
        assert session.rank(twin, 0.9) == row["ranks"]["0.9"] == int(np.argmax(running >= 0.9)) + 1


def test_a_second_scan_computes_nothing_and_one_without_null_leaves_twins_alone(scan: Scan, root: Path) -> None:
    scan("--null", "flip")
    before = computed(root)
    assert set(states(scan("--null", "flip")).values()) == {"stored"}
    assert computed(root) == before
    assert states(scan("--recompute")) == {(layer, None): "done" for layer in range(3)}
    after = computed(root)
    assert {which for which in before if before[which] != after[which]} == {(layer, "") for layer in range(3)}


def test_what_is_stored_already_gets_its_twins_alone(scan: Scan) -> None:
    assert states(scan()) == {(layer, None): "done" for layer in range(3)}
    rows = scan("--null", "flip", "--filter", "layers.1")
    assert states(rows) == {(1, None): "stored", (1, "flip"): "done"}
    assert states(scan("--null", "flip")) == {
        **{(layer, None): "stored" for layer in range(3)},
        **{(layer, "flip"): "stored" if layer == 1 else "done" for layer in range(3)},
    }


def test_tables_lists_and_exports_are_of_the_weights(
    model: Path, root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(*words: str) -> tuple[str, str]:
        assert main([*words, "--store", str(root)]) == 0
        return capsys.readouterr()

    plain, _ = run("scan", str(model))
    out, err = run("scan", str(model), "--null", "flip")
    line = f"3 spectra with random signs are stored; see rankscope show {model} --unit k/kf"
    assert out == plain
    assert err.splitlines()[-2:][0].startswith("3/3  ")
    assert err.splitlines()[-1] == line
    assert run("ls")[0].splitlines()[1].split()[1] == "3"
    assert run("export", str(model), "-o", str(tmp_path / "a.npz"))[1].startswith("3 spectra in ")
    weights = load_file(model / "model.safetensors")
    shutil.rmtree(model)
    assert run("show", str(model))[0] == plain  # from the store, where twins are newer
    stored = open_stored(str(model), root)
    assert stored is not None
    assert [p.null for p in stored.tree.projections] == [""] * 3
    session = Session(stored, root, lambda _: None, ComputeSettings())
    session.load()
    for p in stored.tree.projections:
        entry, twin = session.entry(p), session.entry(session.twin(p))
        assert entry is not None
        assert entry.sigma_max == pytest.approx(lapack(weights[p.tensor])[0], rel=1e-12)
        assert twin is not None
        assert twin.provenance.frobenius_norm == entry.provenance.frobenius_norm


def test_twins_that_fail_are_told_apart(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama(tmp_path, 2, l1=torch.full((3, 3), torch.nan), l2=torch.ones(3, 3, dtype=torch.int8))
    assert main(["scan", str(tmp_path), "--store", str(root), "--null", "flip"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": the")[0] for line in lines if "NaN" in line] == [
        "failed: layers.1.attention.query",
        "failed: layers.1.attention.query with random signs",
    ]
    assert sum("layers.2" in line for line in lines) == 1  # a matrix that cannot be computed has no twin
    assert any(line.startswith("1 spectra with random signs") for line in lines)


def test_another_null_is_wrong_use(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["scan", str(model), "--null", "gaussian"])
    assert end.value.code == 2
    assert "gaussian" in capsys.readouterr().err

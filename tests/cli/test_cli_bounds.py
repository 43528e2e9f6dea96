"""Ranks and condition numbers that are only bounds: solved again on a GPU, and marked wherever a number is shown.

The CPU plays the GPU, in batches by the two-stage solver's twins.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import HIDDEN, Arrays, lapack, tensor_name, write_llama
from cli_process import Run

from rankscope.engine.compute import devices, second_pass
from rankscope.engine.solvers import batch

QUERY, OUTPUT = "layers.0.attention.query", "layers.0.attention.output"
FILTERS = ("--filter", "layers.0.attention.[qo]*")


def _ill(seed: int, smallest: float) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((HIDDEN, HIDDEN)))[0] for _ in range(2))
    return (left * np.append(np.linspace(1, 0.1, HIDDEN - 1), smallest)) @ right


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """A model with two ill-conditioned matrices, one of which can be solved again in a tenth of the time."""
    monkeypatch.setattr(devices, "is_gpu", lambda _name: True)
    monkeypatch.setattr(devices, "workers", lambda *_: (1, 1))
    monkeypatch.setattr(batch, "limits", lambda _device: lambda _side: 8)
    monkeypatch.setattr(batch, "faster_together", lambda _device, _small: True)
    monkeypatch.setattr(second_pass, "SHARE", 0.0)
    changes = {tensor_name(QUERY): _ill(1, 1e-9), tensor_name(OUTPUT): _ill(2, 1e-9)}
    return write_llama(tmp_path / "m", 1, changes=changes)


def test_one_is_solved_again_and_the_other_stays_a_bound_in_every_place(
    tmp_path: Path, cli: Run, weights: Arrays
) -> None:
    ran = cli("scan", tmp_path / "m", "--device", "cpu", "--json", *FILTERS)
    assert ran.code == 0
    assert "1 of 2 bounds solved again in " in ran.err
    last = {row["address"]: row for row in ran.rows}  # a second row may follow the first
    assert {(row["solver"], row["sigma_min_is_bound"]) for row in last.values()} == {
        ("gram-two-stage", True),
        ("svdvals", False),
    }
    (known,) = (address for address, row in last.items() if row["solver"] == "svdvals")
    bound = OUTPUT if known == QUERY else QUERY
    sigma = lapack(weights[tensor_name(known)])

    assert {
        row["address"]: row["sigma_min_is_bound"] for row in cli("scan", tmp_path / "m", "--json", *FILTERS).rows
    } == {
        known: False,
        bound: True,
    }
    rows = csv.DictReader(io.StringIO(cli("show", tmp_path / "m", "--view", "table", "--csv", *FILTERS).out))
    found = {row["address"]: row for row in rows}
    assert [found[bound][f"{name}_is_bound"] for name in ("condition_number", "numerical_rank")] == ["True", "True"]
    assert [found[known][f"{name}_is_bound"] for name in ("condition_number", "numerical_rank")] == ["False", "False"]
    assert (found[known]["numerical_rank"], found[bound]["numerical_rank"]) == (str(HIDDEN), str(HIDDEN - 1))
    assert float(found[known]["condition_number"]) == pytest.approx(sigma[0] / sigma[-1], rel=1e-4)
    assert float(found[bound]["condition_number"]) < 1e9

    table = cli("show", tmp_path / "m", "--view", "table", *FILTERS).out
    lines = {line.split()[0]: " ".join(line.split()) for line in table.splitlines() if line}
    assert f">= {HIDDEN - 1}" in lines[bound]
    assert lines[bound].count(">") == 2  # condition number and numerical rank
    assert ">" not in lines[known]
    compared = cli("show", tmp_path / "m", "--view", "compare", *FILTERS).out
    (line,) = [" ".join(line.split()) for line in compared.splitlines() if line.startswith("num.rank ")]
    assert sorted(line.removeprefix("num.rank ").split()) == sorted([">=", str(HIDDEN - 1), str(HIDDEN)])
    readout = cli("show", tmp_path / "m", "--view", "spectrum", "--rank", HIDDEN, "--filter", bound).out  # type: ignore[arg-type]
    assert "sigma <= " in readout
    exported = tmp_path / "out.csv"
    assert cli("export", tmp_path / "m", "-o", exported, *FILTERS).code == 0
    flags = {row["address"]: row["sigma_min_is_bound"] for row in csv.DictReader(io.StringIO(exported.read_text()))}
    assert flags == {known: "False", bound: "True"}


def test_without_json_the_end_says_it_too(tmp_path: Path, cli: Run, weights: Arrays) -> None:
    assert weights
    ran = cli("scan", tmp_path / "m", "--device", "cpu", *FILTERS)
    assert "1 of 2 bounds solved again in " in ran.err

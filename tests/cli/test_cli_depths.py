"""`--against` a model with more or fewer layers: what stands as deep is held against each other, against LAPACK."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from cli_models import Arrays, lapack, tensor_name, threshold_rank, write_llama
from cli_process import Run

ROLE = "attention.query"


@pytest.fixture
def models(tmp_path: Path, cli: Run) -> dict[int, tuple[Path, Arrays]]:
    """Llamas of three, four and seven layers, their queries computed."""
    found = {
        layers: (tmp_path / str(layers), write_llama(tmp_path / str(layers), layers, seed=layers))
        for layers in (3, 4, 7)
    }
    for folder, _ in found.values():
        assert cli("scan", folder, "--filter", f"*.{ROLE}").code == 0
    return found


def k90(held: Arrays, layer: int) -> int:
    return threshold_rank(lapack(held[tensor_name(f"layers.{layer}.{ROLE}")]), 0.9)


@pytest.mark.parametrize(("ours", "theirs"), [(3, 7), (7, 3), (4, 7), (4, 3)])
def test_layers_stand_against_those_as_deep(
    models: dict[int, tuple[Path, Arrays]], cli: Run, ours: int, theirs: int
) -> None:
    (folder, held), (other, theirs_held) = models[ours], models[theirs]
    ran = cli("show", folder, "--against", other, "--filter", f"*.{ROLE}", "-t", 90, "--csv")
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert len(rows) == ours
    for layer, row in enumerate(rows):
        there = round(layer * (theirs - 1) / (ours - 1))
        assert row["partner"] == f"layers.{there}.{ROLE}"
        assert float(row["k90"]) == pytest.approx(k90(theirs_held, there) / k90(held, layer))
    assert f"A has {ours} layers, B {theirs}: layer i of A against round(i {theirs - 1} / {ours - 1}) of B" in ran.err
    assert "only in" not in ran.err


def test_addresses_alone_where_that_is_asked_for(models: dict[int, tuple[Path, Arrays]], cli: Run) -> None:
    (folder, held), (other, theirs_held) = models[3], models[7]
    asked = ("--against", other, "--filter", f"*.{ROLE}", "-t", 90, "--csv", "--pair", "address")
    ran = cli("show", folder, *asked)
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [float(row["k90"]) for row in rows] == pytest.approx([k90(theirs_held, n) / k90(held, n) for n in range(3)])
    assert "partner" not in rows[0]
    assert "0 addresses are only in A, 4 only in B" in ran.err
    assert cli("show", folder, "--pair", "address").error.startswith("rankscope: --pair is for two models")


def test_role_by_role_whatever_the_layers_are(models: dict[int, tuple[Path, Arrays]], cli: Run) -> None:
    (folder, held), (other, theirs_held) = models[3], models[4]
    asked = ("--against", other, "--by", "role", "--filter", f"*.{ROLE}", "-t", 90)
    (row,) = csv.DictReader(io.StringIO(cli("show", folder, *asked, "--csv").out))
    ours, theirs = sorted(k90(held, n) for n in range(3)), sorted(k90(theirs_held, n) for n in range(4))
    middle = (theirs[1] + theirs[2]) / 2
    assert [float(row[f"{name}_a"]) for name in ("layers", "min", "median", "max")] == [3, ours[0], ours[1], ours[2]]
    assert [float(row[f"{name}_b"]) for name in ("layers", "min", "median", "max")] == [4, theirs[0], middle, theirs[3]]
    assert float(row["ratio"]) == pytest.approx(middle / ours[1])
    ran = cli("show", folder, *asked)
    heads = "role layers A min A median A max A layers B min B median B max B B/A"
    assert ran.out.splitlines()[1].split() == heads.split()
    assert ran.out.splitlines()[2].split()[:2] == [ROLE, "3"]
    assert "only in" not in ran.err
    for wrong in (("--by", "role"), ("--by", "role", "--against", other, "--side", "A")):
        assert "--by role is for two models" in cli("show", folder, *wrong).error
    assert "--by goes with --view heatmap" in cli("show", folder, "--by", "role", "--view", "table").error

"""`--unit energy --rank ...`: the energy that ranks keep, of one rank or one a role, against LAPACK; and their sum."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from cli_models import HIDDEN, INNER, KV, Arrays, addresses, lapack, rows_of, tensor_name, write_llama
from cli_process import Run
from numpy.typing import NDArray

ZERO = "layers.1.mlp.gate"
SHAPES = {"query": (HIDDEN, HIDDEN), "key": (KV, HIDDEN), "value": (KV, HIDDEN), "up": (INNER, HIDDEN)}


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Arrays]:
    """A llama with norms that are not 1, and one matrix of zeros."""
    gains = np.linspace(0.2, 3.0, HIDDEN).astype(np.float32)
    changes = {"model.layers.0.input_layernorm.weight": gains, tensor_name(ZERO): np.zeros((INNER, HIDDEN), np.float32)}
    return tmp_path / "m", write_llama(tmp_path / "m", changes=changes)


def kept(weights: NDArray[np.floating], k: int) -> float:
    """The energy in % of the first k, by LAPACK."""
    squares = lapack(weights) ** 2
    return 100 * float(squares[:k].sum() / squares.sum())


def records(text: str) -> dict[str, dict[str, str]]:
    return {row["address"]: row for row in csv.DictReader(io.StringIO(text))}


def test_one_rank_for_all(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    cli("scan", folder)
    k = KV + 3  # more than keys and values have: they stay as they are
    ran = cli("show", folder, "--unit", "energy", "--rank", k, "--csv")
    found = records(ran.out)
    expected = {a: kept(held[tensor_name(a)], k) for a in addresses() if a != ZERO}
    assert {a: float(row[f"energy_{k}"]) for a, row in found.items() if a != ZERO} == pytest.approx(expected)
    assert (found["layers.0.attention.key"][f"energy_{k}"], found[ZERO][f"energy_{k}"]) == ("100", "")
    assert {row["rank"] for row in found.values()} == {str(k)}
    objects = {
        row["address"]: row for row in rows_of(cli("show", folder, "--unit", "energy", "--rank", k, "--json").out)
    }
    for address, row in found.items():
        assert {name: "" if value is None else str(value) for name, value in objects[address].items()} == row
    assert "--json goes with" in cli("show", folder, "--view", "facets", "--json").error
    whole = 2 * (2 * HIDDEN**2 + 2 * KV * HIDDEN + 3 * INNER * HIDDEN)
    parts = 2 * (2 * k * 2 * HIDDEN + 2 * KV * HIDDEN + 3 * k * (INNER + HIDDEN))
    worst = min(expected, key=expected.__getitem__)
    assert ran.err.splitlines()[0] == (
        f"at rank {k} the 14 shown projections take {parts / 1000:.3g}k of {whole / 1000:.3g}k parameters "
        f"({100 * parts / whole:.0f} %) and keep {expected[worst]:.1f} to 100.0 % of the 13 computed (least: {worst}); "
        "for 4 of them two factors take more than the matrix"
    )


def test_every_view_that_lists_projections_has_it(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    cli("scan", folder)
    k = 5
    expected = kept(held[tensor_name("layers.1.attention.query")], k)
    heatmap = cli("show", folder, "--unit", "energy", "--rank", k).out.splitlines()
    assert heatmap[0].split(":")[0] == f"E({k}) %"
    assert heatmap[3].split()[1] == f"{expected:.1f}"
    assert heatmap[-1].startswith(f"at rank {k} the 14 shown projections take ")
    by_layer = csv.DictReader(
        io.StringIO(cli("show", folder, "--view", "layers", "--unit", "energy", "--rank", k, "--csv").out)
    )
    assert [float(r["median"]) for r in by_layer if (r["layer"], r["role"]) == ("1", "query")] == pytest.approx(
        [expected]
    )
    assert f"E({k}) %" in cli("show", folder, "--view", "layers", "--unit", "energy", "--rank", k).out
    one = ("--filter", "layers.*.attention.query", "--rank", k, "--view")
    compared = next(line for line in cli("show", folder, *one, "compare").out.splitlines() if line.startswith("E("))
    assert compared.split()[3] == f"{expected:.1f}"
    listed = records(cli("show", folder, *one, "table", "--csv").out)
    assert float(listed["layers.1.attention.query"][f"energy_{k}"]) == pytest.approx(expected)


def test_a_rank_for_each_role_under_a_weighting(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    cli("scan", folder, "--weight", "norm")
    asked = ("--rank", "q=7,kv=3", "--unit", "energy", "--filter", "layers.0.attention", "--weight", "norm", "--csv")
    ran = cli("show", folder, *asked)
    found = records(ran.out)
    gains = held["model.layers.0.input_layernorm.weight"]
    for role, k in (("query", 7), ("key", 3), ("value", 3)):  # kv is each of both: no stack of them is stored
        row = found[f"layers.0.attention.{role}"]
        weights = held[tensor_name(f"layers.0.attention.{role}")] * gains
        assert (float(row["energy"]), row["rank"]) == (pytest.approx(kept(weights, k)), str(k)), role
    assert (found["layers.0.attention.output"]["energy"], found["layers.0.attention.output"]["rank"]) == ("", "")
    parts = 7 * 2 * HIDDEN + 2 * 3 * (KV + HIDDEN)
    assert f"at rank query 7, key 3, value 3 the 3 shown projections take {parts} of " in ran.err


def test_kv_is_the_stack_of_both_where_that_is_stored(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    refused = "keys and values as one matrix are not computed for these: run  rankscope scan"
    cli("scan", folder)
    assert refused in cli("show", folder, "--unit", "energy", "--rank", "key_value=5").error
    cli("scan", folder, "--derived", "mla")
    ran = cli("show", folder, "--unit", "energy", "--rank", "kv=5", "--csv")
    found = records(ran.out)
    both = [held[tensor_name(f"layers.1.attention.{role}")].astype(np.float64) for role in ("key", "value")]
    stacked = np.concatenate([each / np.linalg.norm(each) for each in both])
    assert float(found["layers.1.attention.key_value"]["energy"]) == pytest.approx(kept(stacked, 5))
    assert found["layers.1.attention.key"]["energy"] == ""
    assert f"at rank key_value 5 the 2 shown projections take {2 * 5 * (2 * KV + HIDDEN)} of " in ran.err
    heatmap = cli("show", folder, "--unit", "energy", "--rank", "kv=5").out
    assert heatmap.splitlines()[1].split()[5] == "key_value"


def test_two_models_each_have_their_line(model: tuple[Path, Arrays], tmp_path: Path, cli: Run) -> None:
    folder, held = model
    other = write_llama(tmp_path / "b", seed=3)
    cli("scan", folder)
    cli("scan", tmp_path / "b")
    ran = cli("show", folder, "--against", tmp_path / "b", "--unit", "energy", "--rank", 4, "--csv")
    name = tensor_name("layers.1.mlp.up")
    ratio = kept(other[name], 4) / kept(held[name], 4)
    assert float(records(ran.out)["layers.1.mlp.up"]["energy_4"]) == pytest.approx(ratio)
    heads = [line.split(" the ")[0] for line in ran.err.splitlines()[:2]]
    assert heads == ["A: at rank 4", "B: at rank 4"]


WRONG = [
    ("--unit energy", "--unit energy needs the ranks: --rank 512, or"),
    ("--rank 5", "--rank with --view heatmap needs --unit energy"),
    ("--unit energy --rank x=4", "no role 'x' here: query key value output gate up down"),
    ("--unit energy --rank q=4,query=5", "query is given two ranks, 4 and 5"),
    ("--unit energy --rank q=4,q=5", "names q twice"),
    ("--unit energy --rank 0", "'0' is not a rank"),
    ("--unit energy --rank ,", "',' is not a rank"),
    ("--unit energy --view heads", "--unit energy is for --view heatmap or layers, not for heads"),
    ("--view spectrum --rank q=4", "--view spectrum takes only one --rank"),
]


def test_wrong_use_is_one_line(model: tuple[Path, Arrays], cli: Run) -> None:
    cli("scan", model[0], "--filter", "layers.0")
    for words, said in WRONG:
        assert said in cli("show", model[0], *words.split()).error


def test_a_picture_of_it(model: tuple[Path, Arrays], tmp_path: Path, cli: Run) -> None:
    cli("scan", model[0], "--filter", "layers.0")
    said = cli("plot", model[0], "--view", "spectrum", "--rank", 4, "-o", tmp_path / "s.svg").error
    assert said == "rankscope: a picture shows --rank only with --unit energy"
    cli("plot", model[0], "--unit", "energy", "--rank", 4, "-o", tmp_path / "f.svg")
    assert "rank 4 keeps" in (tmp_path / "f.svg").read_text()

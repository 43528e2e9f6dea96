"""What a file of second moments says beside ranks: position 0, tokens, text held out; and moments about the mean."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_files import Stats, write_gguf, write_moments
from cli_models import HIDDEN, INNER, Arrays, addresses, lapack, tensor_name, threshold_rank, write_llama
from cli_process import Run
from numpy.typing import NDArray

from rankscope.tui.data.chosen_weighting import StoredWeighting, choose
from rankscope.tui.data.model import open_model

Array = NDArray[np.float64]
DOWN, UP = "layers.0.mlp.down", "layers.0.mlp.up"
TOKENS, FIRST = 400, 8


def inputs(address: str, tokens: int = TOKENS) -> Array:
    """Rows of x, those of position 0 first; into down that one is large, and all have a mean."""
    cols = INNER if address == DOWN else HIDDEN
    rng = np.random.default_rng([*address.encode()])
    x = rng.standard_normal((tokens, cols)) * np.logspace(0, -1, cols) + 0.5 * rng.standard_normal(cols)
    if address == DOWN:
        x[:FIRST] += 20 * rng.standard_normal(cols)
    return x


def sums(address: str, tokens: int = TOKENS, *, kind: str = "xx", split: bool = True) -> dict[str, Any]:
    name, x = tensor_name(address), inputs(address, tokens)
    found: dict[str, Any] = {}
    for part, rows in {"": x, ".first": x[:FIRST]}.items():
        if split or not part:
            found[f"{name}{part}.{kind}"] = rows.T @ rows if kind == "xx" else (rows**2).sum(0)
            found[f"{name}{part}.x"] = rows.sum(0)
            found[f"{name}{part}.count"] = np.array([float(len(rows))])
    return found


def figures(arrays: Arrays, address: str) -> dict[str, Any]:
    """As `rankscope moments` writes them, from the outputs of the tokens by LAPACK."""
    w, x = arrays[tensor_name(address)].astype(np.float64), inputs(address)
    y = x @ w.T
    share = float((y[:FIRST] ** 2).sum() / (y**2).sum())
    ranks = [threshold_rank(lapack(rows), 0.9) for rows in (y, y[FIRST:])]
    apart = ranks[1] if share > 0.2 else None
    return {"tokens": TOKENS, "cols": x.shape[1], "k90": ranks[0], "held": 0.875, "sink": share, "apart": apart}


@pytest.fixture
def arrays(tmp_path: Path) -> Arrays:
    return write_llama(tmp_path / "m", 1)


@pytest.fixture
def held(tmp_path: Path, arrays: Arrays) -> Path:
    every = {name: numbers for address in addresses(1) for name, numbers in sums(address).items()}
    known = {address: figures(arrays, address) for address in addresses(1)}
    return write_moments(tmp_path / "m.moments", every, figures=json.dumps(known))


def plain(tmp_path: Path, names: list[str], **how: Any) -> Path:
    """A file without figures."""
    every = {name: numbers for address in names for name, numbers in sums(address, **how).items()}
    return write_moments(tmp_path / "plain.moments", every)


def test_a_sink_and_what_was_held_out_stand_beside_the_ranks(
    tmp_path: Path, cli: Run, arrays: Arrays, held: Path
) -> None:
    down = figures(arrays, DOWN)
    percent = f"{100 * down['sink']:.0f} %"
    line = f"sink {percent}, k90 {down['k90']}, without position 0 {down['apart']}"
    assert down["k90"] < down["apart"]
    scanned = cli("scan", tmp_path / "m", "--weight", held)
    assert f"{DOWN}: {line}" in scanned.err.splitlines()
    assert cli("show", tmp_path / "m", "--weight", held, "-t", "80").err == f"{DOWN}: {line}\n"
    table = cli("show", tmp_path / "m", "--weight", held, "--view", "table").out
    rows = {words[0]: words for words in (re.split(r" {2,}", row) for row in table.splitlines()) if len(words) > 9}
    at = [rows["address"].index(name) for name in ("k90", "position 0", "k90 without", "held out %", "tokens/n")]
    assert [rows[DOWN][i] for i in at] == [str(down["k90"]), f"sink {percent}", str(down["apart"]), "87.5", "10.0"]
    up = figures(arrays, UP)
    assert [rows[UP][i] for i in at] == [str(up["k90"]), f"{100 * up['sink']:.0f} %", "-", "87.5", "16.7"]
    filtered = ("show", tmp_path / "m", "--weight", held, "--filter", "layers.0.mlp.*", "--csv", "--view")
    for view in ("table", "layers", "compare"):
        (of_down,) = [r for r in csv.DictReader(io.StringIO(cli(*filtered, view).out)) if r["role"] == "down"][-1:]
        assert float(of_down["sink"]) == pytest.approx(100 * down["sink"])
        assert (of_down["k90_without_position_0"], of_down["held_out"]) == (str(down["apart"]), "87.5")
        assert of_down["weighting"] == "moments"
    assert f"sink {percent}" in cli(*filtered[:4], "--filter", "layers.0.mlp.*", "--view", "compare").out
    assert line in cli(*filtered[:4], "--filter", DOWN, "--view", "energy").out
    cli("scan", tmp_path / "m", "--weight", "norm")
    of_norm = cli("show", tmp_path / "m", "--weight", "norm", "--view", "table")
    assert not re.search("sink|position 0|held out|tokens", of_norm.out + of_norm.err)


def test_a_file_without_figures_says_how_to_have_them(tmp_path: Path, cli: Run, arrays: Arrays) -> None:
    del arrays
    split = plain(tmp_path, addresses(1))
    cli("scan", tmp_path / "m", "--weight", split)
    shown = cli("show", tmp_path / "m", "--weight", split, "--view", "table")
    assert shown.err == (
        "plain.moments does not say how much energy position 0 holds: rankscope moments writes files that do\n"
    )
    assert "position 0" not in shown.out
    assert " 16.7 " in shown.out  # tokens / n, from the counts
    whole = plain(tmp_path, addresses(1), split=False)
    assert "plain.moments does not keep position 0 apart" in cli("show", tmp_path / "m", "--weight", whole).err


def test_few_tokens_are_warned_of_wherever_ranks_are_shown(tmp_path: Path, cli: Run, arrays: Arrays) -> None:
    del arrays
    few = plain(tmp_path, [UP, DOWN], tokens=150, split=False)
    named = (tmp_path / "m", "--weight", few, "--filter", "*.mlp.[ud]*")
    warned = "2 projections have fewer than 8 tokens for each input feature (the least 3.8): their ranks are too low"
    for command in ("scan", "show"):
        assert warned in cli(command, *named).err
    assert re.search(rf"{DOWN} .* 3\.8 ", cli("show", *named, "--view", "table").out)
    assert "3.8 tokens/n: too few" in cli("show", *named[:3], "--filter", DOWN, "--view", "energy").out


def imatrix(tmp_path: Path, *, plain: bool) -> Path:
    """As llama.cpp writes them today, or without sums of x."""
    held, signed = {}, {}
    for address, name in ((UP, "blk.0.ffn_up.weight"), (DOWN, "blk.0.ffn_down.weight")):
        x = inputs(address)
        signed[name] = x.sum(0).astype(np.float32)[None]
        held[name] = Stats((x**2).sum(0).astype(np.float32)[None], (TOKENS,))
    return write_gguf(tmp_path / f"{plain}.imatrix", held, plain=signed if plain else None)


def test_an_imatrix_is_said_to_be_whole(tmp_path: Path, cli: Run, arrays: Arrays) -> None:
    del arrays
    named = (tmp_path / "m", "--weight", imatrix(tmp_path, plain=True), "--filter", "*.mlp.[ud]*")
    whole = "an imatrix does not keep position 0 apart: where it holds most of the energy, ranks describe only that"
    for command in ("scan", "show"):
        assert cli(command, *named).err.splitlines()[-1] == whole
    assert re.search(rf"{DOWN} .* not apart .* 10\.0 ", cli("show", *named, "--view", "table").out)
    assert "position 0 not apart" in cli("show", *named[:3], "--filter", DOWN, "--view", "energy").out


@pytest.mark.parametrize("kind", ["xx", "x2", "imatrix"])
def test_centred_ranks_are_of_the_covariance(tmp_path: Path, cli: Run, arrays: Arrays, kind: str) -> None:
    file = imatrix(tmp_path, plain=True) if kind == "imatrix" else plain(tmp_path, [UP, DOWN], kind=kind)
    centred, filtered = f"centred:{file}", ("--filter", "*.mlp.[ud]*")
    cli("scan", tmp_path / "m", "--weight", file, *filtered)
    before = {row["address"]: row for row in cli("scan", tmp_path / "m", "--weight", file, *filtered, "--json").rows}
    rows = cli("scan", tmp_path / "m", "--weight", centred, *filtered, "--json").rows
    for row in rows:
        x = inputs(row["address"])
        c = np.cov(x.T, bias=True)
        root = np.linalg.cholesky(c) if kind == "xx" else np.diag(np.sqrt(c.diagonal()))
        sigma = lapack(arrays[tensor_name(row["address"])] @ root)
        assert row["weighting"] == "centred"
        assert row["ranks"]["0.9"] == threshold_rank(sigma, 0.9)
        assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-5)
        assert row["sigma_max"] < before[row["address"]]["sigma_max"]
    assert len(rows) == 2


def test_centred_ranks_are_never_without_the_word(tmp_path: Path, cli: Run, arrays: Arrays) -> None:
    del arrays
    file, filtered = plain(tmp_path, [UP, DOWN]), ("--filter", "*.mlp.[ud]*")
    centred = f"centred:{file}"
    cli("scan", tmp_path / "m", "--weight", file, "--weight", centred, *filtered)
    shown = ("show", tmp_path / "m", "--weight", centred, *filtered)
    titles = [line for line in cli(*shown).out.splitlines() if line.startswith("k")]
    assert [" ".join(line.split()[:2]) for line in titles] == ["k60 centred:", "k80 centred:", "k90 centred:"]
    for view in ("table", "compare"):
        names = re.findall(r"\bk\d+\S*(?: %)?( centred)?(?= {2}|$)", cli(*shown, "--view", view).out, re.MULTILINE)
        assert names
        assert set(names) == {" centred"}
    for view in ("heatmap", "table", "compare", "layers", "energy"):
        printed = list(csv.DictReader(io.StringIO(cli(*shown, "--view", view, "--csv").out)))
        assert {row["weighting"] for row in printed} == {"centred"}
    for one in ("spectrum", "energy", "layers"):
        assert "centred" in cli(*shown[:4], "--filter", DOWN, "--view", one).out.splitlines()[-1]
    assert json.loads(cli("ls", "--json").out)["weighted"] == {"centred": 2, "moments": 2}
    assert cli("rm", tmp_path / "m", "--weight", "centred").code == 0
    assert json.loads(cli("ls", "--json").out)["weighted"] == {"moments": 2}


def test_what_cannot_be_centred_is_one_line(tmp_path: Path, cli: Run, arrays: Arrays) -> None:
    del arrays
    filtered = ("--filter", DOWN)
    old = cli("scan", tmp_path / "m", "--weight", f"centred:{imatrix(tmp_path, plain=False)}", *filtered).error
    assert "blk.0.ffn_down.weight has no mean: the file has no sums of x, only of x^2" in old
    bare = sums(DOWN, kind="x2")
    bare.pop(f"{tensor_name(DOWN)}.x")
    lacking = cli(
        "scan", tmp_path / "m", "--weight", f"centred:{write_moments(tmp_path / 'b.moments', bare)}", *filtered
    ).error
    assert "has no mean: the file has no sums of x of its" in lacking
    wrong = sums(DOWN, kind="x2")
    wrong[f"{tensor_name(DOWN)}.x"] *= 10
    refused = cli(
        "scan", tmp_path / "m", "--weight", f"centred:{write_moments(tmp_path / 'w.moments', wrong)}", *filtered
    ).error
    assert "its mean is larger than its second moments allow" in refused
    for other in ("none", "norm", ""):
        assert "as centred:FILE" in cli("show", tmp_path / "m", "--weight", f"centred:{other}").error


def test_figures_of_something_else_are_left_out(tmp_path: Path, cli: Run, arrays: Arrays) -> None:
    named = (tmp_path / "m", "--filter", DOWN, "--weight", tmp_path / "m.moments")
    for wrong in (
        {"cols": 0}, {"cols": -40}, {"sink": float("nan")}, {"k90": "many"}, {"tokens": True}, {"new": 1},
        {"cols": HIDDEN},
    ):  # fmt: skip
        made = json.dumps({DOWN: figures(arrays, DOWN) | wrong})
        write_moments(tmp_path / "m.moments", sums(DOWN), figures=made)
        if wrong == {"cols": 0}:
            cli("scan", *named)
        shown = cli("show", *named, "--view", "table")
        assert shown.code == 0
        assert "sink" not in shown.out
        assert re.search(rf"{DOWN} .* 10\.0 ", shown.out)  # tokens / n, from the count


def test_a_weighting_says_whether_it_is_centred(tmp_path: Path, arrays: Arrays) -> None:
    """Plans and factors are of uncentred moments alone, and ask it."""
    del arrays
    model, file = open_model(str(tmp_path / "m"), tmp_path / "store"), plain(tmp_path, [DOWN])
    made = [choose(text, model, tmp_path, print) for text in (f"centred:{file}", f"centred {file}", str(file), "norm")]
    assert [weighting.is_centred for weighting in made if weighting is not None] == [True, True, False, False]
    assert StoredWeighting(model, tmp_path / "store", "centred").is_centred


def test_the_fixed_gauge_has_no_figures_of_another_matrix(tmp_path: Path, cli: Run, arrays: Arrays, held: Path) -> None:
    """Balancing scales the rows of up, whose k90 and shares are then others; down's spectrum stays."""
    del arrays
    write_llama(tmp_path / "m", 1, changes={"model.layers.0.post_attention_layernorm.weight": np.ones(HIDDEN)})
    named = (tmp_path / "m", "--weight", held, "--filter", "layers.0.mlp.*", "--gauge", "fixed")
    assert cli("scan", *named).code == 0
    rows = csv.DictReader(io.StringIO(cli("show", *named, "--view", "table", "--csv").out))
    known = {row["role"]: (bool(row["sink"]), bool(row["held_out"]), bool(row["tokens_per_feature"])) for row in rows}
    assert known == {"gate": (True, True, True), "up": (False, False, True), "down": (True, True, True)}

"""`rankscope inspect`: what the first direction of a projection is, against LAPACK's SVD and by hand."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import HIDDEN, INNER, tensor_name, write_llama
from cli_process import Run
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[np.float64]
UP, DOWN, KEY = "layers.1.mlp.up", "layers.1.mlp.down", "layers.1.attention.key"


def with_spectrum(sigma: list[float], rows: int, cols: int) -> NDArray[np.float32]:
    """A random matrix with these singular values first, and 1 for all others."""
    rng = np.random.default_rng(3)
    left, right = (np.linalg.qr(rng.standard_normal((n, min(rows, cols))))[0] for n in (rows, cols))
    values = np.ones(min(rows, cols))
    values[: len(sigma)] = sigma
    return ((left * values) @ right.T).astype(np.float32)


def record(cli: Run, *words: str | Path) -> dict[str, Any]:
    ran = cli("inspect", *words, "--json")
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def svd(weights: NDArray[Any]) -> tuple[Array, Array, Array]:
    left, sigma, right = np.linalg.svd(weights.astype(np.float64), full_matrices=False)
    return left, sigma, right.T


def test_numbers_are_those_of_lapack(cli: Run, tmp_path: Path) -> None:
    arrays = write_llama(tmp_path / "m", layers=3)
    found = record(cli, tmp_path / "m", UP)
    weights = arrays[tensor_name(UP)].astype(np.float64)
    left, sigma, right = svd(weights)
    np.testing.assert_allclose(found["singular_values"], sigma[:8], rtol=1e-6)
    np.testing.assert_allclose(found["output_energy"], sigma[:8] ** 2 / (sigma**2).sum(), rtol=1e-5)
    for side, vector, norms in (
        ("outputs", left[:, 0], np.linalg.norm(weights, axis=1)),
        ("inputs", right[:, 0], np.linalg.norm(weights, axis=0)),
    ):
        assert found[side]["participation"] == pytest.approx(1 / (vector**4).sum(), rel=1e-5)
        first = found[side]["carriers"][0]
        assert first["channel"] == (vector**2).argmax()
        assert first["share"] == pytest.approx((vector**2).max(), rel=1e-5)
        assert first["over_median"] == pytest.approx(norms[first["channel"]] / np.median(norms), rel=1e-5)


@pytest.mark.parametrize("address", [KEY, UP, DOWN])
def test_neighbours_are_met_in_the_residual_stream(cli: Run, tmp_path: Path, address: str) -> None:
    rng = np.random.default_rng(1)
    norms = {f"model.layers.{n}.{norm}_layernorm.weight" for n in range(3) for norm in ("input", "post_attention")}
    gains = {name: rng.standard_normal(HIDDEN).astype(np.float32) for name in sorted(norms)}
    arrays = write_llama(tmp_path / "m", layers=3, changes=gains)
    found = record(cli, tmp_path / "m", address)["neighbours"]
    before = {KEY: "input", UP: "post_attention"}.get(address)

    def residual(layer: int) -> Array:
        left, _, right = svd(arrays[tensor_name(address.replace("layers.1", f"layers.{layer}"))])
        if before is None:
            return left[:, 0]
        folded = right[:, 0] * gains[f"model.layers.{layer}.{before}_layernorm.weight"]
        return np.asarray(folded / np.linalg.norm(folded))

    assert [near["address"] for near in found] == [address.replace("1", "0", 1), address.replace("1", "2", 1)]
    assert [near["cosine"] for near in found] == pytest.approx(
        [abs(residual(1) @ residual(layer)) for layer in (0, 2)], abs=1e-5
    )
    assert found[0]["chance"] == pytest.approx(HIDDEN**-0.5)


@pytest.mark.parametrize("form", ["xx", "x2", "norm"])
def test_energy_under_a_weighting_is_that_of_w_itself(cli: Run, tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(2)
    gain = rng.uniform(0.1, 3, HIDDEN).astype(np.float32)
    arrays = write_llama(tmp_path / "m", changes={"model.layers.1.post_attention_layernorm.weight": gain})
    x = rng.standard_normal((200, HIDDEN)) * np.logspace(0, -1, HIDDEN)
    moment = (x.T @ x).astype(np.float32)
    name, weight = tensor_name(UP), "norm" if form == "norm" else str(tmp_path / "c.safetensors")
    sums = moment if form == "xx" else np.diag(moment)
    save_file({f"{name}.{form}": sums.copy(), f"{name}.count": np.array([200], np.float32)}, tmp_path / "c.safetensors")
    c = {"xx": moment / 200.0, "x2": np.diag(np.diag(moment)) / 200.0, "norm": np.diag(gain.astype(float) ** 2)}[form]
    found = record(cli, tmp_path / "m", UP, "--weight", weight)
    weights = arrays[name].astype(np.float64)
    _, sigma, right = svd(weights)
    wanted = (
        sigma[:8] ** 2 * np.einsum("ik,ij,jk->k", right[:, :8], c, right[:, :8]) / np.trace(weights @ c @ weights.T)
    )
    np.testing.assert_allclose(found["output_energy"], wanted, rtol=2e-4)
    if form == "xx":  # of the stored spectrum under it, where the weights are gone
        assert cli("scan", tmp_path / "m", "--weight", weight, "--filter", UP).code == 0
        shutil.rmtree(tmp_path / "m")
        stored = record(cli, tmp_path / "m", UP, "--weight", weight)["output_energy"]
        np.testing.assert_allclose(stored, wanted, rtol=2e-4)
    assert "of the output energy under " in found["sentence"]


@pytest.mark.parametrize("address", [KEY, UP, DOWN])
def test_how_far_the_fixed_gauge_turns_it(cli: Run, tmp_path: Path, address: str) -> None:
    rng = np.random.default_rng(6)
    gains = {name: rng.standard_normal(HIDDEN).astype(np.float32) for name in ("input", "post_attention")}
    changes = {f"model.layers.{n}.{name}_layernorm.weight": gain for n in range(2) for name, gain in gains.items()}
    for name, shape in ((KEY, (12, HIDDEN)), (UP, (INNER, HIDDEN)), (DOWN, (HIDDEN, INNER))):
        changes[tensor_name(name)] = with_spectrum([9.0], *shape)
    arrays = {name: a.astype(float) for name, a in write_llama(tmp_path / "m", changes=changes).items()}
    key, up, down = (arrays[tensor_name(name)] for name in (KEY, UP, DOWN))
    folded = up * gains["post_attention"]
    scales = np.sqrt(np.linalg.norm(down, axis=0) / np.linalg.norm(folded, axis=1))
    before, after = {
        KEY: (svd(key)[2][:, 0] * gains["input"], svd(key * gains["input"])[2][:, 0]),
        UP: (svd(up)[2][:, 0] * gains["post_attention"], svd(folded * scales[:, None])[2][:, 0]),
        DOWN: (svd(down)[0][:, 0], svd(down / scales)[0][:, 0]),
    }[address]
    found = record(cli, tmp_path / "m", address)
    assert found["plane"] is False
    assert found["fixed_cosine"] == pytest.approx(abs(before @ after) / np.linalg.norm(before), abs=1e-5)
    said = cli("inspect", tmp_path / "m", address).out
    assert f"fixing the gauge turns it: cosine {found['fixed_cosine']:.2f}, " in said
    (listed,) = cli("ls", "--json").rows
    assert (listed["spectra"], listed["fixed"]) == (0, 0)  # none of it is a spectrum


def test_words_go_by_what_carries_it(cli: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    row, column = (rng.standard_normal(shape).astype(np.float32) for shape in ((INNER, HIDDEN), (12, HIDDEN)))
    row[7] *= 40
    column[:, 5] *= 40
    flat = with_spectrum([9.0, 9.0 / 1.02], HIDDEN, HIDDEN)
    few = with_spectrum([1.0], HIDDEN, INNER)
    few[[2, 11], :] += 100 * rng.standard_normal(INNER).astype(np.float32)
    names = [UP, KEY, "layers.1.attention.query", DOWN, "layers.1.attention.output"]
    zero = np.zeros((HIDDEN, HIDDEN), np.float32)
    write_llama(tmp_path / "m", changes=dict(zip(map(tensor_name, names), (row, column, flat, few, zero), strict=True)))
    said = [record(cli, tmp_path / "m", name)["sentence"] for name in names]
    assert said[0].startswith("sigma_1 = one neuron: output 7, ")
    assert " x the median row, " in said[0]
    assert said[1].startswith("sigma_1 = one channel: input 5, ")
    assert " x the median column, " in said[1]
    assert said[2].startswith("sigma_1 and sigma_2 are a plane (2 % apart): spread over ")
    assert said[3].startswith(
        ("sigma_1 = few outputs: 11, 2 hold 100.0 % of it, ", "sigma_1 = few outputs: 2, 11 hold")
    )
    assert said[4] == "sigma_1 is 0: a matrix of zeros has no first direction"


def test_of_a_plane_everything_is_of_both(cli: Run, tmp_path: Path) -> None:
    name = "layers.1.attention.query"
    flat = with_spectrum([9.0, 9.0 / 1.02], HIDDEN, HIDDEN)
    turned = np.linalg.qr(np.random.default_rng(8).standard_normal((2, 2)))[0]
    left, _, right = svd(flat)
    other = np.diag(np.r_[5.0, np.ones(HIDDEN - 1)]) @ np.linalg.qr(np.c_[right[:, :2] @ turned, right[:, 2:]])[0].T
    write_llama(
        tmp_path / "m",
        changes={tensor_name(name): flat, tensor_name("layers.0.attention.query"): other.astype(np.float32)},
    )
    found = record(cli, tmp_path / "m", name)
    shares = (left[:, :2] ** 2).mean(axis=1)
    assert found["plane"] is True
    assert found["outputs"]["participation"] == pytest.approx(1 / (shares**2).sum(), rel=1e-4)
    assert found["neighbours"][0]["cosine"] == pytest.approx(1, abs=1e-5)  # a direction in that plane


def test_what_is_stored_is_not_computed_again_and_needs_no_weights(cli: Run, tmp_path: Path) -> None:
    write_llama(tmp_path / "m")
    first = record(cli, tmp_path / "m", UP)
    again = cli("inspect", tmp_path / "m", UP, "--json")
    assert json.loads(again.out) == first
    assert "failed" not in again.err  # no progress: nothing was computed
    assert cli("scan", tmp_path / "m").code == 0
    shutil.rmtree(tmp_path / "m")
    silent = {"neighbours": [], "fixed_sigma_1_over_sigma_2": None, "fixed_cosine": None, "survives_gauge": None}
    silent["sentence"] = first["sentence"].partition(";")[0]
    assert record(cli, tmp_path / "m", UP) == first | silent
    gone = cli("inspect", tmp_path / "m", KEY)
    assert gone.code == 2
    assert "only what is stored can be shown" in gone.err


def test_they_are_listed_and_counted_nowhere_else(cli: Run, tmp_path: Path) -> None:
    write_llama(tmp_path / "m")
    none = cli("show", tmp_path / "m", "--view", "directions")
    assert (none.code, "no directions are computed for these" in none.err) == (2, True)
    record(cli, tmp_path / "m", UP)
    listed = cli("show", tmp_path / "m", "--view", "directions").out
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("layers.")] == ["layers.0.mlp.up", UP]
    assert cli("show", tmp_path / "m").code == 2  # there are no spectra
    assert cli("scan", tmp_path / "m", "--filter", UP).code == 0
    assert json.loads(cli("ls", "--json").out)["spectra"] == 1
    assert cli("export", tmp_path / "m", "--filter", UP, "-o", tmp_path / "o.h5").code == 0
    assert cli("doctor", "--verify").code == 0


def test_the_list_as_csv(cli: Run, tmp_path: Path) -> None:
    norms = {f"model.layers.{n}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32) for n in range(3)}
    write_llama(tmp_path / "m", layers=3, changes={tensor_name(KEY): np.zeros((12, HIDDEN), np.float32), **norms})
    wanted = {name: record(cli, tmp_path / "m", name) for name in (KEY, UP)}
    ran = cli("show", tmp_path / "m", "--view", "directions", "--csv")
    rows = {row["address"]: row for row in csv.DictReader(io.StringIO(ran.out))}
    assert len(rows) == 6  # with the neighbours
    found, of = rows[UP], wanted[UP]
    assert (found["layer"], found["role"], found["rows"], found["what"]) == ("1", "up", str(INNER), of["sentence"])
    numbers = {
        "sigma_2": of["singular_values"][1],
        "fixed_sigma_1_over_sigma_2": of["fixed_sigma_1_over_sigma_2"],
        "fixed_cosine": of["fixed_cosine"],
        "output_energy": of["output_energy"][0],
        "outputs_participation": of["outputs"]["participation"],
        "inputs_first_share": of["inputs"]["carriers"][0]["share"],
        "before_cosine": of["neighbours"][0]["cosine"],
        "after_cosine": of["neighbours"][1]["cosine"],
    }
    assert {name: found[name] and float(found[name]) for name in numbers} == {
        name: "" if number is None else number for name, number in numbers.items()
    }
    assert (rows[KEY]["sigma_1"], rows[KEY]["sigma_1_over_sigma_2"]) == ("0.0", "")
    assert rows[UP.replace("1", "0", 1)]["before_cosine"] == ""
    two = cli("show", tmp_path / "m", "--view", "directions", "--against", tmp_path / "m")
    assert two.error.endswith("--view directions is for one model: leave out --against")


def test_the_heatmap_shows_how_many_outputs_carry_it(cli: Run, tmp_path: Path) -> None:
    write_llama(tmp_path / "m")
    unit = ("show", tmp_path / "m", "--unit", "u1_participation")
    assert cli(*unit).error.endswith(f"are computed for these: run  rankscope inspect {tmp_path / 'm'} ADDRESS")
    wanted = {name: record(cli, tmp_path / "m", name)["outputs"]["participation"] for name in (KEY, UP)}
    for state in ((), ("--weight", "norm"), ("--gauge", "fixed")):
        ran = cli(*unit, "--csv", *state)
        rows = {row["address"]: row["u1_participation"] for row in csv.DictReader(io.StringIO(ran.out))}
        assert len(rows) == 14
        assert {name: float(number) for name, number in rows.items() if number and name in wanted} == wanted
        assert sum(bool(number) for number in rows.values()) == 4  # and the neighbours'
        assert "10 of 14 are not computed yet" in ran.err
    shown = cli(*unit).out
    assert f"{wanted[UP]:.1f}" in shown
    assert cli("show", tmp_path / "m", "--view", "gauge", "--unit", "u1_participation").code == 2
    two = cli(*unit, "--csv", "--against", tmp_path / "m")
    ratios = {row["address"]: row["u1_participation"] for row in csv.DictReader(io.StringIO(two.out))}
    assert (ratios[KEY], ratios["layers.0.mlp.down"]) == ("1", "")


def test_what_cannot_be_had_is_one_line(cli: Run, tmp_path: Path) -> None:
    bad = np.full((INNER, HIDDEN), np.nan, np.float32)
    write_llama(tmp_path / "m", changes={tensor_name(UP): bad})
    failed = cli("inspect", tmp_path / "m", UP)
    assert failed.code == 1
    assert f"failed: {UP} first 8 directions: the weights hold NaN or infinite values" in failed.err
    for address in ("layers.1.mlp.upp", "*.up"):
        wrong = cli("inspect", tmp_path / "m", address)
        assert (wrong.code, wrong.out) == (2, "")
        assert "there is no projection" in wrong.err.splitlines()[-1]
    norm = cli("inspect", tmp_path / "m", "other.model.layers.0.input_layernorm.weight")
    assert (norm.code, norm.out) == (2, "")


def test_the_late_up_projections_of_the_demo(cli: Run) -> None:
    """The question of the notebook: two of the three are one neuron each, the third is not."""
    found = {layer: record(cli, "demo", f"layers.{layer}.mlp.up") for layer in (27, 28, 29)}
    assert found[28]["sentence"] == (
        "sigma_1 = one neuron: output 678, 9.7 x the median row, 6.0 % of the output energy; "
        "its excess is gauge (2.88 -> 1.09)"
    )
    assert found[27]["sentence"].startswith("sigma_1 = one neuron: output 903, 7.3 x the median row, ")
    assert found[27]["sentence"].endswith("; its excess is gauge (2.21 -> 1.19)")
    assert found[29]["sentence"].startswith("sigma_1 = spread over 222 of 1536 outputs, ")
    assert found[29]["sentence"].endswith("; not gauge (1.41 -> 1.68)")
    ratios = [round(found[layer]["sigma_1_over_sigma_2"], 2) for layer in (27, 28, 29)]
    assert ratios == [2.21, 2.88, 1.41]
    assert round(found[28]["outputs"]["participation"], 1) == 1.1
    assert [round(found[layer]["fixed_cosine"], 2) for layer in (27, 28, 29)] == [0.99, 0.87, 0.98]
    first = found[28]["outputs"]["carriers"][0]
    assert (round(first["norm"], 1), round(first["norm"] / first["over_median"], 2)) == (49.7, 5.14)

"""`--gauge fixed`: scanned beside the weights as stored, shown and exported under its name; `show --view gauge`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from cli_models import (
    CONFIG,
    HIDDEN,
    INNER,
    Arrays,
    addresses,
    lapack,
    rows_of,
    tensor_name,
    threshold_rank,
    write_llama,
)
from cli_process import Run
from safetensors.numpy import load_file, save_file

from rankscope.tui.data.gauged_model import spearman

LAYERS = 4


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Arrays]:
    """A folder with neurons and gains that differ in size by layer, and its tensors."""
    folder = tmp_path / "model"
    write_llama(folder, layers=LAYERS)
    held = load_file(folder / "model.safetensors")
    for n in range(LAYERS):
        spread = np.geomspace(1, 3.0 ** (n + 1), INNER, dtype=np.float32)
        held[tensor_name(f"layers.{n}.mlp.up")] *= spread[:: (-1) ** n, None]
        for norm in ("input", "post_attention"):
            gain = np.geomspace(1, 8.0 ** (LAYERS - n), HIDDEN, dtype=np.float32)
            held[f"model.layers.{n}.{norm}_layernorm.weight"] = gain
    save_file(held, folder / "model.safetensors")
    return folder, held


def fixed_ranks(held: Arrays, threshold: float = 0.9) -> dict[str, int]:
    """Ranks by address with LAPACK: gains folded, neurons balanced, and value and output multiplied by hand."""
    found = {}
    for address in addresses(LAYERS):
        around, _, role = address.rpartition(".")
        if role == "output":
            continue
        norm = "post_attention" if around.endswith("mlp") else "input"
        w = held[tensor_name(address)].astype(np.float64)
        gain = held[f"model.layers.{address.split('.')[1]}.{norm}_layernorm.weight"].astype(np.float64)
        if role != "down":
            w = w * gain
        if role == "value":  # two KV heads of 6 rows, each shared by two heads
            out = held[tensor_name(f"{around}.output")].astype(np.float64)
            for n in (0, 1):
                maps = [out[:, at : at + 6] @ w[6 * n : 6 * n + 6] for at in (12 * n, 12 * n + 6)]
                found[f"{around}.kv_head.{n}.ov"] = threshold_rank(lapack(np.concatenate(maps)), threshold)
            continue
        if role in ("up", "down"):
            up = held[tensor_name(f"{around}.up")] * gain
            down = held[tensor_name(f"{around}.down")].astype(np.float64)
            c = np.sqrt(np.linalg.norm(down, axis=0) / np.linalg.norm(up, axis=1))
            w = w * c[:, None] if role == "up" else w / c
        found[address] = threshold_rank(lapack(w), threshold)
    return found


def test_scan_show_and_export_of_the_fixed_gauge(model: tuple[Path, Arrays], cli: Run, tmp_path: Path) -> None:
    folder, held = model
    true = fixed_ranks(held)
    ran = cli("scan", folder, "--gauge", "raw", "--gauge", "fixed", "--json")
    assert ran.code == 0, ran.err
    rows = [row for row in rows_of(ran.out) if row["gauge"] == "fixed"]
    assert {row["address"]: row["ranks"]["0.9"] for row in rows} == true
    assert len(rows_of(ran.out)) == 2 * len(true)
    shown = cli("show", folder, "--gauge", "fixed", "--csv", "-t", "90")
    lines = [line.split(",") for line in shown.out.splitlines()]
    heading = lines[0]
    assert {line[0]: int(line[heading.index("k90")]) for line in lines[1:]} == true
    assert {line[heading.index("gauge")] for line in lines[1:]} == {"fixed"}
    table = cli("show", folder, "--gauge", "fixed", "--view", "table", "--csv").out.splitlines()
    for row in csv.DictReader(table):  # a product has no noise and no factors of its shape
        alike = {row[name] == "" for name in ("k/k0", "k0", "k*", "k/k*", "spikes")}
        assert alike == {row["address"].endswith(".ov")}
    assert "gauge-fixed: gains folded, neurons balanced" in cli("show", folder, "--gauge", "fixed").out
    assert "gauge-fixed" not in cli("show", folder).out
    assert f"{7 * LAYERS} + {3 * LAYERS} norm + {2 * LAYERS} fixed" in cli("ls").out
    assert cli("export", folder, "--gauge", "fixed", "-o", tmp_path / "f.npz").code == 0
    with np.load(tmp_path / "f.npz") as arrays:
        assert "layers.0.mlp.up@fixed" in arrays.files
    again = rows_of(cli("scan", folder, "--weight", "norm", "--json", "--filter", "query").out)
    assert {row["state"] for row in again} == {"stored"}  # computed once for both


def test_a_filter_names_products_by_their_factors_and_by_themselves(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    true = {at: k for at, k in fixed_ranks(held).items() if at.startswith("layers.0.") and at.endswith(".ov")}
    for pattern in ("layers.0.attention.value", "layers.0.attention.output", "layers.0.*.ov"):
        ran = cli("scan", folder, "--gauge", "fixed", "--filter", pattern, "--json")
        assert {row["address"]: row["ranks"]["0.9"] for row in rows_of(ran.out)} == true
    options = ("--weight", "norm", "--gauge", "fixed", "--filter", "layers.0.attention.value")
    assert "weighted by norm gains; gauge-fixed: gains folded\n" in cli("scan", folder, *options).out


def test_values_that_are_normed_have_no_products(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    save_file(held | {"model.layers.1.self_attn.v_norm.weight": np.ones(6)}, folder / "model.safetensors")
    ran = cli("scan", folder, "--gauge", "fixed")
    assert (ran.code, "layers.1.attention: values are normed" in ran.err) == (1, True)
    said = cli("show", folder, "--gauge", "fixed").err
    assert "2 of them have no gauge that is known: layers.1.attention: values are normed (v_norm)" in said
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_attention_heads": None}))
    said = cli("show", folder, "--gauge", "fixed").err
    assert "it is not known how many heads it has" in said
    assert "Traceback" not in said


def test_a_part_is_balanced_by_what_the_filter_leaves_out(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    ran = cli("scan", folder, "--gauge", "fixed", "--filter", "layers.0.mlp.up", "--json")
    assert [row["ranks"]["0.9"] for row in rows_of(ran.out)] == [fixed_ranks(held)["layers.0.mlp.up"]]


def test_the_view_gives_the_correlation_of_the_layers_order(model: tuple[Path, Arrays], cli: Run) -> None:
    from scipy.stats import spearmanr

    folder, held = model
    nothing = cli("show", folder, "--view", "gauge")
    assert nothing.code == 2
    assert nothing.err == f"rankscope: nothing is stored of {folder}: run  rankscope scan {folder} --gauge fixed\n"
    assert cli("scan", folder, "--gauge", "raw", "--gauge", "fixed").code == 0
    ran = cli("show", folder, "--view", "gauge", "-t", "90", "--csv")
    heading, *lines = [line.split(",") for line in ran.out.splitlines()]
    found = {line[heading.index("role")]: line[heading.index("spearman")] for line in lines}
    fixed = fixed_ranks(held)
    for role, said in found.items():
        wanted = [address for address in addresses(LAYERS) if address.endswith(role)]
        raw = [threshold_rank(lapack(held[tensor_name(address)]), 0.9) for address in wanted]
        true = spearmanr(raw, [fixed[address] for address in wanted]).statistic
        assert said == "" if np.isnan(true) else float(said) == pytest.approx(true, abs=1e-12)
    assert "Spearman" in cli("show", folder, "--view", "gauge").out
    assert cli("show", folder, "--view", "gauge", "--weight", "norm").code == 2


def test_equal_numbers_share_their_rank() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    for _ in range(5):
        a, b = rng.integers(0, 4, 12).tolist(), rng.integers(0, 4, 12).tolist()
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert spearman([1, 1], [1, 2]) is None
    assert spearman([], []) is None


def test_what_cannot_be_is_one_line(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, _ = model
    assert cli("scan", folder, "--null", "flip", "--gauge", "fixed").err.count("\n") == 1
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nobody"}))
    ran = cli("scan", folder, "--gauge", "fixed")
    assert (ran.code, ran.err.count("Traceback")) == (2, 0)
    assert "--gauge fixed: the gauge cannot be fixed: layers.0.attention.query: " in ran.err
    assert ran.err.count("layers.0.attention.query") == 1
    ran = cli("scan", folder, "--weight", "norm")
    assert (ran.code, ran.err.count("layers.0.attention.query: no norms are known for nobody")) == (2, 1)
    assert ran.err.count("layers.0.attention.query") == 1
    (folder / "config.json").write_text(json.dumps(config | {"swiglu_limit": 7.0}))
    assert cli("scan", folder, "--gauge", "fixed").code == 0
    assert f"{2 * LAYERS} of them are not balanced: layers.0.mlp.up: " in cli("show", folder, "--gauge", "fixed").err


def test_rm_takes_a_gauge_and_leaves_what_is_kept_under_another_name(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, _ = model
    cli("scan", folder, "--weight", "none", "--weight", "norm", "--gauge", "raw", "--gauge", "fixed")
    assert f"{7 * LAYERS} + {7 * LAYERS} norm + {LAYERS} norm fixed + {2 * LAYERS} fixed" in cli("ls").out
    counted = json.loads(cli("ls", "--json").out)
    assert (counted["weighted"], counted["fixed"]) == ({"norm": 7 * LAYERS, "norm fixed": LAYERS}, 2 * LAYERS)
    ran = cli("rm", folder, "--weight", "norm", "--gauge", "fixed")
    assert ran.err == f"removed {LAYERS} spectra of {folder.name}: norm, gauge fixed\n"
    assert cli("rm", folder, "--gauge", "fixed").err == f"removed {2 * LAYERS} spectra of {folder.name}: gauge fixed\n"
    assert f"{7 * LAYERS} + {7 * LAYERS} norm " in cli("ls").out
    assert "in the gauge fixed: see  rankscope ls" in cli("rm", folder, "--gauge", "fixed").error
    again = rows_of(cli("scan", folder, "--gauge", "raw", "--gauge", "fixed", "--json").out)
    computed = {row["address"] for row in again if row["state"] == "done"}
    assert computed == {address for address in addresses(LAYERS) if address.endswith(("up", "down"))}
    assert cli("rm", folder, "--weight", "none", "--gauge", "raw").code == 0
    left = json.loads(cli("ls", "--json").out)
    assert (left["spectra"], left["weighted"], left["fixed"]) == (0, {"norm": 7 * LAYERS}, 2 * LAYERS)
    assert cli("rm", folder, "--gauge", "raw").code == 0  # under every weighting, with their noise
    assert cli("ls").out.split()[6:9] == ["0", "+", str(2 * LAYERS)]


def csv_of(cli: Run, folder: Path, *options: str | Path) -> dict[str, dict[str, str]]:
    """The table's rows with numbers, by address."""
    ran = cli("show", folder, "--gauge", "fixed", "--csv", "-t", "90", *options)
    return {row["address"]: row for row in csv.DictReader(ran.out.splitlines()) if row["k90"]}


@pytest.mark.parametrize("weight", ["none", "norm"])
def test_the_fixed_gauge_outlives_the_weights(model: tuple[Path, Arrays], cli: Run, weight: str) -> None:
    folder, _ = model
    cli("scan", folder, "--weight", weight, "--gauge", "raw", "--gauge", "fixed", "--weight", "none")
    before = csv_of(cli, folder, "--weight", weight)
    assert len(before) == 7 * LAYERS
    view = cli("show", folder, "--view", "gauge", "--csv").out
    shutil.rmtree(folder)
    assert csv_of(cli, folder, "--weight", weight) == before
    assert cli("show", folder, "--view", "gauge", "--csv").out == view
    ran = cli("scan", folder, "--weight", weight, "--gauge", "fixed")
    assert (ran.code, ran.err.count("Traceback")) == (2, 0)


def test_of_a_model_that_is_gone_nothing_passes_for_the_fixed_gauge(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, _ = model
    cli("scan", folder)
    cli("scan", folder, "--weight", "norm", "--filter", "*.mlp.*")
    cli("scan", folder, "--gauge", "fixed", "--filter", "layers.[01].mlp.up")
    shutil.rmtree(folder)
    found = set(csv_of(cli, folder))
    # Up under `norm` and down as stored are the fixed gauge in some families only; no products of values are stored.
    assert found == {f"layers.{n}.mlp.up" for n in (0, 1)} | {f"layers.{n}.mlp.gate" for n in range(LAYERS)}
    ran = cli("show", folder, "--gauge", "fixed")
    assert (
        f"{7 * LAYERS - len(found)} of them have no gauge that is known: it is not stored in the fixed gauge" in ran.err
    )


def test_of_a_model_that_is_gone_and_has_layer_norms_down_is_as_it_is(tmp_path: Path, cli: Run) -> None:
    folder = tmp_path / "gpt"
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=8, vocab_size=20)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    cli("scan", folder, "--gauge", "raw", "--gauge", "fixed")
    before, said = csv_of(cli, folder), cli("show", folder, "--gauge", "fixed").err
    assert len(before) == 12
    assert "not balanced" in said
    shutil.rmtree(folder)
    assert csv_of(cli, folder) == before
    assert said.splitlines()[-1] in cli("show", folder, "--gauge", "fixed").err

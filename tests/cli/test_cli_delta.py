"""`rankscope delta` and `show --side delta`: planted fine-tunes, against LAPACK in float64."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_models import CONFIG, HIDDEN, KV, SHAPES, Arrays, lapack, tensor_name, threshold_rank, write, write_llama
from cli_process import Run
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from rankscope.engine.derive.difference import is_delta
from rankscope.store.spectra import SpectraStore
from rankscope.tui.data.deltas import matched
from rankscope.tui.data.model import open_model

RANK = 3
GAIN = np.linspace(0.5, 2.0, HIDDEN)
"""The gains of A's norms."""
UNCHANGED = "layers.0.mlp.gate"
PLACES = [f"layers.0.{place}" for place in SHAPES]


def rows_of(out: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(out)))


def bfloat(matrix: Any) -> Any:
    return torch.tensor(matrix).bfloat16()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, tuple[Any, Any]]]:
    """A float32-trained base as bfloat16, and a fine-tune of rank 3 of the stored weights, but for one matrix."""
    root = tmp_path_factory.mktemp("tuned")
    rng = np.random.default_rng(0)
    held: dict[str, tuple[Any, Any]] = {}
    for address in PLACES:
        rows, cols = SHAPES[address.split(".", 2)[2]][1]
        before = bfloat(rng.standard_normal((rows, cols)) * 0.05)
        change = rng.standard_normal((rows, RANK)) @ rng.standard_normal((RANK, cols)) * 0.01
        after = before if address == UNCHANGED else bfloat(before.double().numpy() + change)
        held[address] = before, after
    for number, name in enumerate(("base", "tuned")):
        write(root / name, {})
        tensors = {tensor_name(address): pair[number].clone() for address, pair in held.items()}
        norm = torch.tensor(GAIN)
        norm[0] += number
        norms = {"input_layernorm": norm, "post_attention_layernorm": torch.ones(HIDDEN)}
        tensors |= {f"model.layers.0.{leaf}.weight": gain.clone() for leaf, gain in norms.items()}
        save_torch(tensors, root / name / "model.safetensors")
    return root / "base", root / "tuned", held


def test_a_planted_change_is_found_and_its_numbers_are_lapacks(tuned: Any, cli: Run) -> None:
    base, other, held = tuned
    ran = cli("delta", base, other, "-t", "90", "80")
    assert ran.code == 0, ran.err
    assert "tuned - base" in ran.out
    assert "1 of 7 are unchanged to the bit, 0 differ by no more than rounding" in ran.err
    shown = cli("show", base, "--against", other, "--view", "delta", "-t", "80", "90", "--csv")
    rows = rows_of(shown.out)
    assert [(row["threshold"], row["address"]) for row in rows] == [(t, at) for t in ("0.8", "0.9") for at in PLACES]
    found = {row["address"]: row for row in rows if row["threshold"] == "0.9"}
    for address, (before, after) in held.items():
        row, delta = found[address], (after.double() - before.double()).numpy()
        if address == UNCHANGED:
            assert (row["state"], row["rank"], row["above_rounding"], row["unchanged_share"]) == (
                "unchanged", "", "", "1.0",
            )  # fmt: skip
            continue
        sigma, (rows, cols) = lapack(delta), delta.shape
        k = threshold_rank(sigma, 0.9)
        assert (int(row["above_rounding"]), int(row["k"])) == (RANK, k)
        assert (int(row["rank"]), int(row["parameters"])) == (k, k * (rows + cols))
        assert float(row["stable_rank"]) == pytest.approx((sigma**2).sum() / sigma[0] ** 2)
        size = np.linalg.norm(before.double().numpy())
        assert float(row["relative_norm"]) == pytest.approx(np.linalg.norm(delta) / size)
        assert float(row["unchanged_share"]) == float((delta == 0).mean())
    line = next(line for line in ran.out.splitlines() if UNCHANGED in line)
    assert line.split()[1:4] == [f"{SHAPES['mlp.gate'][1][0]}x{HIDDEN}", "unchanged", "-"]


def test_values_lie_with_a_under_both_keys_and_outlive_both(tuned: Any, cli: Run, store: Path, tmp_path: Path) -> None:
    base, other = (Path(shutil.copytree(held, tmp_path / held.name)) for held in tuned[:2])
    assert cli("delta", base, other).code == 0
    first, second = open_model(str(base), store), open_model(str(other), store)
    (delta,) = matched(first, second, None, "layers.0.attention.key").deltas
    stored = SpectraStore(store, first.folder).stored()
    assert delta.key in stored
    assert sum(is_delta(stored.projection(key)) for key in stored) == len(PLACES)
    assert [p.key for p in stored.projection(delta.key).parents] == [p.key for p in delta.parents]
    assert {p.key for p in matched(second, first).deltas}.isdisjoint(stored)  # A - B is another matrix
    again = cli("delta", base, other)
    assert "/7" not in again.err, "nothing is computed twice"
    csv_of = ("show", base, "--against", other, "--view", "delta", "--csv")
    before = cli(*csv_of)
    for folder in (other, base):
        shutil.rmtree(folder)
        assert cli(*csv_of).out == before.out
    assert cli("show", base, "--against", tmp_path / "never", "--side", "delta").code == 2


@pytest.mark.parametrize("view", ["heatmap", "table", "spectrum", "energy", "layers"])
def test_every_view_shows_differences(tuned: Any, cli: Run, view: str) -> None:
    base, other, held = tuned
    name = "layers.0.attention.value"
    where = ("show", base, "--against", other, "--side", "delta", "--filter", name, "--view", view)
    early = cli(*where)
    assert (early.code, "run  rankscope delta" in early.err) == (2, True)
    cli("delta", base, other)
    ran = cli(*where, "--csv")
    assert ran.code == 0, ran.err
    sigma = lapack((held[name][1].double() - held[name][0].double()).numpy())
    rows = rows_of(ran.out)
    if view in ("spectrum", "energy"):
        assert [float(row["sigma"]) for row in rows] == pytest.approx(list(sigma), rel=1e-9)
    else:
        text = ran.out.replace("k90", "90")
        assert str(threshold_rank(sigma, 0.9)) in text
    assert "tuned - base" in cli(*where).out


def test_what_has_no_difference_is_listed(cli: Run, tmp_path: Path) -> None:
    """A resized vocabulary, another shape, a missing and a renamed matrix, norms and biases."""
    name = tensor_name
    held = write_llama(tmp_path / "a", layers=2)
    held |= {"model.layers.0.self_attn.q_proj.bias": np.zeros(HIDDEN, np.float32)}
    other: Arrays = {key: value.copy() for key, value in held.items()}
    other["model.embed_tokens.weight"] = np.ones((53, HIDDEN), np.float32)
    other[name("layers.0.mlp.up")] = np.ones((KV, HIDDEN), np.float32)
    other["extra.proj.weight"] = np.ones((7, 5), np.float32)
    del other[name("layers.1.attention.key")]
    other["model.layers.1.input_layernorm.weight"] *= 1.5
    renamed = other.pop("model.layers.0.self_attn.q_proj.bias")
    other["base.model.layers.0.self_attn.q_proj.bias"] = renamed
    for folder, arrays in (("a", held), ("b", other)):
        write(tmp_path / folder, arrays)
    ran = cli("delta", tmp_path / "a", tmp_path / "b")
    assert ran.code == 0
    lines = {line.partition(":")[0]: line for line in ran.err.splitlines()}
    assert "layers.0.mlp.up: 40 x 24 in A, 12 x 24 in B" in lines["other shapes"]
    assert "embed_tokens.weight: 50 x 24 in A, 53 x 24 in B" in lines["other shapes"]
    assert lines["only in A"].endswith("1: layers.1.attention.key")
    assert lines["only in B"].endswith("1: other.extra.proj.weight")
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert lines["renamed"].endswith(f"other.{bias} -> other.base.{bias}")
    changed = "2, 1 of them changed: other.model.layers.1.input_layernorm.weight |d|/|W| 5.00e-01"
    assert lines["norms, biases and other vectors"].endswith(changed)
    assert len(re.findall(r"^ *layers\.\d\.\S+ ", ran.out, re.MULTILINE)) == 12  # all but these two


def test_weighted_differences_are_lapacks(tuned: Any, cli: Run) -> None:
    """A's norms have gains: the difference is (W_B - W_A) diag(gain)."""
    base, other, held = tuned
    assert cli("delta", base, other, "--weight", "norm").code == 0
    shown = cli("show", base, "--against", other, "--view", "spectrum", "--side", "delta", "--weight", "norm", "--csv")
    sigma = [float(row["sigma"]) for row in rows_of(shown.out) if row["address"] == "layers.0.attention.key"]
    before, after = (matrix.double().numpy() for matrix in held["layers.0.attention.key"])
    assert sigma == pytest.approx(list(lapack((after - before) * GAIN)), rel=1e-9)


def test_of_quantised_weights_there_is_a_spectrum_and_no_advice(cli: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    name = tensor_name("layers.0.attention.key")
    write(tmp_path / "a", {name: rng.standard_normal((KV, HIDDEN)).astype(np.float32)})
    write(tmp_path / "b", {})
    weights = torch.tensor(rng.standard_normal((KV, HIDDEN)), dtype=torch.float32).to(torch.float8_e4m3fn)
    scale = torch.tensor(0.5)
    save_torch({name: weights, f"{name}_scale_inv": scale.reshape(1, 1)}, tmp_path / "b" / "model.safetensors")
    quantised = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (tmp_path / "b" / "config.json").write_text(json.dumps(CONFIG | quantised))
    ran = cli("delta", tmp_path / "a", tmp_path / "b")
    assert ran.code == 0, ran.err
    assert "no rank is advised for 1 of 1: A or B is quantised" in ran.err
    (row,) = rows_of(cli("show", tmp_path / "a", "--against", tmp_path / "b", "--view", "delta", "--csv").out)
    assert int(row["k"]) > 0
    assert (row["above_rounding"], row["rank"], row["parameters"]) == ("", "", "")


def test_two_roundings_of_one_original_are_no_change(cli: Run, tmp_path: Path) -> None:
    """The difference of A = bfloat16 and B = float16 of the same weights is A's rounding."""
    weights, name = torch.randn(KV, HIDDEN), tensor_name("layers.0.attention.key")
    for folder, dtype in (("a", torch.bfloat16), ("b", torch.float16)):
        write(tmp_path / folder, {})
        save_torch({name: weights.to(dtype)}, tmp_path / folder / "model.safetensors")
    for option, is_change in ((), True), (("--independent",), False):
        assert cli("delta", tmp_path / "a", tmp_path / "b", *option).code == 0
        shown = cli("show", tmp_path / "a", "--against", tmp_path / "b", "--view", "delta", "--csv", *option)
        (row,) = rows_of(shown.out)
        assert (int(row["above_rounding"]) > 0, int(row["rank"]) > 0) == (is_change, is_change)


def test_one_that_fails_is_named_and_the_others_are_there(cli: Run, tmp_path: Path) -> None:
    held = write_llama(tmp_path / "a", layers=1)
    broken = held[tensor_name("layers.0.mlp.up")].copy()
    broken[2, 3] = np.inf
    write_llama(tmp_path / "b", layers=1, changes={tensor_name("layers.0.mlp.up"): broken})
    ran = cli("delta", tmp_path / "a", tmp_path / "b")
    assert ran.code == 1
    assert "failed: layers.0.mlp.up delta: layers.0.mlp.up of B: " in ran.err
    cells = {words[0]: words[2] for line in ran.out.splitlines() if len(words := line.split()) > 5}
    assert cells["layers.0.mlp.up"] == "!"
    assert sum(cell == "unchanged" for cell in cells.values()) == len(SHAPES) - 1


def test_bad_use_is_one_line(tuned: Any, cli: Run, tmp_path: Path) -> None:
    base, other, _ = tuned
    save_file({"x": np.zeros((3, 3), np.float32)}, tmp_path / "x.safetensors")
    for words, why in (
        (("delta", base, tmp_path / "x.safetensors"), "no matrix is in both base and x, in one shape"),
        (("delta", base, other, "--filter", "nothing"), "no matrix matches 'nothing'"),
        (("show", base, "--view", "delta"), "name the second with --against MODEL"),
        (("show", base, "--against", other, "--side", "delta", "--unit", "k/kf"), "differences have no k/kf"),
        (("show", base, "--against", other, "--side", "delta", "--gauge", "fixed"), "leave out --gauge"),
    ):
        ran = cli(*words)
        assert ran.code == 2, words
        assert why in ran.err
        assert len(ran.err.splitlines()) == 1

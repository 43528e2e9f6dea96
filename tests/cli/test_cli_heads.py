"""`scan --derived heads` and `show --view heads`, against products formed explicitly and LAPACK."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import CONFIG, HIDDEN, Arrays, lapack, rows_of, tensor_name, threshold_rank, write, write_llama
from cli_process import Run
from safetensors.numpy import save_file

HEADS, KV, DIM = 4, 2, HIDDEN // 4


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Arrays]:
    folder = tmp_path / "model"
    return folder, write_llama(folder, changes={"model.layers.0.input_layernorm.weight": np.arange(1.0, HIDDEN + 1)})


def parts(held: Arrays, layer: int) -> dict[str, Any]:
    """Query, key and value by head, (heads, dim, hidden), and the output's columns by head, (heads, hidden, dim)."""
    found = {
        role: held[tensor_name(f"layers.{layer}.attention.{role}")].astype(np.float64)
        for role in ("query", "key", "value", "output")
    }
    by_head = {role: found[role].reshape(-1, DIM, HIDDEN) for role in ("query", "key", "value")}
    return by_head | {"output": found["output"].reshape(HIDDEN, HEADS, DIM).transpose(1, 0, 2)}


def explicit(held: Arrays, layer: int, gain: Any) -> dict[str, Any]:
    """By the end of the address the matrix of each row."""
    of, group = parts(held, layer), HEADS // KV
    found: dict[str, Any] = {}
    for h in range(HEADS):
        k, v = of["key"][h // group] * gain, of["value"][h // group] * gain
        found[f"head.{h}.query"] = of["query"][h] * gain
        found[f"head.{h}.qk"] = (of["query"][h] * gain).T @ k
        found[f"head.{h}.ov"] = of["output"][h] @ v
    for g in range(KV):
        k, v = of["key"][g] * gain, of["value"][g] * gain
        found |= {f"kv_head.{g}.key": k, f"kv_head.{g}.value": v}
        found[f"kv_head.{g}.ov"] = np.concatenate([of["output"][h] @ v for h in (2 * g, 2 * g + 1)])
    return found


def shown(cli: Run, folder: Path, *options: Any) -> dict[str, dict[str, str]]:
    ran = cli("show", folder, "--view", "heads", "--csv", "-t", "90", *options)
    assert ran.code == 0, ran.err
    return {row["address"]: row for row in csv.DictReader(ran.out.splitlines())}


def test_heads_are_computed_stored_and_shown(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    ran = cli("scan", folder, "--derived", "heads", "--weight", "none", "--weight", "norm", "--gauge", "raw", "--gauge",
              "fixed", "--filter", "layers.*.attention.*")  # fmt: skip
    assert (ran.code, "see rankscope show --view heads" in ran.err) == (0, True), ran.err
    gain = held["model.layers.0.input_layernorm.weight"]
    folded = [("--weight", "norm"), ("--gauge", "fixed")]
    for options, by in (((), np.ones(HIDDEN)), *((option, gain) for option in folded)):
        rows, wanted = shown(cli, folder, *options), explicit(held, 0, by)
        if options == ("--gauge", "fixed"):
            wanted = {at: matrix for at, matrix in wanted.items() if not at.endswith(".value")}
        ours = {at.removeprefix("layers.0.attention."): row for at, row in rows.items() if at.startswith("layers.0.")}
        assert ours.keys() == wanted.keys()
        for at, row in ours.items():
            assert int(row["k90"]) == threshold_rank(lapack(wanted[at])[:DIM], 0.9), (options, at)
            assert (row["state"], row["head"]) == ("stored", at.split(".")[1])
    table = cli("show", folder, "--view", "heads", "--of", "qk", "-t", "90", "--unit", "k/k0")
    assert "QK, offset 0, RoPE not applied: layers x heads" in table.out
    assert "k90/k0" not in table.out  # noise of a product's shape is not a product of noise
    assert "k90/k0" in cli("show", folder, "--view", "heads", "--of", "key", "-t", "90", "--unit", "k/k0").out


def test_a_plain_scan_and_its_totals_know_no_heads(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, _ = model
    ran = cli("scan", folder, "--json", "--derived", "heads", "--filter", "layers.1.*")
    heads = [row for row in rows_of(ran.out) if "head." in row["address"]]
    assert len(heads) == 3 * HEADS + 3 * KV
    assert all(row["derived"] for row in heads)
    assert len(list(csv.DictReader(cli("show", folder, "--csv").out.splitlines()))) == 14
    assert "(." not in cli("show", folder, "--view", "heads", "--of", "qk", "-t", "90").out
    line = next(x for x in cli("show", folder, "--view", "heads", "--of", "qk", "-t", "90").out.splitlines() if
                x.split()[:1] == ["0"])  # fmt: skip
    assert line.split()[1:] == ["."] * HEADS


def test_an_offset_turns_queries_as_the_model_does(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    assert cli("scan", folder, "--derived", "heads", "--offset", "7", "--filter", "layers.0.attention.*").code == 0
    rows = shown(cli, folder, "--offset", "7", "--of", "qk", "--filter", "layers.0.attention.*")
    of, half = parts(held, 0), DIM // 2
    angles = 7 * 10_000.0 ** (-2 * np.arange(half) / DIM)
    for h in range(HEADS):
        q = of["query"][h]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        turned = np.concatenate([q[:half] * cos - q[half:] * sin, q[half:] * cos + q[:half] * sin])
        wanted = lapack(turned.T @ of["key"][h // 2])[:DIM]
        row = rows[f"layers.0.attention.head.{h}.qk"]
        assert (int(row["k90"]), row["offset"]) == (threshold_rank(wanted, 0.9), "7")
    none = cli("show", folder, "--view", "heads", "--offset", "8", "--of", "qk")
    assert (none.code, "no heads are computed: run" in none.err) == (2, True)


def test_what_has_no_products_says_so(tmp_path: Path, cli: Run) -> None:
    normed, gated = tmp_path / "normed", tmp_path / "stretched"
    write_llama(normed, layers=1, changes={"model.layers.0.self_attn.q_norm.weight": np.ones(DIM, np.float32)})
    ran = cli("scan", normed, "--derived", "heads")
    assert (ran.code, "QK norm" in ran.err) == (0, True)
    assert not any(".qk" in at for at, row in shown(cli, normed).items() if row["state"] == "stored")
    write(gated, write_llama(gated, layers=1))
    (gated / "config.json").write_text(json.dumps(CONFIG | {"rope_scaling": {"type": "yarn", "factor": 2.0}}))
    refused = cli("scan", gated, "--derived", "heads", "--offset", "3")
    assert (refused.code, len(refused.err.strip().splitlines())) == (2, 1)
    assert "only offset 0" in refused.err
    clipped = tmp_path / "clipped"
    arrays = write_llama(clipped, layers=1)
    save_file(arrays, clipped / "model.safetensors")
    (clipped / "config.json").write_text(json.dumps(CONFIG | {"clip_qkv": 8.0}))
    ran = cli("scan", clipped, "--derived", "heads")
    assert (ran.code, ran.err.count("clip_qkv")) == (0, 1)


def test_a_sentence_stands_once_for_all_layers(tmp_path: Path, cli: Run) -> None:
    folder, layers = tmp_path / "normed", 5
    norms = {
        f"model.layers.{n}.self_attn.{x}_norm.weight": np.ones(DIM, np.float32) for n in range(layers) for x in "qv"
    }
    write_llama(folder, layers=layers, changes=norms)
    ran = cli("scan", folder, "--derived", "heads")
    said = [line for line in ran.err.splitlines() if "not computed: layers" in line]
    assert [line.split("and 4 more")[0] for line in said] == ["not computed: layers.0.attention "] * 2, ran.err
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_attention_heads": 5}))
    ran = cli("show", folder, "--view", "heads")
    assert (ran.code, len(ran.err.strip().splitlines())) == (2, 1)
    assert "layers.0.attention and 4 more: it is not known how many heads it has" in ran.err


def test_heads_outlive_the_weights(model: tuple[Path, Arrays], cli: Run) -> None:
    """Those of every state in which they were computed, the gauge's too, which are kept as those of the gains."""
    folder, _ = model
    both = ("--weight", "none", "--weight", "norm", "--filter", "layers.*.attention.*")
    assert cli("scan", folder, "--derived", "heads", *both, "--gauge", "raw", "--gauge", "fixed").code == 0
    assert cli("scan", folder, "--derived", "heads", "--offset", "3").code == 0
    states: list[tuple[str, ...]] = [(), ("--weight", "norm"), ("--gauge", "fixed"), ("--offset", "3"), ("--of", "ov")]
    before = [shown(cli, folder, *state) for state in states]
    assert all(before)
    shutil.rmtree(folder)
    for state, held in zip(states, before, strict=True):
        assert shown(cli, folder, *state) == held, state
    lost = cli("show", folder, "--view", "heads", "--offset", "4", "--of", "qk")
    assert (lost.code, "no heads are computed" in lost.err.splitlines()[-1]) == (2, True)
    assert cli("scan", folder, "--derived", "heads").code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--offset", "-1", "--derived", "heads"), "not a whole number"),
        (("--offset", "3"), "add --derived heads"),
        (("--derived", "tails"), "invalid choice"),
    ],
)
def test_wrong_use_is_one_line(model: tuple[Path, Arrays], cli: Run, options: tuple[str, ...], said: str) -> None:
    ran = cli("scan", model[0], *options)
    assert (ran.code, len(ran.err.strip().splitlines()), said in ran.err) == (2, 1, True), ran.err

"""`rankscope mla`, `scan --derived` and `show --view mla` of keys and values, against LAPACK and on the demo."""

from __future__ import annotations

import csv
import json
import queue
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_files import write_moments
from cli_models import HIDDEN, KV, Arrays, lapack, rows_of, tensor_name, write, write_llama
from cli_process import Run
from mla_looking import elsewhere, smallest, table

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Event
from rankscope.engine.derive.latent import way
from rankscope.tui.cli.commands import compute
from rankscope.tui.data.latent_layers import layers_of
from rankscope.tui.data.model import open_model
from rankscope.tui.data.session import Session

LAYERS = 2
NOT_QUALITY = "A rank is not quality: "
PATIENCE = 60.0


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Arrays]:
    folder = tmp_path / "model"
    return folder, write_llama(folder, layers=LAYERS)


def pair(held: Arrays, layer: int) -> list[Any]:
    return [held[tensor_name(f"layers.{layer}.attention.{role}")].astype(np.float64) for role in ("key", "value")]


def stack_rank(key: Any, value: Any, t: float) -> int:
    stacked = np.concatenate([key / np.linalg.norm(key), value / np.linalg.norm(value)])
    return smallest(lapack(stacked), (1 - t) * 2)


def test_ranks_cache_and_norms_are_lapacks(model: tuple[Path, Arrays], cli: Run, tmp_path: Path) -> None:
    folder, held = model
    ran = cli("mla", folder, "-t", "80", "95", "-o", tmp_path / "mla.json")
    assert ran.code == 0, ran.err
    said = json.loads((tmp_path / "mla.json").read_text())
    assert (said["schema"], said["rope"]["way"], said["balance"], said["bias"]) == (1, "recompute", "whole", "leave")
    assert [of["threshold"] for of in said["thresholds"]] == [0.8, 0.95]
    for of in said["thresholds"]:
        t = of["threshold"]
        for n, layer in enumerate(of["layers"]):
            key, value = pair(held, n)
            k = stack_rank(key, value, t)
            query = lapack(held[tensor_name(f"layers.{n}.attention.query")])
            assert (layer["address"], layer["k"], layer["cache"]) == (f"layers.{n}.attention", k, k)
            assert (layer["full"], layer["of"], layer["bits"]) == (2 * KV, min(HIDDEN, 2 * KV), 32)
            assert layer["saved"] == pytest.approx(1 - k / (2 * KV))
            assert layer["q_lora_rank"] == smallest(query, (1 - t) * (query**2).sum())
            assert layer["norm_key"] == pytest.approx(np.linalg.norm(key), rel=1e-12)
            assert layer["norm_value"] == pytest.approx(np.linalg.norm(value), rel=1e-12)
            assert len(layer["parents"].split()) == 2
    ranks = [layer["k"] for layer in said["thresholds"][1]["layers"]]
    over = said["thresholds"][1]["over_layers"]["kv_lora_rank"]
    assert over == {"min": min(ranks), "median": np.median(ranks), "max": max(ranks)}
    rows = table(ran.out)
    assert [rows[str(n)][0] for n in range(LAYERS)] == [str(k) for k in ranks]
    assert rows["DeepSeek-V2"] == ["512", "512+64", str(2 * KV), f"{100 * (1 - 576 / (2 * KV)):.1f}", "1536"]
    assert ran.out.splitlines()[-1].startswith(NOT_QUALITY)
    assert f"{LAYERS} layers keep {sum(ranks)} of {4 * KV} numbers a token" in ran.out
    again = cli("mla", folder)
    assert again.code == 0
    assert "failed" not in again.err  # all of it was stored


@pytest.mark.parametrize("balance", ["whole", "own", "none"])
def test_ways_and_balances_from_the_command_line(model: tuple[Path, Arrays], cli: Run, balance: str) -> None:
    """The pairs of highest frequency of each of the 2 heads of 6 rows keep RoPE: rows 0 and 3 of each."""
    folder, held = model
    options = ("--rope", "per-head:2:high", "--balance", balance)
    assert cli("mla", folder, *options).code == 0
    ran = cli("show", folder, "--view", "mla", *options, "--csv")
    for n, row in enumerate(csv.DictReader(ran.out.splitlines())):
        key, value = pair(held, n)
        rest = np.delete(key, [0, 3, 6, 9], axis=0)
        if balance == "whole":
            both = np.concatenate([rest / np.linalg.norm(key), value / np.linalg.norm(value)])
            k = smallest(lapack(both), 0.1 * 2)
        elif balance == "own":
            k = stack_rank(rest, value, 0.9)
        else:
            both = np.concatenate([rest, value])
            k = smallest(lapack(both), 0.1 * ((key**2).sum() + (value**2).sum()))
        assert (int(row["k"]), int(row["cache"]), int(row["of"])) == (k, k + 4, 2 * KV - 4)
        assert float(row["rope_share"]) == pytest.approx(1 - (rest**2).sum() / (key**2).sum())
        assert float(row["saved"]) == pytest.approx(1 - (k + 4) / (2 * KV))
    assert cli("show", folder, "--view", "mla", *options).out.splitlines()[-1].startswith(NOT_QUALITY)


def test_under_moments_and_with_biases(tmp_path: Path, cli: Run) -> None:
    rng = np.random.default_rng(3)
    biases = {"k_proj": rng.standard_normal(KV) * 5, "v_proj": rng.standard_normal(KV)}
    changes = {f"model.layers.0.self_attn.{name}.bias": b.astype(np.float32) for name, b in biases.items()}
    folder = tmp_path / "biased"
    held = write_llama(folder, layers=1, changes=changes)
    inputs = rng.standard_normal((HIDDEN, 90)) * rng.exponential(1, (HIDDEN, 1)) + 1.0
    key, value = pair(held, 0)
    name = tensor_name("layers.0.attention.query")
    shared = {"inputs": json.dumps({name.replace("q_proj", x): name for x in biases})}
    sums = {f"{name}.xx": inputs @ inputs.T, f"{name}.count": np.array([90.0])}
    without = write_moments(tmp_path / "no_mean.safetensors", sums, **shared)
    moments = write_moments(tmp_path / "m.safetensors", sums | {f"{name}.x": inputs.sum(1)}, **shared)
    outputs = key @ inputs, value @ inputs
    ran = cli("mla", folder, "--weight", moments, "-o", tmp_path / "a.json")
    assert ran.code == 0, ran.err
    assert "weighted by moments m.safetensors" in ran.out
    assert "Biases of keys and values are left out" in ran.out
    assert json.loads((tmp_path / "a.json").read_text())["thresholds"][0]["layers"][0]["k"] == stack_rank(*outputs, 0.9)
    ran = cli("mla", folder, "--weight", moments, "--bias", "append", "-o", tmp_path / "b.json")
    assert ran.code == 0, ran.err
    (layer,) = json.loads((tmp_path / "b.json").read_text())["thresholds"][0]["layers"]
    wide = [x + held[f"model.layers.0.self_attn.{n}.bias"][:, None] for x, n in zip(outputs, biases, strict=True)]
    assert layer["k"] == stack_rank(*wide, 0.9)
    assert layer["norm_key"] == pytest.approx(np.linalg.norm(wide[0]) / np.sqrt(90), rel=1e-9)
    elsewhere(folder, moments, way("recompute", bias=True))
    shown = ("show", folder, "--view", "mla", "--weight", moments, "--bias", "append")
    assert cli(*shown).code == 0
    assert "removed" in cli("rm", folder, "--weight", moments).err
    assert cli(*shown).code == 2  # the stack with its biases too
    assert cli("mla", folder, "--weight", f"centred:{moments}").code == 0
    assert "removed" in cli("rm", folder, "--weight", f"centred:{moments}").err
    for refused in (("--weight", without), ("--weight", "norm"), ()):
        ran = cli("mla", folder, "--bias", "append", *refused)
        assert ran.code == 2
        assert "mean" in ran.err


def test_a_scan_computes_stacks_only_where_they_are_asked_for(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, held = model
    assert cli("scan", folder).code == 0
    counted = cli("ls").out
    missing = cli("show", folder, "--view", "mla")
    assert (missing.code, "run  rankscope mla" in missing.err) == (2, True)
    ran = cli("scan", folder, "--derived", "--weight", "none", "--weight", "norm", "--json")
    rows = [row for row in rows_of(ran.out) if row["role"] == "key_value"]
    rows.sort(key=lambda row: (row["weighting"] or "", row["address"]))  # they come as they are saved
    assert [(row["address"], row["weighting"]) for row in rows] == [
        (f"layers.{n}.attention.key_value", by) for by in (None, "norm") for n in range(LAYERS)
    ]
    assert [row["ranks"]["0.9"] for row in rows[:LAYERS]] == [stack_rank(*pair(held, n), 0.9) for n in range(LAYERS)]
    assert re.search(rf"\b{7 * LAYERS}\b", counted)
    assert re.search(rf"\b{7 * LAYERS} \+ {5 * LAYERS} norm\b", cli("ls").out)  # no total has stacks
    assert cli("show", folder, "--view", "mla", "--weight", "norm").code == 0
    assert cli("mla", folder, "--weight", "norm", "--rope", "decoupled:2").code == 0
    assert cli("rm", folder, "--weight", "norm").code == 0
    gone = cli("show", folder, "--view", "mla", "--weight", "norm", "--rope", "decoupled:2")
    assert (gone.code, "run  rankscope mla" in gone.err) == (2, True)
    assert "key_value" not in cli("show", folder, "--csv").out
    only = cli("scan", folder, "--derived", "--filter", "*.mlp.up")
    assert (only.code, "nothing is derived" in only.err) == (0, True)


def test_what_is_stored_is_shown_of_a_model_that_is_gone(model: tuple[Path, Arrays], cli: Run) -> None:
    folder, _ = model
    ways = [("--rope", "decoupled:4"), ("--weight", "norm"), ("--rope", "decoupled:4", "--real")]
    before = []
    for options in ways:
        assert cli("mla", folder, *options).code == 0
        before.append(table(cli("show", folder, "--view", "mla", *options).out))
    shutil.rmtree(folder)
    for options, rows in zip(ways, before, strict=True):
        ran = cli("show", folder, "--view", "mla", *options)
        assert ran.code == 0, ran.err
        assert table(ran.out) == rows
    assert cli("show", folder, "--view", "mla", "--rope", "decoupled:2").code == 2


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (("--rope", "decoupled:3"), "name an even number"),
        (("--rope", "decoupled:14"), "12 rows are rotated, fewer than"),
        (("--rope", "per-head:8"), "6 rows are rotated, fewer than"),
        (("--rope", "sideways"), "--rope must be recompute, decoupled:D"),
        (("--real",), "--real goes with --rope decoupled:D"),
        (("--filter", "*.mlp.up"), "no layer with a cache matches"),
        (("-o", "/nowhere/mla.json"), "cannot write"),
    ],
)
def test_wrong_use_is_a_line(model: tuple[Path, Arrays], cli: Run, options: tuple[str, ...], wrong: str) -> None:
    ran = cli("mla", model[0], *options)
    assert ran.code == 2
    assert wrong in ran.err
    assert ran.err.splitlines()[-1].startswith("rankscope: ")


def test_an_encoder_has_no_cache_and_heatmaps_take_no_rope(tmp_path: Path, cli: Run) -> None:
    folder = tmp_path / "bert"
    rng = np.random.default_rng(0)
    write(
        folder,
        {f"encoder.layer.0.attention.self.{r}.weight": rng.standard_normal((8, 8)) for r in ("query", "key", "value")},
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "num_attention_heads": 2, "hidden_size": 8}))
    ran = cli("mla", folder)
    assert (ran.code, "there is no cache to make smaller" in ran.err) == (2, True)
    for more in (("--against", folder), ("--gauge", "fixed")):
        ran = cli("show", folder, "--view", "mla", *more)
        assert (ran.code, "leave out --against and --gauge" in ran.err) == (2, True)
    ran = cli("show", folder, "--rope", "decoupled:2")
    assert (ran.code, "--rope goes with --view mla" in ran.err) == (2, True)


def test_the_demo(cli: Run, store: Path) -> None:
    """The figures that the project was begun with: medians over its 30 layers at 90 %. Its queries, which take most of
    the time, are left out."""
    events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()
    model = open_model("demo", store)
    session = Session(model, store, events.put, ComputeSettings("cpu", 1))
    session.load()
    ways = [way("recompute"), way("decoupled:64")]
    compute(session, [layer.joint for w in ways for layer in layers_of(model, w, None)], events, False, None, ())
    session.close(PATIENCE)
    for chosen, k, share in zip(ways, (193.5, 160.5), (None, "0.45"), strict=True):
        ran = cli("show", "demo", "--view", "mla", "--rope", chosen.text)
        assert ran.code == 0, ran.err
        median = table(ran.out)["median"]
        assert float(median[0]) == k
        assert share is None or median[4] == share
        assert len([words for words in table(ran.out) if words.isdigit()]) == 30


def test_a_layer_that_fails_is_named_and_the_others_are_shown(tmp_path: Path, cli: Run) -> None:
    held = write_llama(tmp_path / "whole")
    name = tensor_name("layers.1.attention.key")
    broken = held[name].copy()
    broken[2, 3] = np.nan
    write(tmp_path / "broken", held | {name: broken})
    ran = cli("mla", tmp_path / "broken", "--rope", "decoupled:4")
    assert ran.code == 1
    assert "failed: layers.1.attention.key_value" in ran.err
    assert "layers.1.attention.key: the weights hold NaN" in ran.err
    rows = table(ran.out)
    assert rows["1"][0] == "!"
    assert rows["0"][0] == rows["median"][0]

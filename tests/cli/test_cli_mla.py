"""`rankscope mla`, `scan --derived` and `show --view mla`, against LAPACK and on the demo."""

from __future__ import annotations

import csv
import json
import queue
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from calibration_files import write_moments
from cli_models import HIDDEN, KV, Arrays, lapack, rows_of, tensor_name, write, write_llama
from cli_process import Run

from rankscope.engine.compute.engine import Settings
from rankscope.engine.compute.events import Event
from rankscope.engine.compute.opened import Opened
from rankscope.engine.compute.remote_batch import light
from rankscope.engine.derive.latent import Way, way
from rankscope.tui.cli.commands import compute
from rankscope.tui.data.mla import layers_of
from rankscope.tui.data.model import open_model
from rankscope.tui.data.session import Session
from rankscope.tui.data.weighting import choose

LAYERS = 2
NOT_QUALITY = "A rank is not quality: "
PATIENCE = 60.0


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Arrays]:
    folder = tmp_path / "model"
    return folder, write_llama(folder, layers=LAYERS)


def smallest(sigma: Any, most: float) -> int:
    """The first k whose tail is at most that."""
    return next(k for k in range(len(sigma) + 1) if (sigma[k:] ** 2).sum() <= most * (1 + 1e-12))


def pair(held: Arrays, layer: int) -> list[Any]:
    return [held[tensor_name(f"layers.{layer}.attention.{role}")].astype(np.float64) for role in ("key", "value")]


def stack_rank(key: Any, value: Any, t: float) -> int:
    stacked = np.concatenate([key / np.linalg.norm(key), value / np.linalg.norm(value)])
    return smallest(lapack(stacked), (1 - t) * 2)


def table(out: str) -> dict[str, list[str]]:
    """The lines of the last table by their first word."""
    return {
        words[0]: words[1:] for line in out.splitlines() if len(words := line.split()) > 4 and words[2][:4] != "keep"
    }


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


def elsewhere(folder: Path, weight: Path | None, chosen: Way) -> None:
    """What is computed of a model comes whole out of another process that has opened the same files."""
    model = open_model(str(folder), folder / "store")
    assert model.checkpoint is not None
    under = None if weight is None else choose(str(weight), model, folder / "store", print)
    for p in (p for layer in layers_of(model, chosen, under) for p in layer.wanted if p.derived is not None):
        assert p.derived is not None
        there = Opened([model.checkpoint]).whole(light(p)).derived
        assert there is not None
        for ours, theirs in zip(p.derived.operands, there.operands, strict=True):
            assert ours.load is not None
            assert theirs.load is not None
            np.testing.assert_array_equal(ours.load(), theirs.load())


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


def mla_checkpoint(folder: Path, with_query_factors: bool = True) -> Arrays:
    """A layer of DeepSeek-V3's names: 3 heads, latents of 10 (queries) and 8, gains of either sign."""
    rng = np.random.default_rng(1)
    heads, nope, rope, v, q_lora, kv_lora = 3, 4, 2, 5, 10, 8
    shapes = {
        "q_a_proj": (q_lora, HIDDEN),
        "q_b_proj": (heads * (nope + rope), q_lora),
        "kv_a_proj_with_mqa": (kv_lora + rope, HIDDEN),
        "kv_b_proj": (heads * (nope + v), kv_lora),
        "o_proj": (HIDDEN, heads * v),
    }
    arrays = {f"model.layers.0.self_attn.{n}.weight": rng.standard_normal(s) for n, s in shapes.items()}
    arrays |= {
        f"model.layers.0.self_attn.{n}_a_layernorm.weight": rng.standard_normal(c) for n, c in (("q", 10), ("kv", 8))
    }
    arrays["model.layers.0.input_layernorm.weight"] = np.ones(HIDDEN)
    if not with_query_factors:
        for name in ("q_a_proj", "q_b_proj", "q_a_layernorm"):
            del arrays[f"model.layers.0.self_attn.{name}.weight"]
        arrays["model.layers.0.self_attn.q_proj.weight"] = rng.standard_normal((heads * (nope + rope), HIDDEN))
        q_lora = None
    write(folder, arrays)
    config = {"model_type": "deepseek_v3", "hidden_size": HIDDEN, "num_attention_heads": heads, "q_lora_rank": q_lora}
    config |= {"kv_lora_rank": kv_lora, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": v}
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": heads}))
    return arrays


def test_latent_attention_is_held_against_its_own_ranks(tmp_path: Path, cli: Run) -> None:
    held = mla_checkpoint(tmp_path / "mla")
    ran = cli("mla", tmp_path / "mla", "-t", "90", "-o", tmp_path / "mla.json")
    assert ran.code == 0, ran.err
    (layer,) = json.loads((tmp_path / "mla.json").read_text())["thresholds"][0]["layers"]
    own = {n.split(".")[4]: w for n, w in held.items() if "self_attn" in n}

    def rank(matrix: Any) -> int:
        sigma = lapack(matrix)
        return smallest(sigma, 0.1 * (sigma**2).sum())

    kv_a = own["kv_a_proj_with_mqa"][:8]
    products = [own["kv_b_proj"] @ np.diag(own["kv_a_layernorm"]) @ kv_a]
    products.append(own["q_b_proj"] @ np.diag(own["q_a_layernorm"]) @ own["q_a_proj"])
    assert [layer["k"], layer["q_b q_a_k"]] == [rank(p) for p in products]
    assert [layer["of"], layer["q_b q_a_of"]] == [8, 10]
    assert [layer["kv_a_k"], layer["query_a_k"]] == [rank(kv_a), rank(own["q_a_proj"])]
    assert f"kv_lora_rank is 8: the product kv_b kv_a takes {rank(products[0])} of it" in ran.out
    assert table(ran.out)["of"][0] == "8"
    assert cli("show", tmp_path / "mla", "--view", "mla").out == ran.out
    elsewhere(tmp_path / "mla", None, way("recompute"))
    behind = cli("mla", tmp_path / "mla", "--weight", "norm", "-o", tmp_path / "norm.json")
    assert behind.code == 0, behind.err
    (layer,) = json.loads((tmp_path / "norm.json").read_text())["thresholds"][0]["layers"]
    assert layer["k"] == rank(own["kv_b_proj"] * own["kv_a_layernorm"])


def mla_gguf(file: Path, held: Arrays) -> None:
    """The same as llama.cpp's converter writes it since April 2025: of kv_b the keys of each head, turned, and the
    values of each head; one KV head, as it multiplies by them."""
    names = {"q_a_proj": "attn_q_a", "q_b_proj": "attn_q_b", "q_a_layernorm": "attn_q_a_norm", "o_proj": "attn_output"}
    names |= {"kv_a_proj_with_mqa": "attn_kv_a_mqa", "kv_a_layernorm": "attn_kv_a_norm", "input_layernorm": "attn_norm"}
    writer = gguf.GGUFWriter(str(file), "deepseek2")
    writer.add_head_count(3)
    writer.add_head_count_kv(1)
    writer.add_embedding_length(HIDDEN)
    writer.add_kv_lora_rank(8)
    writer.add_rope_dimension_count(2)
    writer.add_key_length(8 + 2)
    writer.add_value_length(8)
    writer.add_key_length_mla(4 + 2)
    writer.add_value_length_mla(5)
    writer.add_block_count(1)
    for name, array in held.items():
        if (module := name.split(".")[-2]) in names:
            writer.add_tensor(f"blk.0.{names[module]}.weight", array)
        elif module == "kv_b_proj":
            heads = array.reshape(3, 4 + 5, 8)
            writer.add_tensor("blk.0.attn_k_b.weight", np.ascontiguousarray(heads[:, :4].transpose(0, 2, 1)))
            writer.add_tensor("blk.0.attn_v_b.weight", np.ascontiguousarray(heads[:, 4:]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_heads_of_a_gguf_file_are_the_rows_of_the_models_own(tmp_path: Path, cli: Run) -> None:
    """Every factor and both products have the same singular values, and mla says the same of both files."""
    mla_gguf(tmp_path / "mla.gguf", mla_checkpoint(tmp_path / "mla"))
    found = []
    for model in (tmp_path / "mla", tmp_path / "mla.gguf"):
        ran = cli("scan", model, "--derived", "mla", "--weight", "none", "--weight", "norm")
        assert ran.code == 0, ran.err
        ran = cli("show", model, "--view", "spectrum", "--csv", "--filter", "*.attention.*")
        found.append({(row["address"], row["k"]): float(row["sigma"]) for row in csv.DictReader(ran.out.splitlines())})
        ran = cli("show", model, "--view", "mla", "--csv", "--weight", "norm")
        found.append(
            {
                (name, ""): number
                for name, number in next(csv.DictReader(ran.out.splitlines())).items()
                if name.endswith(("k", "of"))
            }
        )
    assert {address.rpartition(".")[2] for address, _ in found[0]} == {
        *("query_a", "query_b", "kv_a", "key_rope", "key_b", "value_b", "output", "key_value", "query_product")
    }
    assert found[0] == pytest.approx(found[2], rel=1e-9)
    assert found[1] == found[3]


def test_stacks_and_products_are_in_the_views_of_show(tmp_path: Path, cli: Run) -> None:
    """What a filter names of them, with and without factors of the queries, as it is and behind the norm."""
    held = mla_checkpoint(tmp_path / "lite", with_query_factors=False)
    own = {n.split(".")[4]: w for n, w in held.items() if "self_attn" in n}
    missing = cli("show", tmp_path / "lite", "--filter", "*.key_value")
    assert (missing.code, "scan" in missing.err) == (2, True)
    assert cli("scan", "--derived", tmp_path / "lite", "--weight", "none", "--weight", "norm").code == 0
    products = {"none": own["kv_b_proj"] * own["kv_a_layernorm"] @ own["kv_a_proj_with_mqa"][:8]}
    products["norm"] = own["kv_b_proj"] * own["kv_a_layernorm"]
    for weight, product in products.items():
        sigma = lapack(product)
        k = smallest(sigma, 0.1 * (sigma**2).sum())
        ran = cli("show", tmp_path / "lite", "-t", "90", "--filter", "*.key_value", "--weight", weight)
        assert ran.code == 0, ran.err
        assert [line.split() for line in ran.out.splitlines()[1:3]] == [["layer", "key_value"], ["0", str(k)]]
    ran = cli("show", tmp_path / "lite", "--view", "table", "--csv", "--filter", "*.attention.*")
    rows = {row["address"].split(".")[-1]: row for row in csv.DictReader(ran.out.splitlines())}
    assert {role: row["lora_rank"] for role, row in rows.items() if row["lora_rank"]} == dict.fromkeys(
        ("kv_a", "key_b", "value_b", "key_value"), "8"
    )
    ran = cli("show", tmp_path / "lite", "--view", "spectrum", "--csv", "--filter", "layers.0.attention.key_value")
    sigma = [float(row["sigma"]) for row in csv.DictReader(ran.out.splitlines())]
    assert np.allclose(sigma, lapack(products["none"])[:8], rtol=1e-10)
    assert "key_value" not in cli("show", tmp_path / "lite").out
    wrong = cli("scan", "--derived", "head", tmp_path / "lite")
    assert (wrong.code, "--derived: 'head' is none of all, mla, heads" in wrong.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (("--rope", "decoupled:3"), "name an even number"),
        (("--rope", "decoupled:14"), "12 rows are rotated, fewer than"),
        (("--rope", "per-head:8"), "6 rows are rotated, fewer than"),
        (("--rope", "sideways"), "is none of recompute, decoupled:D"),
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
    session = Session(model, store, events.put, Settings("cpu", 1))
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

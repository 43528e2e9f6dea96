"""Latent attention as it is, of checkpoints and GGUF files: its factors against their ranks, and their products."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import gguf
import h5py
import numpy as np
import pytest
from cli_models import HIDDEN, Arrays, lapack, write
from cli_process import Run
from mla_looking import elsewhere, smallest, table

from rankscope.engine.derive.latent import way


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


def test_heads_of_a_gguf_file_are_the_rows_of_the_models_own(tmp_path: Path, cli: Run) -> None:
    """Every factor and both products have the same singular values, and mla says the same of both files."""
    mla_gguf(tmp_path / "mla.gguf", mla_checkpoint(tmp_path / "mla"))
    found = []
    for model in (tmp_path / "mla", tmp_path / "mla.gguf"):
        ran = cli("scan", model, "--derived", "mla", "--weight", "none", "--weight", "norm")
        assert ran.code == 0, ran.err
        assert "parts of whole" not in ran.err
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
    run = cli("scan", "--derived", tmp_path / "lite", "--weight", "norm", "--filter", "*.key_value", "--json")
    assert [json.loads(line)["address"] for line in run.out.splitlines()] == ["layers.0.attention.key_value"]
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
    wrong = cli("scan", "--derived=head", tmp_path / "lite")
    assert (wrong.code, "--derived: invalid choice: 'head'" in wrong.err) == (2, True)
    assert "model 2 of 2" in cli("scan", "--derived", "small", tmp_path / "lite").err


def test_stacks_and_products_are_in_exports_where_a_filter_names_them(tmp_path: Path, cli: Run) -> None:
    held = mla_checkpoint(tmp_path / "lite", with_query_factors=False)
    own = {n.split(".")[4]: w for n, w in held.items() if "self_attn" in n}
    products = {"norm": own["kv_b_proj"] * own["kv_a_layernorm"]}
    products["none"] = products["norm"] @ own["kv_a_proj_with_mqa"][:8]
    assert cli("scan", "--derived", tmp_path / "lite", "--weight", "none", "--weight", "norm").code == 0
    for weight, product in products.items():
        words = ("--filter", "*.key_value", "--weight", weight)
        assert cli("export", tmp_path / "lite", *words, "-o", tmp_path / "a.npz").code == 0
        (values,) = np.load(tmp_path / "a.npz").values()
        assert np.allclose(values[:8], lapack(product)[:8], rtol=1e-10)
        assert len(values) == 8
    for layout in ("index", "groups"):
        words = ("--filter", "*.attention.*", "--layout", layout)
        assert cli("export", tmp_path / "lite", *words, "-o", tmp_path / "a.h5").code == 0
    with h5py.File(tmp_path / "a.h5") as file:
        values = file["layers/0/attention/key_value/singular_values"][:]
        assert np.allclose(values, lapack(products["none"])[:8], rtol=1e-10)
    assert cli("export", tmp_path / "lite", "-o", tmp_path / "a.csv").code == 0
    assert "key_value" not in (tmp_path / "a.csv").read_text()

"""Adapters and checkpoints of low rank on the command line: what is computed, what is counted, what is refused."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from applied import planned, saved, views
from cli_process import Run
from factor_files import M, fused, peft, two
from safetensors.numpy import save_file

from rankscope.engine.plan.plan_file import write_plan


def test_a_scan_computes_the_products_and_says_what_it_counts(cli: Run, tmp_path: Path) -> None:
    files = peft()
    model = files.write(tmp_path / "adapter")
    ran = cli("scan", model, "--device", "cpu")
    assert ran.code == 0
    assert "5 of 15 spectra: scale x B A, 10: their factors" in ran.err
    assert cli("ls").out.splitlines()[1].split()[1] == "15"
    listed = {row["address"]: row for row in cli("scan", model, "--json").rows}
    assert len(listed) == 15
    assert listed["layers.1.attention.value"]["derived"] is not None
    tree = cli("tree", model).out
    assert re.search(r"^layers\.1\.attention\.value +24 x 20 +3\.5 B A, r 4 +stored", tree, re.MULTILINE)
    (tmp_path / "gone").mkdir()
    shutil.move(model, tmp_path / "gone")
    shown = cli("show", model, "--view", "table", "--csv")
    assert {row["address"] for row in csv.DictReader(shown.out.splitlines())} == set(listed)


def test_noise_of_a_product_is_one_of_factors(cli: Run, tmp_path: Path) -> None:
    """k/k0 near 1 of a product of noise, where a matrix of noise of its shape has a k0 of three times as much."""
    b, a, _ = two(1, 96, 96, 24)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    (tmp_path / "m").mkdir()
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "m" / "adapter_model.safetensors")
    cli("scan", tmp_path / "m", "--device", "cpu")
    rows = csv.DictReader(cli("show", tmp_path / "m", "--view", "table", "--csv").out.splitlines())
    (row,) = [row for row in rows if row["address"] == "layers.0.attention.query"]
    assert float(row["k/k0"]) == pytest.approx(1, abs=0.06)
    assert int(row["spikes"]) <= 1
    assert float(row["percent"]) == pytest.approx(100 * int(row["k90"]) / 24)


def test_against_a_base_and_another_adapter(cli: Run, tmp_path: Path) -> None:
    adapter, other = peft().write(tmp_path / "adapter"), peft().write(tmp_path / "other")
    (other / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 24, "use_rslora": true}')
    weights = {f"model.layers.{n}.self_attn.q_proj.weight": two(n, M, 20, 20)[2].astype("f4") for n in range(2)}
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base" / "model.safetensors")
    for model in (adapter, other, tmp_path / "base"):
        assert cli("scan", model, "--device", "cpu").code == 0
    shown = cli("show", adapter, "--against", tmp_path / "base", "--view", "table", "--csv")
    assert shown.code == 0
    found = {row["address"]: row for row in csv.DictReader(shown.out.splitlines())}
    assert found["layers.0.attention.query"]["shapes_differ"] == "False"
    shown = cli("show", adapter, "--against", other, "--view", "compare", "--filter", "layers.0.attention.query").out
    (row,) = [words for line in shown.splitlines() if (words := line.split())[:1] == ["sigma_1"]]
    first, second = map(float, row[1:3])
    assert second / first == pytest.approx(2, rel=1e-3)  # alpha is twice as much


def test_what_needs_the_matrix_itself_is_refused_in_words(cli: Run, tmp_path: Path) -> None:
    model = fused().write(tmp_path / "m")
    factors = "it is stored as two factors: only their product as it is can be computed"
    assert factors in cli("inspect", model, "layers.0.attention.query", "--device", "cpu").error
    assert factors in cli("scan", model, "--weight", "norm").error
    assert factors in cli("scan", model, "--gauge", "fixed").error
    assert "keeps keys and values" in cli("mla", model).error
    ran = cli("scan", model, "--null", "flip", "--derived", "--device", "cpu")
    assert ran.code == 0
    assert "2 spectra with random signs are stored" in ran.err
    plan = cli("plan", model, "--cut", "20", "-o", tmp_path / "plan.json")
    assert plan.code == 2
    assert f"3 are not planned: layers.0.attention.query: {factors}" in plan.err


def test_no_difference_is_made_of_what_is_held_as_two_factors(cli: Run, tmp_path: Path) -> None:
    adapter = peft().write(tmp_path / "adapter")
    weights = {f"model.layers.{n}.self_attn.q_proj.weight": two(n, M, 20, 20)[2].astype("f4") for n in range(2)}
    weights["model.layers.0.self_attn.o_proj.weight"] = two(5, 20, 20, 20)[2].astype("f4")
    for name in ("base", "mixed"):
        (tmp_path / name).mkdir()
    save_file(weights, tmp_path / "base" / "model.safetensors")
    for pair in ((tmp_path / "base", adapter), (adapter, tmp_path / "base")):
        ran = cli("delta", *pair, "--device", "cpu")
        assert ran.code == 2
        assert ran.err.splitlines()[-1].startswith("rankscope: no matrix is in both ")
        assert "layers.0.attention.query is stored as two factors, whose difference is not computed" in ran.err
    name = "model.layers.0.self_attn.q_proj.weight"
    b, a, _ = two(1, M, 20, 3)
    mixed = {f"{name.removesuffix('.weight')}.lora_A.weight": a, f"{name.removesuffix('.weight')}.lora_B.weight": b}
    mixed |= {n: 2 * w for n, w in weights.items() if n != name}
    save_file(mixed, tmp_path / "mixed" / "model.safetensors")
    ran = cli("delta", tmp_path / "base", tmp_path / "mixed", "--device", "cpu")
    assert ran.code == 0
    assert "two factors: 1: layers.0.attention.query" in ran.err
    assert "layers.1.attention.query" in ran.out


def test_a_broken_adapter_config_is_named(cli: Run, tmp_path: Path) -> None:
    model = fused().write(tmp_path / "m")
    (model / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not valid JSON" in cli("scan", model).error


@pytest.mark.parametrize("family", ["phi3", "gpt2", "mixtral"])
def test_what_apply_writes_as_factors_is_opened_as_their_products(family: str, cli: Run, tmp_path: Path) -> None:
    model = saved(family, tmp_path / "m")
    found = views(family, transformers.AutoModelForCausalLM.from_pretrained(model))
    ranks = {address: 3 for n, address in enumerate(found) if n % 5 != 4}
    write_plan(tmp_path / "plan.json", planned(model, ranks))
    assert cli("apply", tmp_path / "plan.json", "--model", model, "-o", tmp_path / "two").code == 0
    assert cli("scan", tmp_path / "two", "--device", "cpu").code == 0
    assert cli("export", tmp_path / "two", "-o", tmp_path / "all.npz").code == 0
    held = np.load(tmp_path / "all.npz")
    for address, rank in ranks.items():
        leading = np.linalg.svd(found[address].detach().double().numpy(), compute_uv=False)[:rank]
        np.testing.assert_allclose(held[address], leading, rtol=2e-6, err_msg=address)

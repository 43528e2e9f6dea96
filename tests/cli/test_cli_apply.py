"""`rankscope apply`: the models that it writes, run by transformers, against models truncated by scipy in memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from applied import Views, llama, planned, saved, truncated, views
from calibration_files import write_moments
from cli_process import PROGRAM, Run, spawn
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from tiny_gguf import write_llama

from rankscope.engine.atomic import HOST, temporary_folder
from rankscope.engine.calibration import running
from rankscope.engine.calibration.file_weighting import open_weighting
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.derive.norm_weighting import NormWeighting
from rankscope.engine.moment import digest_of_moments
from rankscope.engine.plan.plan_file import Plan, PlanWeighting, write_plan
from rankscope.tui.cli import apply as command

DOCS = Path(__file__).parents[2] / "docs" / "PLAN.md"
IDS = torch.arange(1, 40)[None]
KILLED = f"""
import os, signal
from rankscope.engine.plan import rewritten
made, count = rewritten.factors, iter(range(1, 100))
def a_few(*given):
    if next(count) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return made(*given)
rewritten.factors = a_few
{PROGRAM}
"""


def ranks_of(found: Views) -> dict[str, int]:
    """A rank for four matrices in five: some parts of fused tensors are kept."""
    return {address: 3 + n % 9 for n, address in enumerate(found) if n % 5 != 4}


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS).logits.double()


def truncate(found: Views, ranks: Mapping[str, int], second: Mapping[str, Any] | None = None) -> None:
    """Truncate the matrices in the running model."""
    with torch.no_grad():
        for address, rank in ranks.items():
            made, _ = truncated(found[address].double().numpy(), rank, (second or {}).get(address))
            found[address].copy_(torch.tensor(made))


def running_model(folder: Path) -> Any:
    (kind,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(transformers, kind).from_pretrained(folder)


def loaded_by_docs(folder: Path) -> Any:
    """A model loaded by the loader that the docs print."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)
    return names["load"](folder)


def written_plan(file: Path, plan: Plan) -> Path:
    write_plan(file, plan)
    return file


def errors_of(out: str) -> dict[str, tuple[float, float]]:
    """The planned and the written error by address, read from the output."""
    rows = [line.split() for line in out.splitlines()[1:]]
    return {row[0]: (float(row[2]), float(row[3])) for row in rows}


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "mixtral"])
def test_transformers_gives_the_logits_of_the_truncated_model(family: str, tmp_path: Path, cli: Run) -> None:
    model = saved(family, tmp_path / "m", shards="20KB" if family == "llama" else "1GB")
    run = running_model(model)
    found = views(family, run)
    ranks = ranks_of(found)
    plan = planned(model, ranks)
    assert {row.address for row in plan.rows} == set(found)
    file = written_plan(tmp_path / "plan.json", plan)
    merged = cli("apply", file, "--model", model, "-o", tmp_path / "merged", "--merge")
    factored = cli("apply", file, "--model", model, "-o", tmp_path / "two")
    truncate(found, ranks)
    true = logits(run)
    for made in (running_model(tmp_path / "merged"), loaded_by_docs(tmp_path / "two")):
        torch.testing.assert_close(logits(made), true, rtol=0, atol=1e-4 * float(true.abs().max()))
    for ran in (merged, factored):
        assert ran.code == 0
        assert set(errors_of(ran.out)) == set(ranks)
        for planned_error, error in errors_of(ran.out).values():
            assert error == pytest.approx(planned_error, abs=2e-6)
    left = sum(row.parameters for row in plan.rows if row.rank is not None)
    before = sum(row.shape[0] * row.shape[1] for row in plan.rows if row.rank is not None)
    assert f": {left:,} ({left:,} by the plan) in the place of {before:,}" in factored.err
    held = [load_file(path) for path in (tmp_path / "two").glob("*.safetensors")]
    numbers = sum(tensor.numel() for tensors in held for tensor in tensors.values())
    whole = sum(tensor.numel() for path in model.glob("*.safetensors") for tensor in load_file(path).values())
    assert numbers == whole - before + left
    assert f"{numbers:,} numbers are in " in factored.err
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == sorted(p.name for p in model.iterdir())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def weighted(tmp_path: Path) -> tuple[Path, Path, dict[str, Any], Plan]:
    """A llama, a file of its full moments, their C by address, and a plan under them."""
    model = saved("llama", tmp_path / "m")
    rng, sums, second = np.random.default_rng(5), {}, {}
    for p in build_tree(open_checkpoint(str(model))).scanned():
        x = (rng.standard_normal((90, p.cols)) * 10.0 ** rng.uniform(-2, 1, p.cols)).astype(np.float32)
        sums |= {f"{p.tensor}.xx": x.T @ x, f"{p.tensor}.count": np.array([90.0])}
        second[p.address] = (x.T @ x).astype(np.float64) / 90
    file = write_moments(tmp_path / "moments.safetensors", sums)
    ranks = ranks_of(views("llama", running_model(model)))
    checkpoint = open_checkpoint(str(model))
    opened = open_weighting(str(file), "m", checkpoint.config)
    seen = digest_of_moments(opened, build_tree(checkpoint).scanned())
    about = PlanWeighting("moments", "moments of a test", seen, pooled=False)
    return model, file, second, planned(model, ranks, second, weighting=about)


def test_a_plan_under_moments_needs_the_file_with_their_numbers(
    weighted: tuple[Path, Path, dict[str, Any], Plan], tmp_path: Path, cli: Run
) -> None:
    model, file, second, plan = weighted
    given = ("apply", written_plan(tmp_path / "plan.json", plan), "--model", model, "-o", tmp_path / "out", "--merge")
    assert "was made under moments of a test: name its file with --weight FILE" in cli(*given).error
    assert "name its file with --weight FILE" in cli(*given, "--weight", "norm").error
    held = dict(np.load(file)) if file.suffix == ".npz" else {k: v.numpy() for k, v in load_file(file).items()}
    first = next(name for name in held if name.endswith(".xx"))
    other = write_moments(tmp_path / "other.safetensors", held | {first: held[first] * 2})
    ran = cli(*given, "--weight", other)
    assert "other second moments than" in ran.err.splitlines()[-1]
    assert (ran.code, (tmp_path / "out").exists()) == (2, False)
    again = write_moments(tmp_path / "again.safetensors", dict(reversed(held.items())))
    ran = cli(*given, "--weight", again)
    assert ran.code == 0
    for planned_error, error in errors_of(ran.out).values():
        assert error == pytest.approx(planned_error, abs=2e-6)
    run = running_model(model)
    truncate(views("llama", run), {r.address: r.rank for r in plan.rows if r.rank}, second)
    true = logits(run)
    torch.testing.assert_close(logits(running_model(tmp_path / "out")), true, rtol=0, atol=1e-3)


def test_a_plan_of_experts_pools_what_the_file_holds_of_them(tmp_path: Path, cli: Run) -> None:
    model = saved("mixtral", tmp_path / "m")
    rng, sums = np.random.default_rng(6), {}
    for p in build_tree(open_checkpoint(str(model))).scanned():
        count = 90 if p.expert is None else (40, 3, 0)[p.expert]
        x = rng.standard_normal((count, p.cols)) * 10.0 ** rng.uniform(-2, 1, p.cols)
        sums |= {f"{p.tensor}.x2": (x**2).sum(0).astype(np.float32), f"{p.tensor}.count": np.array([float(count)])}
    file, plan, out = write_moments(tmp_path / "x2.safetensors", sums), tmp_path / "plan.json", tmp_path / "out"
    sizes = ("--cut", "40%", "--min-rank", "2", "--multiple", "2")
    assert cli("plan", model, *sizes, "--weight", file, "-o", plan).code == 0
    assert json.loads(plan.read_text())["weighting"]["pooled"] is True
    assert "pooled: name its file with --weight FILE" in cli("apply", plan, "-o", out).error
    ran = cli("apply", plan, "-o", out, "--weight", file)  # the model is found among those with a store
    assert ran.code == 0
    assert [address for address in errors_of(ran.out) if ".expert.2." in address]
    for planned_error, error in errors_of(ran.out).values():
        assert error == pytest.approx(planned_error, abs=2e-6)


def test_a_plan_under_the_gains_of_norms_needs_no_file(tmp_path: Path, cli: Run) -> None:
    model = saved("llama", tmp_path / "m")
    held = load_file(model / "model.safetensors")
    tree = build_tree(open_checkpoint(str(model))).scanned()
    names = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
    wanted = [p for p in tree if p.role not in ("output", "down")]
    gains = {p.address: held[f"model.layers.{p.layer}.{names[p.block]}.weight"].double().numpy() for p in wanted}
    second = {address: np.diag(gain**2) for address, gain in gains.items()}
    seen = digest_of_moments(NormWeighting(open_checkpoint(str(model))), tree)
    about = PlanWeighting("norm", "norm gains", seen, pooled=False)
    plan = planned(model, dict.fromkeys(second, 5), second, weighting=about)
    given = ("apply", written_plan(tmp_path / "plan.json", plan), "--model", model, "-o", tmp_path / "out")
    assert "leave --weight out" in cli(*given, "--weight", "moments.safetensors").error
    ran = cli(*given)
    assert len(errors_of(ran.out)) == len(second)
    for planned_error, error in errors_of(ran.out).values():
        assert error == pytest.approx(planned_error, abs=2e-6)


def test_what_is_refused_before_anything_is_written(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = saved("llama", tmp_path / "m"), saved("llama", tmp_path / "n", torch.float16)
    plan = planned(model, {"layers.0.mlp.up": 4})
    file, out = written_plan(tmp_path / "plan.json", plan), tmp_path / "out"
    given = ("apply", file, "--model", model, "-o", out)
    line = cli("apply", file, "--model", other, "-o", out).error
    assert "14 of the 14 matrices of the plan are not in this model with the same content" in line
    assert "name the planned model with --model" in cli("apply", file, "-o", out).error
    assert "leave --weight out" in cli(*given, "--weight", "norm").error
    pifa = written_plan(tmp_path / "pifa.json", planned(model, {"layers.0.mlp.up": 4}, cost="pifa"))
    assert "add --merge" in cli("apply", pifa, "--model", model, "-o", out).error
    kept = written_plan(tmp_path / "kept.json", planned(model, {}))
    assert "keeps every projection" in cli("apply", kept, "--model", model, "-o", out).error
    assert "is not empty" in cli("apply", file, "--model", model, "-o", model).error
    assert "is a file" in cli("apply", file, "--model", model, "-o", file).error
    shape = replace(plan, rows=tuple(replace(r, shape=(r.shape[1], r.shape[0])) for r in plan.rows))
    turned = written_plan(tmp_path / "turned.json", shape)
    assert "as the plan says" in cli("apply", turned, "--model", model, "-o", out).error
    monkeypatch.setattr(command, "free", lambda _: 1000)
    assert "1.0 kB are free in" in cli(*given).error
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"m", "n"}


def test_matrices_on_a_device_of_torch_give_the_same(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved("phi3", tmp_path / "m", torch.bfloat16)
    file = written_plan(tmp_path / "p.json", planned(model, {"layers.0.mlp.up": 4, "layers.1.attention.key": 5}))
    for name in ("numpy", "torch"):
        assert cli("apply", file, "--model", model, "-o", tmp_path / name, "--merge", "--device", "cpu").code == 0
        monkeypatch.setattr(command, "moved", lambda matrix, _: torch.tensor(matrix))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("numpy", "torch"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_empty_folder_is_taken_and_pifa_merges(tmp_path: Path, cli: Run) -> None:
    model, out = saved("llama", tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    plan = planned(model, {"layers.0.mlp.up": 4}, cost="pifa")
    assert cli("apply", written_plan(tmp_path / "p.json", plan), "--model", model, "-o", out, "--merge").code == 0
    assert (out / "model.safetensors").is_file()


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_ended_in_the_middle_it_leaves_no_checkpoint(tmp_path: Path) -> None:
    model, out = saved("llama", tmp_path / "m"), tmp_path / "out"
    ranks = {f"layers.{n}.mlp.{role}": 4 for n in (0, 1) for role in ("up", "gate", "down")}
    file = written_plan(tmp_path / "p.json", planned(model, ranks))
    ran = spawn("apply", file, "--model", model, "-o", out, "--merge", program=KILLED)
    assert ran.code == 128 + signal.SIGTERM
    assert ran.err.splitlines()[-1].endswith(f"stopped by SIGTERM; nothing is written to {out}")
    assert (out.exists(), hidden(tmp_path)) == (False, [])


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, own = (tmp_path / f".tmp-{HOST}-{pid}-{'0' * 16}" for pid in (gone.pid, os.getpid()))
    for folder in (left, own):
        (folder / "made").mkdir(parents=True)
    with temporary_folder(tmp_path) as folder:
        assert sorted(hidden(tmp_path)) == sorted([own, folder])
    assert hidden(tmp_path) == [own]


def test_types_stay_unless_one_is_named(tmp_path: Path, cli: Run) -> None:
    model = saved("llama", tmp_path / "m", torch.bfloat16, tie_word_embeddings=True)
    held = load_file(model / "model.safetensors")
    held["model.norm.weight"] = held["model.norm.weight"].float()
    save_file(held, model / "model.safetensors", {"format": "pt"})
    file = written_plan(tmp_path / "p.json", planned(model, {"layers.0.mlp.up": 4}))
    for words, out in (((), "stored"), (("--dtype", "float32"), "wide")):
        ran = cli("apply", file, "--model", model, "-o", tmp_path / out, "--merge", *words)
        assert errors_of(ran.out).keys() == {"layers.0.mlp.up"}
    stored, wide = (load_file(tmp_path / out / "model.safetensors") for out in ("stored", "wide"))
    assert stored.keys() == wide.keys() == held.keys()
    up = "model.layers.0.mlp.up_proj.weight"
    assert {name: tensor.dtype for name, tensor in stored.items()} == {n: t.dtype for n, t in held.items()}
    assert all(torch.equal(stored[name], held[name]) for name in held if name != up)
    assert all(torch.equal(wide[name], held[name].float()) for name in held if name != up)
    made = torch.tensor(truncated(held[up].double().numpy(), 4)[0])
    assert torch.equal(stored[up], made.float().bfloat16())
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    assert (tmp_path / "stored" / "config.json").read_bytes() == (model / "config.json").read_bytes()


def test_numbers_that_the_type_does_not_hold(tmp_path: Path, cli: Run) -> None:
    model = saved("llama", tmp_path / "m")
    held = load_file(model / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"] *= 1e6
    save_file(held, model / "model.safetensors", {"format": "pt"})
    file = written_plan(tmp_path / "p.json", planned(model, {"layers.0.mlp.up": 4}))
    ran = cli("apply", file, "--model", model, "-o", tmp_path / "out", "--dtype", "float16")
    assert (ran.code, (tmp_path / "out").exists()) == (2, False)
    assert "up_proj.weight" in ran.err.splitlines()[-1]
    assert "name another --dtype" in ran.err.splitlines()[-1]


def test_quantised_weights_are_written_as_the_numbers_they_stand_for(tmp_path: Path, cli: Run) -> None:
    model = saved("llama", tmp_path / "m")
    held = load_file(model / "model.safetensors")
    true = {}
    config = json.loads((model / "config.json").read_text())
    for name in [name for name in held if name.endswith("_proj.weight")]:
        stem, scale = name.removesuffix("weight"), torch.rand(len(held[name]), 1) + 0.5
        packed = held[name].to(torch.float8_e4m3fn)
        held |= {name: packed, f"{stem}weight_scale": scale, f"{stem}input_scale": torch.ones(1)}
        true[name] = packed.double() * scale.double()
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    save_file(held, model / "model.safetensors", {"format": "pt"})
    (model / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    file = written_plan(tmp_path / "p.json", planned(model, {"layers.1.mlp.down": 6}))
    assert cli("apply", file, "--model", model, "-o", tmp_path / "out", "--merge").code == 0
    run, known = running_model(tmp_path / "out"), running_model(saved("llama", tmp_path / "dense"))
    down = "model.layers.1.mlp.down_proj.weight"
    true[down] = torch.tensor(truncated(true[down].numpy(), 6)[0])
    known.load_state_dict(known.state_dict() | {name: matrix.float() for name, matrix in true.items()})
    torch.testing.assert_close(logits(run), logits(known), rtol=0, atol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "scale" in name]


def test_a_matrix_that_pytorch_stores_under_two_names_changes_under_both(tmp_path: Path, cli: Run) -> None:
    matrix = torch.randn(20, 12)
    names = [f"layers.{n}.self_attn.k_proj.weight" for n in (0, 1)]
    torch.save(
        {**dict.fromkeys(names, matrix), "layers.0.mlp.up_proj.weight": torch.randn(9, 12).T}, tmp_path / "m.bin"
    )
    plan = planned(tmp_path / "m.bin", {"layers.0.attention.key": 3})
    plan = replace(plan, rows=tuple(row for row in plan.rows if row.address != "layers.1.attention.key"))
    file = written_plan(tmp_path / "p.json", plan)
    ran = cli("apply", file, "--model", tmp_path / "m.bin", "-o", tmp_path / "out", "--merge")
    assert "is not tested" in ran.err
    assert "no config.json" in ran.err
    written = load_file(tmp_path / "out" / "model.safetensors")
    true = torch.tensor(truncated(matrix.numpy(), 3)[0]).float()
    for name in names:
        torch.testing.assert_close(written[name], true)
    assert written["layers.0.mlp.up_proj.weight"].shape == (12, 9)


def test_a_stack_of_matrices_keeps_what_is_not_planned(tmp_path: Path, cli: Run) -> None:
    """gpt-oss has its experts in one tensor (experts, input, output), with gate and up in alternate columns."""
    torch.manual_seed(1)
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "head_dim": 8}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "m")
    ranks = {"layers.0.expert.1.gate": 3, "layers.0.expert.2.gate": 4, "layers.0.expert.2.up": 5}
    ranks |= {"layers.0.expert.0.down": 2}
    file = written_plan(tmp_path / "p.json", planned(tmp_path / "m", ranks))
    for words in (("--merge",), ()):
        assert cli("apply", file, "--model", tmp_path / "m", "-o", tmp_path / f"o{len(words)}", *words).code == 0
    experts = model.model.layers[0].mlp.experts
    found = {f"layers.0.expert.{e}.gate": experts.gate_up_proj[e][:, ::2].T for e in range(3)}
    found |= {f"layers.0.expert.{e}.up": experts.gate_up_proj[e][:, 1::2].T for e in range(3)}
    found |= {f"layers.0.expert.{e}.down": experts.down_proj[e].T for e in range(3)}
    truncate(found, ranks)
    true = logits(model.eval())
    for made in (running_model(tmp_path / "o1"), loaded_by_docs(tmp_path / "o0")):
        torch.testing.assert_close(logits(made.eval()), true, rtol=0, atol=1e-4)


def gguf_model(file: Path, kind: GGMLQuantizationType, architecture: str = "llama") -> tuple[Any, dict[str, Any]]:
    """A llama, and the numbers that its GGUF file holds."""
    torch.manual_seed(3)
    model = llama(intermediate_size=64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model, write_llama(file, model, kind, architecture)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.F32], ids=lambda kind: kind.name)
def test_a_gguf_file_becomes_a_checkpoint_of_transformers(kind: GGMLQuantizationType, tmp_path: Path, cli: Run) -> None:
    model, numbers = gguf_model(tmp_path / "m.gguf", kind)
    ranks = ranks_of(views("llama", model))
    plan = planned(tmp_path / "m.gguf", ranks)
    given = ("apply", written_plan(tmp_path / "p.json", plan), "--model", tmp_path / "m.gguf", "-o")
    merged, factored = cli(*given, tmp_path / "o1", "--merge"), cli(*given, tmp_path / "o0")
    for ran in (merged, factored):
        assert ran.code == 0
        assert set(errors_of(ran.out)) == set(ranks)
        for planned_error, error in errors_of(ran.out).values():
            assert error == pytest.approx(planned_error, abs=1e-5)
    dtype = torch.float16 if kind == GGMLQuantizationType.Q8_0 else torch.float32
    held = {name: torch.tensor(array) for name, array in numbers.items()}
    model.load_state_dict(held)
    truncate(views("llama", model), ranks)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtype).float()
        assert parameter.shape == load_file(tmp_path / "o1" / "model.safetensors")[name].shape
    true = logits(model)
    for made in (running_model(tmp_path / "o1"), loaded_by_docs(tmp_path / "o0")):
        assert made.dtype == dtype
        torch.testing.assert_close(logits(made.float()), true, rtol=0, atol=2e-3 * float(true.abs().max()))
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "o1")
    assert tokens("cab", add_special_tokens=False)["input_ids"] == [2, 26]


def test_gguf_files_that_transformers_cannot_take(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.gguf"
    gguf_model(file, GGMLQuantizationType.F32, "plamo")
    plan = planned(file, {"layers.0.attention.query": 4})
    given = ("apply", written_plan(tmp_path / "p.json", plan), "--model", file, "-o", tmp_path / "out")
    ran = cli(*given)
    assert (ran.code, (tmp_path / "out").exists()) == (2, False)
    assert "transformers cannot load m" in ran.err.splitlines()[-1]
    assert "plamo" in ran.err.splitlines()[-1]
    monkeypatch.setattr(running, "find_spec", lambda _: None)
    assert "pip install 'rankscope-tui[calibrate]'" in cli(*given).error

"""`rankscope plan`: what it writes and prints, held against LAPACK and against the formulas."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_files import Stats, write_gguf, write_moments
from cli_models import CONFIG, HIDDEN, INNER, Arrays, addresses, lapack, tensor_name, write, write_llama
from cli_process import Run
from numpy.typing import NDArray

from rankscope.engine.plan.plan_file import Plan, PlanRow, read_plan

LAST = "ranks from weights and second moments, no training; check with perplexity"
SMALL = ("--min-rank", 2, "--multiple", 2)
RNG = np.random.default_rng(17)
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    folder = tmp_path_factory.mktemp("models") / "llama"
    return folder, write_llama(folder)


def made(cli: Run, model: Path, folder: Path, *words: str | int | Path, code: int = 0) -> tuple[Plan, str, str]:
    ran = cli("plan", model, "-o", folder / "plan.json", *map(str, words))
    assert ran.code == code, ran.err
    return read_plan(folder / "plan.json"), ran.out, ran.err


def tail(matrix: Array, rank: int | None) -> float:
    squares = lapack(matrix) ** 2
    return 0.0 if rank is None else float(squares[rank:].sum() / squares.sum())


def root(moments: Array) -> Array:
    values, vectors = np.linalg.eigh(moments)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def held(row: PlanRow, matrix: Array) -> None:
    """A row against the matrix that it is of."""
    assert row.shape == matrix.shape
    assert row.energy == pytest.approx(1 - tail(matrix, row.rank), abs=1e-9)
    assert (row.action == "keep") == (row.rank is None)


def second_moments(names: list[str], seed: int = 0) -> dict[str, tuple[Array, int]]:
    """Sums of x x^T, and over how many tokens."""
    found = {}
    for name in names:
        rng = np.random.default_rng([seed, *name.encode()])
        cols = INNER if name.endswith("down") else HIDDEN
        x = rng.standard_normal((70, cols)) * np.logspace(0, -1, cols)
        found[name] = (x.T @ x, len(x))
    return found


def moments_file(file: Path, names: list[str], seed: int = 0) -> Path:
    sums: dict[str, Any] = {}
    for name, (xx, count) in second_moments(names, seed).items():
        sums |= {f"{tensor_name(name)}.xx": xx, f"{tensor_name(name)}.count": np.array([count], np.int64)}
    return write_moments(file, sums)


def test_a_plan_of_the_weights_as_they_are(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    model, arrays = llama
    plan, out, err = made(cli, model, tmp_path, "--cut", "20%", *SMALL)
    assert [row.address for row in plan.rows] == addresses()
    for row in plan.rows:
        held(row, arrays[row.tensor].astype(np.float64))
        assert row.tensor == tensor_name(row.address)
    whole = sum(math.prod(row.shape) for row in plan.rows)
    assert plan.budget == whole - math.ceil(0.2 * whole)
    assert plan.parameters <= plan.budget
    lost = sum(math.prod(row.shape) * tail(arrays[row.tensor], row.rank) for row in plan.rows) / whole
    assert plan.loss == pytest.approx(lost, rel=1e-9)
    assert 0 <= plan.bound <= plan.loss
    assert (plan.weighting, plan.commit, plan.objective, plan.of, plan.uniform) == (
        None,
        None,
        "parameters",
        "projections",
        False,
    )
    assert "weights only: at this cut the model is likely to break; give an imatrix or moments" in err
    assert out.splitlines()[-1] == LAST
    cut = whole - plan.parameters
    stored = sum(array.size for array in arrays.values())
    assert f"{whole:,} -> {whole - cut:,} parameters: {100 * cut / whole:.2f} % cut" in out
    assert f"{stored:,} -> {stored - cut:,} parameters: {100 * cut / stored:.2f} % cut" in out
    energy = 100 * np.mean([row.energy for row in plan.rows])
    assert f"{energy:.2f} %  kept on average; the uniform plan" in out
    assert f"{plan.budget:,} parameters, {plan.parameters:,} used" in out
    # Whoever asks again computes nothing, and gets the same.
    again, _, said = made(cli, model, tmp_path, "--cut", "0.2", *SMALL)
    assert again == plan
    assert "/s" not in said


def test_a_plan_under_second_moments(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    model, arrays = llama
    file = moments_file(tmp_path / "m.safetensors", addresses())
    plan, out, err = made(cli, model, tmp_path, "--cut", "30%", *SMALL, "--weight", file)
    moments = second_moments(addresses())
    for row in plan.rows:
        sums, count = moments[row.address]
        held(row, arrays[row.tensor].astype(np.float64) @ root(sums / count))
    assert plan.weighting is not None
    assert (plan.weighting.name, plan.weighting.pooled) == ("moments", False)
    assert plan.weighting.label.startswith("moments m.safetensors")
    assert "weighting       moments m.safetensors" in out
    assert "weights only" not in err
    raw, _, _ = made(cli, model, tmp_path, "--cut", "30%", *SMALL)
    assert [row.key for row in raw.rows] == [row.key for row in plan.rows]
    # Another file of the same numbers is the same weighting, one of others is not.
    shutil.copy(file, tmp_path / "copy.safetensors")
    moments_file(tmp_path / "other.safetensors", addresses(), 1)
    digests = []
    for name in ("copy", "other"):
        found, _, _ = made(cli, model, tmp_path, "--cut", "30%", *SMALL, "--weight", tmp_path / f"{name}.safetensors")
        assert found.weighting is not None
        digests.append(found.weighting.digest)
    assert digests[0] == plan.weighting.digest != digests[1]


def test_uniform_gives_all_the_same_share(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    plan, out, _ = made(cli, llama[0], tmp_path, "--cut", "40%", "--min-rank", 1, "--multiple", 1, "--uniform")
    for row in plan.rows:
        m, n = row.shape
        assert row.rank == int(0.6 * m * n / (m + n))
    assert "uniform plan" not in out
    found, _, _ = made(cli, llama[0], tmp_path, "--cut", "40%", "--min-rank", 1, "--multiple", 1)
    assert found.loss <= plan.loss
    assert found.bound == plan.bound


def test_pivoted_rows_hold_more_rank(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    plan, _, _ = made(cli, llama[0], tmp_path, "--cut", "20%", *SMALL)
    pifa, _, _ = made(cli, llama[0], tmp_path, "--cut", "20%", *SMALL, "--cost", "pifa")
    assert pifa.cost == "pifa"
    assert pifa.parameters <= pifa.budget
    for row in pifa.rows:
        assert row.rank is None or row.parameters == row.rank * (sum(row.shape) - row.rank)
    assert pifa.loss < plan.loss


def test_of_total_cuts_a_share_of_all_that_is_stored(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    model, arrays = llama
    plan, out, _ = made(cli, model, tmp_path, "--cut", "20%", "--of", "total", *SMALL)
    stored = sum(array.size for array in arrays.values())
    whole = sum(math.prod(row.shape) for row in plan.rows)
    assert whole - plan.parameters >= 0.2 * stored > whole - plan.parameters - 2 * (HIDDEN + INNER)
    assert plan.budget == whole - math.ceil(0.2 * stored)
    assert f"{stored:,} -> " in out


@pytest.mark.parametrize("objective", ["relative", "absolute"])
def test_other_objectives(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path, objective: str) -> None:
    model, arrays = llama
    plan, _, _ = made(cli, model, tmp_path, "--cut", "25%", *SMALL, "--objective", objective)
    counts = [
        1.0 if objective == "relative" else float((arrays[row.tensor].astype(float) ** 2).sum()) for row in plan.rows
    ]
    lost = sum(w * tail(arrays[row.tensor], row.rank) for w, row in zip(counts, plan.rows, strict=True))
    assert plan.loss == pytest.approx(lost / sum(counts), rel=1e-6)


def test_a_filter_plans_a_part(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    plan, _, err = made(cli, llama[0], tmp_path, "--cut", "20%", *SMALL, "--filter", "layers.1.mlp")
    assert [row.address for row in plan.rows] == [a for a in addresses() if a.startswith("layers.1.mlp")]
    assert "left out" not in err


def test_what_has_no_moments_stays_as_it_is(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    without = [name for name in addresses() if not name.endswith("attention.value")]
    file = moments_file(tmp_path / "m.safetensors", without)
    plan, _, err = made(cli, llama[0], tmp_path, "--cut", "30%", *SMALL, "--weight", file)
    rows = {row.address: row for row in plan.rows}
    for layer in range(2):
        row = rows[f"layers.{layer}.attention.value"]
        assert (row.action, row.energy, row.parameters) == ("keep", 1.0, math.prod(row.shape))
    assert "2 of them are kept as they are: layers.0.attention.value: " in err
    assert plan.parameters <= plan.budget == sum(math.prod(row.shape) for row in plan.rows) * 7 // 10


def test_what_cannot_be_computed_stays_as_it_is(cli: Run, tmp_path: Path) -> None:
    broken = np.full((HIDDEN, HIDDEN), np.nan, np.float32)
    write_llama(tmp_path / "m", changes={tensor_name("layers.1.attention.query"): broken})
    plan, _, err = made(cli, tmp_path / "m", tmp_path, "--cut", "20%", *SMALL, code=1)
    assert [row.action for row in plan.rows if row.address == "layers.1.attention.query"] == ["keep"]
    assert "failed: layers.1.attention.query: " in err
    assert "1 of them are kept as they are: layers.1.attention.query: " in err
    assert plan.parameters <= plan.budget


def test_tensors_that_share_bytes_count_once(cli: Run, tmp_path: Path) -> None:
    arrays = write_llama(tmp_path / "m")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors[tensor_name("layers.1.mlp.up")] = tensors[tensor_name("layers.0.mlp.up")]
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "m" / "pytorch_model.bin")
    plan, out, _ = made(cli, tmp_path / "m", tmp_path, "--cut", "20%", *SMALL)
    assert [row.address for row in plan.rows] == [a for a in addresses() if a != "layers.1.mlp.up"]
    assert f"{sum(array.size for array in arrays.values()) - HIDDEN * INNER:,} -> " in out


def test_whole_numbers_are_no_parameters(cli: Run, tmp_path: Path) -> None:
    positions = {"model.positions": np.arange(60).reshape(2, 30)}
    arrays = write_llama(tmp_path / "m", changes=positions)
    plan, out, err = made(cli, tmp_path / "m", tmp_path, "--cut", "20%", *SMALL, "--filter", "*")
    assert "other.model.positions" not in [row.address for row in plan.rows]
    assert "other.model.embed_tokens.weight" in [row.address for row in plan.rows]
    assert "1 are not planned: other.model.positions: I64 holds whole numbers" in err
    assert f"of total        {sum(a.size for a in arrays.values()) - 60:,} -> " in out
    ran = cli("plan", tmp_path / "m", "--cut", "20%", "--filter", "other.model.positions", "-o", tmp_path / "p.json")
    assert ran.code == 2
    assert "none of these is a matrix of weights" in ran.err


EXPERTS, COUNTS = 3, (512 * 9, 40, 0)
EXPERT = {"gate_proj": (16, HIDDEN), "up_proj": (16, HIDDEN), "down_proj": (HIDDEN, 16)}
NAMES = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}


def write_moe(folder: Path) -> tuple[Arrays, dict[str, Stats]]:
    """A layer of experts, of which one is never reached, and the imatrix of it."""
    experts = {
        f"model.layers.0.mlp.experts.{e}.{leaf}.weight": RNG.standard_normal(shape).astype(np.float32)
        for e in range(EXPERTS)
        for leaf, shape in EXPERT.items()
    }
    arrays = {name: a for name, a in write_llama(folder, layers=1).items() if ".mlp." not in name} | experts
    write(folder, arrays)
    config = CONFIG | {"model_type": "qwen2_moe", "num_experts": EXPERTS, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = np.array(COUNTS, float)[:, None]
    sums = {
        f"blk.0.{NAMES[leaf]}.weight": Stats((tokens * RNG.random((EXPERTS, cols))).astype(np.float32), COUNTS)
        for leaf, (_, cols) in EXPERT.items()
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        sums[f"blk.0.{name}.weight"] = Stats(RNG.random((1, HIDDEN)).astype(np.float32) * 5000, (5000,))
    return arrays, sums


def test_experts_count_what_flows_through_them(cli: Run, tmp_path: Path) -> None:
    arrays, sums = write_moe(tmp_path / "moe")
    file = write_gguf(tmp_path / "imatrix.gguf", sums)
    plan, _, err = made(cli, tmp_path / "moe", tmp_path, "--cut", "20%", *SMALL, "--weight", file)
    assert plan.weighting is not None
    assert plan.weighting.pooled
    assert plan.weighting.label.endswith(", pooled")
    assert "kept as they are" not in err
    under = {}
    for row in plan.rows:
        words = row.address.split(".")
        matrix = arrays[row.tensor].astype(np.float64)
        if words[2] != "expert":
            name = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "output": "attn_output"}[words[3]]
            held_sums, counts = sums[f"blk.0.{name}.weight"]
            under[row.address] = matrix * np.sqrt(held_sums[0].astype(float) / counts[0])
            continue
        squares = sums[f"blk.0.{NAMES[words[4] + '_proj']}.weight"].sums.astype(float)
        n, count, expert = matrix.shape[1], COUNTS[int(words[3])], int(words[3])
        layer = squares.sum(0) / sum(COUNTS)
        under[row.address] = matrix * np.sqrt((squares[expert] + n * layer) / (count + n))
    for row in plan.rows:
        held(row, under[row.address])
    weights = {}
    for row in plan.rows:
        words = row.address.split(".")
        weights[row.address] = float(math.prod(row.shape))
        if words[2] == "expert":
            seen = [COUNTS[e] * (under[f"layers.0.expert.{e}.{words[4]}"] ** 2).sum() for e in range(EXPERTS)]
            weights[row.address] *= seen[int(words[3])] / sum(seen) * EXPERTS
    lost = sum(weights[row.address] * tail(under[row.address], row.rank) for row in plan.rows)
    assert plan.loss == pytest.approx(lost / sum(weights.values()), rel=1e-6)
    # No token reached it: the smallest rank is as good as any other.
    assert {row.rank for row in plan.rows if row.address.startswith("layers.0.expert.2.")} == {2}
    raw, _, _ = made(cli, tmp_path / "moe", tmp_path, "--cut", "20%", *SMALL)
    lost = sum(math.prod(row.shape) * tail(arrays[row.tensor], row.rank) for row in raw.rows)
    assert raw.loss == pytest.approx(lost / sum(math.prod(row.shape) for row in raw.rows), rel=1e-6)


def test_what_was_computed_for_experts_goes_with_its_file(cli: Run, tmp_path: Path) -> None:
    _, sums = write_moe(tmp_path / "moe")
    file = write_gguf(tmp_path / "imatrix.gguf", sums)
    made(cli, tmp_path / "moe", tmp_path, "--cut", "20%", *SMALL, "--weight", file)
    assert cli("rm", tmp_path / "moe", "--weight", file).code == 0
    assert "nothing" in cli("rm", tmp_path / "moe", "--weight", "imatrix").err


def test_moments_about_the_mean_are_for_display_alone(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    file = moments_file(tmp_path / "m.safetensors", addresses())
    ran = cli("plan", llama[0], "--cut", "20%", "-o", tmp_path / "p.json", "--weight", f"centred:{file}")
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert "plans need moments as they are, not about the mean" in ran.err


def test_what_is_stored_can_be_planned_without_the_weights(cli: Run, tmp_path: Path) -> None:
    write_llama(tmp_path / "m")
    plan, _, _ = made(cli, tmp_path / "m", tmp_path, "--cut", "20%", *SMALL)
    (tmp_path / "m").rename(tmp_path / "gone")
    found, out, _ = made(cli, tmp_path / "m", tmp_path, "--cut", "20%", *SMALL)
    assert found.rows == plan.rows
    assert "of total" not in out
    ran = cli("plan", tmp_path / "m", "--cut", "20%", "--of", "total", "-o", tmp_path / "p.json")
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert "--of total needs the model's files" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cut", "99%"), "cut at most 37.5 % or lower --min-rank and --multiple: 99 % leaves the projections 92 "),
        (("--cut", "99%", "--of", "total"), "cut at most "),
        (("--cut", "0"), "it must be above 0 and below 100 %"),
        (("--cut", "120%"), "it must be above 0 and below 100 %"),
        (("--cut", "a lot"), "write 20% or 0.2"),
        (("--cut", "20%", "--min-rank", "0"), "not a whole number above zero"),
        (("--cut", "20%", "--filter", "layers.9"), "no address matches 'layers.9'"),
        (("--cut", "20%", "--weight", "./none.gguf"), "no such file"),
        (("--cut", "20%", "--gauge", "fixed"), "--gauge"),
        (("--cut", "20%", "-o", "no/such/folder/p.json"), "cannot write no/such/folder/p.json"),
        (("--cut", "20%", "-o", "/dev/null"), "/dev/null does not end in .json: name the plan FILE.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_one_line_and_computes_nothing(
    cli: Run, llama: tuple[Path, Arrays], tmp_path: Path, store: Path, words: tuple[str, ...], said: str
) -> None:
    ran = cli("plan", llama[0], "-o", tmp_path / "plan.json", *words)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not ran.out
    assert not (tmp_path / "plan.json").exists()
    assert not list(store.rglob("*.h5"))


def test_nothing_but_a_plan_is_written_over(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    other = tmp_path / "config.json"
    other.write_text("{}")
    ran = cli("plan", llama[0], "--cut", "20%", "-o", other)
    assert (ran.code, other.read_text()) == (2, "{}")
    assert f"{other} exists and is not a plan" in ran.err
    (tmp_path / "folder.json").mkdir()
    assert "cannot write" in cli("plan", llama[0], "--cut", "20%", "-o", tmp_path / "folder.json").err
    first, _, _ = made(cli, llama[0], tmp_path, "--cut", "20%", *SMALL)
    assert made(cli, llama[0], tmp_path, "--cut", "25%", *SMALL)[0].budget < first.budget


def test_a_file_of_no_moments_of_this_model(cli: Run, llama: tuple[Path, Arrays], tmp_path: Path) -> None:
    file = write_moments(tmp_path / "m.safetensors", {"a.weight.xx": np.eye(3), "a.weight.count": np.array([9])})
    ran = cli("plan", llama[0], "--cut", "20%", "--weight", file, "-o", tmp_path / "plan.json")
    assert ran.code == 2
    assert f"--weight {file}: " in ran.err
    assert len(ran.err.splitlines()) == 1

"""`rankscope perplexity`, against the loss that transformers computes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from cli_process import Ran, Run
from safetensors.numpy import load_file, save_file
from tiny_texts import VOCABULARY, save_tokenizer, write_text

LENGTH = 32
SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SHAPE, "intermediate_size": 40, "max_position_embeddings": LENGTH, "vocab_size": VOCABULARY}


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose predictions are far from uniform, so that a change in it shows."""
    torch.manual_seed(3)
    made: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, initializer_range=0.3))
    return saved(tmp_path_factory.mktemp("tiny"), made)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Path:
    """Moments of the first 16 windows of the text."""
    from rankscope.tui.cli.main import main

    out = tmp_path_factory.mktemp("sums") / "m.safetensors"
    assert not main([*f"moments {model} --text {text} --tokens 512 --device cpu -o {out}".split()])
    return out


def windows(model: Path, text: Path) -> list[list[int]]:
    """The windows of the whole text: `<s>` and 31 words each."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    return [[0, *ids[i : i + LENGTH - 1]] for i in range(0, len(ids) - LENGTH + 2, LENGTH - 1)]


def own_perplexity(model: Any, ids: list[list[int]]) -> float:
    """The perplexity by transformers' loss, a mean over all tokens but the first."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model) if isinstance(model, Path) else model
    with torch.no_grad():
        losses = [float(model.eval()(input_ids=torch.tensor([x]), labels=torch.tensor([x])).loss) for x in ids]
    return math.exp(sum(losses) / len(losses))


def measured(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_it_is_exp_of_the_loss_of_transformers(cli: Run, model: Path, text: Path) -> None:
    ran = cli("perplexity", model, "--text", text, "--tokens", "100", "--device", "cpu", "--json")
    found = measured(ran)
    assert found["before"] == pytest.approx(own_perplexity(model, windows(model, text)[:4]), rel=1e-5)
    assert (found["tokens"], found["windows"], found["window"]) == (4 * 31, 4, LENGTH)
    assert found["text"].startswith("text.txt xxh3:")
    assert f"{found['text']}: 124 tokens predicted in 4 windows of 32, float32 on cpu" in ran.err
    shown = cli("perplexity", model, "--text", text, "--tokens", "100", "--device", "cpu")
    assert f"{found['before']:,.3f}" in shown.out


def test_a_plan_is_measured_as_the_model_with_its_best_approximations(
    tmp_path: Path, cli: Run, model: Path, text: Path
) -> None:
    """Truncate by numpy in a model that transformers loads and measures."""
    plan = tmp_path / "plan.json"
    made = cli("plan", model, "--cut", "40%", "--min-rank", "2", "--multiple", "2", "--device", "cpu", "-o", plan)
    assert made.code == 0, made.err
    changed: Any = transformers.AutoModelForCausalLM.from_pretrained(model)
    factored = [row for row in json.loads(plan.read_text())["rows"] if row["rank"]]
    assert len(factored) > 5
    for row in factored:
        weight = changed.get_parameter(row["tensor"]).detach()
        u, s, v = np.linalg.svd(weight.numpy().astype(float), full_matrices=False)
        k = row["rank"]
        weight.copy_(torch.from_numpy(u[:, :k] * s[:k] @ v[:k]))
    arguments = ("--text", text, "--tokens", "200", "--device", "cpu")
    found = measured(cli("perplexity", model, "--plan", plan, *arguments, "--json"))
    ids = windows(model, text)[:7]
    before, after = own_perplexity(model, ids), own_perplexity(changed, ids)
    assert abs(after / before - 1) > 0.05
    assert found["before"] == pytest.approx(before, rel=1e-5)
    assert found["after"] == pytest.approx(after, rel=1e-4)
    assert found["ratio"] == pytest.approx(after / before, rel=1e-4)
    shown = cli("perplexity", model, "--plan", plan, *arguments).out
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["before", "after", "ratio"]


def test_the_loop_moments_plan_apply_perplexity(tmp_path: Path, cli: Run, model: Path, text: Path, sums: Path) -> None:
    """The result is the same in memory and as written by apply; and no token of the moments is measured."""
    plan, written = tmp_path / "plan.json", tmp_path / "merged"
    smallest = ("--min-rank", "2", "--multiple", "2", "--device", "cpu")
    assert cli("plan", model, "--cut", "30%", "--weight", sums, *smallest, "-o", plan).code == 0
    assert cli("apply", plan, "--model", model, "--weight", sums, "--merge", "-o", written).code == 0
    arguments = ("--text", text, "--tokens", "200", "--weight", sums, "--device", "cpu", "--json")
    ran = cli("perplexity", model, "--plan", plan, *arguments)
    planned, applied = measured(ran), measured(cli("perplexity", model, "--against", written, *arguments))
    ids = windows(model, text)[16:23]
    assert planned["left_out"] == 16
    assert "16 windows are left out: moments m.safetensors" in ran.err
    assert planned["before"] == applied["before"] == pytest.approx(own_perplexity(model, ids), rel=1e-5)
    assert planned["after"] == pytest.approx(own_perplexity(written, ids), rel=1e-5)
    assert planned["after"] == pytest.approx(applied["after"], rel=1e-5)
    assert planned["after"] != pytest.approx(planned["before"], rel=1e-3)


def test_a_plan_needs_the_numbers_that_it_was_made_under(
    tmp_path: Path, cli: Run, model: Path, text: Path, sums: Path
) -> None:
    plan, other = tmp_path / "plan.json", tmp_path / "other.safetensors"
    smallest = ("--min-rank", "2", "--multiple", "2", "--device", "cpu")
    assert cli("plan", model, "--cut", "30%", "--weight", sums, *smallest, "-o", plan).code == 0
    held = load_file(sums)
    held["model.layers.0.mlp.down_proj.weight.xx"] *= 2
    save_file(held, other, {"inputs": "{}"})
    arguments = ("perplexity", model, "--text", text, "--tokens", "64", "--device", "cpu", "--plan", plan)
    assert "name that file with --weight FILE" in cli(*arguments).error
    ran = cli(*arguments, "--weight", other)
    assert ran.code == 2
    assert "does not say which tokens it was made of" in ran.err
    assert "has other second moments than" in ran.err.splitlines()[-1]
    assert not ran.out


def test_text_that_the_moments_are_made_of_is_not_measured(
    tmp_path: Path, cli: Run, model: Path, text: Path, sums: Path
) -> None:
    seen = tmp_path / "seen.txt"
    seen.write_text(" ".join(text.read_text().split()[:480]))
    ran = cli("perplexity", model, "--text", seen, "--weight", sums, "--device", "cpu")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].endswith("the second moments were made of all of this text: give another --text")


def test_another_checkpoint_is_measured_on_the_same_tokens(tmp_path: Path, cli: Run, model: Path, text: Path) -> None:
    torch.manual_seed(5)
    other = saved(tmp_path / "other", transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)))
    arguments = ("--text", text, "--tokens", "64", "--device", "cpu", "--json")
    found = measured(cli("perplexity", model, "--against", other, *arguments))
    assert found["after"] == pytest.approx(own_perplexity(other, windows(model, text)[:2]), rel=1e-5)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    ran = cli("perplexity", model, "--against", other, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].endswith(
        "other splits the text into other tokens: their perplexities cannot be compared, "
        "name one with the same tokenizer"
    )


BERT = {**SHAPE, "intermediate_size": 40, "max_position_embeddings": LENGTH, "vocab_size": VOCABULARY}
T5 = {"d_model": 24, "d_ff": 40, "num_layers": 2, "num_heads": 4, "d_kv": 6, "vocab_size": VOCABULARY}
NO_DECODERS = {
    "BertForMaskedLM also reads later tokens": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)),
    "BertModel has no head that predicts tokens": lambda: transformers.BertModel(transformers.BertConfig(**BERT)),
    "T5ForConditionalGeneration has an encoder": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5)
    ),
    "LlamaForSequenceClassification has no head that predicts tokens": lambda: (
        transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**LLAMA, pad_token_id=0))
    ),
}


@pytest.mark.parametrize("said", NO_DECODERS)
def test_what_does_not_predict_the_next_token_is_one_line(said: str, tmp_path: Path, cli: Run, text: Path) -> None:
    torch.manual_seed(6)
    folder = saved(tmp_path / "m", NO_DECODERS[said]())
    ran = cli("perplexity", folder, "--text", text, "--device", "cpu")
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err.splitlines()[-1]


def test_a_model_that_gives_no_numbers_and_a_text_of_one_word_are_one_line(
    tmp_path: Path, cli: Run, model: Path, text: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("w1")
    config = json.loads((model / "tokenizer.json").read_text())
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    (folder / "tokenizer.json").write_text(json.dumps({**config, "post_processor": None}))
    assert "is too short" in cli("perplexity", folder, "--text", short, "--device", "cpu").err.splitlines()[-1]
    held = load_file(folder / "model.safetensors")
    held["model.norm.weight"][3] = np.nan
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    ran = cli("perplexity", folder, "--text", text, "--device", "cpu")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].endswith("infinity, see with  rankscope scan  which of its weights are not finite")


def test_wrong_use_is_one_line_before_anything_is_loaded(
    tmp_path: Path, cli: Run, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankscope.engine.calibration import running
    from rankscope.tui.cli import perplexity

    monkeypatch.setattr(perplexity, "load", None)
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    assert "is not a plan" in cli("perplexity", model, "--text", text, "--plan", plan).error
    assert "not allowed with" in cli("perplexity", model, "--text", text, "--plan", plan, "--against", model).error
    assert "no such file" in cli("perplexity", model, "--text", text, "--against", tmp_path / "no").error
    (tmp_path / "factors.json").write_text("{}")
    assert "write it with --merge" in cli("perplexity", model, "--text", text, "--against", tmp_path).error
    assert "no such file" in cli("perplexity", model, "--text", text, "--weight", tmp_path / "no").error
    assert "name one that is here, or builtin" in cli("perplexity", model, "--text", tmp_path / "no").error
    monkeypatch.setattr(running, "find_spec", lambda name: None if name == "transformers" else True)
    assert "pip install 'rankscope-tui[calibrate]'" in cli("perplexity", model, "--text", text).error

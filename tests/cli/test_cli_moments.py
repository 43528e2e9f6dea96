"""`rankscope moments`: from a model and a text to a file that `--weight` takes."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import transformers
from cli_process import PROGRAM, Run, spawn
from running_demo import FIXTURE, RunningDemo
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_texts import VOCABULARY, WORDS, save_tokenizer, write_text

from rankscope.engine.calibration.collect import Collector, make_plan
from rankscope.engine.calibration.figures import figures
from rankscope.engine.calibration.file_weighting import open_weighting
from rankscope.engine.calibration.running import fed_of
from rankscope.engine.calibration.texts import LENGTH, read_text, sequences
from rankscope.engine.calibration.tokens_read import has_read
from rankscope.engine.catalogue.tree import build_tree

INTERRUPTED = f"""
import os, signal, threading
from rankscope.engine.calibration import collect
signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's own children may ignore it
run, count = collect.forward, iter(range(1, 100))
def run_a_few(model, ids):
    run(model, ids)
    if next(count) == 5:  # one to see what it reaches, and four to sum
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()
collect.forward = run_a_few
{PROGRAM}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers with a tokenizer that puts `<s>` before every text."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(2)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **shape)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def test_every_sequence_begins_as_the_tokenizer_begins_a_text(model: Path, text: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text.read_text())["input_ids"]
    assert ids[0] == 0
    found = list(sequences(text.read_text(), tokenizer, 32, 64))
    assert found == [[0, *ids[1:32]], [0, *ids[32:63]]]
    every = list(sequences(text.read_text(), tokenizer, 32, 10**9))
    assert {len(one) for one in every} == {32}  # the rest of the text makes no sequence
    assert len(every) == 2000 // 31
    assert list(sequences("w1 w2", tokenizer, 32, 64)) == [[0, 3, 4]]


def test_what_it_writes_is_scanned_and_shown(tmp_path: Path, cli: Run, model: Path, text: Path) -> None:
    out = tmp_path / "m.safetensors"
    ran = cli("moments", model, "--text", text, "--tokens", "512", "--device", "cpu", "-o", out)
    assert ran.code == 0
    assert "text.txt xxh3:" in ran.err
    assert "512 tokens in 16 sequences, one in eight held out" in ran.err
    entries = 2 * 3 * (3 * (24 * 24 + 24) + 40 * 40 + 40)  # layers, parts, inputs of q k v, o, gate up, down
    assert f"writes at most {4 * entries / 1000:.1f} kB, position 0 and held out included" in ran.err
    assert "ETA" in ran.err
    held = load_file(out)
    counts = {
        name.removesuffix(".count").partition("weight")[2]: int(x[0]) for name, x in held.items() if "count" in name
    }
    assert counts == {"": 14 * 32, ".first": 14, ".held": 2 * 32}
    with safe_open(out, "numpy") as opened:  # the file as the reference library reads it
        metadata = opened.metadata()
    assert metadata["datasets"].startswith("text.txt xxh3:")
    assert Counter(json.loads(metadata["inputs"]).values()).most_common(1)[0][1] == 2
    every = list(sequences(text.read_text(), transformers.AutoTokenizer.from_pretrained(model), 32, 10**9))
    read = open_weighting(str(out), model.name, {}).tokens_read  # held-out ones too
    assert read is not None
    assert [has_read(read, ids, [0, 1]) for ids in every] == [True] * 16 + [False] * (len(every) - 16)
    scanned = cli("scan", model, "--weight", out, "--json")
    assert scanned.code == 0
    ranks = {row["address"]: row["ranks"]["0.9"] for row in scanned.rows}
    shown = {words[0]: words for words in map(str.split, ran.out.splitlines())}
    assert {address: int(shown[address][2]) for address in ranks} == ranks  # computed there in another way
    assert shown["layers.0.attention.query"][1] == f"{14 * 32 / 24:.1f}"
    assert cli("show", model, "--weight", out).code == 0


def test_too_few_tokens_and_nothing_held_out_are_said(tmp_path: Path, cli: Run, model: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(" ".join(WORDS))
    ran = cli("moments", model, "--text", short, "--tokens", "500", "--device", "cpu", "-o", tmp_path / "m.safetensors")
    assert ran.code == 0
    assert "the text has no more tokens: 500 were requested" in ran.err
    assert "nothing is held out of fewer than 8 sequences" in ran.err
    assert "14 projections have fewer than 8 tokens for each input feature (the least 0.8)" in ran.err


def test_an_interrupt_leaves_a_whole_file_of_what_was_seen(tmp_path: Path, model: Path, text: Path) -> None:
    out = tmp_path / "m.safetensors"
    words = ("moments", model, "--text", text, "--tokens", "512", "--device", "cpu", "-o", out)
    ran = spawn(*words, program=INTERRUPTED)
    assert ran.code == 128 + signal.SIGINT, ran.err
    assert f"stopped by SIGINT; 128 tokens are in {out}" in ran.err
    held = load_file(out)
    assert {int(x[0]) for name, x in held.items() if name.endswith("weight.count")} == {128}
    assert {int(x[0]) for name, x in held.items() if name.endswith("first.count")} == {4}
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors"] == [out.name]


@pytest.mark.parametrize("missing", ["transformers", "accelerate"])
def test_without_the_extra_it_is_one_line(
    missing: str, tmp_path: Path, cli: Run, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankscope.engine.calibration import running

    monkeypatch.setattr(running, "find_spec", lambda name: None if name == missing else True)
    ran = cli("moments", model, "--text", text, "-o", tmp_path / "m.safetensors")
    assert "pip install 'rankscope-tui[calibrate]'" in ran.error


def test_wrong_use_is_one_line_before_anything_is_loaded(
    tmp_path: Path, cli: Run, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankscope.tui.cli import moments

    monkeypatch.setattr(moments, "load", None)
    out = tmp_path / "m.safetensors"
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00a")
    (tmp_path / "empty").write_text(" \n")
    assert "name one that is here, or builtin" in cli("moments", model, "--text", tmp_path / "none", "-o", out).error
    assert "not UTF-8 text" in cli("moments", model, "--text", tmp_path / "bytes", "-o", out).error
    assert "holds no text" in cli("moments", model, "--text", tmp_path / "empty", "-o", out).error
    assert "FILE.safetensors" in cli("moments", model, "--text", text, "-o", tmp_path / "m.gguf").error
    assert "cannot write" in cli("moments", model, "--text", text, "-o", tmp_path / "no" / "m.safetensors").error
    assert "no such file" in cli("moments", tmp_path / "nothing", "--text", text, "-o", out).error
    assert not out.exists()


def test_a_model_that_transformers_cannot_load_is_one_line(tmp_path: Path, cli: Run, model: Path, text: Path) -> None:
    (tmp_path / "m").mkdir()
    for file in model.iterdir():
        content = file.read_bytes()
        (tmp_path / "m" / file.name).write_bytes(content)
    (tmp_path / "m" / "config.json").write_text('{"model_type": "nobody-knows"}')
    ran = cli("moments", tmp_path / "m", "--text", text, "--device", "cpu", "-o", tmp_path / "m.safetensors")
    assert ran.code == 2
    assert "transformers cannot load m: " in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err


def test_weights_that_would_be_made_up_are_one_line(tmp_path: Path, cli: Run, model: Path, text: Path) -> None:
    """transformers draws at random what a checkpoint does not hold."""
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    held = load_file(folder / "model.safetensors")
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    ran = cli("moments", folder, "--text", text, "--device", "cpu", "-o", tmp_path / "m.safetensors")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].endswith(
        "m cannot be run: LlamaForCausalLM needs weights that are not in it, model.layers.1.mlp.up_proj.weight"
        ": name a checkpoint of the whole model"
    )


def test_position_0_of_the_demo_holds_nearly_all_of_layer_28(running_demo: RunningDemo) -> None:
    """The demo by transformers, from GGUF, on Python's help pages; its tensors have other names there."""
    text = read_text("builtin")
    assert text.text.startswith(topics[min(topics)][:200])
    checkpoint, module, tokenizer = running_demo
    tree = build_tree(checkpoint).scanned("layers.28.*")
    fed, lost = fed_of(module, tree, checkpoint)
    assert not lost
    assert sorted(p.address for one in fed for p in one.projections) == sorted(p.address for p in tree)
    ids = list(sequences(text.text, tokenizer, LENGTH, 2 * LENGTH))
    assert [len(one) for one in ids] == [LENGTH, LENGTH]
    collector = Collector(module, make_plan(module, fed, ids[0], None))
    collector.run(ids, lambda *_: None)
    found = {p.address: made for p, made in figures(checkpoint, collector.seen, "cpu")}
    down = found["layers.28.mlp.down"]
    assert down.sink is not None
    assert down.sink > 0.9
    assert down.apart is not None
    assert down.k90 == 1 < 40 < down.apart
    assert found["layers.28.attention.query"].apart is None


def test_what_runs_the_demo_comes_first_so_that_one_process_loads_it_once(request: pytest.FixtureRequest) -> None:
    runs_it = [FIXTURE in getattr(test, "fixturenames", ()) for test in request.session.items]
    assert any(runs_it)
    assert runs_it == sorted(runs_it, reverse=True)

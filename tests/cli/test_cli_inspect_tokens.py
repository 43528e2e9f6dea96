"""`rankscope inspect --tokens`: the tokens at both ends of a direction, against products by numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cli_models import CONFIG, HIDDEN, INNER, Arrays, tensor_name, write_llama
from cli_process import Run
from numpy.typing import NDArray
from safetensors.numpy import save_file

UP, DOWN, KEY = "layers.1.mlp.up", "layers.1.mlp.down", "layers.1.attention.key"
EMBEDDING, HEAD, FINAL = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
GAIN = "model.layers.1.post_attention_layernorm.weight"
WORDS = [f"w{n}" for n in range(50)]


def numbers(*shape: int, seed: int = 9) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokenizer(folder: Path, words: list[str], **parts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = {"model": {"type": "BPE", "vocab": {word: n for n, word in enumerate(words)}}, **parts}
    (folder / "tokenizer.json").write_text(json.dumps(model))


def tokens(cli: Run, folder: Path, address: str) -> dict[str, Any]:
    ran = cli("inspect", folder, address, "--tokens", "--json")
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)["tokens"]
    return found


def first(weights: NDArray[Any], side: int) -> NDArray[np.float64]:
    """u_1 (0) or v_1 (1) by LAPACK."""
    left, _, right = np.linalg.svd(weights.astype(np.float64))
    return np.asarray(left[:, 0] if side == 0 else right[0])


def ends(rows: NDArray[Any], vector: NDArray[np.float64]) -> list[list[int]]:
    """The six rows with the largest product and the six with the smallest; of a vector whose sign is arbitrary, so
    sorted."""
    order = np.argsort(-(rows.astype(np.float64) @ vector)).tolist()
    return sorted([order[:6], order[::-1][:6]])


def found_ends(found: dict[str, Any]) -> list[list[int]]:
    return sorted([token["token"] for token in end] for end in found["ends"])


@pytest.fixture
def arrays(tmp_path: Path) -> Arrays:
    """A llama with gains and a final norm, whose unembedding is its embedding, and a tokenizer."""
    tokenizer(tmp_path / "m", WORDS)
    return write_llama(tmp_path / "m", changes={GAIN: numbers(HIDDEN), FINAL: numbers(HIDDEN, seed=10)})


def test_what_reads_is_scored_through_the_gain(cli: Run, tmp_path: Path, arrays: Arrays) -> None:
    found = tokens(cli, tmp_path / "m", UP)
    vector = first(arrays[tensor_name(UP)], 1) * arrays[GAIN]
    assert (found["vector"], found["matrix"], found["unnamed"]) == ("v_1", EMBEDDING, None)
    assert found_ends(found) == ends(arrays[EMBEDDING], vector)
    for token in (*found["ends"][0], *found["ends"][1]):
        assert token["text"] == WORDS[token["token"]]
        assert abs(token["score"]) == pytest.approx(abs(arrays[EMBEDDING][token["token"]] @ vector), rel=1e-4)
    said = cli("inspect", tmp_path / "m", UP, "--tokens").out
    assert "a reading aid: tokens at the two ends of v_1, by rows of model.embed_tokens.weight" in said
    assert "the sign of a direction is arbitrary" in said
    assert f"'{found['ends'][0][0]['text']}'" in said
    assert "tokens" not in json.loads(cli("inspect", tmp_path / "m", UP, "--json").out)


@pytest.mark.parametrize("is_tied", [True, False])
def test_what_writes_goes_through_the_final_norm(cli: Run, tmp_path: Path, arrays: Arrays, is_tied: bool) -> None:
    rows = arrays[EMBEDDING] if is_tied else numbers(50, HIDDEN, seed=11)
    save_file(arrays | ({} if is_tied else {HEAD: rows}), tmp_path / "m" / "model.safetensors")
    found = tokens(cli, tmp_path / "m", DOWN)
    assert (found["vector"], found["matrix"]) == ("u_1", EMBEDDING if is_tied else HEAD)
    assert found_ends(found) == ends(rows, first(arrays[tensor_name(DOWN)], 0) * arrays[FINAL])


def test_behind_layer_norms_the_mean_is_left_out(cli: Run, tmp_path: Path) -> None:
    names = {"ln_1.weight": HIDDEN, "ln_1.bias": HIDDEN, "ln_2.weight": HIDDEN, "ln_2.bias": HIDDEN}
    arrays = {f"transformer.h.0.{name}": numbers(size, seed=n) for n, (name, size) in enumerate(names.items())}
    arrays |= {f"transformer.ln_f.{name}": numbers(HIDDEN, seed=n) for n, name in ((4, "weight"), (5, "bias"))}
    up, down, wte = numbers(HIDDEN, INNER), numbers(INNER, HIDDEN), numbers(30, HIDDEN) + 5
    arrays |= {"transformer.h.0.mlp.c_fc.weight": up, "transformer.h.0.mlp.c_proj.weight": down}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": HIDDEN, "n_head": 2}))
    save_file(arrays | {"transformer.wte.weight": wte}, tmp_path / "m" / "model.safetensors")
    read = first(up.T, 1) * arrays["transformer.h.0.ln_2.weight"]
    written = first(down.T, 0)
    found = tokens(cli, tmp_path / "m", "layers.0.mlp.up")
    assert found_ends(found) == ends(wte, read - read.mean())
    assert found["unnamed"] == "there is no tokenizer.json beside the weights"
    assert {token["text"] for token in found["ends"][0]} == {None}
    final = (written - written.mean()) * arrays["transformer.ln_f.weight"]
    assert found_ends(tokens(cli, tmp_path / "m", "layers.0.mlp.down")) == ends(wte, final)


def test_of_an_expert(cli: Run, tmp_path: Path) -> None:
    at = "model.layers.0.block_sparse_moe.experts.{}.{}.weight"
    shapes = {"w1": (INNER, HIDDEN), "w2": (HIDDEN, INNER), "w3": (INNER, HIDDEN)}
    experts = {at.format(e, w): numbers(*shape, seed=e) for e in range(2) for w, shape in shapes.items()}
    gain, rows = numbers(HIDDEN, seed=3), numbers(40, HIDDEN, seed=4)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIG | {"model_type": "mixtral"}))
    norm = "model.layers.0.post_attention_layernorm.weight"
    save_file({**experts, norm: gain, EMBEDDING: rows, FINAL: gain}, tmp_path / "m" / "model.safetensors")
    found = tokens(cli, tmp_path / "m", "layers.0.expert.1.gate")
    assert found_ends(found) == ends(rows, first(experts[at.format(1, "w1")], 1) * gain)
    found = tokens(cli, tmp_path / "m", "layers.0.expert.1.down")
    assert found_ends(found) == ends(rows, first(experts[at.format(1, "w2")], 0) * gain)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_of_a_gguf_file(cli: Run, tmp_path: Path, kind: str) -> None:
    up, gain, rows = numbers(INNER, HIDDEN), numbers(HIDDEN, seed=1), numbers(12, HIDDEN, seed=2)
    words = {"gpt2": ["\u0120a", "\u010a", "\u00c3\u00a9", "\u00e4"], "llama": ["\u2581a", "<0x0A>", "\u00e9", "x"]}[
        kind
    ]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tokenizer_model(kind)
    writer.add_token_list([*words, *(f"w{n}" for n in range(8))])
    for name, array in (("blk.0.ffn_up", up), ("blk.0.ffn_norm", gain), ("token_embd", rows)):
        writer.add_tensor(f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = tokens(cli, tmp_path / "m.gguf", "layers.0.mlp.up")
    assert found_ends(found) == ends(rows, first(up, 1) * gain)
    texts = {token["token"]: token["text"] for end in found["ends"] for token in end}
    assert [texts[n] for n in range(4)] == {
        "gpt2": [" a", "\n", "\u00e9", "\\xe4"], "llama": [" a", "<0x0A>", "\u00e9", "x"]
    }[kind]  # fmt: skip


def test_a_terminal_is_safe_from_texts(cli: Run, tmp_path: Path) -> None:
    bad = "\x1b[2J\u202e"
    words = ["\u0120the", *(f"{bad}{n}" for n in range(49))]
    tokenizer(tmp_path / "m", words, pre_tokenizer={"type": "ByteLevel"}, added_tokens=[{"id": 0, "content": bad}])
    write_llama(tmp_path / "m", changes={GAIN: np.ones(HIDDEN, np.float32)})
    ran = cli("inspect", tmp_path / "m", UP, "--tokens")
    assert "'\\x1b[2J\\u202e" in ran.out
    assert "\x1b" not in ran.out + ran.err
    assert "\u202e" not in ran.out + ran.err
    assert tokens(cli, tmp_path / "m", UP)["ends"][0][0]["text"].startswith(bad)


@pytest.mark.parametrize(
    ("changes", "gone", "address", "line"),
    [
        ({}, EMBEDDING, UP, "no token embedding has a known name"),
        ({EMBEDDING: numbers(50, 16)}, "", UP, f"{EMBEDDING} is 50x16, and the direction has {HIDDEN} channels"),
        ({EMBEDDING: np.full((50, HIDDEN), np.nan, np.float32)}, "", UP, f"{EMBEDDING} holds NaN or infinite values"),
        ({}, FINAL, DOWN, f"{DOWN}: no final norm before the unembedding is known"),
        ({tensor_name(UP): np.zeros((INNER, HIDDEN), np.float32)}, "", UP, "a matrix of zeros has no first direction"),
    ],
)
def test_why_there_are_none_is_one_line(
    cli: Run, tmp_path: Path, arrays: Arrays, changes: Arrays, gone: str, address: str, line: str
) -> None:
    kept = {name: array for name, array in (arrays | changes).items() if name != gone}
    save_file(kept, tmp_path / "m" / "model.safetensors")
    ran = cli("inspect", tmp_path / "m", address, "--tokens")
    assert ran.out.splitlines()[-1].startswith(f"no tokens: {line}")
    assert tokens(cli, tmp_path / "m", address)["problem"].startswith(line)


def test_a_damaged_tokenizer_leaves_numbers(cli: Run, tmp_path: Path, arrays: Arrays) -> None:
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    found = tokens(cli, tmp_path / "m", UP)
    assert "tokenizer.json is not valid JSON" in found["unnamed"]
    assert found_ends(found) == ends(arrays[EMBEDDING], first(arrays[tensor_name(UP)], 1) * arrays[GAIN])
    said = cli("inspect", tmp_path / "m", UP, "--tokens").out
    assert f"#{found['ends'][0][0]['token']}\n" in said or f"#{found['ends'][0][0]['token']} " in said

"""Naming a file of second moments: here or on the Hub, of any kind; and signs that it belongs to another model."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_files import legacy, stats, write_gguf, write_moments
from hub_server import HubServer
from opening import QUERY, checked, weights

from rankscope.engine.calibration.file_weighting import FileWeighting, open_weighting
from rankscope.engine.calibration.imatrix import read_legacy
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import demo_file, open_checkpoint
from rankscope.engine.errors import InputError, WeightsError
from rankscope.engine.spectrum import Projection

HELD = {"blk.0.attn_q.weight": stats(8, (512,)), "blk.1.attn_q.weight": stats(8, (512,))}
REPO = "org/tiny-135M-i1-GGUF"


def opened(text: object, model: str = "m", config: dict[str, Any] | None = None) -> FileWeighting:
    return open_weighting(str(text), model, config or {})


def refusal(text: object) -> str:
    with pytest.raises(InputError) as caught:
        opened(text)
    return checked(caught.value)


def moments(folder: Path) -> Path:
    return write_moments(folder / "m", {f"{QUERY}.x2": np.ones(8), f"{QUERY}.count": np.array(7.0)})


def test_the_kind_is_told_by_content_whatever_the_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.safetensors", HELD)
    (tmp_path / "b.gguf").write_bytes(legacy(HELD))
    moments(tmp_path).rename(tmp_path / "c.dat")
    labels = [opened(tmp_path / name).label for name in ("a.safetensors", "b.gguf", "c.dat")]
    assert labels == [
        "imatrix a.safetensors (wiki.train.raw, 1 chunk of 512)",
        "imatrix b.gguf (wiki.train.raw, 1 chunk)",
        "moments c.dat (7 tokens)",
    ]


def test_a_path_goes_before_the_hub(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("org/name", {"file.dat": legacy(HELD)})
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "file.dat").write_bytes(legacy(HELD, trailer=False))
    assert opened("org/name/file.dat").label == "imatrix file.dat"
    assert hub.requests == []
    assert opened("hf://org/name/file.dat").label == "imatrix org/name/file.dat (wiki.train.raw, 1 chunk)"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened("~/org/name/file.dat").label == "imatrix file.dat"


def test_a_file_on_the_hub_is_fetched_once(hub: HubServer) -> None:
    first = hub.push(REPO, {"sub/imatrix.dat": legacy(HELD, trailer=False), "README.md": b"#"})
    assert opened(f"{REPO}/sub/imatrix.dat").label == f"imatrix {REPO}/sub/imatrix.dat"
    assert hub.files() == ["sub/imatrix.dat"]
    count = len(hub.requests)
    assert opened(f"{REPO}/sub/imatrix.dat").label == f"imatrix {REPO}/sub/imatrix.dat"
    assert len(hub.requests) == count
    hub.push(REPO, {"sub/imatrix.dat": legacy(HELD)}, ref="better")
    assert "wiki.train.raw" in opened(f"{REPO}@better/sub/imatrix.dat").label
    assert "wiki.train.raw" not in opened(f"{REPO}@{first}/sub/imatrix.dat").label


def test_what_is_not_on_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(REPO, {"imatrix.dat": legacy(HELD)})
    assert refusal(f"{REPO}/other.dat") == f"{REPO} has no file other.dat: see https://huggingface.co/{REPO}/tree/main"
    assert refusal(f"{REPO}@v9/imatrix.dat").startswith(f"{REPO} has no revision v9")
    assert "no model org/none on the Hub" in refusal("org/none/imatrix.dat")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refusal(f"{REPO}/imatrix.dat")
    assert said.startswith(f"no such file: {REPO}/imatrix.dat, and it is not in the local Hub cache; ")


@pytest.mark.parametrize(
    "text",
    ["", "imatrix.dat", "./org/name/file", "/no/such/file", "a/b", "org/name/../file", "org/name@/x", "a\0b/c/d"],
)
def test_what_is_no_file_and_cannot_be_one_on_the_hub(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(text).startswith(("no such file: ", " is a folder"))


def test_files_of_other_kinds_are_refused_in_one_line(tmp_path: Path) -> None:
    def said(data: bytes) -> str:
        (tmp_path / "x").write_bytes(data)
        return refusal(tmp_path / "x").removeprefix(f"{tmp_path}/x ")

    wanted = "an imatrix of llama.cpp or a file of moments"
    assert said(weights(QUERY)) == f"holds no second moments: name {wanted}"
    assert said(b"PK\x03\x04" + bytes(600)) == f"holds no second moments: name {wanted}"
    assert said(bytes(range(128, 256)) * 5) == f"holds no second moments: name {wanted}"
    assert said(b"GGUF" + bytes([1, *bytes(99)])).startswith("is GGUF of version 1")
    assert said(b"").startswith("is empty")
    assert said(b"version https://git-lfs.github.com/spec/v1\noid").startswith("is a pointer of Git LFS")
    assert said(json.dumps({"a": 1}).encode()).startswith(f'is JSON ("{{"a": 1}}"), not {wanted}')
    assert said(b"\x1f\x8b" + bytes(600)) == "is compressed: unpack it first"
    assert refusal(tmp_path).endswith(f"is a folder: name {wanted} in it")
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == f"cannot read {tmp_path}/pipe: not a regular file: name a file"


def test_the_weights_of_a_model_are_none() -> None:
    assert refusal(demo_file()).endswith("holds no second moments: name an imatrix of llama.cpp or a file of moments")


@pytest.mark.parametrize(
    ("file", "model", "said"),
    [
        ("imatrix.dat", "SmolLM2-135M-Instruct", ""),
        ("wiki.imatrix", "org/SmolLM2-135M", ""),
        ("SmolLM2-135M-Instruct.imatrix", "SmolLM2-135M-Instruct.Q4_1", ""),
        ("SmolLM2-135M-Instruct-i1.imatrix.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct", ""),
        ("Meta-Llama-3-8B-Instruct.imatrix", "meta-llama/Meta-Llama-3-8B-Instruct", ""),
        ("Qwen2.5-1.5B.imatrix", "qwen2.5-1.5b", ""),
        ("Mixtral-8x7B-v0.1.imatrix", "mistralai/Mixtral-8x7B-v0.1", ""),
        ("imatrix-7b.dat", "/models/checkpoint", ""),
        ("SmolLM2-360M-Instruct.imatrix", "SmolLM2-135M-Instruct", "names a model of 360M"),
        ("Qwen2.5-0.5B.imatrix", "Qwen2.5-1.5B", "names a model of 0.5B"),
        ("SmolLM2-135M.imatrix", "SmolLM2-135M-Instruct", "names a model that is not instruct"),
        ("SmolLM2-135M-Instruct.imatrix", "SmolLM2-135M", "names a model that is instruct"),
        ("SmolLM-135M-Instruct.imatrix", "SmolLM2-135M-Instruct", "names smollm"),
        ("Llama-3.1-8B.imatrix", "Llama-3-8B", "names llama 3.1"),
        ("gemma-2-2b.imatrix", "google/gemma-2-2b-it", "names a model that is not it"),
        ("Mistral-7B.imatrix", "Qwen-7B", "names mistral"),
    ],
)
def test_a_name_that_points_to_another_model_is_told(tmp_path: Path, file: str, model: str, said: str) -> None:
    (tmp_path / file).write_bytes(legacy(HELD))
    warnings = opened(tmp_path / file, model).warnings
    if not said:
        assert warnings == ()
        return
    (line,) = warnings
    assert line.startswith(f"{file} may be of another model: {file} {said}")
    assert line.endswith(f"and this model is {model}")


def test_what_a_file_says_of_itself_is_told(tmp_path: Path, hub: HubServer) -> None:
    config = {"model_type": "qwen2", "num_hidden_layers": 2}
    says_same = write_gguf(tmp_path / "a", HELD, architecture="qwen2", name="Qwen2.5 7B")
    assert opened(says_same, "Qwen/Qwen2.5-7B", config).warnings == ()
    says_other = write_gguf(tmp_path / "b", HELD, architecture="llama", name="Llama 2 7B")
    assert opened(says_other, "Qwen/Qwen2.5-7B", config).warnings == (
        "b may be of another model: it was made of llama, and this model is qwen2",
        "b may be of another model: Llama 2 7B names llama 2, and this model is Qwen/Qwen2.5-7B",
    )
    of_the_hub = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert opened(write_gguf(tmp_path / "c", HELD, architecture="llama"), "Mistral", of_the_hub).warnings == ()
    assert (
        opened(write_gguf(tmp_path / "d", HELD, architecture="imatrix"), "Mistral", {"model_type": "llama"}).warnings
        == ()
    )
    (line,) = opened(says_same, "Qwen2.5-7B", {**config, "num_hidden_layers": 1}).warnings
    assert line == "a may be of another model: it has 2 layers, and this model has 1"
    hub.push("org/Qwen2.5-14B-GGUF", {"imatrix.dat": legacy(HELD)})
    (line,) = opened("org/Qwen2.5-14B-GGUF/imatrix.dat", "Qwen2.5-7B").warnings
    assert "names a model of 14B" in line


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "imatrix.dat"
    file.write_bytes(legacy(HELD))
    found = read_legacy(file)
    file.write_bytes(legacy(HELD) + b"x")
    with pytest.raises(WeightsError, match=r"imatrix\.dat changed since it was opened"):
        found.moment("blk.0.attn_q.weight", 8, None, None)


WRITTEN = {
    "gguf": lambda folder: write_gguf(folder / "w", HELD | {"blk.0.ffn_up_exps.weight": stats(8, (512, 0, 3))}),
    "dat": lambda folder: _with_bytes(folder / "w", legacy(HELD)),
    "moments": lambda folder: write_moments(
        folder / "w",
        {"blk.0.attn_q.weight.xx": np.eye(8), "blk.0.attn_q.weight.count": np.array(3.0)},
        inputs=json.dumps({"blk.1.attn_q.weight": "blk.0.attn_q.weight"}),
    ),
}


def _with_bytes(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


@cache
def queries() -> list[Projection]:
    """Two projections with the demo's names and 8 input features."""
    projections = build_tree(open_checkpoint("demo")).projections
    return [replace(p, cols=8) for p in projections if p.role == "query" and p.layer in (0, 1)]


@pytest.mark.parametrize("layout", WRITTEN)
@pytest.mark.filterwarnings("error")
def test_a_file_with_any_bytes_changed_is_refused_in_one_line_or_gives_numbers(tmp_path: Path, layout: str) -> None:
    whole = WRITTEN[layout](tmp_path).read_bytes()
    rng = np.random.default_rng(4)
    given = 0
    for _ in range(80):
        data = bytearray(whole)
        for at in rng.integers(0, min(len(data) - 4, 700), 1):
            data[at : at + 4] = rng.choice(
                [rng.bytes(4), b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\1\0\x80\x7f"]
            )
        try:
            found = opened(_with_bytes(tmp_path / "x", bytes(data)))
        except InputError as error:
            checked(error)
            continue
        for p in queries():
            with contextlib.suppress(WeightsError):
                (operand,) = found.moment(p).operands
                assert operand.load is not None
                assert np.isfinite(operand.load()).all()
                given += 1
    assert given > 0

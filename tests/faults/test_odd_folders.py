"""Folders that hold something else in the place of weights: what is said of it, and what is said beside a tree."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from opening import DOWN, KEY, QUERY, refusal, weights

from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.tui.cli.main import main

NAMES = ["model.safetensors", "pytorch_model.bin", "model.gguf", "config.json", "model.safetensors.index.json"]
MARK = b"\xef\xbb\xbf"
INSTEAD = {
    "pointer of old": (b"version https://hawser.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
    "pointer with a mark": (MARK + b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    "pointer of Xet": (b"# xet version 0\nfilesize = 4\n", "is a pointer of Xet"),
    "pointer of git-annex": (b"/annex/objects/MD5E-s17--0123.bin\n", "is a pointer of git-annex"),
    "a title alone": (b"<title>Sign in</title>", "is a web page"),
    "an attribute": (b'\r\n<div class="error">429</div>', "is a web page"),
    "an error of S3": (b"<Error><Code>NoSuchKey</Code></Error>", "is a web page or a server's error"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", INSTEAD)
def test_pointers_pages_and_zeros(tmp_path: Path, name: str, kind: str) -> None:
    content, said = INSTEAD[kind]
    (tmp_path / "model.safetensors").write_bytes(weights(QUERY))
    if name not in ("config.json", "model.safetensors.index.json"):
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "config.json"])
def test_a_download_of_which_only_the_size_came(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(4096))
    assert "an empty header that is not JSON, as in downloads that were cut short" in refusal(tmp_path)
    if name == "config.json":
        (tmp_path / "model.safetensors").write_bytes(weights(QUERY))
    else:
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(bytes(50))
    assert "is filled with zeros, as downloads that were cut short are: download it again" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf", "m.pth"])
def test_packed_weights(tmp_path: Path, name: str) -> None:
    packed, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("model.safetensors"))
    (tmp_path / name).write_bytes(packed.getvalue())
    assert "is a tar archive: unpack it first" in refusal(tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(weights(QUERY)))
    assert "is compressed: unpack it first" in refusal(tmp_path)
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("model.safetensors", weights(QUERY))
    (tmp_path / name).write_bytes(archive.getvalue())
    if name.endswith((".bin", ".pth")):
        assert "is a zip archive that torch.save did not write: unpack it" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.safetensors.incomplete", ", an unfinished download (fetch it again)"),
        ("model.gguf.aria2", ", an unfinished download (fetch it again)"),
        ("model.safetensors.gz", ", an archive (unpack it)"),
        ("MODEL.ZIP", ", an archive (unpack it)"),
        ("checkpoint.pth.tar", ", a PyTorch file under another name (give it the suffix .pt)"),
        ("openvino_model.bin", " of OpenVINO"),
        ("model.pkl", " of Python's pickle"),
    ],
)
def test_files_that_are_named_where_there_is_nothing_else(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_bytes(b"\1\2\3")
    assert f"(it holds {name}{what})" in refusal(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(b"")
    assert "pytorch_model-00001-of-00001.bin is empty" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "odd.gguf"])
def test_a_folder_under_the_name_of_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert refusal(tmp_path).startswith(f"no weights that can be read in {tmp_path}:")
    (tmp_path / name / "x.safetensors").write_bytes(weights(QUERY))
    assert f"only in its folders ({name}): name one of them" in refusal(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(weights(KEY))
    assert [t.name for t in open_checkpoint(str(tmp_path)).tensors] == [KEY]


@pytest.mark.parametrize(
    "name", ["0000100_adapters.safetensors", "pytorch_lora_weights.safetensors", "Adapters.SafeTensors"]
)
def test_adapters_by_the_names_that_mlx_and_diffusers_give(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(weights("layers.0.self_attn.q_proj.lora_a"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for number, tensor in ((1, QUERY), (2, DOWN)):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(weights(tensor))
    assert [t.name for t in open_checkpoint(str(tmp_path)).tensors] == [QUERY, DOWN]
    for option in ([], ["--json"]):
        assert main(["tree", str(tmp_path), "--store", str(tmp_path / "store"), *option]) == 0
        assert f"files beside the model that are not read: {name}" in capsys.readouterr().err


def test_openvinos_weights_beside_a_model(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(b"\1\2\3")
    torch.save({QUERY: torch.ones(3, 5)}, tmp_path / "odd.bin")
    assert [t.file.name for t in open_checkpoint(str(tmp_path)).tensors] == ["odd.bin"]

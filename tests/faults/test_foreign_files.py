"""Files that are not what their names say, and unknown formats."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import h5py
import numpy as np
import pytest
import torch
from hub_server import HubServer
from opening import KEY, QUERY, refusal, refused, stored, tree_or_refusal, weights

from rankscope.engine.catalogue.tree import Tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import open_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"7c" * 32 + b"\nsize 17\n"
INSTEAD = {
    "pointer": (POINTER, "is a pointer of Git LFS, not the file itself: fetch that with  git lfs pull"),
    "page": (b"\n <!DOCTYPE HTML>\n<html lang=de>" + b"x" * 2000, "is a web page or a server's error"),
    "page with a mark": (b"\xef\xbb\xbf<html>", "is a web page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page or a server's error"),
    "error": (b'{"error":"Invalid credentials"}', '{"error":"Invalid credentials"}"), not '),
    "sentence": (b"Access to model org/x is restricted.\n", 'is text ("Access to model org/x is restricted."), not '),
    "letters cut in two": (b"x" + "é".encode() * 300, 'is text ("xéé'),
    "nothing": (b"", "is empty: download it again"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf", "m.pth"])
@pytest.mark.parametrize("case", INSTEAD)
def test_text_in_the_place_of_weights(tmp_path: Path, name: str, case: str) -> None:
    content, said = INSTEAD[case]
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path)
    assert said in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("case", INSTEAD)
def test_text_in_the_place_of_json(tmp_path: Path, name: str, case: str) -> None:
    content, said = INSTEAD[case]
    (tmp_path / "model.safetensors").write_bytes(weights(QUERY))
    (tmp_path / name).write_bytes(content)
    line = refusal(tmp_path)
    assert name in line
    assert said in line


BROKEN = {
    '{\n  "a": 1, // heads\n  "b": 2}': "line 2, column 11: JSON has no comments",
    '# mine\n{"a": 1}': "line 1, column 1: JSON has no comments",
    '{"a": 1,\n "b": [2, 3],\n}': "line 3, column 1: a comma before the closing bracket",
    '{"a": [1, 2,]}': "line 1, column 13: a comma before the closing bracket",
    "{'a': 1}": "line 1, column 2: single quotes",
    '{"a": 1\n "b": 2}': "line 2, column 2: expecting ',' delimiter",
    '{"a": 1} {': "line 1, column 10: extra data",
    '{"a": "\x01"}': "line 1, column 8: invalid control character",
}


@pytest.mark.parametrize("text", BROKEN)
def test_the_place_of_a_fault_in_a_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(weights(QUERY))
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        (tmp_path / "config.json").write_bytes(content)
        assert f"config.json is not valid JSON, {BROKEN[text]}" in refusal(tmp_path)


def test_a_config_in_latin_1_and_one_with_a_key_called_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(weights(QUERY))
    (tmp_path / "config.json").write_bytes(b'{"author": "Ren\xe9"}')
    assert "byte 16 is not UTF-8; save it as UTF-8" in refusal(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"model_type": "llama", "error": 0.1, "type": "x"}')
    assert isinstance(tree_or_refusal(tmp_path), Tree)


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["kernel:0"] = np.ones((3, 5))


def _ctranslate2(path: Path) -> None:
    name = b"TransformerDecoderSpec\0"
    path.write_bytes(struct.pack("<IH", 6, len(name)) + name + struct.pack("<II", 7, 2) + bytes(99))


MADE: dict[str, tuple[Callable[[Path], object], str]] = {
    "HDF5": (_hdf5, "is an HDF5 file, as TensorFlow and Keras write"),
    "CTranslate2": (_ctranslate2, "is a CTranslate2 file, which is not read"),
    "GGML": (lambda path: path.write_bytes(b"tjgg\3\0\0\0" + bytes(90)), "is a GGML file, older than GGUF"),
    "TFLite": (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(90)), "is a TensorFlow Lite file"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08\0" + bytes(90)), "is compressed: unpack it first"),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", ["model.bin", "model.safetensors", "model.gguf", "model.data"])
def test_another_programs_file(tmp_path: Path, kind: str, name: str) -> None:
    make, said = MADE[kind]
    make(tmp_path / name)
    assert said in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tf_model.h5", " of TensorFlow or Keras"),
        ("saved_model.pb", " of TensorFlow"),
        ("bert.ckpt.data-00000-of-00001", " of TensorFlow"),
        ("bert.ckpt-1000.index", " of TensorFlow"),
        ("flax_model.msgpack", " of Flax"),
        ("model_q4.ONNX", " of ONNX"),
        ("model.onnx_data", " of ONNX"),
        ("llama.gguf.part2of3", ", a GGUF cut in pieces (join them with cat)"),
    ],
)
def test_formats_that_are_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x07")
    (tmp_path / "config.json").write_text("{}")
    assert f"it holds {name}{kind}" in refusal(tmp_path)
    alone = f" is{kind[1:]}" if kind.startswith(",") else f" is a file{kind}, which is not read: name the model's .safe"
    assert f"{name}{alone}" in refusal(tmp_path / name)
    (tmp_path / "model.safetensors").write_bytes(weights(QUERY))
    assert isinstance(tree_or_refusal(tmp_path), Tree)


def test_our_own_formats_under_each_others_names(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(weights(QUERY))
    assert "is a safetensors file under another name: give it the suffix .safetensors" in refusal(tmp_path)
    torch.save({QUERY: torch.ones(3, 5)}, tmp_path / "m.gguf")
    assert "is a zip file, as torch.save writes: give it the suffix .pt" in refusal(tmp_path / "m.gguf")
    cut = weights(QUERY, KEY)[:90]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    assert "in a file of 90; it is truncated" in refusal(tmp_path / "cut.safetensors")


TYPES = {
    "BOOL": (1, "BOOL holds true and false, as masks do, not weights"),
    "C64": (8, "C64 holds complex numbers, which are not computed"),
    "F6_E3M2": (0.75, "F6_E3M2 holds floats of 6 bits, which are not read: unsupported quantisation"),
    "I64": (8, "I64 holds whole numbers, not weights"),
    "U16": (2, "U16 holds whole numbers, not weights"),
    "I32": (4, "I32 holds packed integers, not weights: unsupported quantisation"),
}


@pytest.mark.parametrize("dtype", TYPES)
def test_types_that_are_no_weights(tmp_path: Path, dtype: str) -> None:
    size, said = TYPES[dtype]
    held = int(12 * 8 * size)
    header = {QUERY: {"dtype": dtype, "shape": [12, 8], "data_offsets": [0, held]}}
    (tmp_path / "model.safetensors").write_bytes(stored(header, bytes(held)))
    tree = tree_or_refusal(tmp_path)
    assert isinstance(tree, Tree)
    assert [p.problem for p in tree.projections] == [said]


def test_complex_weights_of_torch(tmp_path: Path) -> None:
    torch.save({QUERY: torch.ones(3, 5, dtype=torch.complex128)}, tmp_path / "m.pt")
    tree = tree_or_refusal(tmp_path / "m.pt")
    assert isinstance(tree, Tree)
    assert tree.projections[0].problem == "COMPLEX128 holds complex numbers, which are not computed"


def _gguf(path: Path, architecture: str, tensors: dict[str, np.ndarray], **texts: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, text in texts.items():
        writer.add_string(f"general.{key}", text)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _number(path: Path, kinds: dict[str, int]) -> None:
    """Give tensors of a file these type numbers, as no writer would."""
    data = bytearray(path.read_bytes())
    for name, kind in kinds.items():
        at = data.index(name.encode()) + len(name) + 4 + 16
        data[at : at + 4] = struct.pack("<I", kind)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (4, "GGUF type 4 (Q4_2, which llama.cpp removed): unsupported quantisation"),
        (33, "GGUF type 33 (Q4_0_8_8, which llama.cpp removed): unsupported quantisation"),
        (36, "GGUF type 36 (I2_S of BitNet, or IQ4_NL_4_4, which llama.cpp removed): unsupported quantisation"),
        (137, "GGUF type 137 (IQ2_K of ik_llama.cpp): unsupported quantisation"),
        (212, "GGUF type 212 (Q4_K_R4 of ik_llama.cpp): unsupported quantisation"),
        (1157, "GGUF type 1157 is not known: unsupported quantisation"),
    ],
)
def test_an_unknown_gguf_type_is_its_tensors_problem_alone(tmp_path: Path, kind: int, said: str) -> None:
    rng = np.random.default_rng(kind)
    held = {f"blk.0.attn_{r}.weight": rng.standard_normal((6, 32), dtype=np.float32) for r in "qkv"}
    path = _gguf(tmp_path / "m.gguf", "llama", held)
    _number(path, {"blk.0.attn_k.weight": kind, "blk.0.attn_v.weight": kind})
    opened = open_checkpoint(str(path))
    assert opened.quantisation == ""
    assert [t.end - t.begin for t in opened.tensors] == [6 * 32 * 4] * 3
    assert [t.problem for t in opened.tensors] == ["", said, said]
    weights, _ = opened.read(opened.tensors[0])
    np.testing.assert_array_equal(weights, held["blk.0.attn_q.weight"])


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (struct.pack("<I", 1), "is GGUF of version 1, and versions 2 and 3 are read: convert the model again"),
        (struct.pack("<I", 4), "is GGUF of version 4, and versions 2 and 3 are read: a newer RankScope may read it"),
        (struct.pack(">I", 2), "is a big-endian GGUF"),
    ],
)
def test_versions_and_byte_orders_of_gguf(tmp_path: Path, head: bytes, said: str) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + head + bytes(40))
    assert said in refusal(tmp_path)


ROW = np.ones((1, 64), dtype=np.float32)
LEGACY = struct.pack("<ii", 2, 19) + b"blk.0.attn_q.weight" + struct.pack("<ii64f", 3, 64, *ROW[0])


def _legacy_imatrix(path: Path) -> Path:
    path.write_bytes(LEGACY)
    return path


NO_MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "imatrix by type": (
        lambda path: _gguf(path, "", {"blk.1.ffn_up.weight.in_sum2": ROW}, type="imatrix"),
        "an importance matrix",
    ),
    "imatrix by names": (lambda path: _gguf(path, "x", {"blk.1.ffn_up.weight.counts": ROW}), "an importance matrix"),
    "imatrix of old": (_legacy_imatrix, "an importance matrix"),
    "control vector": (lambda path: _gguf(path, "controlvector", {"direction.7": ROW[0]}), "a control vector"),
    "vocabulary": (lambda path: _gguf(path, "qwen2", {}), "a vocabulary without weights"),
}


@pytest.mark.parametrize("kind", NO_MODELS)
def test_what_goes_along_with_a_gguf_is_no_model(tmp_path: Path, kind: str) -> None:
    make, said = NO_MODELS[kind]
    make(tmp_path / "a.gguf")
    assert f"is {said}" in refusal(tmp_path)
    assert "not a model: name the file with the weights" in refusal(tmp_path / "a.gguf")
    _gguf(tmp_path / "b.gguf", "llama", {"blk.0.attn_q.weight": np.ones((3, 32), dtype=np.float32)})
    assert [t.file.name for t in open_checkpoint(str(tmp_path)).tensors] == ["b.gguf"]
    _gguf(tmp_path / "c.gguf", "llama", {"blk.0.attn_q.weight": np.ones((5, 32), dtype=np.float32)})
    assert "holds 2 models (b.gguf, c.gguf)" in refusal(tmp_path)


def test_an_imatrix_of_old_under_its_own_name(tmp_path: Path) -> None:
    assert "imatrix.dat is an importance matrix of llama.cpp, not a model" in refusal(
        _legacy_imatrix(tmp_path / "imatrix.dat")
    )


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapters.safetensors", "optimizer.safetensors"])
def test_what_goes_along_with_safetensors_is_not_merged_in(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(weights("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"))
    assert [t.file.name for t in open_checkpoint(str(tmp_path)).tensors] == [name]
    for number, tensor in ((1, QUERY), (2, KEY)):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(weights(tensor))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert [t.name for t in open_checkpoint(str(tmp_path)).tensors] == [QUERY, KEY]
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").unlink()
    torch.save({KEY: torch.ones(3, 5)}, tmp_path / "pytorch_model.bin")
    assert [t.name for t in open_checkpoint(str(tmp_path)).tensors] == [KEY]


def test_an_adapter_beside_a_gguf_is_none_of_the_models(tmp_path: Path) -> None:
    _gguf(tmp_path / "a.gguf", "llama", {"blk.0.attn_q.weight.lora_a": ROW}, type="adapter")
    assert [t.file.name for t in open_checkpoint(str(tmp_path)).tensors] == ["a.gguf"]
    _gguf(tmp_path / "b.gguf", "llama", {"blk.0.attn_q.weight": ROW})
    assert [t.file.name for t in open_checkpoint(str(tmp_path)).tensors] == ["b.gguf"]


@pytest.mark.parametrize("kind", NO_MODELS)
def test_what_goes_along_with_a_gguf_on_the_hub_is_no_model(tmp_path: Path, hub: HubServer, kind: str) -> None:
    make, said = NO_MODELS[kind]
    along = make(tmp_path / "a.gguf").read_bytes()
    model = _gguf(tmp_path / "b.gguf", "llama", {"blk.0.attn_q.weight": ROW}).read_bytes()
    hub.push("org/alone", {"a.gguf": along})
    for access in (Access.RANGES, Access.DOWNLOAD):
        assert f"is {said}" in refused("org/alone", access)
    hub.push("org/model", {"a.gguf": along, "b.gguf": model})
    for access in (Access.RANGES, Access.DOWNLOAD):
        assert [t.file.name for t in open_checkpoint("org/model", access).tensors] == ["b.gguf"]
    hub.push("org/two", {"a.gguf": along, "b.gguf": model, "c.gguf": model})
    for access in (Access.RANGES, Access.DOWNLOAD):
        assert "holds 2 models (b.gguf, c.gguf)" in refused("org/two", access)


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.bin", "training_args.bin", "ADAPTER_MODEL.BIN"])
def test_what_goes_along_with_pytorch_files_on_the_hub(tmp_path: Path, hub: HubServer, name: str) -> None:
    torch.save({QUERY: torch.ones(3, 5)}, tmp_path / "odd.bin")
    hub.push("org/model", {name: b"not fetched", "odd.bin": (tmp_path / "odd.bin").read_bytes()})
    assert [t.file.name for t in open_checkpoint("org/model", Access.DOWNLOAD).tensors] == ["odd.bin"]
    assert hub.files() == ["odd.bin"]

"""A format is one class and one row: a trial format, what formats state, and that no other code names a suffix."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from engine_fakes import MemorySink, Recorder, addresses
from lapack_reference import lapack
from safetensors.numpy import save_file

import rankscope.engine
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.model_files import choose
from rankscope.engine.checkpoint.open import DEMO_FILE, Checkpoint, open_checkpoint
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.errors import InputError
from rankscope.engine.formats import registry
from rankscope.engine.formats.format import Format, Listing, Origin
from rankscope.engine.formats.gguf import GGUF
from rankscope.engine.formats.pytorch import PYTORCH
from rankscope.engine.formats.safetensors import SAFETENSORS
from rankscope.engine.formats.tensor import FileStamp, Tensor, identify
from rankscope.tui.cli.arguments import MODEL_HELP

MAGIC = b"TRIAL\n"
PHI3 = {"model_type": "phi3", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 2}
QKV, UP = "model.layers.0.self_attn.qkv_proj.weight", "model.layers.1.mlp.down_proj.weight"
Matrices = Mapping[str, np.ndarray]


class Trial(Format):
    """A format with a line of JSON, name -> shape, after six letters; then float32 numbers, matrix after matrix."""

    suffixes = (".trial",)

    def recognises(self, head: bytes) -> bool:
        return head.startswith(MAGIC)

    def list_tensors(self, file: Path, origin: Origin) -> Listing:
        header = b"".join(file.read_bytes().splitlines(keepends=True)[:2])
        source = identify(file, origin.repo, origin.commit, header)
        tensors, begin = [], len(header)
        for name, (rows, cols) in json.loads(header[len(MAGIC) :]).items():
            end = begin + 4 * rows * cols
            tensors.append(Tensor(name, "F32", (rows, cols), file, begin, end, source))
            begin = end
        return Listing(tensors, FileStamp.of(file.stat()))


class TrialBin(Trial):
    """The trial format under a suffix of PyTorch."""

    suffixes = (".bin",)


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, Trial()))


@pytest.fixture
def matrices() -> Matrices:
    rng = np.random.default_rng(3)
    return {QKV: rng.standard_normal((10, 5), np.float32), UP: rng.standard_normal((5, 11), np.float32)}


def write(file: Path, matrices: Matrices) -> Path:
    shapes = json.dumps({name: matrix.shape for name, matrix in matrices.items()}).encode()
    file.write_bytes(MAGIC + shapes + b"\n" + b"".join(matrix.tobytes() for matrix in matrices.values()))
    return file


def refusal(model: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(model))
    return str(caught.value)


def spectra(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Singular values by address, as a scan by the engine keeps them."""
    sink, heard = MemorySink(), Recorder()
    engine = Engine(sink, heard, ComputeSettings("cpu"))
    try:
        engine.submit(checkpoint, build_tree(checkpoint).scanned())
        heard.wait_until_idle()
    finally:
        engine.close()
    return {spectrum.projection.address: spectrum.values for spectrum in sink.kept.values()}


def assert_is_the_model(checkpoint: Checkpoint, matrices: Matrices) -> None:
    """Check that Phi-3's fused projections are cut as its config.json says, and that each spectrum is LAPACK's."""
    fused = matrices[QKV]
    wanted = {
        "layers.0.attention.query": fused[:6],
        "layers.0.attention.key": fused[6:8],
        "layers.0.attention.value": fused[8:],
        "layers.1.mlp.down": matrices[UP],
    }
    assert addresses(build_tree(checkpoint).scanned()) == list(wanted)
    found = spectra(checkpoint)
    assert found.keys() == wanted.keys()
    for address, matrix in wanted.items():
        sigma = lapack(matrix)
        assert abs(found[address] - sigma).max() <= 1e-10 * sigma[0]


@pytest.mark.usefixtures("trial")
def test_a_file_of_a_new_format_opens_by_its_path(tmp_path: Path, matrices: Matrices) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PHI3))
    opened = open_checkpoint(str(write(tmp_path / "odd.trial", matrices)))
    assert (opened.name, opened.quantisation, opened.warnings) == ("odd", "", ())
    assert_is_the_model(opened, matrices)


@pytest.mark.usefixtures("trial")
def test_a_folder_of_a_new_format_opens(tmp_path: Path, matrices: Matrices) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PHI3))
    for number, name in enumerate(matrices, 1):
        write(tmp_path / f"odd-0000{number}-of-00002.trial", {name: matrices[name]})
    assert_is_the_model(open_checkpoint(str(tmp_path)), matrices)
    (tmp_path / "odd-00002-of-00002.trial").unlink()
    assert "shard odd-00002-of-00002.trial (one of 2) is missing" in refusal(tmp_path)
    write(tmp_path / "even.trial", matrices)
    assert "holds 2 models (even.trial, odd-00001-of-00002.trial): keep one of them there" in refusal(tmp_path)


def test_the_refusal_names_the_suffixes_of_all_formats(tmp_path: Path, matrices: Matrices, request: Any) -> None:
    file, notes = write(tmp_path / "odd.trial", matrices), tmp_path / "notes.txt"
    notes.touch()
    assert refusal(file).endswith("a file of weights (.safetensors, .bin, .pt, .pth, .ckpt, .gguf)")
    assert "no weights that can be read" in refusal(tmp_path)
    request.getfixturevalue("trial")
    assert refusal(notes).endswith("a file of weights (.safetensors, .bin, .pt, .pth, .ckpt, .gguf, .trial)")
    assert refusal(tmp_path / "gone.trial").startswith("no such file or folder")


def test_formats_that_share_a_suffix_are_told_by_their_first_bytes(
    tmp_path: Path, matrices: Matrices, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PHI3))
    model = write(tmp_path / "pytorch_model.bin", matrices)
    assert "was not written by torch.save" in refusal(model)
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, TrialBin()))
    assert_is_the_model(open_checkpoint(str(tmp_path)), matrices)
    torch.save({name: torch.from_numpy(matrix) for name, matrix in matrices.items()}, model)
    assert_is_the_model(open_checkpoint(str(model)), matrices)
    model.write_bytes(b"neither")
    assert 'is text ("neither")' in refusal(model)
    model.unlink()
    os.mkfifo(model)  # no writer will ever open it
    assert refusal(model).endswith("pytorch_model.bin: not a regular file: name a file")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Format, bytes]]:
    """One file of each kind by its own library: its format and its first bytes."""
    folder, matrix = tmp_path_factory.mktemp("kinds"), np.ones((3, 7), np.float32)
    save_file({"a": matrix}, folder / "safetensors")
    torch.save({"a": torch.ones(3, 7)}, folder / "zip")
    torch.save({"a": torch.ones(3, 7)}, folder / "legacy", _use_new_zipfile_serialization=False)
    writer = gguf.GGUFWriter(folder / "gguf", "llama")
    writer.add_tensor("a", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    kinds = {"safetensors": SAFETENSORS, "zip": PYTORCH, "legacy": PYTORCH, "gguf": GGUF}
    return {name: (kind, (folder / name).read_bytes()[:64]) for name, kind in kinds.items()}


@pytest.mark.parametrize("name", ["safetensors", "zip", "legacy", "gguf"])
def test_each_format_recognises_its_files_and_no_other_does(files: dict[str, tuple[Format, bytes]], name: str) -> None:
    kind, head = files[name]
    assert [each for each in registry.FORMATS if each.recognises(head)] == [kind]
    assert not any(each.recognises(head[:3]) for each in registry.FORMATS)


SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
PARTS = ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "model.safetensors.index.json"], ["model.safetensors.index.json"]),
        (["a.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", "b.safetensors", "a.safetensors"], ["a.safetensors", "b.safetensors"]),
        (["consolidated.safetensors", "pytorch_model.bin"], ["consolidated.safetensors"]),
        (["pytorch_model.bin.index.json", *SHARDS, "m.gguf"], ["pytorch_model.bin.index.json"]),
        (["m.gguf", *SHARDS, "optimizer.pt"], SHARDS),
        (["last.pt", "m.gguf", "mmproj-m.gguf"], ["m.gguf"]),
        (["mmproj-m.gguf"], ["mmproj-m.gguf"]),
        ([*reversed(PARTS), "last.pt", "first.pt"], PARTS),
        (["last.pt", "optimizer.pt", "training_args.bin"], ["last.pt"]),
        (["optimizer.pt", "training_args.bin", "m.onnx"], []),
    ],
)
def test_what_a_folder_is_opened_by(names: list[str], chosen: list[str]) -> None:
    assert choose(names, "here") == chosen


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "stored", "cpu", "gpu"),
    [
        (SAFETENSORS, "F32", (3, 7), 84, 84, 84),
        (SAFETENSORS, "BF16", (3, 7), 42, 84, 42),
        (PYTORCH, "F8_E4M3", (3, 7), 21, 84, 21),
        (GGUF, "F16", (3, 32), 192, 192, 192),
        (GGUF, "BF16", (5, 3, 32), 960, 1920, 960),
        (GGUF, "Q4_0", (3, 32), 54, 54 + 384, 54),
        (GGUF, "Q4_0", (5, 3, 32), 270, 270 + 384, 270),
    ],
)
def test_the_bytes_that_weights_take_on_a_device(
    kind: Format, dtype: str, shape: tuple[int, ...], stored: int, cpu: int, gpu: int, tmp_path: Path
) -> None:
    """By hand: 18 bytes hold 32 weights of Q4_0, on the CPU beside one float32 matrix, on a GPU alone."""
    file = tmp_path / "m"
    file.touch()
    tensor = Tensor("a", dtype, shape, file, 100, 100 + stored, identify(file, "", "", b""))
    assert (kind.bytes_on("cpu", tensor), kind.bytes_on("cuda:0", tensor)) == (cpu, gpu)


def texts(source: str) -> Iterator[str]:
    """The string constants of a program without docstrings."""
    program = ast.parse(source)
    said = {id(node.value) for node in ast.walk(program) if isinstance(node, ast.Expr)}
    for node in ast.walk(program):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def test_nobody_else_asks_for_a_suffix_of_weights() -> None:
    """Except the help, which must not import the formats, and the demo, which is one file."""
    (engine,) = rankscope.engine.__path__
    rooms = [Path(engine), Path(engine).parent / "store", Path(engine).parent / "tui"]
    suffix = re.compile(rf"({'|'.join(map(re.escape, registry.suffixes()))})\b")
    files = (file for room in rooms for file in room.rglob("*.py") if "formats" not in file.relative_to(room).parts)
    suspects = [source for source in map(Path.read_text, files) if suffix.search(source)]
    found = {text for source in suspects for text in texts(source) if suffix.search(text)}
    assert found == {DEMO_FILE, MODEL_HELP}
    assert all(kind.suffixes[0] in MODEL_HELP for kind in registry.FORMATS)

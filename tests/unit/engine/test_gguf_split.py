"""GGUF files as they are published: split, several in a folder, stacked experts, projectors, big-endian files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.errors import InputError, WeightsError

NAMES = [f"blk.{layer}.{leaf}.weight" for layer in range(2) for leaf in ("attn_q", "attn_k", "ffn_up", "ffn_down")]
PARTS = [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


def write(file: Path, fill: Callable[[gguf.GGUFWriter], None], arch: str = "llama", **options: Any) -> Path:
    writer = gguf.GGUFWriter(file, arch, **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def llama(writer: gguf.GGUFWriter) -> None:
    rng = np.random.default_rng(7)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(2)
    for name in NAMES:
        packed = gguf.quants.quantize(rng.standard_normal((48, 64), np.float32), Quant.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=Quant.Q8_0)


def refusal(model: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(model))
    return str(caught.value)


def read(checkpoint: Checkpoint, name: str) -> Any:
    return checkpoint.read(next(t for t in checkpoint.tensors if t.name == name))[0]


@pytest.fixture
def split(tmp_path: Path) -> Path:
    (tmp_path / "split").mkdir()
    write(tmp_path / "split" / "m.gguf", llama, split_max_tensors=3)
    assert sorted(p.name for p in (tmp_path / "split").iterdir()) == PARTS
    return tmp_path / "split"


@pytest.mark.parametrize("named", ["", *PARTS])
def test_any_part_opens_all(tmp_path: Path, split: Path, named: str) -> None:
    whole = open_checkpoint(str(write(tmp_path / "whole.gguf", llama)))
    opened = open_checkpoint(str(split / named))
    assert [t.name for t in opened.tensors] == [t.name for t in whole.tensors] == NAMES
    assert {t.file.name for t in opened.tensors} == set(PARTS)
    assert (opened.config, opened.quantisation) == (whole.config, "Q8_0")
    assert (opened.name, opened.location) == (("m", split / PARTS[0]) if named else ("split", split))
    assert len(build_tree(opened).scanned()) == len(NAMES)
    for name in NAMES:
        assert (read(opened, name) == read(whole, name)).all()


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(split: Path, part: str) -> None:
    (split / part).unlink()
    for named in (split, *split.iterdir()):
        assert f"{part} (one of 3) is missing" in refusal(named)


def test_a_part_under_another_name(split: Path) -> None:
    other = (split / PARTS[1]).rename(split.parent / "part2.gguf")
    assert "is one of 3 parts, which must be named NAME-00001-of-00003.gguf" in refusal(other)


def test_the_ggufs_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "model-Q8_0.gguf", llama)
    write(tmp_path / "mmproj-model-f16.gguf", projector, "clip")
    opened = open_checkpoint(str(tmp_path))
    assert (opened.name, opened.config["model_type"], len(opened.tensors)) == (tmp_path.name, "llama", len(NAMES))
    write(tmp_path / "model-F16.gguf", llama)
    assert "holds 2 models (model-F16.gguf, model-Q8_0.gguf): name one of the files" in refusal(tmp_path)


def projector(writer: gguf.GGUFWriter) -> None:
    rng = np.random.default_rng(3)
    writer.add_uint32("clip.vision.block_count", 2)
    writer.add_uint32("clip.vision.embedding_length", 32)
    writer.add_uint32("clip.vision.attention.head_count", 4)
    for layer in range(2):
        for leaf in ("attn_q", "attn_k", "attn_v", "ffn_up", "ffn_down"):
            writer.add_tensor(f"v.blk.{layer}.{leaf}.weight", rng.standard_normal((32, 32), np.float32))
    writer.add_tensor("mm.0.weight", rng.standard_normal((48, 32), np.float32))


def test_a_projector_is_a_vision_model_of_its_own(tmp_path: Path) -> None:
    opened = open_checkpoint(str(write(tmp_path / "mmproj-m.gguf", projector, "clip")))
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    assert (opened.name, opened.config) == ("mmproj-m", {"model_type": "clip", "vision_config": sizes})
    tree = build_tree(opened)
    assert {p.tensor for p in tree.projections} == {t.name for t in opened.tensors}
    assert len(tree.scanned("mlp")) == 4


def test_one_expert_of_a_stack_is_dequantised_alone(tmp_path: Path) -> None:
    stack = np.random.default_rng(5).standard_normal((6, 24, 64), np.float32)

    def fill(writer: gguf.GGUFWriter) -> None:
        for kind in (Quant.Q8_0, Quant.Q4_0, Quant.F16):
            packed = stack.astype(np.float16) if kind == Quant.F16 else gguf.quants.quantize(stack, kind)
            writer.add_tensor(f"blk.{kind.value}.ffn_up_exps.weight", packed, raw_dtype=kind)
        writer.add_tensor("none", np.zeros((2, 2, 292), np.uint8), raw_dtype=Quant.Q8_K)

    file = write(tmp_path / "m.gguf", fill)
    opened = open_checkpoint(str(file))
    for tensor in gguf.GGUFReader(str(file)).tensors[:3]:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(stack.shape)
        ours = read(opened, tensor.name)
        for expert in range(len(stack)):
            np.testing.assert_array_equal(ours[expert], theirs[expert].astype(np.float32))
        np.testing.assert_array_equal(ours.reshape(6, -1), theirs.reshape(6, -1).astype(np.float32))
    with pytest.raises(WeightsError, match="Q8_K has no dequantiser"):
        read(opened, "none")
    assert opened.quantisation == "Q8_0"


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", llama, endianess=gguf.GGUFEndian.BIG)
    assert "is a big-endian GGUF, for other machines than this: take the little-endian file" in refusal(file)

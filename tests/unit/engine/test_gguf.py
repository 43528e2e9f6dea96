"""GGUF: a file written by the gguf package reads as the package's reader and dequantiser say."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from lapack_reference import assert_same_spectrum, compute, lapack
from numpy.typing import NDArray

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.formats.gguf import GGML_TYPES

# Rows are multiples of the block, 32; everything else is odd.
SHAPES = {
    "attn_q": (48, 64, Quant.F32),
    "attn_k": (16, 64, Quant.F16),
    "attn_v": (16, 64, Quant.Q8_0),
    "attn_output": (64, 64, Quant.Q4_0),
    "ffn_gate": (35, 64, Quant.Q8_0),
    "ffn_up": (35, 64, Quant.F16),
    "ffn_down": (64, 96, Quant.Q4_0),
}
ROLES = {
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}


def _packed(array: NDArray[np.float32], kind: Quant) -> NDArray[np.generic]:
    if kind == Quant.F32:
        return array
    return array.astype(np.float16) if kind == Quant.F16 else gguf.quants.quantize(array, kind)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    rng = np.random.default_rng(11)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_token_list(["<s>", "</s>", "häuser"])
    writer.add_token_scores([0.0, -1.0, -2.5])
    writer.add_array("test.nested", [[1, 2], [3]])
    writer.add_tensor("token_embd.weight", rng.standard_normal((37, 64), np.float32))
    for layer in range(2):
        for name, (rows, cols, kind) in SHAPES.items():
            packed = _packed(rng.standard_normal((rows, cols), np.float32), kind)
            writer.add_tensor(f"blk.{layer}.{name}.weight", packed, raw_dtype=kind)
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def checkpoint(written: Path) -> Checkpoint:
    return open_checkpoint(str(written))


def test_spectra_are_those_of_the_packages_own_dequantisation(written: Path, checkpoint: Checkpoint) -> None:
    reader = gguf.GGUFReader(str(written))
    theirs = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    found = {p.address: p for p in build_tree(checkpoint).projections}
    for layer in range(2):
        for name, role in ROLES.items():
            projection = found[f"layers.{layer}.{role}"]
            matrix = theirs[f"blk.{layer}.{name}.weight"].reshape(SHAPES[name][:2])
            wanted = lapack(matrix)
            solution = compute(checkpoint, projection)
            assert (projection.rows, projection.cols) == SHAPES[name][:2]
            assert np.abs(solution.values - wanted).max() <= 1e-10 * wanted[0]


def test_header_says_what_the_packages_reader_says(written: Path, checkpoint: Checkpoint) -> None:
    theirs = {
        t.name: (tuple(int(n) for n in t.shape[::-1]), t.tensor_type.name, t.data_offset, t.data_offset + t.n_bytes)
        for t in gguf.GGUFReader(str(written)).tensors
    }
    assert {t.name: (t.shape, t.dtype, t.begin, t.end) for t in checkpoint.tensors} == theirs
    assert checkpoint.config == {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }


def test_tree_of_a_gguf_file(checkpoint: Checkpoint) -> None:
    tree = build_tree(checkpoint)
    assert {p.address for p in tree.scanned()} == {f"layers.{i}.{role}" for i in range(2) for role in ROLES.values()}
    assert {p.tensor for p in tree.projections} == {t.name for t in checkpoint.tensors}
    assert tree.known
    by_address = {p.address: p.dequantisation for p in tree.projections}
    assert by_address["layers.0.attention.value"] == "gguf Q8_0"
    assert by_address["layers.0.attention.key"] == ""
    assert checkpoint.quantisation == "Q4_0"


def test_types_are_those_of_the_gguf_package() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: GGML_TYPES.get(number) for number in theirs} == theirs


def test_every_dequantiser_of_the_package_is_reached(tmp_path: Path) -> None:
    """One block row of each quantised type, with random bytes: the same floats as the package, or a sentence."""
    rng = np.random.default_rng(3)
    file = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    kinds = [kind for kind in gguf.quants._type_traits if kind in gguf.GGML_QUANT_SIZES]
    for kind in kinds:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 60, (3, 256 // block * size), np.uint8)
        writer.add_tensor(f"blk.0.{kind.name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(str(file))
    theirs = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(str(file)).tensors}
    assert len(checkpoint.tensors) == len(kinds) > 20
    for tensor in checkpoint.tensors:
        weights, _ = checkpoint.read(tensor)
        assert weights.shape == (3, 256)
        np.testing.assert_array_equal(weights, theirs[tensor.name].astype(np.float32))


def test_fused_gguf_tensors_are_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    qkv, gate_up = rng.standard_normal((64, 32), np.float32), rng.standard_normal((70, 32), np.float32)
    writer = gguf.GGUFWriter(str(tmp_path / "phi3.gguf"), "phi3")
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tensor("blk.0.attn_qkv.weight", qkv)
    writer.add_tensor("blk.0.ffn_up.weight", gate_up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(str(tmp_path / "phi3.gguf"))
    parts = {"query": qkv[:32], "key": qkv[32:48], "value": qkv[48:], "gate": gate_up[:35], "up": gate_up[35:]}
    found = {p.role: p for p in build_tree(checkpoint).scanned()}
    assert found.keys() == parts.keys()
    for role, part in parts.items():
        assert_same_spectrum(compute(checkpoint, found[role]), part)


def test_quantised_heads_of_latent_attention(tmp_path: Path) -> None:
    """The heads of the keys are transposed, and all heads are stacked below one another."""
    rng = np.random.default_rng(4)
    writer = gguf.GGUFWriter(str(tmp_path / "mla.gguf"), "deepseek2")
    expected = {}
    for role, name, shape in (("key_b", "attn_k_b", (3, 64, 32)), ("value_b", "attn_v_b", (3, 40, 64))):
        blocks = gguf.quants.quantize(rng.standard_normal(shape, np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"blk.0.{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        heads = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
        expected[role] = np.concatenate([head.T if role == "key_b" else head for head in heads])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(str(tmp_path / "mla.gguf"))
    found = {p.role: p for p in build_tree(checkpoint).scanned()}
    assert found.keys() == expected.keys()
    for role, matrix in expected.items():
        assert (found[role].rows, found[role].cols) == matrix.shape
        assert_same_spectrum(compute(checkpoint, found[role]), matrix)

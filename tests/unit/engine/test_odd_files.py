"""Unusual files and blocks: several blocks, older versions, mixed types, stacks."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import quantised_packers as pack
import torch
from engine_fakes import saved
from gguf import GGMLQuantizationType as Quant
from lapack_reference import assert_same_spectrum, compute, lapack

from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.errors import InputError
from rankscope.engine.solvers import gram
from rankscope.engine.weights import host_array

# Gram matrices by blocks


@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (33, 61)], ids=str)
def test_a_gram_matrix_of_several_blocks_is_the_whole_product(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """Blocks of 16 rows, the last of 8 or of 1: both halves, also where a second matrix is added."""
    monkeypatch.setitem(gram._BLOCKS, "cpu", 16)
    first, second = np.random.default_rng(sum(shape)).standard_normal((2, *shape))
    wide = [m if m.shape[0] < m.shape[1] else m.T for m in (first, second)]
    product = torch.zeros([min(shape)] * 2, dtype=torch.float64)
    squares = gram.add_gram(torch.from_numpy(first), 0.5, product)
    np.testing.assert_allclose(product.numpy(), wide[0] @ wide[0].T / 4, rtol=0, atol=1e-12)
    assert float(squares) == pytest.approx((first**2).sum() / 4, rel=1e-14)
    assert float(gram.add_gram(torch.from_numpy(second), 1.0, product)) == pytest.approx((second**2).sum(), rel=1e-14)
    np.testing.assert_allclose(product.numpy(), wide[0] @ wide[0].T / 4 + wide[1] @ wide[1].T, rtol=0, atol=1e-12)


def test_singular_values_by_blocks_are_lapacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gram._BLOCKS, "cpu", 16)
    matrix = np.random.default_rng(4).standard_normal((40, 50))
    found = host_array(gram.singular_values(torch.from_numpy(matrix), 1.0))
    np.testing.assert_allclose(found, lapack(matrix), rtol=1e-11)


def test_a_gram_matrix_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^\(4, 7\) has no Gram matrix of size 7$"):
        gram.add_gram(torch.ones(4, 7), 1.0, torch.zeros(7, 7, dtype=torch.float64))


# GGUF


def _gguf(file: Path, tensors: dict[str, tuple[tuple[int, ...], Quant]]) -> Path:
    """A file of random tensors of these shapes and types."""
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(str(file), "llama")
    for name, (shape, kind) in tensors.items():
        values = rng.standard_normal(shape, np.float32)
        packed = values.astype(np.float16) if kind == Quant.F16 else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return file


def test_gguf_of_version_2_is_that_of_version_3_and_no_other_is_read(tmp_path: Path) -> None:
    file = _gguf(tmp_path / "m.gguf", {"blk.0.attn_q.weight": ((5, 64), Quant.Q8_0)})
    third = open_checkpoint(str(file))
    theirs = gguf.quants.dequantize(gguf.GGUFReader(str(file)).tensors[0].data, Quant.Q8_0)
    content = bytearray(file.read_bytes())
    for version in (2, 1, 4):
        content[4:8] = version.to_bytes(4, "little")
        file.write_bytes(content)
        if version == 2:
            second = open_checkpoint(str(file))
            assert [(t.name, t.shape, t.begin, t.end) for t in second.tensors] == [
                (t.name, t.shape, t.begin, t.end) for t in third.tensors
            ]
            np.testing.assert_array_equal(host_array(second.read(second.tensors[0])[0]), theirs)
        else:
            with pytest.raises(InputError, match=rf"is GGUF of version {version}, and versions 2 and 3 are read"):
                open_checkpoint(str(file))


def test_a_gguf_that_states_more_tensors_than_any_model_has_is_refused(tmp_path: Path) -> None:
    content = b"GGUF" + (3).to_bytes(4, "little") + (1_000_001).to_bytes(8, "little") + bytes(8)
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"malformed header \(it states 1000001 tensors\)"):
        open_checkpoint(str(tmp_path / "m.gguf"))


def test_a_gguf_of_mixed_types_is_called_by_that_of_most_weights(tmp_path: Path) -> None:
    """Not the type of most tensors or bytes (Q8_0), nor a plain float, nor that of a vector."""
    tensors = {
        "blk.0.attn_q.weight": ((32, 64), Quant.Q4_0),  # 2048 weights in 1152 bytes
        "blk.0.attn_k.weight": ((15, 64), Quant.Q8_0),  # two with 960 weights, 2040 bytes in all
        "blk.0.attn_v.weight": ((15, 64), Quant.Q8_0),
        "blk.0.ffn_up.weight": ((99, 64), Quant.F16),
        "blk.0.odd.weight": ((4096,), Quant.Q5_0),
    }
    assert open_checkpoint(str(_gguf(tmp_path / "m.gguf", tensors))).quantisation == "Q4_0"
    plain = {name: made for name, made in tensors.items() if made[1] == Quant.F16}
    assert open_checkpoint(str(_gguf(tmp_path / "plain.gguf", plain))).quantisation == ""


# Quantised safetensors


def test_a_file_of_mixed_formats_is_called_by_that_of_most_weights(tmp_path: Path) -> None:
    """Two matrices of 1,056 weights in half bytes, and one of 1,457 in whole bytes."""
    parts = {
        "self_attn.q_proj": pack.bitsandbytes4(12, 44),
        "self_attn.k_proj": pack.bitsandbytes4(12, 44),
        "self_attn.v_proj": pack.bitsandbytes8(47, 31),
    }
    named = [(f"{module}.{name}", part) for module, packed in parts.items() for name, part in packed.parts.items()]
    tensors = {f"model.layers.0.{name}": part for name, part in named}
    tensors["model.layers.0.self_attn.o_proj.weight"] = torch.ones(44, 40)
    config = {"model_type": "llama", "quantization_config": parts["self_attn.q_proj"].config}
    checkpoint, scanned = saved(tmp_path, tensors, config)
    assert checkpoint.quantisation == "bitsandbytes int8"
    assert {p.role: p.dequantisation for p in scanned} == {
        "query": "bitsandbytes nf4, blocks of 64",
        "key": "bitsandbytes nf4, blocks of 64",
        "value": "bitsandbytes int8, per row",
        "output": "",
    }


@pytest.mark.parametrize("double", [False, True], ids=["nf4", "nf4 double"])
def test_experts_that_bitsandbytes_stacked_are_taken_apart(tmp_path: Path, double: bool) -> None:
    """Three experts of 10 x 12 in one flattened tensor, whose blocks of 32 run across them."""
    packed = pack.bitsandbytes4(3 * 10, 12, block=32, double=double)
    key = "weight.quant_state.bitsandbytes__nf4"
    state = json.loads(packed.parts[key].numpy().tobytes()) | {"shape": [3, 10, 12]}
    packed.parts[key] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    tensors = {f"model.layers.0.mlp.experts.up_proj.{name}": part for name, part in packed.parts.items()}
    config = {"model_type": "qwen3_moe", "num_experts": 3, "quantization_config": packed.config}
    checkpoint, scanned = saved(tmp_path, tensors, config)
    assert [(p.address, p.rows, p.cols) for p in scanned] == [(f"layers.0.expert.{e}.up", 10, 12) for e in range(3)]
    assert {p.dequantisation for p in scanned} == {packed.text}
    for p in scanned:
        assert_same_spectrum(compute(checkpoint, p), packed.matrix[10 * (p.expert or 0) :][:10])

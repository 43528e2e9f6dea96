"""Whole quantised checkpoints through the engine: every spectrum is the matrix's by LAPACK, and names its format."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import quantised_packers as pack
import torch
from engine_fakes import MemorySink, Recorder
from lapack_reference import lapack
from numpy.typing import NDArray
from quantised_packers import Packed
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.compute import worker_thread
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.job import SCAN, Job
from rankscope.engine.formats.safetensors import DTYPE_BITS
from rankscope.engine.formats.tensor import Tensor
from rankscope.engine.spectrum import Projection, Spectrum
from rankscope.engine.weights import host_array

SHAPES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (64, 32),
    "mlp.up_proj": (64, 32),
    "mlp.down_proj": (32, 64),
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}

FORMATS: dict[str, Callable[[int, int], Packed]] = {
    "fp8 blocks": partial(pack.fp8_block, block=24),
    "fp8 rows": pack.fp8_channel,
    "fp8 tensor": pack.fp8_tensor,
    "mxfp8": pack.fp8_exponents,
    "mxfp4": pack.mxfp4,
    "nvfp4": pack.nvfp4,
    "nvfp4 modelopt": partial(pack.nvfp4, modelopt=True),
    "int4": partial(pack.packed, group=16, zeros=True),
    "int8 packed": partial(pack.packed, bits=8, group=None),
    "int8": pack.int8,
    "gptq": partial(pack.gptq, act_order=True),
    "gptq v2": partial(pack.gptq, bits=8, v2=True),
    "awq": pack.awq,
    "nf4": pack.bitsandbytes4,
    "fp4 double": partial(pack.bitsandbytes4, kind="fp4", double=True),
    "bitsandbytes int8": pack.bitsandbytes8,
    "bitnet": pack.bitnet,
}


def _write(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Checkpoint:
    """Write two shards, dealt out in turn: the parts of a matrix are in both."""
    files = {name: f"model-{at % 2 + 1:05d}-of-00002.safetensors" for at, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: t.contiguous() for n, t in tensors.items() if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(str(folder))


def _scan(checkpoint: Checkpoint, projections: list[Projection]) -> dict[str, Spectrum]:
    recorder, sink = Recorder(), MemorySink()
    engine = Engine(sink, recorder, ComputeSettings(device="cpu", threads=1))
    engine.submit(checkpoint, projections)
    recorder.wait_until_idle()
    assert engine.close(10)
    return {spectrum.projection.address: spectrum for spectrum in sink.kept.values()}


def _assert_spectrum(spectrum: Spectrum, matrix: Any) -> None:
    wanted = lapack(matrix)
    assert np.abs(spectrum.values - wanted).max() <= 1e-10 * wanted[0]


@pytest.mark.parametrize("name", FORMATS)
def test_a_llama_of_every_format_is_scanned(tmp_path: Path, name: str) -> None:
    """One module, down_proj, was left unquantised."""
    matrices: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {"model.embed_tokens.weight": torch.rand(40, 32)}
    config: dict[str, Any] = {}
    for path, (rows, cols) in SHAPES.items():
        stem = f"model.layers.0.{path}."
        if path == "mlp.down_proj":
            tensors[stem + "weight"] = torch.randn(rows, cols).bfloat16()
            matrices[stem + "weight"] = tensors[stem + "weight"].double()
            continue
        packed = FORMATS[name](rows, cols)
        tensors |= {stem + part: tensor for part, tensor in packed.parts.items()}
        matrices[stem + "weight"], config = packed.matrix, packed.config
    checkpoint = _write(tmp_path, tensors, LLAMA | {"quantization_config": config})
    tree = build_tree(checkpoint)
    assert tree.known
    found = _scan(checkpoint, tree.scanned())
    assert {s.projection.tensor for s in found.values()} == set(matrices)
    for spectrum in found.values():
        _assert_spectrum(spectrum, matrices[spectrum.projection.tensor])
        plain = spectrum.projection.tensor.endswith("down_proj.weight")
        assert bool(spectrum.projection.dequantisation) is not plain
        assert [len(digest) for digest in spectrum.weights_digests] == [32]
    assert checkpoint.quantisation
    assert found["layers.0.attention.query"].projection.dequantisation.startswith(checkpoint.quantisation)


def test_a_stack_of_experts_is_what_transformers_make_of_it(tmp_path: Path) -> None:
    """gpt-oss: stored (experts, out, in); transformers returns the release's (experts, in, out)."""
    stem = "model.layers.0.mlp.experts.gate_up_proj"
    parts, matrices = pack.gpt_oss(3, 10, 64)
    tensors = {stem + name: part for name, part in parts.items()} | {f"{stem}_bias": torch.rand(3, 10)}
    checkpoint = _write(tmp_path, tensors, {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}})
    tensor = next(t for t in checkpoint.tensors if t.name == stem)
    weights, _ = checkpoint.read(tensor)
    theirs = convert_moe_packed_tensors(parts["_blocks"], parts["_scales"], dtype=torch.float32).transpose(1, 2)
    assert tensor.shape == (3, 10, 64)
    assert np.array_equal(_by_expert(weights, 3), theirs.numpy())
    assert np.array_equal(_by_expert(weights, 3), matrices)
    assert np.array_equal(host_array(weights.reshape(30, 64)), theirs.reshape(30, 64).numpy())
    assert checkpoint.bytes_on("cuda:0", tensor) < tensor.stored_bytes + 2 * 3 * 10 * 64
    assert {t.name for t in checkpoint.tensors} == {stem, f"{stem}_bias"}


@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
def test_a_stack_of_float8_experts_has_its_scales(tmp_path: Path, suffix: str) -> None:
    experts = [pack.fp8_block(37, 43) if suffix == "_scale_inv" else pack.fp8_channel(37, 43) for _ in range(3)]
    names = list(experts[0].parts)[:2]
    weight, scale = (torch.stack([e.parts[name].float() for e in experts]) for name in names)
    stem = "model.layers.0.mlp.experts.down_proj"
    tensors = {stem: weight.to(torch.float8_e4m3fn), stem + suffix: scale}
    checkpoint = _write(tmp_path, tensors, {"quantization_config": experts[0].config})
    (tensor,) = checkpoint.tensors
    weights, _ = checkpoint.read(tensor)
    assert np.allclose(_by_expert(weights, 3), np.stack([e.matrix for e in experts]), rtol=1e-15, atol=0)


@pytest.mark.parametrize(("cols", "double"), [(64, False), (64, True), (37, False)])
def test_a_stack_of_half_bytes_is_the_flattened_one(tmp_path: Path, cols: int, double: bool) -> None:
    """Blocks of the flattened stack that begin with an expert, and blocks that run on into the next expert."""
    packed = pack.bitsandbytes4(3 * 9, cols, double=double)
    parts = dict(packed.parts)
    state = next(name for name in parts if "quant_state" in name)
    text = json.loads(bytes(parts[state].tolist())) | {"shape": [3, 9, cols]}
    parts[state] = torch.frombuffer(bytearray(json.dumps(text).encode()), dtype=torch.uint8)
    stem = "model.layers.0.mlp.experts.down_proj"
    tensors = {f"{stem}.{name}": part for name, part in parts.items()}
    checkpoint = _write(tmp_path, tensors, {"quantization_config": packed.config})
    (tensor,) = checkpoint.tensors
    weights, _ = checkpoint.read(tensor)
    assert np.allclose(_by_expert(weights, 3), packed.matrix.reshape(3, 9, cols), rtol=1e-15, atol=0)


def _by_expert(weights: Any, experts: int) -> NDArray[Any]:
    return np.stack([host_array(weights[expert]) for expert in range(experts)])


def _one(folder: Path, packed: Packed, config: Mapping[str, Any] | None = None) -> tuple[Checkpoint, Projection]:
    folder.mkdir()
    tensors = {f"model.layers.0.self_attn.q_proj.{name}": part for name, part in packed.parts.items()}
    checkpoint = _write(folder, tensors, LLAMA | {"quantization_config": config or packed.config})
    (projection,) = build_tree(checkpoint).scanned()
    return checkpoint, projection


def _quantised(checkpoint: Checkpoint) -> Tensor:
    (tensor,) = [t for t in checkpoint.tensors if t.parts]
    return tensor


def test_the_same_bytes_read_in_another_way_are_another_matrix(tmp_path: Path) -> None:
    """Blocks of 16 or of 17 rows, GPTQ of version 1 or 2: files equal but for config.json, different keys."""
    fp8, gptq = pack.fp8_block(34, 34, 17), pack.gptq(32, 32)
    checkpoint, first = _one(tmp_path / "a", fp8)
    (tmp_path / "a" / "config.json").write_text(
        json.dumps(LLAMA | {"quantization_config": fp8.config | {"weight_block_size": [33, 17]}})
    )
    (again,) = build_tree(open_checkpoint(str(tmp_path / "a"))).scanned()
    assert (again.key != first.key, again.source) == (True, first.source)
    _, one = _one(tmp_path / "b", gptq)
    (tmp_path / "b" / "config.json").write_text(
        json.dumps(LLAMA | {"quantization_config": gptq.config | {"checkpoint_format": "gptq_v2"}})
    )
    (two,) = build_tree(open_checkpoint(str(tmp_path / "b"))).scanned()
    assert (one.dequantisation, two.dequantisation) == (
        "gptq int4, groups of 16 by g_idx",
        "gptq v2 int4, groups of 16 by g_idx",
    )
    assert one.key != two.key
    assert len(checkpoint.tensors) == 1


def test_a_changed_scale_is_another_matrix(tmp_path: Path) -> None:
    """Although it is in another shard than the weights, whose file has not changed."""
    packed = pack.fp8_block(37, 43)
    checkpoint, first = _one(tmp_path / "a", packed)
    _, seen = checkpoint.read(_quantised(checkpoint))
    scale = tmp_path / "a" / "model-00002-of-00002.safetensors"
    save_file({"model.layers.0.self_attn.q_proj.weight_scale_inv": packed.parts["weight_scale_inv"] * 2}, scale)
    changed = open_checkpoint(str(tmp_path / "a"))
    (second,) = build_tree(changed).scanned()
    assert second.source.identity == first.source.identity
    assert second.key != first.key
    assert changed.read(_quantised(changed))[1] != seen


@pytest.mark.parametrize(
    ("packed", "floats"), [(pack.fp8_block(37, 43), 8), (pack.mxfp4(9, 64), 4), (pack.gptq(40, 64), 4)]
)
def test_a_job_counts_the_floats_and_their_parts(tmp_path: Path, packed: Packed, floats: int) -> None:
    checkpoint, projection = _one(tmp_path / "a", packed)
    tensor = _quantised(checkpoint)
    weights, _ = checkpoint.read(tensor)
    assert weights.dtype.itemsize == floats
    stored = sum(part.end - part.begin for _, part in tensor.parts)
    assert (
        Job(SCAN, 0, checkpoint, tensor, [projection]).bytes_on("cpu")
        == stored + projection.rows * projection.cols * floats
    )


OWN_FILES: dict[str, tuple[Packed, dict[str, Any]]] = {
    "quantize_config.json": (pack.gptq(32, 32, g_idx=False), {"bits": 4, "group_size": 16, "desc_act": False}),
    "quant_config.json": (pack.awq(24, 32), {"zero_point": True, "q_group_size": 16, "w_bit": 4, "version": "GEMM"}),
    "hf_quant_config.json": (pack.int8(11, 30), {"producer": {}, "quantization": {"quant_algo": "INT8"}}),
}


@pytest.mark.parametrize("name", OWN_FILES)
def test_what_a_quantiser_wrote_to_a_file_of_its_own_counts(tmp_path: Path, name: str) -> None:
    packed, said = OWN_FILES[name]
    tensors = {f"model.layers.0.self_attn.q_proj.{part}": tensor for part, tensor in packed.parts.items()}
    (tmp_path / name).write_text(json.dumps(said))
    checkpoint = _write(tmp_path, tensors, LLAMA)
    weights, _ = checkpoint.read(_quantised(checkpoint))
    assert np.abs(host_array(weights) - packed.matrix).max() <= 1e-15 * np.abs(packed.matrix).max()


PLAIN: dict[str, Callable[[bytes], Any]] = {
    "F64": lambda data: np.frombuffer(data, "<f8"),
    "F32": lambda data: np.frombuffer(data, "<f4"),
    "F16": lambda data: np.frombuffer(data, "<f2"),
    "BF16": lambda data: (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4"),
    "F8_E4M3": lambda data: [_minifloat(byte, 4, 3, 7) for byte in data],
    "F8_E5M2": lambda data: [_minifloat(byte, 5, 2, 15) for byte in data],
    "F8_E8M0": lambda data: [2.0 ** (byte - 127) for byte in data],
    "F4": lambda data: [_minifloat(nibble, 2, 1, 1) for byte in data for nibble in (byte & 15, byte >> 4)],
}


def _minifloat(code: int, exponents: int, mantissas: int, bias: int) -> float:
    """A small float by its definition: sign, exponent with bias, mantissa; exponent 0 is subnormal."""
    sign, exponent = code >> (exponents + mantissas), (code >> mantissas) % (1 << exponents)
    mantissa = code % (1 << mantissas)
    power = 2.0 ** (max(exponent, 1) - bias)
    return (-1) ** sign * power * ((exponent > 0) + mantissa / (1 << mantissas))


@pytest.mark.parametrize("dtype", PLAIN)
def test_every_float_type_of_safetensors_is_read_by_its_definition(tmp_path: Path, dtype: str) -> None:
    """Bytes below 0x3c: no NaN in any of the types, and no exponent that a norm could not hold."""
    data = np.random.default_rng(5).integers(0, 0x3C, 6 * 8 * 8, np.uint8).tobytes()
    data = data[: 6 * DTYPE_BITS[dtype]]
    entry = {"dtype": dtype, "shape": [6, 8], "data_offsets": [0, len(data)]}
    text = json.dumps({"model.layers.0.self_attn.q_proj.weight": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    checkpoint = open_checkpoint(str(tmp_path))
    (projection,) = build_tree(checkpoint).scanned()
    weights, _ = checkpoint.read(checkpoint.tensors[0])
    wanted = np.asarray(PLAIN[dtype](data), np.float64).reshape(6, 8)
    assert np.array_equal(host_array(weights).astype(np.float64), wanted)
    _assert_spectrum(_scan(checkpoint, [projection])["layers.0.attention.query"], wanted)


def test_what_has_no_room_as_floats_on_its_device_is_made_on_the_cpu() -> None:
    made = np.arange(6.0).reshape(2, 3)

    class Full:
        """A packed matrix on a device without room."""

        shape = (2, 3)

        def __getitem__(self, index: int) -> NDArray[Any]:
            raise RuntimeError("out of memory")

        def reshape(self, *_: int) -> NDArray[Any]:
            raise RuntimeError("out of memory")

        def on_host(self) -> NDArray[Any]:
            return made

    whole = SimpleNamespace(slice=None)
    assert np.array_equal(worker_thread._part(whole, Full()), made)
    with pytest.raises(RuntimeError):  # only a packed matrix can be made again on the host
        worker_thread._part(SimpleNamespace(slice=SimpleNamespace(axis=0, index=0)), [Full()])

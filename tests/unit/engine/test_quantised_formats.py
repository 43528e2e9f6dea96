"""Every quantised format of safetensors: floats and spectra against a packer that shares no code with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import quantised_packers as pack
import torch
from engine_fakes import saved
from lapack_reference import assert_same_spectrum, compute
from quantised_packers import Packed

from rankscope.engine import weights as kinds
from rankscope.engine.landing import GpuLanding
from rankscope.engine.weights import host_array

STEM = "model.layers.0.self_attn.q_proj."

CASES: dict[str, Callable[[], Packed]] = {
    "fp8 blocks": partial(pack.fp8_block, 32, 48),
    "fp8 ragged blocks": partial(pack.fp8_block, 37, 43),
    "fp8 one block": partial(pack.fp8_block, 7, 9, 128),
    "fp8 bfloat16 scales": partial(pack.fp8_block, 37, 43, 16, torch.bfloat16),
    "fp8 e8m0": partial(pack.fp8_exponents, 11, 70),
    "fp8 bytes": partial(pack.fp8_exponents, 11, 70, as_bytes=True, name="weight_scale_inv"),
    "fp8 rows": partial(pack.fp8_channel, 13, 22),
    "fp8 rows in one dimension": partial(pack.fp8_channel, 13, 22, (13,)),
    "fp8 mistral": partial(pack.fp8_tensor, 13, 22, name="qscale_weight"),
    "fp8 tensor": partial(pack.fp8_tensor, 13, 22),
    "fp8 tensor of one": partial(pack.fp8_tensor, 13, 22, (1,)),
    "fp8 tensor 1x1": partial(pack.fp8_tensor, 13, 22, (1, 1), "weight_scale_inv"),
    "mxfp4": partial(pack.mxfp4, 9, 64),
    "mxfp4 ragged": partial(pack.mxfp4, 9, 50),
    "mxfp4 in int8": partial(pack.mxfp4_in_int8, 9, 64),
    "nvfp4": partial(pack.nvfp4, 9, 48),
    "nvfp4 modelopt": partial(pack.nvfp4, 9, 48, modelopt=True),
    "int4": partial(pack.packed, 11, 64),
    "int4 zero points": partial(pack.packed, 11, 64, zeros=True),
    "int4 by row": partial(pack.packed, 11, 40, 4, None),
    "int4 by row, padded words": partial(pack.packed, 11, 37, 4, None),
    "int4 ragged group": partial(pack.packed, 11, 72, 4, 32),
    "int4 g_idx": partial(pack.packed, 11, 64, 4, 16, zeros=True, g_idx=True),
    "int8 packed": partial(pack.packed, 11, 64, 8, 32, zeros=True),
    "int8 packed by row": partial(pack.packed, 11, 30, 8, None),
    "int3 packed": partial(pack.packed, 11, 64, 3, 32, zeros=True),
    "int8": partial(pack.int8, 11, 30),
    "int8 zero points": partial(pack.int8, 11, 30, zeros=True),
    "gptq": partial(pack.gptq, 40, 64),
    "gptq without g_idx": partial(pack.gptq, 40, 64, g_idx=False),
    "gptq v2": partial(pack.gptq, 40, 64, v2=True),
    "gptq act order": partial(pack.gptq, 40, 64, act_order=True),
    "gptq one group": partial(pack.gptq, 40, 64, 4, 64),
    "gptq ragged group": partial(pack.gptq, 40, 64, 4, 48, g_idx=False),
    "gptq 8": partial(pack.gptq, 40, 64, 8, act_order=True),
    "gptq 3": partial(pack.gptq, 32, 64, 3),
    "gptq 2": partial(pack.gptq, 32, 64, 2, v2=True),
    "awq": partial(pack.awq, 24, 32),
    "awq one group": partial(pack.awq, 24, 20, 10),
    "nf4": partial(pack.bitsandbytes4, 12, 64),
    "nf4 across rows": partial(pack.bitsandbytes4, 9, 37),
    "fp4": partial(pack.bitsandbytes4, 10, 30, "fp4", 128),
    "nf4 double": partial(pack.bitsandbytes4, 67, 130, double=True, block=32),
    "bitsandbytes int8": partial(pack.bitsandbytes8, 11, 30),
    "bitnet": partial(pack.bitnet, 12, 19),
    "bitnet auto": partial(pack.bitnet, 12, 19, auto=True),
}


@pytest.mark.parametrize("case", CASES)
def test_floats_and_spectrum_are_those_of_the_packer(tmp_path: Path, case: str) -> None:
    packed = CASES[case]()
    tensors = {STEM + name: part for name, part in packed.parts.items()}
    config = {"model_type": "llama", "quantization_config": packed.config}
    checkpoint, scanned = saved(tmp_path, tensors, config)
    (projection,) = scanned
    assert (projection.address, projection.tensor) == ("layers.0.attention.query", STEM + "weight")
    assert (projection.rows, projection.cols) == packed.matrix.shape
    assert projection.problem is None
    assert projection.dequantisation == packed.text
    (tensor,) = [t for t in checkpoint.tensors if t.name == projection.tensor]
    weights, seen = checkpoint.read(tensor)
    assert len(seen) == 32
    assert np.abs(host_array(weights) - packed.matrix).max() <= 1e-15 * np.abs(packed.matrix).max()
    assert_same_spectrum(compute(checkpoint, projection), packed.matrix)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_floats(tmp_path: Path) -> None:
    landing = GpuLanding("cuda:0")
    for case, make in CASES.items():
        packed = make()
        (tmp_path / case).mkdir()
        tensors = {STEM + name: part for name, part in packed.parts.items()}
        checkpoint, _ = saved(tmp_path / case, tensors, {"model_type": "llama", "quantization_config": packed.config})
        (tensor,) = [t for t in checkpoint.tensors if t.parts]
        there, _ = checkpoint.read(tensor, landing)
        here, _ = checkpoint.read(tensor)
        assert isinstance(there, kinds.Packed)
        made = there.reshape(*there.shape)
        assert isinstance(made, torch.Tensor)
        assert made.is_cuda
        # A GPU divides by 127 by multiplying.
        np.testing.assert_allclose(host_array(made), host_array(here), rtol=3e-16, atol=0, err_msg=case)

"""Quantised checkpoints that are not whole: a sentence each, never a wrong spectrum, and the rest goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantised_packers as pack
import torch
from engine_fakes import PATIENCE, MemorySink, Recorder, saved
from lapack_reference import compute, lapack
from quantised_packers import Packed

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Failed, Saved
from rankscope.engine.errors import WeightsError
from rankscope.engine.spectrum import Projection

STEM = "model.layers.0.self_attn.q_proj."
OTHER = "model.layers.0.self_attn.k_proj.weight"

CASES: dict[str, Callable[[], Packed]] = {
    "fp8 blocks": partial(pack.fp8_block, 37, 43),
    "fp8 rows": partial(pack.fp8_channel, 13, 22),
    "fp8 tensor": partial(pack.fp8_tensor, 13, 22),
    "fp8 e8m0": partial(pack.fp8_exponents, 11, 70),
    "mxfp4": partial(pack.mxfp4, 9, 64),
    "nvfp4": partial(pack.nvfp4, 9, 48),
    "nvfp4 modelopt": partial(pack.nvfp4, 9, 48, modelopt=True),
    "int4 padded": partial(pack.packed, 11, 37, 4, None, zeros=True),
    "int4 g_idx": partial(pack.packed, 11, 64, 4, 16, g_idx=True),
    "int8": partial(pack.int8, 11, 30, zeros=True),
    "gptq": partial(pack.gptq, 40, 64, act_order=True),
    "gptq without g_idx": partial(pack.gptq, 40, 64, g_idx=False),
    "awq": partial(pack.awq, 24, 32),
    "nf4 double": partial(pack.bitsandbytes4, 67, 130, double=True, block=32),
    "bitsandbytes int8": partial(pack.bitsandbytes8, 11, 30),
    "bitnet": partial(pack.bitnet, 12, 19),
}


def _written(
    folder: Path, parts: Mapping[str, torch.Tensor], config: dict[str, Any]
) -> tuple[Checkpoint, list[Projection]]:
    tensors = {STEM + name: part.contiguous() for name, part in parts.items()} | {OTHER: torch.eye(5, 9)}
    folder.mkdir(exist_ok=True)
    checkpoint, _ = saved(folder, tensors, {"model_type": "llama", "quantization_config": config})
    return checkpoint, list(build_tree(checkpoint).projections)


def _longer(part: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.reshape(-1, *part.shape[1:]), part.reshape(-1, *part.shape[1:])[:1]])


def _retyped(part: torch.Tensor) -> torch.Tensor:
    return part.view(torch.uint8).to(torch.int64) if part.element_size() == 1 else part.double().to(torch.int64)


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "missing": lambda _: None,
    "a row more": _longer,
    "without its last column": lambda part: part[..., :-1] if part.ndim else part.reshape(1, 1, 1),
    "empty": lambda part: part[:0] if part.ndim else part.reshape(1)[:0],
    "of another type": _retyped,
}

NEVER_HARMLESS = ("missing", "empty", "of another type")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", CASES)
def test_a_part_that_is_wrong_is_a_sentence_or_does_not_matter(tmp_path: Path, case: str, change: str) -> None:
    """Packed numbers with a row more, and nothing that contradicts it, are another matrix; a scale never is."""
    whole = CASES[case]()
    refused = []
    for at, name in enumerate(whole.parts):
        changed = CHANGES[change](whole.parts[name])
        parts = {n: part for n, part in whole.parts.items() if n != name} | ({} if changed is None else {name: changed})
        checkpoint, projections = _written(tmp_path / str(at), parts, whole.config)
        for projection in (p for p in projections if p.tensor == STEM + "weight"):
            reason = _reason(checkpoint, projection, whole)
            if reason is not None:
                refused.append(name)
                _assert_sentence(reason)
    assert refused or change not in NEVER_HARMLESS


def _reason(checkpoint: Checkpoint, projection: Projection, whole: Packed) -> str | None:
    """Why there is no spectrum; None where there is one, which is then that of the matrix."""
    if projection.problem is not None:
        return projection.problem
    try:
        solution = compute(checkpoint, projection)
    except WeightsError as error:
        return str(error)
    if (projection.rows, projection.cols) == whole.matrix.shape:
        assert np.abs(solution.values - lapack(whole.matrix)).max() <= 1e-10 * solution.values[0]
    return None


def _assert_sentence(text: str) -> None:
    assert text.isprintable()
    assert 10 < len(text) < 200


# What config.json or the stored numbers say that cannot be followed, and a word of the sentence.
CONTRADICTIONS: dict[str, tuple[Callable[[], Packed], dict[str, Any], dict[str, torch.Tensor], str]] = {
    "no block size": (partial(pack.fp8_block, 37, 43), {"weight_block_size": None}, {}, "block size"),
    "another block size": (partial(pack.fp8_block, 37, 43), {"weight_block_size": [4, 4]}, {}, "blocks of 4 x 4"),
    "a hostile block size": (partial(pack.fp8_block, 37, 43), {"weight_block_size": [0, -1]}, {}, "block size"),
    "a block size in words": (partial(pack.fp8_block, 37, 43), {"weight_block_size": "16x16"}, {}, "block size"),
    "no bits": (partial(pack.packed, 11, 64), {"config_groups": {}}, {}, "bits"),
    "groups that are none": (partial(pack.packed, 11, 64), {"config_groups": {"a": {"weights": 4}}}, {}, "bits"),
    "other bits": (partial(pack.packed, 11, 64), pack._groups_config(8, 32, symmetric=True), {}, "8 bits"),
    "another shape": (partial(pack.packed, 11, 64), {}, {"weight_shape": torch.tensor([12, 64])}, "weight_shape"),
    "gptq bits": (partial(pack.gptq, 40, 64, g_idx=False), {"bits": 8}, {}, "qzeros"),
    "gptq bits in words": (partial(pack.gptq, 40, 64, g_idx=False), {"bits": [4]}, {}, "bits"),
    "gptq groups": (partial(pack.gptq, 40, 64, g_idx=False), {"group_size": 128}, {}, "groups"),
    "gptq layout": (partial(pack.gptq, 40, 64), {"checkpoint_format": "marlin"}, {}, "marlin"),
    "g_idx beyond": (partial(pack.gptq, 40, 64), {}, {"g_idx": torch.full((64,), 99, dtype=torch.int32)}, "g_idx"),
    "g_idx below": (partial(pack.gptq, 40, 64), {}, {"g_idx": torch.full((64,), -1, dtype=torch.int32)}, "g_idx"),
    "awq gemv": (partial(pack.awq, 24, 32), {"version": "gemv"}, {}, "gemv"),
    "awq 8 bits": (partial(pack.awq, 24, 32), {"bits": 8}, {}, "8 bits"),
    "qweight of what": (partial(pack.awq, 24, 32), {"quant_method": None}, {}, "GPTQ or AWQ"),
    "qweight of another": (partial(pack.awq, 24, 32), {"quant_method": "newcomer"}, {}, "newcomer"),
    "state that is not JSON": (
        partial(pack.bitsandbytes4, 12, 64),
        {},
        {"weight.quant_state.bitsandbytes__nf4": torch.full((9,), 91, dtype=torch.uint8)},
        "quant_state",
    ),
    "state without an end": (
        partial(pack.bitsandbytes4, 12, 64),
        {},
        {"weight.quant_state.bitsandbytes__nf4": torch.full((70_000,), 91, dtype=torch.uint8)},
        "too large|quant_state",
    ),
    "interleaved int8": (
        partial(pack.bitsandbytes8, 11, 30),
        {},
        {"weight_format": torch.tensor(2, dtype=torch.uint8)},
        "row",
    ),
    "NaN scale": (partial(pack.fp8_channel, 13, 22), {}, {"weight_scale": torch.full((13, 1), float("nan"))}, "NaN"),
    "infinite scale": (partial(pack.awq, 24, 32), {}, {"scales": torch.full((2, 24), float("inf")).half()}, "infinite"),
    "exponents of 255": (
        partial(pack.mxfp4, 9, 64),
        {},
        {"weight_scale": torch.full((9, 2), 255).byte()},
        "NaN",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_a_sentence_and_the_rest_is_computed(tmp_path: Path, case: str) -> None:
    make, config, parts, word = CONTRADICTIONS[case]
    whole = make()
    checkpoint, projections = _written(tmp_path, whole.parts | parts, whole.config | config)
    failed = _scan(checkpoint, projections, [OTHER])
    assert re.search(word, failed[STEM + "weight"])
    _assert_sentence(failed[STEM + "weight"])


def _scan(checkpoint: Checkpoint, projections: list[Projection], done: list[str]) -> dict[str, str]:
    """Through the engine: the reason by tensor, where exactly the tensors `done` give a spectrum."""
    recorder, sink = Recorder(), MemorySink()
    engine = Engine(sink, recorder, ComputeSettings(device="cpu", threads=1))
    wanted = [p for p in projections if p.rows]
    engine.submit(checkpoint, wanted)
    recorder.wait(lambda r: len(r.of(Failed)) + len(r.of(Saved)) == len(wanted))
    assert engine.close(PATIENCE)
    assert sorted(s.projection.tensor for s in sink.kept.values()) == sorted(done)
    return {event.projection.tensor: event.reason for event in recorder.of(Failed)}


INTEGERS = {
    "HQQ": {"W_q": torch.uint8, "scale": (8, 1), "zero": (8, 1)},
    "AQLM": {"codes": torch.uint8, "codebooks": (1, 256, 1, 8), "scales": (8, 1, 1, 1)},
    "QuIP#": {"Qidxs": torch.int64, "SU": (8,), "SV": (8,)},
    "EXL3": {"trellis": torch.int16, "suh": (8,), "svh": (8,)},
    "VPTQ": {"indices": torch.int32, "centroids": (4, 4), "weight_scale": (8,)},
    "SpQR": {"dense_weights": torch.int64, "row_offsets": (8,)},
    "EXL2": {"q_weight": torch.int32, "q_scale": (2, 2), "q_groups": (4,)},
    "Marlin": {"B": torch.int32, "s": (2, 8)},
    "HIGGS": {"weight": torch.int16, "scales": (8, 2), "tables": (4,), "tables2": (4, 4, 2)},
    "EETQ": {"weight": torch.int8, "weight_scales": (8,)},
    "MLX": {"weight": torch.uint32, "scales": (8, 2), "biases": (8, 2)},
    "quanto": {"weight._data": torch.int8, "weight._scale": (8, 1)},
    "torchao": {"_weight_qdata": torch.float8_e4m3fn, "_weight_scale": (8, 1)},
}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("told", [True, False])
def test_formats_that_are_not_read_are_named_with_all_their_parts(tmp_path: Path, name: str, told: bool) -> None:
    parts = {
        part: torch.rand(what) if isinstance(what, tuple) else torch.arange(64).view(8, 8).to(what)
        for part, what in INTEGERS[name].items()
    }
    config = {"quant_method": name.lower()} if told else {}
    checkpoint, projections = _written(tmp_path, parts, config)
    assert {p.tensor for p in projections} == {STEM + "weight", OTHER}
    assert _scan(checkpoint, projections, [OTHER]) == {STEM + "weight": f"{name} quantisation is not supported"}


CARRIERS = ("weight", "qweight", "weight_packed", "W_q", "weight_blocks", "B", "data")
METHODS = (
    "",
    "gptq",
    "awq",
    "bitsandbytes",
    "compressed-tensors",
    "fp8",
    "mxfp4",
    "modelopt",
    "bitnet",
    "hqq",
    "newcomer",
)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_packed_integers_alone_never_give_a_spectrum(tmp_path: Path, carrier: str) -> None:
    """Whatever config.json says, and whatever else of its module is lost."""
    types = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint32)
    stem = "model.layers.0.mlp.up{}."
    for method in METHODS:
        folder = tmp_path / (method or "none")
        folder.mkdir()
        tensors = {stem.format(at) + carrier: torch.ones(8, 8).to(dtype) for at, dtype in enumerate(types)}
        config = {"model_type": "newcomer", "quantization_config": {"quant_method": method, "bits": 4}}
        checkpoint, _ = saved(folder, tensors | {OTHER: torch.eye(5, 9)}, config)
        projections = list(build_tree(checkpoint).projections)
        assert len(projections) == len(types) + 1
        for projection in projections:
            assert (projection.problem is None) is (projection.tensor == OTHER)
            _assert_sentence(projection.problem or "computed as it is")
    assert len(_scan(checkpoint, projections, [OTHER])) == len(types)

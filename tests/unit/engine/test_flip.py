"""The sign-flipped twin: its signs by the documented recipe, its spectrum by LAPACK, its handling by the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_fakes import PATIENCE, MemorySink, Recorder, addresses, llama, saved
from lapack_reference import Array, lapack
from numpy.random import PCG64
from safetensors.torch import load_file

from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Failed, Saved
from rankscope.engine.derive import signs as flip
from rankscope.engine.derive.flip import flipped
from rankscope.engine.derive.signs import flip_signs
from rankscope.engine.formats.safetensors import SAFETENSORS as safetensors  # noqa: N811
from rankscope.engine.weights import host_array

KEY = "000102030405060708090a0b0c0d0e0f"
PHI3 = {"model_type": "phi3", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 2}
QKV = "model.layers.0.self_attn.qkv_proj.weight"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def signs(key: str, rows: int, cols: int) -> Array:
    """The signs by the recipe of the store's description, bit by bit: -1 where bit n of PCG64's words is 1."""
    words = [int(word) for word in PCG64(int(key, 16)).random_raw(rows * cols // 64 + 1)]
    bits = [words[n // 64] >> (n % 64) & 1 for n in range(rows * cols)]
    return np.array([-1.0 if bit else 1.0 for bit in bits]).reshape(rows, cols)


def _flipped(matrix: torch.Tensor, key: str) -> torch.Tensor:
    return torch.from_numpy(flip_signs(host_array(matrix), key))


def wanted(matrix: torch.Tensor, key: str) -> Array:
    return np.abs(matrix.double().numpy()) * signs(key, *matrix.shape)


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def engine(sink: MemorySink, heard: Recorder) -> Iterator[Engine]:
    made = Engine(sink, heard, ComputeSettings(device="cpu"))
    yield made
    made.close(PATIENCE)


def test_a_twin_differs_in_null_and_key_alone(tmp_path: Path) -> None:
    _, projections = llama(tmp_path, 3)
    for p in projections:
        twin = flipped(p)
        assert (twin.null, p.null) == ("flip", "")
        assert replace(twin, derived=None, key=p.key) == p
    assert len({q.key for p in projections for q in (p, flipped(p), flipped(flipped(p)))}) == 9


def test_a_twins_key_is_a_digest_that_any_process_makes(tmp_path: Path) -> None:
    (projection,) = llama(tmp_path, 1)[1]
    parts = [projection.key.encode(), b"flip", b"1"]
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    assert flipped(projection).key == hashlib.blake2b(framed, digest_size=16).hexdigest()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (64, 1), (13, 5), (31, 53)], ids=str)
def test_signs_follow_the_recipe_in_every_stored_type(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = matrix.double()
    result = _flipped(matrix, KEY)
    assert (result.double().numpy() == wanted(matrix, KEY)).all()
    assert result.dtype == (dtype if dtype in DTYPES[:3] else torch.float32)
    assert (matrix.double() == before).all()


def test_signs_go_row_by_row_through_a_cut_that_is_not_contiguous() -> None:
    matrix = torch.randn(40, 60, generator=torch.Generator().manual_seed(2)).T[::2, 3:30]
    assert (_flipped(matrix, KEY).double().numpy() == wanted(matrix, KEY)).all()


def test_slabs_do_not_change_the_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.ones(61, 53)
    monkeypatch.setattr(flip, "_SLAB", 128)
    assert (_flipped(matrix, KEY).double().numpy() == signs(KEY, 61, 53)).all()


def test_a_matrix_of_many_slabs_is_signed_to_its_end() -> None:
    shape = (3, flip._SLAB)  # three slabs, each computed from words by numpy in one step
    raw = PCG64(int(KEY, 16)).random_raw(shape[0] * shape[1] // 64).astype("<u8").view(np.uint8)
    bits = np.unpackbits(raw, bitorder="little").reshape(shape)
    assert (_flipped(torch.ones(shape), KEY).numpy() == np.where(bits, -1, 1)).all()


def test_signs_are_fair_and_differ_from_key_to_key() -> None:
    size = 1 << 18
    drawn = [_flipped(torch.ones(512, 512, dtype=torch.float64), key).flatten() for key in (KEY, KEY[::-1])]
    for one in drawn:
        assert abs(float(one.sum())) < 5 * size**0.5
        assert abs(float(one[1:] @ one[:-1])) < 5 * size**0.5
    assert abs(float(drawn[0] @ drawn[1])) < 5 * size**0.5


def test_twins_are_solved_beside_their_projections(
    tmp_path: Path, engine: Engine, sink: MemorySink, heard: Recorder
) -> None:
    checkpoint, projections = llama(tmp_path, 3, l1=torch.randn(40, 23).to(torch.bfloat16))
    weights = load_file(tmp_path / "model.safetensors")
    both = [*projections, *map(flipped, projections)]
    assert engine.submit(checkpoint, both) == both
    assert heard.wait_until_idle().done == 6
    for p in projections:
        base, twin = sink.kept[p.key], sink.kept[flipped(p).key]
        sigma = lapack(wanted(weights[p.tensor], flipped(p).key))
        assert abs(base.values - lapack(weights[p.tensor])).max() <= 1e-10 * base.values[0]
        assert abs(twin.values - sigma).max() <= 1e-10 * sigma[0]
        assert twin.provenance.frobenius_norm == base.provenance.frobenius_norm
        assert abs(twin.values - base.values).max() > 1e-3 * sigma[0]
        assert (twin.projection, twin.weights_digests) == (flipped(p), base.weights_digests)
    assert engine.submit(checkpoint, both) == []


@pytest.mark.parametrize("axis", [0, 1])
def test_a_fused_tensor_is_read_once_for_all_twins_of_its_slices(
    tmp_path: Path, engine: Engine, sink: MemorySink, heard: Recorder, monkeypatch: pytest.MonkeyPatch, axis: int
) -> None:
    fused = torch.randn(10, 5) if axis == 0 else torch.randn(6, 18)  # rows q | k | v; GPT-2's columns
    name, config = (QKV, PHI3) if axis == 0 else ("h.0.attn.c_attn.weight", {"model_type": "gpt2"})
    checkpoint, projections = saved(tmp_path, {name: fused}, config)
    reads, original = [], safetensors.read_matrix

    def counting(tensor: Any, *args: Any) -> Any:
        reads.append(tensor.name)
        return original(tensor, *args)

    monkeypatch.setattr(safetensors, "read_matrix", counting)
    engine.submit(checkpoint, [*projections, *map(flipped, projections)])
    assert heard.wait_until_idle().done == 6
    assert reads == [name]
    bounds = (0, 6, 8, 10) if axis == 0 else (0, 6, 12, 18)
    parts = [fused[a:b] if axis == 0 else fused[:, a:b] for a, b in pairwise(bounds)]
    for part, p in zip(parts, projections, strict=True):
        sigma = lapack(wanted(part, flipped(p).key))
        assert abs(sink.kept[flipped(p).key].values - sigma).max() <= 1e-10 * sigma[0]


def test_a_twin_can_be_asked_for_alone_and_later(
    tmp_path: Path, engine: Engine, sink: MemorySink, heard: Recorder
) -> None:
    checkpoint, projections = llama(tmp_path, 2)
    engine.submit(checkpoint, projections)
    heard.wait_for_count(Saved, 2)
    twins = [flipped(p) for p in projections]
    assert engine.submit(checkpoint, [*projections, *twins], urgent=True) == twins
    heard.wait_for_count(Saved, 4)
    assert set(sink.kept) == {p.key for p in (*projections, *twins)}


def test_weights_that_are_no_numbers_fail_twice(tmp_path: Path, engine: Engine, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 2, l0=torch.full((3, 3), torch.nan))
    engine.submit(checkpoint, [*projections, *map(flipped, projections)])
    last = heard.wait_until_idle()
    assert (last.done, last.failed) == (2, 2)
    failed = heard.of(Failed)
    assert addresses([f.projection for f in failed]) == [projections[0].address] * 2
    assert {(f.projection.null, f.reason) for f in failed} == {
        (null, "the weights hold NaN or infinite values") for null in ("", "flip")
    }

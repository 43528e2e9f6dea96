"""Bytes read to a device: all of them, in order, digested; on the CPU where the device has no room."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from engine_fakes import llama, saved

from rankscope.engine import landing
from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute import reader as reading
from rankscope.engine.compute.job import SCAN, Job
from rankscope.engine.compute.reader import Reader
from rankscope.engine.errors import WeightsError
from rankscope.engine.landing import CHUNK, HOST, Fill, GpuLanding, Landing
from rankscope.engine.weights import TORCH_NAMES, Weights, host_array, plain

SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def _bytes(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)


def _landed(where: Landing, size: int) -> Weights:
    wanted, seen = _bytes(size), []

    def fill(view: memoryview, at: int) -> None:
        seen.append((at, len(view)))
        view[:] = wanted[at : at + len(view)]

    data = where.land(size, fill)
    assert [at for at, _ in seen] == list(range(0, size, CHUNK))
    assert sum(count for _, count in seen) == size
    assert np.array_equal(host_array(data), wanted)
    return data


@pytest.mark.parametrize("size", SIZES)
def test_memory_takes_every_byte_once(size: int) -> None:
    _landed(HOST, size)


@on_a_gpu
def test_a_gpu_takes_every_byte_once_from_many_threads() -> None:
    def land(thread: int) -> None:
        mine = GpuLanding("cuda:0")
        for size in SIZES[thread % 3 :] * 3:
            assert _landed(mine, size).device == torch.device("cuda:0")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(land, range(8)))


def test_the_digest_is_that_of_the_stored_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "CHUNK", 100)
    checkpoint, _ = saved(tmp_path, {"model.layers.0.mlp.up_proj.weight": torch.randn(31, 17)}, {"model_type": "llama"})
    (tensor,) = checkpoint.tensors
    weights, seen = checkpoint.read(tensor)
    assert isinstance(weights, np.ndarray)
    stored = tensor.file.read_bytes()[tensor.begin : tensor.end]
    assert seen == xxhash.xxh3_128_hexdigest(stored)
    assert weights.tobytes() == stored


@pytest.mark.parametrize("name", ["BF16", "F8_E4M3", "F8_E5M2", "F16", "F32", "F64"])
def test_every_stored_number_is_itself_on_the_cpu(name: str) -> None:
    """All 2^16 bit patterns of the small types, as torch reads them."""
    dtype = getattr(torch, TORCH_NAMES[name])
    stored = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    read = plain(stored, name)
    wanted = torch.from_numpy(stored.copy()).view(dtype).double().numpy()
    assert isinstance(read, np.ndarray)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        assert np.array_equal(read.astype(np.float64), wanted, equal_nan=True)


class _Full:
    """A device that takes some of the bytes and then has no room."""

    def __init__(self, _device: str) -> None:
        pass

    def land(self, size: int, fill: Fill) -> torch.Tensor:
        fill(memoryview(bytearray(size // 2)), 0)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")


def _job(checkpoint: Checkpoint) -> Job:
    return Job(SCAN, 0, checkpoint, checkpoint.tensors[0], [], device="cuda:0")


def test_weights_that_a_device_does_not_take_stay_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "GpuLanding", _Full)
    checkpoint, _ = llama(tmp_path, 1)
    weights, seen = Reader().read(_job(checkpoint))
    wanted, digest = checkpoint.read(checkpoint.tensors[0])
    assert np.array_equal(host_array(weights), host_array(wanted))
    assert seen == digest


def test_a_changed_file_is_not_read_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "GpuLanding", lambda _device: HOST)
    checkpoint, _ = llama(tmp_path, 1)
    llama(tmp_path, 2)
    with pytest.raises(WeightsError, match="changed since it was opened"):
        Reader().read(_job(checkpoint))

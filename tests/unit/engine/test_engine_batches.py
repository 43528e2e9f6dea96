"""The engine as it works a CUDA device: two workers, several readers, batches; here on the CPU, by the twins."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_fakes import PATIENCE, MemorySink, Recorder, addresses, llama, pretend_gpu, saved
from lapack_reference import lapack
from safetensors.torch import load_file
from weighted_examples import Given

from rankscope.engine import moment
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Computed, Failed, Notice, Saved, Started, Stopped
from rankscope.engine.derive import moment_factors
from rankscope.engine.derive.flip import flipped
from rankscope.engine.derive.signs import flip_signs
from rankscope.engine.derive.weighting import noise_of, weighted
from rankscope.engine.solvers import batch, ladder, two_stage
from rankscope.engine.solvers.batch import Outcome
from rankscope.engine.spectrum import Projection, Spectrum
from rankscope.engine.weights import host_array

LIMIT = 4
Make = Callable[..., Engine]


class Batches:
    """The product's solve_batch with a record of its inputs, and a gate before it."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.reached = threading.Semaphore(0)
        self.gate = threading.Semaphore(10_000)
        self._solve = batch.solve_batch

    def __call__(
        self, matrices: Iterable[torch.Tensor], count: int, small: int, device: str, tell: Callable[[str], None]
    ) -> list[Outcome]:
        self.counts.append(count)
        self.reached.release()
        assert self.gate.acquire(timeout=PATIENCE)
        return self._solve(matrices, count, small, device, tell)

    def hold(self) -> None:
        self.gate = threading.Semaphore(0)


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Batches]:
    made = Batches()
    monkeypatch.setattr(batch, "solve_batch", made)
    yield made
    made.gate.release(10_000)


@pytest.fixture
def make(
    heard: Recorder, sink: MemorySink, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Engine]]:
    """A maker of engines that work the CPU as they work a GPU, closed at the end of the test."""
    made: list[Engine] = []

    def build(workers: int = 1, faster: bool = True, **settings: Any) -> Engine:
        pretend_gpu(monkeypatch, LIMIT, workers, faster)
        made.append(Engine(sink, heard, ComputeSettings(**{"device": "cpu", **settings})))
        return made[-1]

    assert batches
    yield build
    for engine in made:
        assert engine.close(PATIENCE)


def _assert_right(spectrum: Spectrum, matrix: torch.Tensor) -> None:
    wanted = lapack(matrix)
    assert abs(spectrum.values - wanted).max() <= 1e-10 * wanted[0]


def test_a_scan_goes_in_batches_and_each_is_right(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, batches: Batches
) -> None:
    checkpoint, projections = llama(tmp_path, 10)
    weights = load_file(tmp_path / "model.safetensors")
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.total) == (10, 0, 10)
    assert batches.counts == [4, 4, 2]
    for projection in projections:
        _assert_right(sink.kept[projection.key], weights[projection.tensor])
        assert sink.kept[projection.key].provenance.solver == two_stage.NAME
        assert all(sink.kept[projection.key].weights_digests)
    for kind in (Started, Computed, Saved):
        assert len(heard.of(kind)) == 10


@pytest.mark.parametrize("prefetch_bytes", [1, 700, 1 << 30])
def test_two_workers_and_four_readers_lose_nothing(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, prefetch_bytes: int
) -> None:
    shapes = {f"l{i}": torch.randn(3 + i % 5, 9) for i in range(60)}
    checkpoint, projections = llama(tmp_path, 60, **shapes)
    make(2, prefetch_bytes=prefetch_bytes).submit(checkpoint, projections)
    assert heard.wait_until_idle().done == 60
    for projection in projections:
        _assert_right(sink.kept[projection.key], shapes[f"l{projection.layer}"])


def test_a_lone_matrix_climbs_the_ladder(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, batches: Batches
) -> None:
    checkpoint, projections = llama(tmp_path, 1)
    make().submit(checkpoint, projections)
    heard.wait_until_idle()
    assert batches.counts == []
    assert sink.kept[projections[0].key].provenance.solver == "gram-eigvalsh"


def test_where_the_library_is_faster_each_matrix_climbs_the_ladder(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, batches: Batches
) -> None:
    make(faster=False).submit(*llama(tmp_path, 6))
    assert heard.wait_until_idle().done == 6
    assert batches.counts == []
    assert {spectrum.provenance.solver for spectrum in sink.kept.values()} == {"gram-eigvalsh"}


def test_kernels_that_do_not_compile_are_told_once_and_not_tried_again(
    tmp_path: Path, make: Make, heard: Recorder, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_grams: torch.Tensor) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(two_stage, "eigenvalues", fail)
    make(2).submit(*llama(tmp_path, 16))
    assert heard.wait_until_idle().done == 16
    assert set(batches.counts) == {4}
    assert len(batches.counts) <= 2
    assert [notice.text for notice in heard.of(Notice)] == [
        "cpu solves its matrices one by one, some ten times slower: Failed to find C compiler."
    ]


def test_unusable_weights_fail_alone(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, batches: Batches
) -> None:
    bad = torch.ones(7, 9)
    bad[3, 3] = torch.nan
    checkpoint, projections = llama(tmp_path, 4, l2=bad)
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed) == (3, 1)
    assert batches.counts == [4]
    (failed,) = heard.of(Failed)
    assert (failed.projection.layer, failed.reason) == (2, "the weights hold NaN or infinite values")
    assert {s.provenance.solver for s in sink.kept.values()} == {two_stage.NAME}


@pytest.mark.parametrize("all_of_it", [False, True], ids=["one", "no room for the batch"])
def test_what_a_batch_does_not_prove_climbs_alone(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, monkeypatch: pytest.MonkeyPatch, all_of_it: bool
) -> None:
    solved = two_stage.eigenvalues

    def spoiled(grams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if all_of_it:
            raise RuntimeError("CUDA out of memory")
        values, passed = solved(grams)
        passed[1] = False
        return values, passed

    monkeypatch.setattr(two_stage, "eigenvalues", spoiled)
    checkpoint, projections = llama(tmp_path, 4)
    weights = load_file(tmp_path / "model.safetensors")
    make().submit(checkpoint, projections)
    assert heard.wait_until_idle().done == 4
    alone = [p for p in projections if sink.kept[p.key].provenance.solver == "gram-eigvalsh"]
    assert len(alone) == (4 if all_of_it else 1)
    for projection in alone:
        _assert_right(sink.kept[projection.key], weights[projection.tensor])


def test_a_ladder_that_breaks_fails_one_of_a_batch(
    tmp_path: Path, make: Make, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = ladder.solve, []

    def solve(matrix: torch.Tensor, rungs: Any) -> Any:
        seen.append(matrix)
        if len(seen) == 1:
            raise AssertionError("a bug")
        return original(matrix, rungs)

    monkeypatch.setattr(ladder, "solve", solve)
    monkeypatch.setattr(batch, "solve_batch", lambda _matrices, count, *_: [None] * count)
    checkpoint, projections = llama(tmp_path, 4)
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed) == (3, 1)
    assert heard.of(Failed)[0].reason == "cannot be computed: AssertionError: a bug"


def test_urgent_overtakes_between_two_batches(tmp_path: Path, make: Make, heard: Recorder, batches: Batches) -> None:
    checkpoint, projections = llama(tmp_path, 12)
    batches.hold()
    engine = make()
    engine.submit(checkpoint, projections)
    assert batches.reached.acquire(timeout=PATIENCE)
    first = {event.projection.layer for event in _started(heard, 4)}
    last = max(set(range(12)) - first)
    engine.submit(checkpoint, [projections[last]], urgent=True)
    batches.gate.release(10_000)
    assert heard.wait_until_idle().done == 12
    assert heard.of(Started)[4].projection.layer == last


def _started(heard: Recorder, count: int) -> list[Started]:
    heard.wait(lambda r: len(r.of(Started)) >= count)
    return heard.of(Started)


def test_stop_drops_the_rest_and_saves_the_running_batch(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, batches: Batches
) -> None:
    checkpoint, projections = llama(tmp_path, 12)
    batches.hold()
    engine = make()
    engine.submit(checkpoint, projections)
    assert batches.reached.acquire(timeout=PATIENCE)
    engine.stop()
    batches.gate.release(10_000)
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.total) == (4, 0, 4)
    (stopped,) = heard.of(Stopped)
    kept = {p.address for p in projections if p.key in sink.kept}
    assert len(kept) == 4
    assert kept | set(addresses(stopped.projections)) == set(addresses(projections))


def test_twins_and_parts_of_one_side_go_together(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, batches: Batches
) -> None:
    config = {"model_type": "phi3", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 2}
    named = {f"model.layers.{i}.self_attn.qkv_proj.weight": torch.randn(10, 5) for i in range(2)}
    checkpoint, projections = saved(tmp_path, named, config)
    twins = [flipped(p) for p in projections]
    make().submit(checkpoint, [*projections, *twins])
    assert heard.wait_until_idle().done == 12
    assert set(batches.counts) == {4, 2}  # in a layer: q and its twin; k, v and theirs
    for projection, twin in zip(projections, twins, strict=True):
        matrix = _part(named, projection)
        _assert_right(sink.kept[projection.key], matrix)
        _assert_right(sink.kept[twin.key], flip_signs(host_array(matrix), twin.key))


def _part(named: dict[str, torch.Tensor], projection: Projection) -> torch.Tensor:
    start = {"query": 0, "key": 6, "value": 8}[projection.role]
    return named[projection.tensor][start : start + projection.rows]


def test_weighted_matrices_and_their_noise_are_solved_in_batches(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, batches: Batches
) -> None:
    checkpoint, projections = llama(tmp_path, 4)
    x = np.random.default_rng(0).standard_normal((30, 9))
    under = [weighted(p, Given(moment.full(x.T @ x / 30))) for p in projections]
    engine = make()
    engine.submit(checkpoint, [*projections, *under, noise_of(under[0])])
    assert heard.wait_until_idle().done == 9
    assert max(batches.counts) == LIMIT
    named = load_file(tmp_path / "model.safetensors")
    for plain, p in zip(projections, under, strict=True):
        _assert_right(sink.kept[plain.key], named[plain.tensor])
        made = sink.kept[p.key]
        true = np.linalg.svd(named[plain.tensor].double().numpy() @ x.T / math.sqrt(30), compute_uv=False)
        np.testing.assert_allclose(made.values, true, rtol=1e-10)
        assert made.provenance.solver == two_stage.NAME
        assert made.provenance.frobenius_norm == pytest.approx(np.linalg.norm(true), rel=1e-12)
        reach = np.linalg.norm(named[plain.tensor].double().numpy(), 2) * np.linalg.norm(x, 2) / math.sqrt(30)
        assert made.provenance.noise_floor >= math.sqrt(9 * 2.2e-16) * reach
    assert len(sink.kept[noise_of(under[0]).key].values) == 7


def test_a_batch_whose_trace_is_wrong_gives_no_spectrum(
    tmp_path: Path, make: Make, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, projections = llama(tmp_path, 4)
    monkeypatch.setattr(moment_factors.Full, "times", lambda self, rows: 1.01 * (rows @ self._factor))
    engine = make()
    engine.submit(checkpoint, [weighted(p, Given(moment.full(np.eye(9)))) for p in projections])
    assert heard.wait_until_idle().failed == 4
    assert {failed.reason for failed in heard.of(Failed)} == {"sum sigma^2 is not the trace of W C W^T"}


def test_no_weights_are_kept_after_a_batch(tmp_path: Path, make: Make, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 8)
    engine = make(2)
    engine.submit(checkpoint, projections)
    heard.wait_until_idle()
    assert engine.close(PATIENCE)
    queue = engine._queue
    assert not queue._ready
    assert not queue._reading
    assert not queue._solving

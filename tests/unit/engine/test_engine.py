"""The engine in its threads: order, stop, save, and failures that do not end a scan."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import PATIENCE, Gate, MemorySink, Recorder, addresses, llama, saved
from lapack_reference import lapack
from safetensors.torch import load_file

from rankscope.engine.compute import queue as job_queue
from rankscope.engine.compute import reporter
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import AlreadyStored, Computed, Failed, Progress, Saved, Started, Stopped
from rankscope.engine.compute.queue import JobQueue
from rankscope.engine.formats.safetensors import SAFETENSORS as safetensors  # noqa: N811
from rankscope.engine.solvers import ladder
from rankscope.engine.spectrum import Projection, Spectrum

Make = Callable[..., Engine]


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def make(heard: Recorder, sink: MemorySink) -> Iterator[Make]:
    """A maker of engines on the CPU, which are closed at the end of the test."""
    made: list[Engine] = []

    def build(**settings: Any) -> Engine:
        made.append(Engine(sink, heard, ComputeSettings(**{"device": "cpu", **settings})))
        return made[-1]

    yield build
    for engine in made:
        engine.close(PATIENCE)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    held = Gate()
    monkeypatch.setattr(ladder, "choose", held.rungs)
    yield held
    held.open()


def _order(heard: Recorder) -> list[int | None]:
    return [event.projection.layer for event in heard.of(Started)]


def _finish_reading(monkeypatch: pytest.MonkeyPatch, address: str) -> threading.Event:
    """An event that is set once the weights of `address` are in memory."""
    done, original = threading.Event(), JobQueue.loaded

    def loaded(queue: JobQueue, job: Any, weights: object, seen: str) -> None:
        original(queue, job, weights, seen)
        if address in addresses(job.projections):
            done.set()

    monkeypatch.setattr(JobQueue, "loaded", loaded)
    return done


def test_every_projection_is_saved_and_right(tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink) -> None:
    checkpoint, projections = llama(tmp_path, 5)
    weights = load_file(tmp_path / "model.safetensors")
    assert make().submit(checkpoint, projections) == projections
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.total, last.devices) == (5, 0, 5, ("cpu",))
    assert _order(heard) == [0, 1, 2, 3, 4]
    for projection in projections:
        spectrum = sink.kept[projection.key]
        wanted = lapack(weights[projection.tensor])
        assert abs(spectrum.values - wanted).max() <= 1e-10 * wanted[0]
        assert spectrum.projection == projection
        assert (spectrum.provenance.device, spectrum.provenance.compute_dtype) == ("cpu", "float64")
        assert all(spectrum.weights_digests)


@pytest.mark.parametrize("prefetch_bytes", [1, 1 << 30], ids=["still on disk", "read ahead"])
def test_urgent_overtakes_a_scan(
    tmp_path: Path, make: Make, heard: Recorder, gate: Gate, monkeypatch: pytest.MonkeyPatch, prefetch_bytes: int
) -> None:
    checkpoint, projections = llama(tmp_path, 6)
    in_memory = _finish_reading(monkeypatch, projections[5].address)
    engine = make(prefetch_bytes=prefetch_bytes)
    engine.submit(checkpoint, projections)
    gate.wait_until_reached()
    if prefetch_bytes > 1:
        assert in_memory.wait(PATIENCE)
    assert engine.submit(checkpoint, [projections[5]], urgent=True) == []
    assert in_memory.wait(PATIENCE)
    gate.open()
    assert heard.wait_until_idle().done == 6
    assert _order(heard) == [0, 5, 1, 2, 3, 4]


def test_stop_drops_the_rest_and_saves_the_running_one(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, gate: Gate
) -> None:
    checkpoint, projections = llama(tmp_path, 6)
    engine = make()
    engine.submit(checkpoint, projections)
    gate.wait_until_reached()
    engine.stop()
    heard.wait(lambda r: bool(r.of(Stopped)))
    assert not heard.of(Saved)
    gate.open()
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.total) == (1, 0, 1)
    (stopped,) = heard.of(Stopped)
    assert addresses(stopped.projections) == addresses(projections[1:])
    assert [e.spectrum.projection for e in heard.of(Saved)] == projections[:1]
    assert set(sink.kept) == {projections[0].key}


def test_a_scan_goes_on_after_stop(tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, gate: Gate) -> None:
    checkpoint, projections = llama(tmp_path, 4)
    engine = make()
    engine.submit(checkpoint, projections)
    gate.wait_until_reached()
    engine.stop()
    assert engine.submit(checkpoint, projections) == projections[1:]  # the running one is under way
    gate.open()
    heard.wait_until_idle()
    assert set(sink.kept) == {p.key for p in projections}
    assert _order(heard) == [0, 1, 2, 3]


def test_stop_with_nothing_to_stop_is_silent(make: Make, heard: Recorder) -> None:
    engine = make()
    engine.stop()
    assert engine.close(PATIENCE)
    assert heard.batches == []


def test_batches_are_few(tmp_path: Path, make: Make, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 300)
    began = time.monotonic()
    make().submit(checkpoint, projections)
    heard.wait_until_idle()
    elapsed = time.monotonic() - began
    assert len(heard.batches) <= elapsed / reporter.INTERVAL + 2
    assert len(heard.events()) >= 3 * 300
    assert all(isinstance(batch[-1], Progress) for batch in heard.batches)


def test_computed_comes_before_saved_and_saved_waits_for_the_disk(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink
) -> None:
    sink.holding = True
    checkpoint, projections = llama(tmp_path, 2)
    make().submit(checkpoint, projections)
    heard.wait(lambda r: len(r.of(Computed)) == 2)
    assert not heard.of(Saved)
    assert heard.of(Progress)[-1].done == 0
    sink.futures[projections[1].address].set_result(None)
    heard.wait(lambda r: len(r.of(Saved)) == 1)
    assert heard.of(Progress)[-1].busy
    sink.futures[projections[0].address].set_result(None)
    assert heard.wait_until_idle().done == 2
    assert [e.spectrum.projection for e in heard.of(Saved)] == projections[::-1]


def test_what_is_being_saved_is_not_computed_again(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink
) -> None:
    sink.holding = True
    checkpoint, projections = llama(tmp_path, 1)
    engine = make()
    engine.submit(checkpoint, projections)
    heard.wait(lambda r: len(r.of(Computed)) == 1)
    assert engine.submit(checkpoint, projections, urgent=True, recompute=True) == []
    sink.futures[projections[0].address].set_result(None)
    assert heard.wait_until_idle().done == 1


def test_a_put_that_fails_later_is_a_failure(tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink) -> None:
    sink.error = OSError("disk full")
    checkpoint, projections = llama(tmp_path, 2)
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed) == (0, 2)
    assert [f.reason for f in heard.of(Failed)] == ["cannot be saved: disk full"] * 2
    assert not heard.of(Saved)


def test_a_put_that_raises_does_not_end_the_scan(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, projections = llama(tmp_path, 3)
    put = sink.put

    def closed_once(spectrum: Spectrum) -> Any:
        if spectrum.projection.layer == 0:
            raise RuntimeError("the store is closed")
        return put(spectrum)

    monkeypatch.setattr(sink, "put", closed_once)
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed) == (2, 1)
    assert heard.of(Failed)[0].reason == "cannot be saved: the store is closed"


def test_one_nan_matrix_fails_alone(tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink) -> None:
    bad = torch.ones(7, 9)
    bad[3, 3] = torch.nan
    checkpoint, projections = llama(tmp_path, 5, l2=bad)
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.total) == (4, 1, 5)
    (failed,) = heard.of(Failed)
    assert failed.projection.layer == 2
    assert failed.reason == "the weights hold NaN or infinite values"
    assert sorted(s.projection.layer or 0 for s in sink.kept.values()) == [0, 1, 3, 4]


def test_what_failed_can_be_asked_for_again(tmp_path: Path, make: Make, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 1, l0=torch.full((3, 3), torch.inf))
    engine = make()
    for times in (1, 2):
        assert engine.submit(checkpoint, projections) == projections
        heard.wait_for_count(Failed, times)


def test_a_solver_that_breaks_unexpectedly_fails_one_matrix(
    tmp_path: Path, make: Make, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, projections = llama(tmp_path, 3)
    original, seen = ladder.solve, []

    def solve(matrix: torch.Tensor, rungs: Any) -> Any:
        seen.append(matrix)
        if len(seen) == 1:
            raise AssertionError("a bug")
        return original(matrix, rungs)

    monkeypatch.setattr(ladder, "solve", solve)
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed) == (2, 1)
    assert heard.of(Failed)[0].reason == "cannot be computed: AssertionError: a bug"


def test_a_fused_tensor_is_read_once(
    tmp_path: Path, make: Make, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"model_type": "phi3", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 2}
    name = "model.layers.0.self_attn.qkv_proj.weight"
    checkpoint, projections = saved(tmp_path, {name: torch.randn(10, 5)}, config)
    reads: list[str] = []
    original = safetensors.read_matrix

    def counting(tensor: Any, *args: Any) -> Any:
        reads.append(tensor.name)
        return original(tensor, *args)

    monkeypatch.setattr(safetensors, "read_matrix", counting)
    make().submit(checkpoint, projections)
    assert heard.wait_until_idle().done == 3
    assert reads == [name]


def test_no_weights_stay_in_memory(
    tmp_path: Path, make: Make, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, projections = llama(tmp_path, 3)
    read: list[weakref.ref[torch.Tensor]] = []
    solved, original_read, original_solved = threading.Semaphore(0), safetensors.read_matrix, JobQueue.solved

    def reading(tensor: Any, *args: Any) -> Any:
        weights, seen = original_read(tensor, *args)
        read.append(weakref.ref(weights))
        return weights, seen

    def solving(queue: JobQueue, job: Any) -> None:
        original_solved(queue, job)
        solved.release()

    monkeypatch.setattr(safetensors, "read_matrix", reading)
    monkeypatch.setattr(JobQueue, "solved", solving)
    make().submit(checkpoint, projections)
    assert all(solved.acquire(timeout=PATIENCE) for _ in projections)
    heard.wait_until_idle()
    gc.collect()
    assert [weights() for weights in read] == [None] * 3


def test_a_file_changed_since_it_was_opened_fails_in_words(tmp_path: Path, make: Make, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 2)
    llama(tmp_path, 3)
    make().submit(checkpoint, projections)
    assert heard.wait_until_idle().failed == 2
    assert {f.reason for f in heard.of(Failed)} == {
        "model.safetensors changed since it was opened: open the model again"
    }


def test_a_file_that_went_away_fails_in_words(tmp_path: Path, make: Make, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 2)
    (tmp_path / "model.safetensors").unlink()
    make().submit(checkpoint, projections)
    assert heard.wait_until_idle().failed == 2
    assert {f.reason for f in heard.of(Failed)} == {"cannot read model.safetensors: No such file or directory"}


def test_what_is_stored_is_not_accepted(tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink) -> None:
    checkpoint, projections = llama(tmp_path, 3)
    engine = make()
    engine.submit(checkpoint, projections[:2])
    heard.wait_until_idle()
    batches = len(heard.batches)
    assert engine.submit(checkpoint, projections[:2]) == []
    assert len(heard.batches) == batches
    assert engine.submit(checkpoint, projections) == projections[2:]
    heard.wait(lambda r: len(r.of(Saved)) == 3)
    assert engine.submit(checkpoint, projections, recompute=True) == projections
    heard.wait(lambda r: len(r.of(Saved)) == 6)
    assert len(sink.kept) == 3


def test_a_projection_with_a_problem_fails_at_once(tmp_path: Path, make: Make, heard: Recorder) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    checkpoint, projections = saved(tmp_path, {name: torch.ones(4, 4, dtype=torch.int8)}, {"model_type": "llama"})
    assert make().submit(checkpoint, projections) == []
    last = heard.wait_until_idle()
    assert (last.failed, last.total) == (1, 1)
    assert heard.of(Failed)[0].reason == projections[0].problem
    assert "packed integers" in heard.of(Failed)[0].reason


def test_close_joins_every_thread(tmp_path: Path, make: Make, heard: Recorder, gate: Gate) -> None:
    before = set(threading.enumerate())
    checkpoint, projections = llama(tmp_path, 3)
    engine = make()
    engine.submit(checkpoint, projections)
    gate.wait_until_reached()
    assert engine.close(0.0) is False  # the running matrix holds its thread
    gate.open()
    assert engine.close(PATIENCE) is True
    assert set(threading.enumerate()) <= before
    assert heard.of(Stopped)


def test_close_at_once_after_submit(tmp_path: Path, make: Make, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 3)
    engine = make()
    engine.submit(checkpoint, projections)
    assert engine.close(PATIENCE) is True
    heard_of = {e.spectrum.projection.layer for e in heard.of(Saved)}
    stopped = {p.layer for e in heard.of(Stopped) for p in e.projections}
    assert heard_of | stopped == {0, 1, 2}
    assert not heard_of & stopped


def test_close_while_a_thread_is_being_started(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key q right after the first screen, when the explorer begins to make a GPU ready."""
    engine, start = make(), threading.Thread.start
    waits_or_ended, ended = threading.Event(), []

    class Noting:
        """The engine's lock, which tells that the closing thread has come to it."""

        def __enter__(self) -> None:
            if threading.current_thread() is closing:
                waits_or_ended.set()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    def close() -> None:
        try:
            ended.append(engine.close(PATIENCE))
        finally:
            waits_or_ended.set()

    def close_and_start(thread: threading.Thread) -> None:
        if thread.name == "rankscope-warm":
            start(closing)
            assert waits_or_ended.wait(PATIENCE)
        start(thread)

    lock, closing = engine._lock, threading.Thread(target=close)
    monkeypatch.setattr(engine, "_lock", Noting())
    monkeypatch.setattr(threading.Thread, "start", close_and_start)
    engine.warm()
    closing.join(PATIENCE)
    assert ended == [True]


def test_a_matrix_faster_than_submit_is_counted(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker may save a matrix before submit returns from queueing it: it must not stay open for ever."""
    checkpoint, projections = llama(tmp_path, 2)
    engine = make()
    engine.submit(checkpoint, projections[:1])
    heard.wait_until_idle()
    original = JobQueue.add

    def slow(queue: JobQueue, *arguments: Any) -> list[Projection]:
        accepted = original(queue, *arguments)
        heard.wait(lambda r: len(r.of(Saved)) == 2)
        return accepted

    monkeypatch.setattr(JobQueue, "add", slow)
    engine.submit(checkpoint, projections)
    assert sink.has(projections[1].key)
    assert not engine._reporter.is_open(projections[1].key)
    assert heard.wait_until_idle().done == 1


def test_what_another_process_has_saved_is_neither_read_nor_solved(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, projections = llama(tmp_path, 6)
    reads: list[str] = []
    original = safetensors.read_matrix

    def counting(tensor: Any, *args: Any) -> Any:
        reads.append(tensor.name)
        return original(tensor, *args)

    monkeypatch.setattr(safetensors, "read_matrix", counting)
    in_memory = _finish_reading(monkeypatch, projections[1].address)
    engine = make(prefetch_bytes=2 * 7 * 9 * 4)  # what is being solved, and one more
    engine.submit(checkpoint, projections)
    gate.wait_until_reached()
    assert in_memory.wait(PATIENCE)
    sink.others = {p.key for p in projections[1:5]}
    gate.open()
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.total) == (6, 0, 6)
    assert sorted(addresses([e.projection for e in heard.of(AlreadyStored)])) == addresses(projections[1:5])
    assert sorted(_order(heard), key=str) == [0, 5]
    assert reads == [projections[n].tensor for n in (0, 1, 5)]  # the second was read already


def test_recompute_does_it_again_whoever_has_saved_it(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink
) -> None:
    checkpoint, projections = llama(tmp_path, 3)
    sink.others = {p.key for p in projections}
    assert make().submit(checkpoint, projections, recompute=True) == projections
    assert heard.wait_until_idle().done == 3
    assert not heard.of(AlreadyStored)
    assert set(sink.kept) == sink.others


def test_beside_another_process_a_scan_goes_on_in_another_order(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, gate: Gate
) -> None:
    checkpoint, projections = llama(tmp_path, 60)
    engine = make(prefetch_bytes=1)
    engine.submit(checkpoint, projections)
    gate.wait_until_reached()
    sink.others = {projections[1].key}
    gate.open()
    assert heard.wait_until_idle().done == 60
    order = [layer or 0 for layer in _order(heard)]
    assert sorted(order) == [0, *range(2, 60)]
    assert sum(there == here + 1 for here, there in itertools.pairwise(order)) < 30


def test_no_more_is_solved_than_may_wait_to_be_saved(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_queue, "MOST_UNSAVED", 3 * 2048)
    sink.holding = True
    checkpoint, projections = llama(tmp_path, 6)
    make().submit(checkpoint, projections)
    heard.wait(lambda r: len(r.of(Computed)) == 3)
    sink.tell("full disk")
    heard.wait(lambda r: bool(r.of(Progress)) and r.of(Progress)[-1].waiting == "full disk")
    for p in projections[:2]:
        sink.futures[p.address].set_result(None)
    heard.wait(lambda r: len(r.of(Computed)) == 5)
    sink.tell("")
    assert len(heard.of(Started)) == 5
    for p in projections[2:5]:
        sink.futures[p.address].set_result(None)
    heard.wait(lambda r: len(r.of(Computed)) == 6)
    sink.futures[projections[5].address].set_result(None)
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.waiting) == (6, 0, "")


def test_a_failed_save_says_why_and_where(tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink) -> None:
    sink.error = OSError(5, "Input/output error", "/the/store")
    checkpoint, projections = llama(tmp_path, 2)
    make().submit(checkpoint, projections)
    heard.wait_until_idle()
    assert [f.reason for f in heard.of(Failed)] == ["cannot be saved: Input/output error (/the/store)"] * 2

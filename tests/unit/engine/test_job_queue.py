"""The queue alone, without a thread: order, budget, urgency, withdrawal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_fakes import addresses, llama, saved

from rankscope.engine.checkpoint import Checkpoint
from rankscope.engine.queue import Job, JobQueue
from rankscope.engine.spectrum import Projection

ONE = 7 * 9 * 4  # bytes of one stored tensor
Model = tuple[Checkpoint, list[Projection]]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return llama(tmp_path, 6)


def _read(queue: JobQueue) -> Job:
    """Take the next job to read; a queue that would wait for ever fails instead."""
    assert _can_read(queue), "nothing may be read now"
    job = queue.next_to_read()
    assert job is not None
    return job


def _can_read(queue: JobQueue) -> bool:
    waiting = [job for _, job in queue._waiting if job.projections]
    return bool(waiting) and queue._has_room(min(waiting, key=lambda job: job.rank))


def _read_and_load(queue: JobQueue) -> list[str]:
    job = _read(queue)
    queue.loaded(job, "weights", "digest")
    return addresses(job.projections)


def _solve(queue: JobQueue) -> list[str]:
    assert queue._ready, "nothing is ready"
    job = queue.next_to_solve()
    assert job is not None
    assert job.weights == "weights"
    found = addresses(job.projections)
    queue.solved(job)
    assert job.weights is None
    return found


def _query(*layers: int) -> list[str]:
    return [f"layers.{i}.attention.query" for i in layers]


def test_jobs_come_in_the_order_asked_for(model: Model) -> None:
    queue = JobQueue(10**9)
    checkpoint, projections = model
    assert queue.add(checkpoint, projections, urgent=False) == projections
    assert [_read_and_load(queue) for _ in projections] == [_query(i) for i in range(6)]
    assert [_solve(queue) for _ in projections] == [_query(i) for i in range(6)]


def test_a_key_is_queued_once(model: Model) -> None:
    queue = JobQueue(10**9)
    checkpoint, projections = model
    queue.add(checkpoint, projections[:3], urgent=False)
    assert queue.add(checkpoint, projections + projections, urgent=False) == projections[3:]
    assert [_read_and_load(queue) for _ in projections] == [_query(i) for i in range(6)]
    assert not _can_read(queue)


def test_reading_ahead_stops_at_the_budget(model: Model) -> None:
    queue = JobQueue(2 * ONE)
    queue.add(*model, urgent=False)
    _read_and_load(queue)
    _read_and_load(queue)
    assert not _can_read(queue)
    job = queue.next_to_solve()
    assert job is not None
    assert not _can_read(queue)  # what is being solved is still in memory
    queue.solved(job)
    assert _read_and_load(queue) == _query(2)
    assert not _can_read(queue)


def test_bytes_being_read_count_too(model: Model) -> None:
    queue = JobQueue(2 * ONE - 1)
    queue.add(*model, urgent=False)
    _read(queue)
    assert not _can_read(queue)


def test_a_tensor_larger_than_the_budget_is_read_alone(model: Model) -> None:
    queue = JobQueue(1)
    queue.add(*model, urgent=False)
    for layer in range(3):
        assert _read_and_load(queue) == _query(layer)
        assert not _can_read(queue)
        assert _solve(queue) == _query(layer)


def test_urgent_ignores_the_budget_and_goes_first(model: Model) -> None:
    queue = JobQueue(ONE)
    checkpoint, projections = model
    queue.add(checkpoint, projections[:4], urgent=False)
    _read_and_load(queue)
    assert queue.add(checkpoint, projections[5:], urgent=True) == projections[5:]
    assert _read_and_load(queue) == _query(5)
    assert not _can_read(queue)
    assert _solve(queue) == _query(5)
    assert _solve(queue) == _query(0)


def test_only_the_first_urgent_job_ignores_the_budget(model: Model) -> None:
    queue = JobQueue(ONE)
    queue.add(*model, urgent=True)
    assert _read_and_load(queue) == _query(0)
    assert not _can_read(queue)  # or `enter` on a role of 80 layers would read the model into memory
    assert _solve(queue) == _query(0)


def test_urgent_moves_what_already_waits(model: Model) -> None:
    queue = JobQueue(10**9)
    checkpoint, projections = model
    queue.add(checkpoint, projections, urgent=False)
    assert queue.add(checkpoint, [projections[4], projections[2]], urgent=True) == []
    order = [_read_and_load(queue) for _ in projections]
    assert order == [_query(i) for i in (4, 2, 0, 1, 3, 5)]
    assert not _can_read(queue)


@pytest.mark.parametrize("loaded", [True, False], ids=["ready", "being read"])
def test_urgent_moves_what_is_read_or_being_read(model: Model, loaded: bool) -> None:
    queue = JobQueue(10**9)
    checkpoint, projections = model
    queue.add(checkpoint, projections[:3], urgent=False)
    jobs = [_read(queue) for _ in range(3)]
    for job in jobs[:2] if not loaded else jobs:
        queue.loaded(job, "weights", "")
    assert queue.add(checkpoint, [projections[2]], urgent=True) == []
    if not loaded:
        queue.loaded(jobs[2], "weights", "")
    assert [_solve(queue) for _ in range(3)] == [_query(i) for i in (2, 0, 1)]


def _fused(folder: Path) -> Model:
    config = {"model_type": "phi3", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 2}
    name = "model.layers.0.self_attn.qkv_proj.weight"
    return saved(folder, {name: torch.randn(10, 5, generator=torch.Generator().manual_seed(0))}, config)


def test_a_fused_tensor_is_one_job(tmp_path: Path) -> None:
    queue = JobQueue(10**9)
    queue.add(*_fused(tmp_path), urgent=False)
    wanted = [f"layers.0.attention.{role}" for role in ("query", "key", "value")]
    assert _read_and_load(queue) == wanted
    assert not _can_read(queue)
    assert _solve(queue) == wanted


def test_one_urgent_part_of_a_fused_tensor_leaves_the_others(tmp_path: Path) -> None:
    queue = JobQueue(10**9)
    checkpoint, projections = _fused(tmp_path)
    queue.add(checkpoint, projections, urgent=False)
    queue.add(checkpoint, [projections[1]], urgent=True)
    assert _read_and_load(queue) == ["layers.0.attention.key"]
    assert _read_and_load(queue) == ["layers.0.attention.query", "layers.0.attention.value"]


def test_clear_withdraws_waiting_read_and_ready(model: Model) -> None:
    queue = JobQueue(10**9)
    checkpoint, projections = model
    queue.add(checkpoint, projections, urgent=False)
    solving, ready, reading = _read(queue), _read(queue), _read(queue)
    queue.loaded(solving, "weights", "")
    assert queue.next_to_solve() is solving
    queue.loaded(ready, "weights", "")
    assert addresses(queue.clear()) == _query(1, 2, 3, 4, 5)
    queue.loaded(reading, "weights", "")
    assert queue._ready == []
    assert reading.weights is None  # let go at once
    assert addresses(solving.projections) == _query(0)
    assert not any(queue.holds(p.key) for p in projections)


def test_what_was_withdrawn_can_be_asked_for_again(model: Model) -> None:
    queue = JobQueue(10**9)
    checkpoint, projections = model
    queue.add(checkpoint, projections, urgent=False)
    reading = _read(queue)
    queue.clear()
    assert queue.add(checkpoint, projections[:2], urgent=False) == projections[:2]
    queue.loaded(reading, "old", "")
    assert _read_and_load(queue) == _query(0)
    assert _solve(queue) == _query(0)


def test_a_dropped_job_makes_room_and_can_be_asked_for_again(model: Model) -> None:
    queue = JobQueue(1)
    checkpoint, projections = model
    queue.add(checkpoint, projections[:2], urgent=False)
    assert addresses(queue.drop(_read(queue))) == _query(0)
    assert _read_and_load(queue) == _query(1)
    assert queue.add(checkpoint, projections[:1], urgent=False) == projections[:1]


def test_a_closed_queue_hands_out_nothing(model: Model) -> None:
    queue = JobQueue(10**9)
    queue.add(*model, urgent=False)
    _read_and_load(queue)
    queue.close()
    assert queue.next_to_read() is None
    assert queue.next_to_solve() is None

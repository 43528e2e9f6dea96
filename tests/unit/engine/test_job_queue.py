"""The queue without threads: order, budget, urgency, withdrawal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_fakes import PATIENCE, addresses, llama, saved

from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute.job import SCAN, Job
from rankscope.engine.compute.queue import JobQueue
from rankscope.engine.compute.worker_thread import groups
from rankscope.engine.formats.gguf import GGUF
from rankscope.engine.spectrum import Projection

ONE = 7 * 9 * 4  # bytes of one stored tensor
ONE_BY_ONE: Callable[[int], int] = lambda _side: 1  # noqa: E731
Model = tuple[Checkpoint, list[Projection]]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return llama(tmp_path, 6)


def _read(queue: JobQueue) -> Job:
    """The next job to read; a queue that would wait for ever fails instead."""
    assert _can_read(queue), "nothing may be read now"
    job = queue.next_to_read()
    assert job is not None
    return job


def _can_read(queue: JobQueue) -> bool:
    waiting = [job for _, job in queue._waiting if job.projections]
    return bool(waiting) and queue._has_room("cpu", min(waiting, key=lambda job: job.rank))


def _read_and_load(queue: JobQueue) -> list[str]:
    job = _read(queue)
    queue.loaded(job, "weights", "digest")
    return addresses(job.projections)


def _solve(queue: JobQueue) -> list[str]:
    assert queue._ready, "nothing is ready"
    job = _next(queue)
    assert job.weights == "weights"
    found = addresses(job.projections)
    queue.solved(job)
    assert job.weights is None
    return found


def _next(queue: JobQueue) -> Job:
    (job,) = queue.next_batch("cpu", ONE_BY_ONE)
    return job


def _query(*layers: int) -> list[str]:
    return [f"layers.{i}.attention.query" for i in layers]


def test_jobs_come_in_the_order_asked_for(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    checkpoint, projections = model
    assert queue.add(checkpoint, projections, urgent=False) == projections
    assert [_read_and_load(queue) for _ in projections] == [_query(i) for i in range(6)]
    assert [_solve(queue) for _ in projections] == [_query(i) for i in range(6)]


def test_a_key_is_queued_once(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    checkpoint, projections = model
    queue.add(checkpoint, projections[:3], urgent=False)
    assert queue.add(checkpoint, projections + projections, urgent=False) == projections[3:]
    assert [_read_and_load(queue) for _ in projections] == [_query(i) for i in range(6)]
    assert not _can_read(queue)


def test_reading_ahead_stops_at_the_budget(model: Model) -> None:
    queue = JobQueue({"cpu": 2 * ONE})
    queue.add(*model, urgent=False)
    _read_and_load(queue)
    _read_and_load(queue)
    assert not _can_read(queue)
    job = _next(queue)
    assert not _can_read(queue)  # what is being solved is still in memory
    queue.solved(job)
    assert _read_and_load(queue) == _query(2)
    assert not _can_read(queue)


def test_bytes_being_read_count_too(model: Model) -> None:
    queue = JobQueue({"cpu": 2 * ONE - 1})
    queue.add(*model, urgent=False)
    _read(queue)
    assert not _can_read(queue)


def test_a_tensor_larger_than_the_budget_is_read_alone(model: Model) -> None:
    queue = JobQueue({"cpu": 1})
    queue.add(*model, urgent=False)
    for layer in range(3):
        assert _read_and_load(queue) == _query(layer)
        assert not _can_read(queue)
        assert _solve(queue) == _query(layer)


def test_urgent_ignores_the_budget_and_goes_first(model: Model) -> None:
    queue = JobQueue({"cpu": ONE})
    checkpoint, projections = model
    queue.add(checkpoint, projections[:4], urgent=False)
    _read_and_load(queue)
    assert queue.add(checkpoint, projections[5:], urgent=True) == projections[5:]
    assert _read_and_load(queue) == _query(5)
    assert not _can_read(queue)
    assert _solve(queue) == _query(5)
    assert _solve(queue) == _query(0)


def test_only_the_first_urgent_job_ignores_the_budget(model: Model) -> None:
    queue = JobQueue({"cpu": ONE})
    queue.add(*model, urgent=True)
    assert _read_and_load(queue) == _query(0)
    assert not _can_read(queue)  # else `enter` on a role of 80 layers would read the model into memory
    assert _solve(queue) == _query(0)


def test_urgent_moves_what_already_waits(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    checkpoint, projections = model
    queue.add(checkpoint, projections, urgent=False)
    assert queue.add(checkpoint, [projections[4], projections[2]], urgent=True) == []
    order = [_read_and_load(queue) for _ in projections]
    assert order == [_query(i) for i in (4, 2, 0, 1, 3, 5)]
    assert not _can_read(queue)


@pytest.mark.parametrize("loaded", [True, False], ids=["ready", "being read"])
def test_urgent_moves_what_is_read_or_being_read(model: Model, loaded: bool) -> None:
    queue = JobQueue({"cpu": 10**9})
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
    queue = JobQueue({"cpu": 10**9})
    queue.add(*_fused(tmp_path), urgent=False)
    wanted = [f"layers.0.attention.{role}" for role in ("query", "key", "value")]
    assert _read_and_load(queue) == wanted
    assert not _can_read(queue)
    assert _solve(queue) == wanted


def test_one_urgent_part_of_a_fused_tensor_leaves_the_others(tmp_path: Path) -> None:
    queue = JobQueue({"cpu": 10**9})
    checkpoint, projections = _fused(tmp_path)
    queue.add(checkpoint, projections, urgent=False)
    queue.add(checkpoint, [projections[1]], urgent=True)
    assert _read_and_load(queue) == ["layers.0.attention.key"]
    assert _read_and_load(queue) == ["layers.0.attention.query", "layers.0.attention.value"]


def test_clear_withdraws_waiting_read_and_ready(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    checkpoint, projections = model
    queue.add(checkpoint, projections, urgent=False)
    solving, ready, reading = _read(queue), _read(queue), _read(queue)
    queue.loaded(solving, "weights", "")
    assert _next(queue) is solving
    queue.loaded(ready, "weights", "")
    assert not reading.withdrawn.is_set()
    assert addresses(queue.clear()) == _query(1, 2, 3, 4, 5)
    assert reading.withdrawn.is_set()  # a reader may leave it
    assert not solving.withdrawn.is_set()
    queue.loaded(reading, "weights", "")
    assert queue._ready == []
    assert reading.weights is None  # released at once
    assert addresses(solving.projections) == _query(0)
    assert not any(queue.holds(p.key) for p in projections)


def test_what_was_withdrawn_can_be_asked_for_again(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    checkpoint, projections = model
    queue.add(checkpoint, projections, urgent=False)
    reading = _read(queue)
    queue.clear()
    assert queue.add(checkpoint, projections[:2], urgent=False) == projections[:2]
    queue.loaded(reading, "old", "")
    assert _read_and_load(queue) == _query(0)
    assert _solve(queue) == _query(0)


def test_a_dropped_job_makes_room_and_can_be_asked_for_again(model: Model) -> None:
    queue = JobQueue({"cpu": 1})
    checkpoint, projections = model
    queue.add(checkpoint, projections[:2], urgent=False)
    assert addresses(queue.drop(_read(queue))) == _query(0)
    assert _read_and_load(queue) == _query(1)
    assert queue.add(checkpoint, projections[:1], urgent=False) == projections[:1]


def test_a_closed_queue_hands_out_nothing(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    queue.add(*model, urgent=False)
    _read_and_load(queue)
    queue.close()
    assert queue.next_to_read() is None
    assert queue.next_batch("cpu", ONE_BY_ONE) == []


def _kinds(folder: Path, order: str, **sides: int) -> Model:
    """A checkpoint of matrices in the order of the letters, each with its letter's smaller side."""
    named = {
        f"model.layers.{layer}.self_attn.q_proj.weight": torch.ones(sides[letter], 9)
        for layer, letter in enumerate(order)
    }
    return saved(folder, named, {"model_type": "llama"})


def _up_to(limit: int) -> Callable[[int], int]:
    return lambda _side: limit


def _layers(jobs: list[Job]) -> list[int | None]:
    return [p.layer for job in jobs for p in job.projections]


def _would_wait(queue: JobQueue, limit: int) -> bool:
    return not queue._choose("cpu", _up_to(limit))


def test_a_batch_is_of_one_side_and_full(tmp_path: Path) -> None:
    queue = JobQueue({"cpu": 10**9})
    queue.add(*_kinds(tmp_path, "abbabaab", a=3, b=5), urgent=False)
    for _ in range(8):
        _read_and_load(queue)
    batches = [queue.next_batch("cpu", {3: 3, 5: 2}.__getitem__) for _ in range(4)]
    assert [_layers(batch) for batch in batches] == [[0, 3, 5], [1, 2], [4, 7], [6]]


def test_a_batch_waits_for_what_is_read_and_no_longer(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    queue.add(model[0], model[1][:3], urgent=False)
    for _ in range(2):
        _read_and_load(queue)
        assert _would_wait(queue, 3)
    last = _read(queue)
    assert _would_wait(queue, 4)
    queue.loaded(last, "weights", "")
    assert _layers(queue.next_batch("cpu", _up_to(4))) == [0, 1, 2]


@pytest.mark.parametrize("how", ["failed", "withdrawn"])
def test_a_batch_does_not_wait_for_what_never_comes(model: Model, how: str) -> None:
    queue = JobQueue({"cpu": 10**9})
    checkpoint, projections = model
    queue.add(checkpoint, projections[:3], urgent=False)
    _read_and_load(queue)
    if how == "failed":
        queue.drop(_read(queue))
        assert _would_wait(queue, 4)
        queue.drop(_read(queue))
    else:  # the urgent jobs took them over, and one of those failed: empty jobs are left
        queue.add(checkpoint, projections[1:3], urgent=True)
        queue.drop(_read(queue))
        queue.drop(_read(queue))
    assert _layers(queue.next_batch("cpu", _up_to(4))) == [0]


def test_a_batch_does_not_wait_for_room_that_only_it_can_make(model: Model) -> None:
    queue = JobQueue({"cpu": 3 * ONE})
    queue.add(*model, urgent=False)
    for _ in range(3):
        _read_and_load(queue)
    batch = queue.next_batch("cpu", _up_to(4))
    assert _layers(batch) == [0, 1, 2]
    assert not _can_read(queue)
    for job in batch:
        queue.solved(job)
    assert _can_read(queue)


def test_where_no_batch_is_full_the_fullest_goes(tmp_path: Path) -> None:
    queue = JobQueue({"cpu": 10**9})
    queue.add(*_kinds(tmp_path, "abbab", a=3, b=5), urgent=False)
    for _ in range(5):
        _read_and_load(queue)
    limits = {3: 4, 5: 8}.__getitem__
    assert [_layers(queue.next_batch("cpu", limits)) for _ in range(2)] == [[0, 3], [1, 2, 4]]


def test_an_urgent_job_waits_for_no_batch(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    checkpoint, projections = model
    queue.add(checkpoint, projections[:4], urgent=False)
    for _ in range(3):
        _read_and_load(queue)
    queue.add(checkpoint, projections[5:], urgent=True)
    _read_and_load(queue)
    assert _layers(queue.next_batch("cpu", _up_to(4))) == [5]
    assert _would_wait(queue, 4)
    queue.add(checkpoint, projections[1:3], urgent=True)  # they are in memory: urgent at once, and together
    assert _layers(queue.next_batch("cpu", _up_to(4))) == [1, 2]
    assert _would_wait(queue, 4)


def test_an_urgent_job_wakes_who_waits_for_a_batch(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    checkpoint, projections = model
    queue.add(checkpoint, projections, urgent=False)
    _read_and_load(queue)
    found: list[list[int | None]] = []
    thread = threading.Thread(target=lambda: found.append(_layers(queue.next_batch("cpu", _up_to(4)))), daemon=True)
    thread.start()
    queue.add(checkpoint, projections[:1], urgent=True)
    thread.join(PATIENCE)
    assert found == [[0]]


def test_close_wakes_who_waits_for_a_batch(model: Model) -> None:
    queue = JobQueue({"cpu": 10**9})
    queue.add(*model, urgent=False)
    _read_and_load(queue)
    found: list[list[Job]] = []
    thread = threading.Thread(target=lambda: found.append(queue.next_batch("cpu", _up_to(4))), daemon=True)
    thread.start()
    queue.close()
    thread.join(PATIENCE)
    assert found == [[]]


def test_tensors_that_hold_several_projections_make_batches_by_all_their_sides(tmp_path: Path) -> None:
    queue = JobQueue({"cpu": 10**9})
    config = {"model_type": "phi3", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 2}
    named = {f"model.layers.{i}.self_attn.qkv_proj.weight": torch.ones(10, 5) for i in range(4)}
    queue.add(*saved(tmp_path, named, config), urgent=False)  # sides 5, 2, 2
    for _ in range(4):
        _read_and_load(queue)
    limits = {5: 8, 2: 6}.__getitem__
    batch = queue.next_batch("cpu", limits)
    assert _layers(batch) == [0] * 3 + [1] * 3 + [2] * 3
    assert [[(p.layer, p.role) for p, _ in group] for group in groups(batch, limits)] == [
        [(layer, "query") for layer in range(3)],
        [(layer, role) for layer in range(3) for role in ("key", "value")],
    ]
    assert [[p.role for p, _ in group] for group in groups(batch[:1], ONE_BY_ONE)] == [["query"], ["key"], ["value"]]


TWO = {"cuda:0": 4 * ONE, "cuda:1": 2 * ONE}


def test_jobs_go_to_the_device_with_the_least_to_do(model: Model) -> None:
    queue = JobQueue(TWO)
    queue.add(*model, urgent=False)
    jobs = [queue.next_to_read() for _ in range(6)]
    assert [job and job.device for job in jobs] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0", "cuda:0"]


def test_a_device_solves_what_lies_in_its_own_memory(model: Model) -> None:
    queue = JobQueue(TWO)
    queue.add(*model, urgent=False)
    for _ in range(6):
        job = queue.next_to_read()
        assert job is not None
        queue.loaded(job, "weights", "")
    assert _layers(queue.next_batch("cuda:1", _up_to(4))) == [1, 3]
    assert _layers(queue.next_batch("cuda:0", _up_to(4))) == [0, 2, 4, 5]


def test_nothing_is_read_before_a_device_is_there(model: Model) -> None:
    queue = JobQueue()
    queue.add(*model, urgent=False)
    found: list[Job | None] = []
    thread = threading.Thread(target=lambda: found.append(queue.next_to_read()), daemon=True)
    thread.start()
    assert not found
    queue.open({"cpu": ONE})
    thread.join(PATIENCE)
    assert [job and job.device for job in found] == ["cpu"]


def test_quantised_blocks_count_with_the_floats_they_become_but_on_a_gpu(model: Model) -> None:
    checkpoint, projections = model
    tensor = checkpoint.tensors[0]._replace(end=checkpoint.tensors[0].begin + 40)
    job = Job(SCAN, 0, checkpoint, tensor, projections[:1])
    assert job.bytes_on("cpu") == job.bytes_on("cuda:0") == 40
    job.checkpoint, job.tensor = replace(checkpoint, format=GGUF), tensor._replace(dtype="Q4_1")
    assert (job.bytes_on("cpu"), job.bytes_on("cuda:0")) == (40 + 4 * 7 * 9, 40)
    job.tensor = job.tensor._replace(dtype="IQ2_XS")  # the package dequantises it, on the CPU
    assert job.bytes_on("cpu") == job.bytes_on("cuda:0") == 40 + 4 * 7 * 9


def test_bfloat16_counts_twice_where_numpy_widens_it(model: Model) -> None:
    checkpoint, projections = model
    tensor = checkpoint.tensors[0]._replace(dtype="BF16", end=checkpoint.tensors[0].begin + 2 * 7 * 9)
    job = Job(SCAN, 0, checkpoint, tensor, projections[:1])
    assert (job.bytes_on("cpu"), job.bytes_on("cuda:0")) == (4 * 7 * 9, 2 * 7 * 9)

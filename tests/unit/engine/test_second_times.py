"""The second time: a job after another, and threads that already wait when something changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from engine_fakes import PATIENCE, Recorder, addresses, llama

from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute import reporter
from rankscope.engine.compute.events import Failed, Progress, Saved, Started
from rankscope.engine.compute.job import Job
from rankscope.engine.compute.queue import JobQueue
from rankscope.engine.compute.reporter import Reporter
from rankscope.engine.spectrum import Projection, Spectrum

ONE = 7 * 9 * 4  # bytes of one stored tensor
Model = tuple[Checkpoint, list[Projection]]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return llama(tmp_path, 6)


def _saved(projection: Projection) -> Saved:
    return Saved(cast(Spectrum, SimpleNamespace(projection=projection)))


def test_the_time_left_of_a_second_job_is_that_of_its_own_pace(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    """Three equal matrices in a second each, hours later one of three in ten: twenty to go, whatever came before."""
    now = SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(reporter, "time", now)
    heard = Recorder()
    told = Reporter(heard)
    _, projections = model
    told.expect(projections[:3], 5000)
    told.tell(Started(projections[0], "cpu"))
    told.fetched(5000)
    now.monotonic = lambda: 103.0
    for projection in projections[:3]:
        told.tell(_saved(projection))
    assert heard.wait_until_idle().done == 3
    now.monotonic = lambda: 9000.0
    told.expect(projections[3:])
    told.tell(Started(projections[3], "cpu"))
    now.monotonic = lambda: 9010.0
    told.tell(_saved(projections[3]))
    told.close()
    last = heard.of(Progress)[-1]
    assert last.eta == pytest.approx(20.0)
    assert last.rate == pytest.approx(0.1)
    assert (last.done, last.failed, last.total, last.fetched, last.to_fetch) == (1, 0, 3, 0, 0)


def test_more_of_the_same_job_adds_to_it(model: Model) -> None:
    heard = Recorder()
    told = Reporter(heard)
    _, projections = model
    told.expect(projections[:2], 30)
    told.tell(Failed(projections[0], "no"))
    told.expect(projections[1:4], 12)
    told.tell(_saved(projections[3]))
    told.close()
    last = heard.of(Progress)[-1]
    assert (last.done, last.failed, last.total, last.to_fetch, last.busy) == (1, 1, 4, 42, True)


class _Watched(threading.Condition):
    """A condition that notes when someone waits; whoever gets the lock after that finds them waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.set()
        return super().wait(timeout)


def _watched(budget: int) -> JobQueue:
    queue = JobQueue({"cpu": budget})
    queue._changed = _Watched()
    return queue


def _woken(queue: JobQueue, call: Callable[[], list[Job]], change: Callable[[], object]) -> list[str]:
    """The addresses that a waiting call returns once something has changed."""
    found: list[list[Job]] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    assert cast(_Watched, queue._changed).waited.wait(PATIENCE)
    change()
    thread.join(PATIENCE)
    assert found, "the thread still waits"
    return [address for job in found[0] for address in addresses(job.projections)]


def _to_read(queue: JobQueue) -> Job:
    job = queue.next_to_read()
    assert job is not None
    return job


def _batch(queue: JobQueue) -> Callable[[], list[Job]]:
    return lambda: queue.next_batch("cpu", lambda _side: 4)


def _query(*layers: int) -> list[str]:
    return [f"layers.{layer}.attention.query" for layer in layers]


@pytest.mark.parametrize(("end", "layers"), [("drop", (0,)), ("loaded", (0, 1))])
def test_the_last_that_was_read_wakes_who_waits_for_a_batch(model: Model, end: str, layers: tuple[int, ...]) -> None:
    """One matrix is ready and one is being read: a batch waits for it, and goes without it if it cannot be read."""
    checkpoint, projections = model
    queue = _watched(10**9)
    queue.add(checkpoint, projections[:2], urgent=False)
    queue.loaded(_to_read(queue), "weights", "")
    second = _to_read(queue)

    def change() -> object:
        return queue.drop(second) if end == "drop" else queue.loaded(second, "weights", "")

    assert _woken(queue, _batch(queue), change) == _query(*layers)


def test_after_a_stop_who_waits_gets_what_is_asked_for_next(model: Model) -> None:
    """The stopped job was being read meanwhile: it is released, and none of it is solved."""
    checkpoint, projections = model
    queue = _watched(10**9)
    queue.add(checkpoint, projections[:2], urgent=False)
    first = _to_read(queue)

    def change() -> None:
        assert queue.clear() == projections[:2]
        queue.loaded(first, "weights", "")
        queue.add(checkpoint, projections[3:4], urgent=True)
        queue.loaded(_to_read(queue), "weights", "")

    assert _woken(queue, _batch(queue), change) == _query(3)


def test_what_was_solved_makes_room_for_who_waits_to_read(model: Model) -> None:
    checkpoint, projections = model
    queue = _watched(ONE)
    queue.add(checkpoint, projections[:2], urgent=False)
    queue.loaded(_to_read(queue), "weights", "")
    (solving,) = queue.next_batch("cpu", lambda _side: 4)
    assert _woken(queue, lambda: [_to_read(queue)], lambda: queue.solved(solving)) == _query(1)


def test_what_could_not_be_read_makes_room_too(model: Model) -> None:
    checkpoint, projections = model
    queue = _watched(ONE)
    queue.add(checkpoint, projections[:2], urgent=False)
    first = _to_read(queue)
    assert _woken(queue, lambda: [_to_read(queue)], lambda: queue.drop(first)) == _query(1)


def test_what_a_second_scan_asks_for_again_keeps_its_place(model: Model) -> None:
    checkpoint, projections = model
    queue = JobQueue({"cpu": 10**9})
    assert queue.add(checkpoint, projections[3:5], urgent=False) == projections[3:5]
    assert queue.add(checkpoint, projections, urgent=False) == [*projections[:3], projections[5]]
    assert [addresses(_to_read(queue).projections) for _ in range(6)] == [_query(n) for n in (3, 4, 0, 1, 2, 5)]


def test_what_was_dropped_may_be_asked_for_again(model: Model) -> None:
    checkpoint, projections = model
    queue = _watched(ONE)
    queue.add(checkpoint, projections[:1], urgent=False)
    assert queue.drop(_to_read(queue)) == projections[:1]
    assert not queue.holds(projections[0].key)
    assert queue.add(checkpoint, projections[:1], urgent=True) == projections[:1]
    assert addresses(_to_read(queue).projections) == _query(0)

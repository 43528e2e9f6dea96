"""Events to one listener: in order, in few batches, each with the counts so far."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from engine_fakes import PATIENCE, Recorder, llama

from rankscope.engine.compute import reporter
from rankscope.engine.compute.events import Failed, Notice, Progress, Saved, Started, Stopped
from rankscope.engine.compute.reporter import INTERVAL, Reporter
from rankscope.engine.spectrum import Projection, Spectrum


@pytest.fixture
def projections(tmp_path: Path) -> list[Projection]:
    return llama(tmp_path, 6)[1]


def test_ten_batches_a_second_are_promised() -> None:
    assert pytest.approx(0.1) == INTERVAL


class _Watched(threading.Condition):
    """A condition that notes when a timed wait begins, and what ended each."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.told: Reporter | None = None
        self.ended_by_close: list[bool] = []

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        self.begun.set()
        result = super().wait_for(predicate, timeout)
        self.ended_by_close.append(self.told is not None and self.told._closed)
        return result


def test_events_wait_for_the_next_batch(monkeypatch: pytest.MonkeyPatch, projections: list[Projection]) -> None:
    """With an hour between batches the first event is sent alone, and all others together at the end."""
    monkeypatch.setattr(reporter, "INTERVAL", 3600.0)
    heard = Recorder()
    told = Reporter(heard)
    told._changed = watched = _Watched()
    watched.told = told
    told.expect(projections)
    told.tell(Notice("first"))
    assert watched.begun.wait(PATIENCE)
    for number in range(500):
        told.tell(Notice(str(number)))
    assert len(heard.batches) == 1
    told.close()
    assert watched.ended_by_close == [True]
    assert len(heard.batches) == 2
    assert [e.text for e in heard.batches[1] if isinstance(e, Notice)] == [str(n) for n in range(500)]
    assert all(isinstance(batch[-1], Progress) for batch in heard.batches)


def test_progress_counts(projections: list[Projection]) -> None:
    heard = Recorder()
    told = Reporter(heard)
    told.devices = ("cpu",)
    told.expect(projections)
    told.expect(projections)  # submitted twice, counted once
    told.tell(Started(projections[0], "cpu"))
    told.tell(Failed(projections[0], "no"))
    told.tell(Stopped(tuple(projections[1:5])))
    told.close()
    last = heard.of(Progress)[-1]
    assert (last.done, last.failed, last.total, last.devices, last.busy) == (0, 1, 2, ("cpu",), True)
    assert told.is_open(projections[5].key)
    assert not any(told.is_open(p.key) for p in projections[:5])


def test_bytes_are_told_without_any_other_event_and_not_each(
    monkeypatch: pytest.MonkeyPatch, projections: list[Projection]
) -> None:
    """With an hour between batches the first bytes are reported, and all others together at the end."""
    monkeypatch.setattr(reporter, "INTERVAL", 3600.0)
    heard = Recorder()
    told = Reporter(heard)
    told._changed = watched = _Watched()
    watched.told = told
    told.expect(projections, 1000)
    told.fetched(1)
    assert watched.begun.wait(PATIENCE)
    for _ in range(500):
        told.fetched(1)
    told.close()
    assert [[type(event) for event in batch] for batch in heard.batches] == [[Progress], [Progress]]
    assert [(p.fetched, p.to_fetch) for p in heard.of(Progress)] == [(1, 1000), (501, 1000)]


def test_the_time_left_is_that_of_the_bytes_where_they_take_longer(
    monkeypatch: pytest.MonkeyPatch, projections: list[Projection]
) -> None:
    """After 10 s one of six is done, and 100 of 10,000 bytes have come."""
    now = SimpleNamespace(monotonic=lambda: 1000.0)
    monkeypatch.setattr(reporter, "time", now)
    for to_fetch, seconds in ((10_000, 990.0), (100, 50.0)):
        heard = Recorder()
        told = Reporter(heard)
        now.monotonic = lambda: 1000.0
        told.expect(projections, to_fetch)
        told.tell(Started(projections[0], "cpu"))
        told.fetched(100)
        now.monotonic = lambda: 1010.0
        told.tell(Saved(cast(Spectrum, SimpleNamespace(projection=projections[0]))))
        told.close()
        assert heard.of(Progress)[-1].eta == pytest.approx(seconds)


def test_a_new_job_counts_from_zero(projections: list[Projection]) -> None:
    heard = Recorder()
    told = Reporter(heard)
    told.expect(projections[:2])
    for projection in projections[:2]:
        told.tell(Failed(projection, "no"))
    assert heard.wait_until_idle().failed == 2
    told.expect(projections[2:])
    told.tell(Failed(projections[2], "no"))
    told.close()
    last = heard.of(Progress)[-1]
    assert (last.done, last.failed, last.total, last.busy) == (0, 1, 4, True)

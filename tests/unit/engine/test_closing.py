"""Closing an engine, or a session, while another thread is between two steps of starting something."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_fakes import PATIENCE, MemorySink, Recorder, llama

from rankscope.engine.compute.cluster import Cluster
from rankscope.engine.compute.elsewhere import Elsewhere
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.reporter import Reporter
from rankscope.tui.data import session as sessions
from rankscope.tui.data.model import open_model
from rankscope.tui.data.session import Session


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that are started."""
    names: list[str] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    return names


def test_nothing_starts_in_a_closed_engine(tmp_path: Path, started: list[str]) -> None:
    checkpoint, projections = llama(tmp_path, 1)
    engine = Engine(MemorySink(), Recorder(), ComputeSettings("cpu"))
    assert engine.close(PATIENCE)
    assert engine.submit(checkpoint, projections) == []
    engine.warm(projections)
    assert started == []


def test_a_gpu_that_is_found_while_the_engine_closes_starts_nothing(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver takes half a second to answer; the key q may come meanwhile."""
    engine = Engine(MemorySink(), Recorder(), ComputeSettings("cpu"))
    asked, closes, start = threading.Event(), threading.Event(), engine._start

    def begin(is_remote: bool) -> None:
        asked.set()
        assert closes.wait(PATIENCE)
        start(is_remote)

    monkeypatch.setattr(engine._elsewhere, "can_warm", lambda: True)
    monkeypatch.setattr(engine, "_start", begin)
    engine.warm()
    assert asked.wait(PATIENCE)
    assert engine.close(0) is False
    closes.set()
    assert engine.close(PATIENCE) is True
    assert started == ["rankscope-warm"]


def test_a_closed_reporter_starts_no_thread(tmp_path: Path, started: list[str]) -> None:
    """close joins the thread that it finds, which must have started."""
    reporter = Reporter(Recorder())
    reporter.close()
    reporter.expect(llama(tmp_path, 1)[1])
    reporter.close()
    assert started == []


class Ending:
    """What an engine has of its worker processes until the thread that runs them takes it away: seen only once."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self._is_seen = False

    def seen(self) -> Ending | None:
        if self._is_seen:
            return None
        self._is_seen = True
        return self

    def withdraw(self) -> list[str]:
        self.called.append("withdraw")
        return ["taken back"]

    def give_up(self) -> None:
        self.called.append("give up")

    def signal(self, _number: int) -> None:
        self.called.append("signal")


@pytest.mark.parametrize(
    ("call", "found", "called"),
    [
        (lambda one: one.withdraw(), ["taken back"], "withdraw"),
        (lambda one: one.give_up(), None, "give up"),
        (lambda one: one.pause(True), None, "signal"),
    ],
    ids=["stop", "close", "pause"],
)
def test_worker_processes_that_end_meanwhile(call: Callable[[Elsewhere], Any], found: object, called: str) -> None:
    held = Ending()

    class Seen(Elsewhere):
        _far = _cluster = property(lambda _: held.seen(), lambda *_: None)  # type: ignore[assignment]

    nothing: Any = None
    assert call(Seen("cpu", 1, None, False, False, nothing, nothing, nothing)) == found
    assert held.called == [called]


class Nanny:
    """Dask's keeper of a worker process, which ends as soon as it has been looked at."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def _once(self, what: str) -> bool:
        return what not in self._seen and not self._seen.add(what)  # type: ignore[func-returns-value]

    @property
    def process(self) -> Nanny | None:
        return self if self._once("process") else None

    @property
    def pid(self) -> int | None:
        return 4711 if self._once("pid") else None


def test_a_worker_process_that_ends_while_it_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key ctrl+z: the process is signalled, or gone, and nothing is raised."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *given: told.append(given))
    client: Any = SimpleNamespace(subscribe_topic=lambda *_: None)
    processes: Any = SimpleNamespace(workers={"cpu": Nanny()})
    Cluster(client, processes).signal(signal.SIGSTOP)
    assert told == [(4711, signal.SIGSTOP)]


class Slow:
    """An engine that is being made until `go`."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.making, self.go = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> Slow:
        self.making.set()
        assert self.go.wait(PATIENCE)
        return self

    def warm(self, _projections: object) -> None:
        self.done.append("warm")

    def close(self, _timeout: float | None = None) -> bool:
        self.done.append("close")
        return True


class Watched:
    """A lock that tells when a thread comes to it."""

    def __init__(self, closing: threading.Thread, came: threading.Event) -> None:
        self._closing, self._came, self._lock = closing, came, threading.Lock()

    def __enter__(self) -> None:
        if threading.current_thread() is self._closing:
            self._came.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_session_closes_the_engine_that_another_thread_is_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The explorer's thread makes a GPU ready after the first screen; q may come in that moment."""
    llama(tmp_path, 1)
    root = tmp_path / "store"
    session = Session(open_model(str(tmp_path), root), root, Recorder(), ComputeSettings("cpu"))
    came, engine = threading.Event(), Slow()

    def close() -> None:
        session.close(PATIENCE)
        came.set()

    closing = threading.Thread(target=close)
    warming = threading.Thread(target=session.warm, args=(session.model.tree.projections,))
    monkeypatch.setattr(sessions, "Engine", engine)
    monkeypatch.setattr(session, "_engine_lock", Watched(closing, came))
    warming.start()
    assert engine.making.wait(PATIENCE)
    closing.start()
    assert came.wait(PATIENCE)
    engine.go.set()
    closing.join(PATIENCE)
    warming.join(PATIENCE)
    assert sorted(engine.done) == ["close", "warm"]


def test_a_closed_session_starts_nothing(tmp_path: Path, started: list[str]) -> None:
    llama(tmp_path, 1)
    root = tmp_path / "store"
    session = Session(open_model(str(tmp_path), root), root, Recorder(), ComputeSettings("cpu"))
    assert session.close(PATIENCE)
    session.warm(session.model.tree.projections)
    assert session.compute(session.model.tree.projections) == []
    assert started == []

"""Devices that are not there, and a start that fails: said once in words, and never a scan that hangs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import PATIENCE, MemorySink, Recorder, llama

from rankscope.engine.compute import devices
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Event, Failed, Notice, Saved
from rankscope.engine.compute.reader import Reader
from rankscope.engine.compute.worker_thread import Solver
from rankscope.engine.errors import InputError

ABSENT = f"cuda:{torch.cuda.device_count() + 7}"


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def engine(heard: Recorder, request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = Engine(MemorySink(), heard, ComputeSettings(device=getattr(request, "param", "cpu")))
    yield made
    assert made.close(PATIENCE)


@pytest.mark.parametrize("engine", [ABSENT], indirect=True)
def test_a_device_that_is_not_there_is_fatal(tmp_path: Path, engine: Engine, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 3)
    engine.submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.total) == (0, 3, 3)
    (notice,) = heard.of(Notice)
    assert notice.fatal
    assert notice.text.startswith(f"no device {ABSENT}: torch ")
    assert [f.projection for f in heard.of(Failed)] == projections
    assert {f.reason for f in heard.of(Failed)} == {notice.text}


@pytest.mark.parametrize("engine", [ABSENT], indirect=True)
def test_asking_again_after_a_fatal_start_is_answered(tmp_path: Path, engine: Engine, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 1)
    engine.submit(checkpoint, projections)
    heard.wait(lambda r: len(r.of(Failed)) == 1)
    engine.submit(checkpoint, projections)
    heard.wait(lambda r: len(r.of(Failed)) == 2)  # closed before it would be told as stopped
    assert engine.close(PATIENCE)


def test_what_is_asked_for_while_a_fatal_start_is_told_does_not_fail_with_it(
    tmp_path: Path, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, (first, second) = llama(tmp_path, 2)
    engine = Engine(MemorySink(), heard, ComputeSettings(ABSENT, 1))
    tell, pick = engine._reporter.tell, devices.pick

    def told(event: Event) -> None:
        tell(event)
        if isinstance(event, Notice) and event.fatal:
            monkeypatch.setattr(devices, "pick", lambda _: pick("cpu"))
            engine.submit(checkpoint, [second])

    monkeypatch.setattr(engine._reporter, "tell", told)
    engine.submit(checkpoint, [first])
    heard.wait(lambda r: bool(r.of(Saved)) and bool(r.of(Failed)))
    assert [event.projection for event in heard.of(Failed)] == [first]
    assert [event.spectrum.projection for event in heard.of(Saved)] == [second]
    assert engine.close(PATIENCE)


def test_a_torch_that_does_not_load_is_fatal(
    tmp_path: Path, engine: Engine, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing driver library is an OSError, not an ImportError."""

    def pick(_spec: str) -> Any:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(devices, "pick", pick)
    checkpoint, projections = llama(tmp_path, 2)
    engine.submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert last.failed == 2
    assert heard.of(Notice)[0].fatal
    assert "libcudart" in heard.of(Notice)[0].text


def test_notes_about_devices_reach_the_user(
    tmp_path: Path, engine: Engine, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "pick", lambda _spec: ([devices.Device("cpu", "x")], ["no float64 there"]))
    checkpoint, projections = llama(tmp_path, 1)
    engine.submit(checkpoint, projections)
    heard.wait(lambda r: len(r.of(Saved)) == 1)
    assert [(n.text, n.fatal) for n in heard.of(Notice)] == [("no float64 there", False)]


@pytest.mark.parametrize("spec", ["auto", "cpu", "cuda", "cuda:0", "cuda:0,cuda:3"])
def test_specs_that_have_the_form(spec: str) -> None:
    assert devices.check_spec(spec) == spec


@pytest.mark.parametrize(
    "spec", ["", "gpu", "cuda:", "cpu,cuda:0", "cuda:0,cuda:0", "cuda:0,", "mps", "cuda:0\n", "CPU"]
)
def test_specs_that_do_not(spec: str) -> None:
    with pytest.raises(InputError, match="--device must be auto, cpu, cuda or"):
        devices.check_spec(spec)


def test_threads_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_cores", lambda: 64)
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "3")
    assert devices.thread_count(None) == 3
    assert devices.thread_count(5) == 5
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "many")
    assert devices.thread_count(None) == 8


def test_a_cpu_solves_several_matrices_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_cores", lambda: 16)
    assert devices.workers(devices.Device("cpu", ""), 99_999) == (16, 1)
    assert devices.workers(devices.Device("cpu", ""), 4) == (4, 1)
    assert devices.workers(devices.Device("cuda:0", ""), 4) == (2, 4)


def test_a_lone_large_matrix_has_all_threads_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_cores", lambda: 16)
    cpu, gpu = devices.Device("cpu", ""), devices.Device("cuda:0", "")
    assert devices.blas_threads(cpu, 4, 1e10, alone=True) == 4
    assert devices.blas_threads(cpu, 4, 1e10, alone=False) == 1
    assert devices.blas_threads(cpu, 4, 9e9, alone=True) == 1
    assert devices.blas_threads(gpu, 4, 1e10, alone=True) == 4


def test_the_last_matrix_of_a_scan_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, heard = [], Recorder()
    monkeypatch.setattr(devices, "blas_threads", lambda _d, _t, _cost, alone: asked.append(alone) or 1)
    engine = Engine(MemorySink(), heard, ComputeSettings(device="cpu", threads=1))
    engine.submit(*llama(tmp_path, 5))
    assert heard.wait_until_idle().done == 5
    assert engine.close(PATIENCE)
    assert asked == [False] * 4 + [True]


def test_a_gpu_is_fed_by_several_readers_from_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = devices.Device("cpu", ""), devices.Device("cuda:0", "")
    free = {"cuda:0": 80 << 30}
    monkeypatch.setattr(devices, "available_cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (free[name], 80 << 30))
    assert (devices.readers([cpu]), devices.prefetch_bytes(cpu)) == (1, 1 << 30)
    assert (devices.readers([gpu]), devices.prefetch_bytes(gpu)) == (8, 12 << 30)
    free["cuda:0"] = 8 << 30
    assert devices.prefetch_bytes(gpu) == 2 << 30
    monkeypatch.setattr(devices, "available_cores", lambda: 1)
    assert devices.readers([gpu]) == 1


def test_a_driver_that_does_not_answer_leaves_weights_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> Any:
        raise RuntimeError("CUDA driver error")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    assert devices.prefetch_bytes(devices.Device("cuda:0", "")) == 1 << 30


def test_memory_of_a_gpu_that_others_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    free, ours = [80 << 30], [0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _name: (free[0], 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _name: ours[0])
    gpu = devices.Device("cuda:0", "")
    assert devices.used_by_others(gpu) == devices.used_by_others(devices.Device("cpu", "")) == ""
    free[0] = 57 << 30
    assert devices.used_by_others(gpu) == "cuda:0: other processes use 23 GB of its 80"
    ours[0] = 23 << 30
    assert devices.used_by_others(gpu) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own there")
@pytest.mark.parametrize("gives_way", [True, False])
def test_what_computes_for_a_screen_is_nicer_than_what_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives_way: bool
) -> None:
    seen: dict[str, int] = {}

    def noting(kind: type, name: str) -> None:
        plain = getattr(kind, name)

        def noted(*arguments: Any) -> Any:
            seen[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return plain(*arguments)

        monkeypatch.setattr(kind, name, noted)

    noting(Reader, "read")
    noting(Solver, "solve")
    heard = Recorder()
    engine = Engine(MemorySink(), heard, ComputeSettings("cpu", gives_way=gives_way))
    engine.submit(*llama(tmp_path, 1))
    heard.wait_until_idle()
    assert engine.close(PATIENCE)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert seen.keys() == {"read", "solve"}
    assert all((nice > own) == gives_way for nice in seen.values())

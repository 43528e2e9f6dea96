"""A GPU that is made ready in advance: which kernels, in which process, and what is reported meanwhile."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from engine_fakes import PATIENCE, MemorySink, Recorder, llama

import rankscope.engine.solvers
from rankscope.engine.compute import devices, driver, elsewhere, worker_process
from rankscope.engine.compute.devices import Device
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Event, Progress
from rankscope.engine.compute.remote_batch import Batch, light
from rankscope.engine.solvers import two_stage, warm
from rankscope.engine.spectrum import Spectrum
from rankscope.tui.data.model import open_model
from rankscope.tui.data.session import Session

GPU = Device("cuda:0", "a GPU")


class Launches:
    """A replacement of the kernels that records which are launched, with which constants."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, tuple[tuple[str, int], ...]]] = set()

    def __getattr__(self, name: str) -> Launches.Kernel:
        return Launches.Kernel(self, name)

    class Kernel:
        def __init__(self, of: Launches, name: str) -> None:
            self.of, self.name = of, name

        def __getitem__(self, _grid: object) -> Any:
            return lambda *_, **constants: self.of.seen.add((self.name, tuple(sorted(constants.items()))))


def test_every_variant_of_a_kernel_is_loaded_before_the_first_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices without numbers: the launches depend on sizes alone."""
    launches = Launches()
    monkeypatch.setitem(sys.modules, "rankscope.engine.solvers.kernels", launches)  # type: ignore[arg-type]
    monkeypatch.setattr(rankscope.engine.solvers, "kernels", launches, raising=False)
    for part in warm.PARTS:
        part("meta")
    loaded, launches.seen = launches.seen, set()
    assert {name for name, _ in loaded} == {"tile_qr", "rebuild", "chase", "bisect"}
    for size in (3, 100, 1024, 1025, 2500):
        two_stage.eigenvalues(torch.empty(2, size, size, dtype=torch.float64, device="meta"), kernels=True)
    assert launches.seen == loaded


def test_kernels_are_compiled_side_by_side_and_one_that_does_not_compile_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = threading.Barrier(3)
    done: list[str] = []

    def compiled(device: str) -> None:
        together.wait(PATIENCE)  # the barrier breaks where one waits for another
        done.append(device)

    def broken(_device: str) -> None:
        together.wait(PATIENCE)
        raise RuntimeError("ptxas fatal")

    monkeypatch.setattr(two_stage, "available", lambda _: True)
    monkeypatch.setattr(warm, "_run", lambda part, device: part(device))
    monkeypatch.setattr(warm, "PARTS", (broken, compiled, compiled))
    warm.load_kernels("cuda:77")
    assert done == ["cuda:77"] * 2
    warm.load_kernels("cuda:77")
    assert len(done) == 2


@pytest.mark.parametrize(
    ("settings", "found", "has_dask", "expected"),
    [
        (ComputeSettings(is_apart=True), [GPU], True, True),
        (ComputeSettings(is_apart=True), [GPU], False, False),
        (ComputeSettings(is_apart=True), [], True, False),
        (ComputeSettings("cpu", is_apart=True), [GPU], True, False),
        (ComputeSettings("cuda:1", is_apart=True), [GPU], True, False),
        (ComputeSettings(scheduler="tcp://a:1", is_apart=True), [GPU], True, False),
        (ComputeSettings(), [GPU], False, True),
        (ComputeSettings("cuda"), [GPU, Device("cuda:1", "")], False, False),
        (ComputeSettings("auto"), [GPU, Device("cuda:1", "")], False, True),  # one GPU is enough for so little
        (ComputeSettings(), [], True, False),
    ],
)
def test_only_a_gpu_is_made_ready_and_apart_only_by_a_process(
    monkeypatch: pytest.MonkeyPatch, settings: ComputeSettings, found: list[Device], has_dask: bool, expected: bool
) -> None:
    monkeypatch.setattr(driver, "gpus", lambda: found)
    monkeypatch.setattr(elsewhere, "is_installed", lambda: has_dask)
    assert Engine(MemorySink(), lambda _: None, settings)._elsewhere.can_warm() == expected


class FakeCluster:
    """One worker process for a GPU, which is not ready until the test says so."""

    def __init__(self) -> None:
        self.warmed: list[Any] = []
        self.closed = threading.Event()
        self.asked = threading.Event()

    def workers(self) -> dict[str, str]:
        return {"tls://127.0.0.1:1": "cuda:0"}

    def warm(self, _address: str) -> Any:
        self.asked.set()
        return self

    def add_done_callback(self, call: Any) -> None:
        self.warmed.append(call)

    def on_change(self, _call: Any) -> None: ...

    def no_more(self, _call: Any) -> None: ...

    def submit(self, *_: Any) -> Any:
        return FakeFlight()

    def close(self) -> None:
        self.closed.set()


class FakeFlight:
    def add_done_callback(self, _call: Any) -> None: ...

    def done(self) -> bool:
        return True


def test_one_gpu_of_the_explorer_is_made_ready_in_a_process_of_its_own_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, cluster = Recorder(), FakeCluster()
    monkeypatch.setattr(driver, "gpus", lambda: [GPU])
    monkeypatch.setattr(elsewhere.Cluster, "local", lambda _devices, _threads: cluster)
    engine = Engine(MemorySink(), heard, ComputeSettings(is_apart=True))
    engine.warm()
    assert cluster.asked.wait(PATIENCE)
    assert heard.of(Progress) == []  # nothing was requested
    checkpoint, projections = llama(tmp_path, 2)
    engine.submit(checkpoint, projections)
    heard.wait(lambda r: any(p.starting == "cuda:0: torch, CUDA and kernels are loaded" for p in r.of(Progress)))
    (ready,) = cluster.warmed
    ready(cluster)
    heard.wait(lambda r: r.of(Progress)[-1].starting == "")
    engine.close(0)
    assert cluster.closed.wait(PATIENCE)


def test_a_scan_of_much_has_its_processes_started_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, cluster, started = [GPU, Device("cuda:1", "a GPU")], FakeCluster(), []
    monkeypatch.setattr(driver, "gpus", lambda: both)
    monkeypatch.setattr(driver, "capability", lambda _: (9, 0))
    monkeypatch.setattr(elsewhere.Cluster, "local", lambda found, _: started.append(found) or cluster)
    _, (small,) = llama(tmp_path, 1)
    engine = Engine(MemorySink(), lambda _: None, ComputeSettings())
    engine.warm([replace(small, rows=8192, cols=28672)] * 170)  # half a minute of an H100
    assert cluster.asked.wait(PATIENCE)
    assert started == [both]
    assert engine.close(PATIENCE)


def test_what_is_waited_for_is_said_to_whom_asks_while_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was requested before there was a job to report to."""
    heard, begun, gate = Recorder(), threading.Event(), threading.Event()

    def local(_devices: object, _threads: object) -> FakeCluster:
        begun.set()
        gate.wait(PATIENCE)
        return FakeCluster()

    monkeypatch.setattr(driver, "gpus", lambda: [GPU])
    monkeypatch.setattr(elsewhere.Cluster, "local", local)
    engine = Engine(MemorySink(), heard, ComputeSettings(is_apart=True))
    engine.warm()
    assert begun.wait(PATIENCE)
    engine.submit(*llama(tmp_path, 1))
    heard.wait(lambda r: any(p.starting == "starting a process for cuda:0" for p in r.of(Progress)))
    gate.set()
    engine.close(0)


def test_a_process_is_given_back_after_a_time_without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()
    monkeypatch.setattr(driver, "gpus", lambda: [GPU])
    monkeypatch.setattr(elsewhere.Cluster, "local", lambda _devices, _threads: cluster)
    monkeypatch.setattr("rankscope.engine.compute.far.IDLE_SECONDS", 0.0)
    monkeypatch.setattr("rankscope.engine.compute.far._TICK", 0.01)
    engine = Engine(MemorySink(), lambda _: None, ComputeSettings(is_apart=True))
    engine.warm()
    assert cluster.closed.wait(PATIENCE)
    assert engine.close(PATIENCE)


def test_what_the_driver_says_is_known_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def count_of(count: Any) -> int:
        count._obj.value = 2
        return 0

    def device_of(device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def name_of(name: Any, _size: int, device: Any) -> int:
        name.value = f"NVIDIA {device.value}".encode()
        return 0

    def attribute_of(value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: device.value}[attribute]
        return 0

    answers = SimpleNamespace(
        cuDeviceGetCount=count_of, cuDeviceGet=device_of, cuDeviceGetName=name_of, cuDeviceGetAttribute=attribute_of
    )
    monkeypatch.setattr(driver, "_driver", lambda: answers)
    monkeypatch.setattr(driver, "_torch_has_cuda", lambda: True)
    assert driver.gpus() == [Device("cuda:0", "NVIDIA 0"), Device("cuda:1", "NVIDIA 1")]
    assert [driver.capability(name) for name in ("cuda:0", "cuda:6")] == [(8, 0), (8, 6)]
    monkeypatch.setattr(driver, "_torch_has_cuda", lambda: False)
    assert driver.gpus() == []
    monkeypatch.setattr(driver, "_driver", lambda: None)
    assert driver.capability("cuda:0") == (0, 0)


def test_a_torch_for_the_cpu_is_known_by_its_file() -> None:
    driver._torch_has_cuda.cache_clear()
    assert driver._torch_has_cuda() == (torch.version.cuda is not None)


def test_a_fault_of_the_gpu_costs_the_worker_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has solved its batch by the next one: see what becomes of a killed worker in test_cluster.py."""
    _, projections = llama(tmp_path, 1)
    service = worker_process.Service("cpu", 1)
    batch = Batch((str(tmp_path),), tuple(map(light, projections)))
    killed: list[int] = []
    monkeypatch.setattr(worker_process.os, "kill", lambda pid, _signal: killed.append(pid))
    monkeypatch.setattr(devices, "answers", lambda _: False)
    assert len(service.solve(batch).spectra) == 1
    assert killed == []  # nothing failed: the GPU is not checked
    next(iter(tmp_path.glob("*.safetensors"))).write_bytes(b"")
    service.solve(batch)
    assert killed == [os.getpid()]


def test_a_spectrum_is_handed_on_after_it_is_counted_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handed on before, its projection could be sent again while it counts as under way: nobody would ever answer."""
    service, order = worker_process.Service("cpu", 1), []
    monkeypatch.setattr(service, "settle", lambda _key, _found: order.append("handed on"))
    kept = service._engine._sink.put(cast(Spectrum, SimpleNamespace(projection=SimpleNamespace(key="a"))))
    kept.add_done_callback(lambda _: order.append("counted"))
    assert order == ["counted", "handed on"]


def test_a_worker_without_its_gpu_refuses(tmp_path: Path) -> None:
    _, projections = llama(tmp_path, 1)
    answer = worker_process.Service("cuda:3", 1).solve(Batch((str(tmp_path),), tuple(map(light, projections))))
    assert answer.refused.startswith("no device cuda:0: torch ")


@pytest.mark.parametrize(("is_stored", "expected"), [(False, 1), (True, 0)])
def test_a_computed_model_leaves_gpus_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stored: bool, expected: int
) -> None:
    llama(tmp_path, 2)
    warmed: list[Engine] = []
    monkeypatch.setattr(Engine, "warm", lambda self, _: warmed.append(self))
    model = open_model(str(tmp_path), tmp_path / "store")
    done = threading.Event()

    def listen(events: tuple[Event, ...]) -> None:
        if any(isinstance(event, Progress) and not event.busy for event in events):
            done.set()

    session = Session(model, tmp_path / "store", listen, ComputeSettings("cpu"))
    if is_stored:
        session.compute(model.tree.scanned())
        assert done.wait(PATIENCE)
    session.close(PATIENCE)
    opened = Session(model, tmp_path / "store", listen, ComputeSettings("cpu"))
    opened.load()
    opened.warm(model.tree.scanned())
    assert len(warmed) == expected
    opened.close(PATIENCE)

"""Which devices get a process each, and which GPU each of these sees."""

from __future__ import annotations

import pytest
from engine_fakes import MemorySink

from rankscope.engine.compute import cluster, devices, elsewhere
from rankscope.engine.compute.devices import Device
from rankscope.engine.compute.outcomes import Outcomes
from rankscope.engine.compute.queue import JobQueue
from rankscope.engine.compute.reporter import Reporter


def test_a_gpu_is_the_only_one_that_its_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cluster.environment("cuda:1", 4)["CUDA_VISIBLE_DEVICES"] == "1"
    for seen, second in (("5, 7", "7"), ("GPU-ab,GPU-cd", "GPU-cd")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        assert cluster.environment("cuda:1", 4)["CUDA_VISIBLE_DEVICES"] == second
    assert "CUDA_VISIBLE_DEVICES" not in cluster.environment("cpu", 4)


FOUR = [Device(f"cuda:{n}", "a GPU") for n in range(4)]
NAMES_OF_FOUR = tuple(device.name for device in FOUR)


@pytest.mark.parametrize(
    ("spec", "found", "has_dask", "key", "used", "notes"),
    [
        ("auto", FOUR, True, (*NAMES_OF_FOUR, ""), 4, 0),
        ("cuda:0,cuda:1", FOUR[:2], True, ("cuda:0", "cuda:1", ""), 2, 0),
        ("auto", FOUR[:1], True, (), 1, 0),
        ("cpu", [Device("cpu", "")], True, (), 1, 0),
        ("auto", FOUR, False, (), 2, 1),
        ("auto", FOUR[:2], False, (), 2, 0),
        ("cuda:0,cuda:1,cuda:2", FOUR[:3], False, (), 3, 0),
    ],
)
def test_which_devices_get_a_process_each(
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    found: list[Device],
    has_dask: bool,
    key: tuple[str, ...],
    used: int,
    notes: int,
) -> None:
    monkeypatch.setattr(devices, "pick", lambda _: (found, []))
    monkeypatch.setattr(elsewhere, "is_installed", lambda: has_dask)
    told: list[str] = []
    outcomes = Outcomes(MemorySink(), JobQueue(), Reporter(lambda _: None), True)
    monkeypatch.setattr(outcomes, "note", told.append)
    chosen = elsewhere.Elsewhere(spec, None, None, False, False, JobQueue(), Reporter(lambda _: None), outcomes)
    assert chosen._key() == key
    assert len(chosen.devices) == used
    few = elsewhere.Elsewhere(spec, None, None, True, False, JobQueue(), Reporter(lambda _: None), outcomes)
    assert (few._key(), len(few.devices)) == ((), 1)
    assert [("2 of 4 GPUs" in text, "rankscope-tui[cluster]" in text) for text in told] == [(True, True)] * notes

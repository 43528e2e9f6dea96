"""Which devices get a process each, and which GPU each process sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engine_fakes import MemorySink, llama

from rankscope.engine.compute import cluster, devices, driver, elsewhere
from rankscope.engine.compute.devices import Device
from rankscope.engine.compute.elsewhere import Elsewhere
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


LITTLE, MUCH = 4.3e13, 4.5e14
"""Projection.cost of Llama-3-8B and of a model of 70B: 3 and 34 seconds of an H100."""


def choosing(
    monkeypatch: pytest.MonkeyPatch, spec: str, found: list[Device], cost: float | None, **settings: bool
) -> tuple[Elsewhere, list[str]]:
    """The chooser of devices for work of this cost (None: for what waits in its queue), and a list of its notes."""
    told: list[str] = []
    queue, reporter = JobQueue(), Reporter(lambda _: None)
    outcomes = Outcomes(MemorySink(), queue, reporter, True)
    monkeypatch.setattr(devices, "pick", lambda _: (found, []))
    monkeypatch.setattr(driver, "begin_context", lambda _: None)
    monkeypatch.setattr(outcomes, "note", told.append)
    if cost is not None:
        monkeypatch.setattr(queue, "waiting_cost", lambda: cost)
    flags = {"is_small": False, "is_apart": False, **settings}
    return Elsewhere(spec, None, None, **flags, queue=queue, reporter=reporter, told=outcomes), told


@pytest.mark.parametrize("is_known", [True, False], ids=["by the driver", "by torch"])
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
    is_known: bool,
    spec: str,
    found: list[Device],
    has_dask: bool,
    key: tuple[str, ...],
    used: int,
    notes: int,
) -> None:
    monkeypatch.setattr(driver, "gpus", lambda: found if is_known and spec != "cpu" else [])
    monkeypatch.setattr(elsewhere, "is_installed", lambda: has_dask)
    chosen, told = choosing(monkeypatch, spec, found, MUCH)
    assert chosen._key() == key
    assert len(chosen._processes or chosen.devices) == used
    few, _ = choosing(monkeypatch, spec, found, MUCH, is_small=True)
    assert (few._key(), len(few.devices)) == ((), 1)
    assert [("2 of 4 GPUs" in text, "rankscope-tui[cluster]" in text) for text in told] == [(True, True)] * notes


H100, A100, RTX_4090, UNKNOWN = (9, 0), (8, 0), (8, 9), (0, 0)


@pytest.mark.parametrize("has_dask", [True, False])
@pytest.mark.parametrize(
    ("spec", "capability", "cost", "used"),
    [
        ("auto", H100, LITTLE, 1),
        ("auto", H100, MUCH, 4),
        ("cuda", H100, LITTLE, 4),
        ("cuda:0,cuda:1,cuda:2,cuda:3", H100, 0.0, 4),
        ("auto", A100, LITTLE, 1),
        ("auto", A100, 2 * LITTLE, 4),
        ("auto", RTX_4090, LITTLE, 4),
        ("auto", RTX_4090, LITTLE / 1000, 1),
        ("auto", UNKNOWN, LITTLE, 4),
    ],
)
def test_auto_takes_several_gpus_only_where_their_start_pays(
    monkeypatch: pytest.MonkeyPatch, has_dask: bool, spec: str, capability: tuple[int, int], cost: float, used: int
) -> None:
    monkeypatch.setattr(driver, "gpus", lambda: FOUR)
    monkeypatch.setattr(driver, "capability", lambda _: capability)
    monkeypatch.setattr(elsewhere, "is_installed", lambda: has_dask)
    chosen, told = choosing(monkeypatch, spec, FOUR, cost)
    most = 2 if spec == "auto" and not has_dask else 4
    assert bool(chosen._key()) == (used > 1 and has_dask)
    assert len(chosen._processes or chosen.devices) == min(used, most)
    assert [text.startswith("1 of 4 GPUs is used: ") for text in told if "process each" not in text] == [True] * (
        used == 1
    )
    apart, _ = choosing(monkeypatch, spec, FOUR, cost, is_apart=True)
    assert len(apart._key()) == (5 if has_dask else 0)  # the explorer starts them before the first request


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_what_waits_counts_and_what_will_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asked_for: bool
) -> None:
    monkeypatch.setattr(driver, "gpus", lambda: FOUR)
    monkeypatch.setattr(driver, "capability", lambda _: H100)
    monkeypatch.setattr(elsewhere, "is_installed", lambda: True)
    checkpoint, (small, *_) = llama(tmp_path, 1)
    large = [replace(small, rows=8192, cols=28672, key=str(number)) for number in range(170)]
    chosen, _ = choosing(monkeypatch, "auto", FOUR, None)
    assert chosen._key() == ()
    if is_asked_for:
        chosen._queue.add(checkpoint, large, False)
    else:
        chosen.expect(large)
    assert chosen._key() == (*NAMES_OF_FOUR, "")

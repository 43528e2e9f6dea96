"""A GPU's ill-conditioned matrices are solved again by the SVD; here the CPU plays the GPU, by the twins."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_fakes import PATIENCE, MemorySink, Recorder, llama, pretend_gpu
from lapack_reference import lapack
from weighted_examples import Given

from rankscope.engine import bounds, metrics, moment
from rankscope.engine.compute import second_pass
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import (
    Computed,
    Failed,
    Progress,
    Saved,
    SavedAgain,
    SolvingAgain,
    StayBounds,
    Stopped,
)
from rankscope.engine.compute.second_pass import Budget
from rankscope.engine.derive.weighting import weighted
from rankscope.engine.solvers import gram, ladder, svd
from rankscope.engine.spectrum import Spectrum
from rankscope.store.spectra import SpectraStore

SIDE = 24
Make = Callable[..., Engine]


def _matrix(seed: int, smallest: float, side: int = SIDE) -> torch.Tensor:
    """A matrix with singular values from 1 down to .1, and this smallest one."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((side, side)))[0] for _ in range(2))
    return torch.from_numpy((left * np.append(np.linspace(1, 0.1, side - 1), smallest)) @ right.T)


WEIGHTS = {"l0": _matrix(0, 0.05), "l1": _matrix(1, 1e-10), "l2": _matrix(2, 0.03), "l3": _matrix(3, 3e-9)}
ILL = {1, 3}


class Gate:
    """The product's SVD, which waits before every matrix while it is held."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.gate = threading.Semaphore(10_000)
        self._routine = svd.singular_values

    def __call__(self, matrix: Any, scale: float) -> Any:
        self.reached.release()
        assert self.gate.acquire(timeout=PATIENCE)
        return self._routine(matrix, scale)

    def hold(self) -> None:
        self.gate = threading.Semaphore(0)

    def open(self) -> None:
        self.gate.release(10_000)

    def wait(self) -> None:
        assert self.reached.acquire(timeout=PATIENCE)


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(svd, "singular_values", made)
    yield made
    made.open()


@pytest.fixture
def make(heard: Recorder, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A maker of engines that solve every ill-conditioned matrix again, closed at the end of the test."""
    made: list[Engine] = []
    pretend_gpu(monkeypatch)
    monkeypatch.setattr(second_pass, "SHARE", math.inf)

    def build(sink: Any) -> Engine:
        made.append(Engine(sink, heard, ComputeSettings("cpu")))
        return made[-1]

    yield build
    gate.open()
    for engine in made:
        assert engine.close(PATIENCE)


def _rank(spectrum: Spectrum) -> int:
    p = spectrum.projection
    return metrics.numerical_rank(spectrum.values, p.rows, p.cols, spectrum.provenance.noise_floor)


def _layers(events: list[Any]) -> list[int | None]:
    return [(e.spectrum.projection if hasattr(e, "spectrum") else e.projection).layer for e in events]


def _by_gram_alone(_device: str) -> list[ladder.Rung]:
    return [ladder.Rung(gram.NAME, gram.VERSION, "cpu", gram.singular_values, math.inf, gram.accuracy)]


@pytest.mark.parametrize("first", [bounds.GRAM, bounds.TWO_STAGE])
def test_a_bound_is_saved_at_once_and_replaced_by_the_svds_rank(
    first: str, tmp_path: Path, make: Make, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if first == bounds.GRAM:
        pretend_gpu(monkeypatch, limit=1)
        monkeypatch.setattr(ladder, "choose", _by_gram_alone)
    checkpoint, projections = llama(tmp_path, 4, **WEIGHTS)
    with SpectraStore(tmp_path / "store", "model") as store:
        make(store).submit(checkpoint, projections)
        last = heard.wait_until_idle()
    assert (last.done, last.failed, last.total) == (4, 0, 4)
    assert (last.again.found, last.again.begun, last.again.solved) == (2, 2, 2)
    assert last.again.seconds > 0
    at_first = {e.spectrum.projection.layer: (e.spectrum.provenance.solver, _rank(e.spectrum)) for e in heard.of(Saved)}
    assert at_first == {layer: (first, SIDE - (layer in ILL)) for layer in range(4)}
    events = heard.events()
    assert max(map(events.index, heard.of(Computed))) < min(map(events.index, heard.of(SolvingAgain)))
    with SpectraStore(tmp_path / "store", "model") as store:
        for p in projections:
            spectrum, wanted = store.get(p.key), lapack(WEIGHTS[f"l{p.layer}"])
            assert spectrum.provenance.solver == (bounds.SVD if p.layer in ILL else first)
            assert _rank(spectrum) == np.linalg.matrix_rank(WEIGHTS[f"l{p.layer}"].numpy()) == SIDE
            assert metrics.condition_number(spectrum.values, spectrum.provenance.noise_floor) == (
                pytest.approx(wanted[0] / wanted[-1], rel=1e-4),
                False,
            )


def test_a_tenth_of_the_scan_but_always_one_and_the_cheapest_first(
    tmp_path: Path, make: Make, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_pass, "SHARE", 0.0)
    weights = {f"l{i}": _matrix(i, 1e-10, side) for i, side in enumerate((SIDE, 16, SIDE))} | {
        "l3": _matrix(3, 0.1, 16)
    }
    sink = MemorySink()
    make(sink).submit(*llama(tmp_path, 4, **weights))
    last = heard.wait_until_idle()
    assert (last.again.found, last.again.begun, last.again.solved) == (3, 1, 1)
    assert _layers(heard.of(SavedAgain)) == [1]
    assert {p.layer for e in heard.of(StayBounds) for p in e.projections} == {0, 2}
    assert {s.projection.layer for s in sink.kept.values() if s.provenance.solver == bounds.SVD} == {1}


def test_well_conditioned_deficient_and_zero_matrices(tmp_path: Path, make: Make, heard: Recorder) -> None:
    """A zero matrix has nothing to solve again; one of lower rank keeps it, with a bound as condition number."""
    deficient = _matrix(1, 0.0)
    sink = MemorySink()
    make(sink).submit(*llama(tmp_path, 3, l0=_matrix(0, 0.05), l1=deficient, l2=torch.zeros(SIDE, SIDE)))
    assert heard.wait_until_idle().again.found == 1
    (solved,) = heard.of(SavedAgain)
    assert solved.spectrum.projection.layer == 1
    assert _rank(solved.spectrum) == SIDE - 1
    assert metrics.condition_number(solved.spectrum.values, solved.spectrum.provenance.noise_floor)[1]  # type: ignore[index]


def test_what_only_second_moments_leave_open_is_not_solved_again(tmp_path: Path, make: Make, heard: Recorder) -> None:
    checkpoint, projections = llama(tmp_path, 4, **WEIGHTS)
    x = np.random.default_rng(0).standard_normal((5, SIDE))  # with fewer tokens than inputs
    full, diagonal = Given(moment.full(x.T @ x)), Given(moment.diagonal(np.ones(SIDE)), "imatrix")
    make(MemorySink()).submit(checkpoint, [weighted(p, under) for p in projections for under in (full, diagonal)])
    assert heard.wait_until_idle().done == 8
    again = [e.spectrum.projection for e in heard.of(SavedAgain)]
    assert sorted((p.layer, p.label.partition("@")[2]) for p in again) == [(layer, "imatrix") for layer in sorted(ILL)]


def test_stopping_drops_what_waits_and_keeps_the_bounds(
    tmp_path: Path, make: Make, heard: Recorder, gate: Gate
) -> None:
    sink = MemorySink()
    gate.hold()
    engine = make(sink)
    engine.submit(*llama(tmp_path, 4, **WEIGHTS))
    gate.wait()
    heard.wait(lambda r: r.of(Progress)[-1].again.begun == 1 and r.of(Progress)[-1].done == 4)
    assert heard.of(Progress)[-1].busy
    assert heard.of(Progress)[-1].eta is None
    engine.stop()
    gate.open()
    last = heard.wait_until_idle()
    assert (last.done, last.total, last.again.found, last.again.solved) == (4, 4, 2, 1)
    assert not heard.of(Stopped)  # all of them are saved
    assert len(sink.kept) == 4
    assert sorted(s.provenance.solver for s in sink.kept.values()) == [bounds.TWO_STAGE] * 3 + [bounds.SVD]


def test_after_a_stop_in_the_scan_nothing_is_solved_again(
    tmp_path: Path, make: Make, heard: Recorder, gate: Gate
) -> None:
    sink = MemorySink(holding=True)
    engine = make(sink)
    engine.submit(*llama(tmp_path, 4, **WEIGHTS))
    heard.wait(lambda _: len(sink.futures) == 4)
    engine.stop()
    for future in sink.futures.values():
        future.set_result(None)
    assert heard.wait_until_idle().again.begun == 0
    assert not gate.reached.acquire(blocking=False)


def test_quitting_leaves_the_running_one_and_nothing_is_lost(tmp_path: Path, make: Make, gate: Gate) -> None:
    gate.hold()
    with SpectraStore(tmp_path / "store", "model") as store:
        engine = make(store)
        checkpoint, projections = llama(tmp_path, 4, **WEIGHTS)
        engine.submit(checkpoint, projections)
        gate.wait()
        assert not engine.close(0.0)
        assert all(store.has(p.key) for p in projections)
        gate.open()
        assert engine.close(PATIENCE)


def test_what_the_svd_does_not_solve_stays_a_bound(
    tmp_path: Path, make: Make, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_matrix: Any, _scale: float) -> Any:
        raise torch.linalg.LinAlgError("failed to converge")  # type: ignore[attr-defined]

    monkeypatch.setattr(svd, "singular_values", fail)
    sink = MemorySink()
    make(sink).submit(*llama(tmp_path, 4, **WEIGHTS))
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.again.found, last.again.begun, last.again.solved) == (4, 0, 2, 2, 0)
    assert not heard.of(Failed)
    assert {s.provenance.solver for s in sink.kept.values()} == {bounds.TWO_STAGE}


class RemovingSink(MemorySink):
    """A sink that removes the model when the last of four spectra comes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def put(self, spectrum: Spectrum) -> Future[None]:
        if len(self.kept) == 3:
            self._file.unlink()
        return super().put(spectrum)


def test_weights_that_are_gone_by_then_stay_bounds(tmp_path: Path, make: Make, heard: Recorder) -> None:
    model = llama(tmp_path, 4, **WEIGHTS)
    make(RemovingSink(tmp_path / "model.safetensors")).submit(*model)
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.again.found, last.again.solved) == (4, 0, 2, 0)
    assert {p.layer for e in heard.of(StayBounds) for p in e.projections} == ILL


def test_what_is_asked_for_meanwhile_goes_before(tmp_path: Path, make: Make, heard: Recorder, gate: Gate) -> None:
    """Also a matrix that waits to be solved again: requested anew, it is solved from the start."""
    gate.hold()
    sink = MemorySink()
    engine = make(sink)
    checkpoint, projections = llama(tmp_path, 6, **WEIGHTS)
    engine.submit(checkpoint, projections[:4])
    gate.wait()
    heard.wait(lambda r: len(r.of(SolvingAgain)) == 1)
    running = heard.of(SolvingAgain)[0].projection
    other = next(p for p in projections if p.layer in ILL and p != running)
    engine.submit(checkpoint, [projections[4]])
    engine.submit(checkpoint, [other], recompute=True)
    gate.open()
    last = heard.wait_until_idle()
    assert (last.done, last.total, last.again.solved >= 2) == (6, 6, True)
    events = heard.events()
    later = next(e for e in heard.of(Saved) if e.spectrum.projection == projections[4])
    assert events.index(later) < events.index(heard.of(SolvingAgain)[1])
    assert all(sink.kept[p.key].provenance.solver == bounds.SVD for p in (running, other))


def test_the_budget_is_of_the_busiest_device_and_of_threads_at_once_counts_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = count(0.0, 10.0)
    monkeypatch.setattr(second_pass.time, "monotonic", lambda: next(ticks))
    budget = Budget()
    with budget.scanning("cuda:0"), budget.scanning("cuda:0"):  # 0 to 10 s
        pass
    with budget.scanning("cuda:1"):  # 20 to 30 s
        pass
    assert budget.take(100.0)
    budget.spend(100.0, 0.5)
    assert budget.take(100.0)  # 1 s would then be spent of a tenth of 10 s
    assert not budget.take(101.0)
    budget.spend(100.0, 0.5)
    assert not budget.take(1.0)
    assert budget.spent == 1.0
    budget.reset()
    assert budget.take(1e9)
    budget.spend(1e9, 60.0)
    assert not budget.take(1.0)


def test_a_scan_that_begins_while_the_last_batch_is_left_stops_no_thread() -> None:
    """A batch is reported before its thread ends: the first submit of another scan may come in between."""
    budget = Budget()
    with budget.scanning("cpu"):
        budget.reset()
    for _ in range(2):
        with budget.scanning("cpu"):
            pass
    assert budget.take(1.0)

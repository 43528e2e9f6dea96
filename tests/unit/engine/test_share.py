"""How batches are cut for worker processes: by a cluster that only counts, for the largest shapes."""

from __future__ import annotations

import heapq
from collections import defaultdict
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import MemorySink, Recorder, llama

from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.checkpoint.ranges import RemoteFile
from rankscope.engine.checkpoint.retries import Link
from rankscope.engine.compute import worker_process
from rankscope.engine.compute.events import Failed
from rankscope.engine.compute.far import Far, Worker
from rankscope.engine.compute.job import SCAN, Job
from rankscope.engine.compute.outcomes import Outcomes
from rankscope.engine.compute.queue import JobQueue
from rankscope.engine.compute.remote_batch import Batch, BatchResult, light
from rankscope.engine.compute.reporter import Reporter
from rankscope.engine.compute.share import Share
from rankscope.engine.solvers.gpus import batch_of
from rankscope.engine.spectrum import Projection, Spectrum


class Flying:
    """The future of a batch, which is done when the test says so."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.landed: Any = None

    def add_done_callback(self, call: Any) -> None:
        self.landed = call

    def done(self) -> bool:
        return True

    def result(self) -> BatchResult:
        return BatchResult(failures=tuple((p.key, "not solved here") for p in self.batch.projections))


class Counting:
    """A replacement of Cluster that records the batches of each worker, in order."""

    def __init__(self) -> None:
        self.had: defaultdict[str, list[Flying]] = defaultdict(list)

    @property
    def batches(self) -> list[list[tuple[Projection, ...]]]:
        """The batches of each worker."""
        return [[flying.batch.projections for flying in had] for had in self.had.values()]

    def submit(self, batch: Batch, address: str, _key: str) -> Flying:
        self.had[address].append(Flying(batch))
        return self.had[address][-1]


def shaped(folder: Path, layers: int, hidden: int, experts: int = 0) -> tuple[Checkpoint, list[Projection]]:
    """Projections of a llama's sizes whose tensors are tiny: they are never read."""
    wide, narrow = hidden * 7 // 2, min(hidden // 4, 1024)
    sizes = [(hidden, hidden), (narrow, hidden), (narrow, hidden), (hidden, hidden)] + [(wide, hidden)] * 3
    sizes += [(768, 2048)] * experts
    checkpoint, tiny = llama(folder, layers * len(sizes))
    named = zip(tiny, sizes * layers, strict=True)
    return checkpoint, [replace(p, rows=rows, cols=cols, key=str(n)) for n, (p, (rows, cols)) in enumerate(named)]


def scan(checkpoint: Checkpoint, wanted: list[Projection], count: int) -> tuple[Counting, list[float]]:
    """A scan by `count` GPUs: the batches of each, and when it ended. See `seconds`."""
    cluster, queue, reporter = Counting(), JobQueue(), Reporter(lambda _: None)
    far = Far(cluster, queue, reporter, Outcomes(MemorySink(), queue, reporter, False))  # type: ignore[arg-type]
    far._workers = {name: Worker(name, name) for name in (f"cuda:{n}" for n in range(count))}
    queue.add(checkpoint, wanted, False)
    queue.elsewhere(True)
    ends, solved, running = dict.fromkeys(far._workers, 0.0), dict.fromkeys(far._workers, 0), [(0.0, "")]
    while running:
        now, landed = heapq.heappop(running)
        busy = {name for _, name in running}
        if landed:
            flight = cluster.had[landed][solved[landed]]
            solved[landed] += 1
            flight.landed(flight)
        while jobs := queue.next_share(far._is_free, far._cut, 0.0):
            far._send(jobs)
        for name in far._workers:
            if name not in busy and len(cluster.had[name]) > solved[name]:
                ends[name] = now + seconds(cluster.had[name][solved[name]].batch)
                heapq.heappush(running, (ends[name], name))
    assert queue.is_idle()
    return cluster, list(ends.values())


def seconds(batch: Batch) -> float:
    """The time of kernels that take a quarter of a full batch's time for a single matrix."""
    costs = [p.cost for p in batch.projections]
    return max(costs) * 4 / 1.3e13 + sum(costs) / 1.3e13


@pytest.mark.parametrize(
    ("layers", "hidden", "experts", "count", "most"),
    [
        (32, 4096, 0, 2, 1.1),  # Llama-3-8B
        (32, 4096, 0, 4, 1.2),
        (8, 8192, 0, 2, 1.1),
        (8, 8192, 0, 4, 1.4),  # 40 matrices for four GPUs, in batches of up to eight
        (80, 8192, 0, 4, 1.1),  # 70B
        (16, 2048, 64, 4, 1.3),
    ],
)
def test_gpus_get_full_batches_and_end_together(
    tmp_path: Path, layers: int, hidden: int, experts: int, count: int, most: float
) -> None:
    checkpoint, wanted = shaped(tmp_path, layers, hidden, experts)
    cluster, ends = scan(checkpoint, wanted, count)
    _, (alone,) = scan(checkpoint, wanted, 1)
    assert max(ends) <= most * alone / count
    alike = [[b for b in batches if all(p.count == hidden for p in b)] for batches in cluster.batches]
    sizes = [[len(batch) for batch in batches] for batches in alike]
    assert all(each == sorted(each, reverse=True) for each in sizes)
    assert max(max(each, default=0) for each in sizes) == batch_of(hidden)


def test_a_batch_that_is_fetched_is_bounded_by_its_bytes(tmp_path: Path) -> None:
    """Matrices of 4096 x 14336, which a GPU solves 16 at a time: those of a server have 117 MB each."""
    checkpoint, (small, *_) = llama(tmp_path, 1)
    big = checkpoint.tensors[0]._replace(shape=(14336, 4096), begin=0, end=2 * 14336 * 4096)
    served = replace(checkpoint, stamps={big.file: RemoteFile(Link(lambda *_: "", {}), "http://127.0.0.1/x", "x")})
    job = Job(SCAN, 0, checkpoint, big, [replace(small, rows=14336, cols=4096)])
    for opened, expected in ((checkpoint, 16), (served, 2)):
        share = Share("cuda", 1e15)
        taken = [share.takes(replace(job, checkpoint=opened)) for _ in range(20)]
        assert taken == [True] * expected + [False] * (20 - expected)


@pytest.mark.parametrize(("name", "reason"), [("cuda:0", "a GPU may fail at it"), ("cpu", "it may need more memory")])
def test_what_workers_died_of_is_said_by_what_they_are(tmp_path: Path, name: str, reason: str) -> None:
    """A CUDA fault ends a worker process as a lack of memory does."""
    checkpoint, wanted = llama(tmp_path, 1)
    heard, queue = Recorder(), JobQueue()
    reporter = Reporter(heard)
    reporter.expect(wanted)
    far = Far(Counting(), queue, reporter, Outcomes(MemorySink(), queue, reporter, False))  # type: ignore[arg-type]
    queue.add(checkpoint, wanted, False)
    for _ in range(3):
        far._workers = {name: Worker(name, name)}
        far._send(queue.next_share(far._is_free, far._cut, 0.0) or [])
        far._mourn(far._workers[name])
    heard.wait(lambda h: bool(h.of(Failed)))
    assert heard.of(Failed)[0].reason.startswith(f"3 worker processes died while it was computed: {reason}")
    assert queue.is_idle()
    reporter.close()


def test_a_worker_that_refuses_what_it_was_found_free_for_loses_nothing(tmp_path: Path) -> None:
    """At that moment it may refuse another batch of the same model."""
    checkpoint, wanted = llama(tmp_path, 2)
    queue, reporter = JobQueue(), Reporter(lambda _: None)
    far = Far(Counting(), queue, reporter, Outcomes(MemorySink(), queue, reporter, False))  # type: ignore[arg-type]
    queue.add(checkpoint, wanted, False)
    worker = far._workers["cpu"] = Worker("cpu", "cpu")
    jobs = queue.next_share(far._is_free, far._cut, 0.0)
    assert jobs
    worker.refuses[jobs[0].needs] = "no such file or folder"
    far._send(jobs)
    assert not worker.flights
    assert queue.next_share(lambda _: True, far._cut, 0.0) == []
    assert {key for key in (p.key for p in wanted) if queue.holds(key)} == {p.key for p in wanted}


def test_a_batch_is_on_its_way_until_the_sink_has_it(tmp_path: Path) -> None:
    """Closing waits for batches that are on their way: the store is closed next."""
    checkpoint, wanted = llama(tmp_path, 1)
    (made,) = worker_process.Service("cpu", 1).solve(Batch((str(tmp_path),), tuple(map(light, wanted)))).spectra
    queue, reporter, sink = JobQueue(), Reporter(lambda _: None), MemorySink()
    cluster = Counting()
    seen: list[bool] = []
    far = Far(cluster, queue, reporter, Outcomes(sink, queue, reporter, False))  # type: ignore[arg-type]
    far._workers["cpu"] = Worker("cpu", "cpu")
    queue.add(checkpoint, wanted, False)
    far._send(queue.next_share(far._is_free, far._cut, 0.0) or [])
    (flying,) = cluster.had["cpu"]
    put = sink.put

    def watched(spectrum: Spectrum) -> Future[None]:
        seen.append(far._is_quiet())
        return put(spectrum)

    sink.put = watched  # type: ignore[method-assign]
    flying.result = lambda: BatchResult((made,))  # type: ignore[method-assign]
    assert not far._is_quiet()
    flying.landed(flying)
    assert (seen, far._is_quiet(), list(sink.kept)) == ([False], True, [wanted[0].key])

"""Worker processes: the same results as in this process, and what happens to a batch whose worker dies or refuses."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import dask
import engine_fakes
import numpy as np
import pytest
from cluster_control import BOTH, TWO, Control, assert_lapacks, block, states
from derived_examples import FORMULAS, stacked
from engine_fakes import MemorySink, Recorder, llama
from hub_server import serve
from huggingface_hub import close_session, constants

from rankscope.engine import bounds
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.compute import cluster, devices, elsewhere, far, outcomes, share
from rankscope.engine.compute.cluster import Cluster
from rankscope.engine.compute.devices import Device
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Computed, Failed, Notice, Saved, SolvingAgain, Started, Stopped
from rankscope.engine.compute.remote_batch import SOFTWARE, Batch
from rankscope.engine.derive import formulas
from rankscope.engine.moment import FewNumbers

KEY = ("cpu:0", "cpu:1", "1")
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    """Two worker processes, which the engines of this file share; Dask's own setting gives up dead ones at once."""
    import distributed  # noqa: F401 - it adds its settings to those of dask

    given_up = dask.config.set({"distributed.deploy.lost-worker-timeout": "0s"})
    with given_up, serve() as hub, pytest.MonkeyPatch.context() as patch:
        control = Control(tmp_path_factory.mktemp("control"), hub)
        patch.setattr(cluster, "nanny_options", control.options)
        assert elsewhere._used(KEY, lambda: Cluster.local(TWO, 1)) is not None
        yield control
        elsewhere._left(KEY)


@pytest.fixture
def control(processes: Control) -> Iterator[Control]:
    elsewhere._open[KEY][0]._client.wait_for_workers(2, engine_fakes.PATIENCE)  # one may have been killed before
    yield processes
    processes.clear()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted process takes seconds where all cores are busy: an engine that waits less goes on without workers."""
    monkeypatch.setattr(far, "GONE_SECONDS", engine_fakes.PATIENCE)
    for name, formula in FORMULAS.items():
        monkeypatch.setitem(formulas.FORMULAS, name, formula)


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def make(heard: Recorder, sink: MemorySink, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A maker of engines with two devices."""
    real, made = devices.pick, []
    monkeypatch.setattr(devices, "pick", lambda spec: (TWO, []) if spec == BOTH else real(spec))

    def build(**settings: Any) -> Engine:
        made.append(Engine(sink, heard, ComputeSettings(**{"device": BOTH, "threads": 1, **settings})))
        return made[-1]

    yield build
    for engine in made:
        engine.close(engine_fakes.PATIENCE)


@pytest.mark.usefixtures("control", "tiny_batches")
def test_every_state_of_two_checkpoints_is_the_same_bit_for_bit(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink
) -> None:
    a, raw = block(tmp_path / "a", 1)
    b, others = block(tmp_path / "b", 2)
    both = [stacked(p, q) for p, q in zip(raw, others, strict=True)]
    wanted = [*states(a, raw, tmp_path), *both]
    make().submit(a, wanted, others=[b])
    heard.wait_until_idle()
    here, told = MemorySink(), Recorder()
    alone = Engine(here, told, ComputeSettings("cpu", 1))
    alone.submit(a, wanted, others=[b])
    told.wait_until_idle()
    alone.close()
    assert not heard.of(Failed)
    assert not told.of(Failed)
    assert sink.kept.keys() == here.kept.keys() == {p.key for p in wanted}
    for key, spectrum in here.kept.items():
        far_one = sink.kept[key]
        np.testing.assert_array_equal(far_one.values, spectrum.values)
        assert replace(far_one.provenance, seconds=0) == replace(spectrum.provenance, seconds=0)
        assert far_one.projection == spectrum.projection
        assert far_one.weights_digests == spectrum.weights_digests
        assert far_one.run.command == spectrum.run.command
    assert {event.device for event in heard.of(Started)} == {"cpu:0", "cpu:1"}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that were sent, in order."""
    found: list[Batch] = []
    original = Cluster.submit

    def submit(self: Cluster, batch: Batch, *rest: Any) -> Any:
        found.append(batch)
        return original(self, batch, *rest)

    monkeypatch.setattr(Cluster, "submit", submit)
    return found


@pytest.fixture
def tiny_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tiny matrices into batches as large ones are."""
    monkeypatch.setitem(share._LEAST, "cpu", 1.0)


@pytest.mark.usefixtures("control")
def test_nothing_travels_but_names_and_spectra(tmp_path: Path, make: Make, heard: Recorder, sent: list[Batch]) -> None:
    checkpoint, raw = block(tmp_path / "a", 1)
    make().submit(checkpoint, states(checkpoint, raw, tmp_path))
    heard.wait_until_idle()
    operands = [o for batch in sent for p in batch.projections if p.derived for o in p.derived.operands]
    few = [operand.load.numbers for operand in operands if isinstance(operand.load, FewNumbers)]
    assert {len(numbers) for numbers in few} == {2, 4}  # the rows and columns that a head has
    assert [operand.load for operand in operands].count(None) == len(operands) - len(few)
    assert {operand.file for operand in operands} == {"", str(tmp_path / "i.gguf")}


@pytest.mark.usefixtures("control", "tiny_batches")
def test_five_hundred_tiny_matrices_come_in_few_batches_of_which_the_last_are_smaller(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, sent: list[Batch]
) -> None:
    checkpoint, projections = llama(tmp_path, 500)
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.total) == (500, 0, 500)
    assert_lapacks(sink, projections[::50], tmp_path / "model.safetensors")
    sizes = [len(batch.projections) for batch in sent]
    assert sizes == sorted(sizes, reverse=True)
    assert (sum(sizes), sizes[-1]) == (500, 1)
    assert 120 <= sizes[0] <= 125
    assert len(sizes) < 40


@pytest.mark.usefixtures("tiny_batches")
def test_a_stop_in_the_middle_saves_what_runs(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, control: Control
) -> None:
    checkpoint, projections = llama(tmp_path, 64)
    engine = make()
    control.hold()
    engine.submit(checkpoint, projections)
    control.wait_until_held(4)
    heard.wait(lambda h: len({event.device for event in h.of(Started)}) == 2)
    begun = {event.projection.key for event in heard.of(Started)}
    engine.stop()
    control.release()
    assert not heard.wait_until_idle().failed
    dropped = {p.key for event in heard.of(Stopped) for p in event.projections}
    assert sink.kept.keys() == begun
    assert begun | dropped == {p.key for p in projections}
    assert 0 < len(dropped) < 64
    assert engine.submit(checkpoint, projections) == [p for p in projections if p.key in dropped]
    heard.wait(lambda h: len(h.of(Saved)) == 64)


@pytest.mark.usefixtures("tiny_batches")
def test_what_is_urgent_overtakes_what_was_sent_already(
    tmp_path: Path, make: Make, heard: Recorder, control: Control
) -> None:
    checkpoint, projections = llama(tmp_path, 200)
    engine = make()
    control.hold()
    engine.submit(checkpoint, projections[:-1])
    control.wait_until_held(4)
    control.hold_no_more()
    engine.submit(checkpoint, projections[-1:], urgent=True)
    heard.wait(lambda h: bool(h.of(Computed)))
    assert heard.of(Computed)[0].spectrum.projection == projections[-1]
    assert len(heard.of(Computed)) == 1
    control.release()
    assert heard.wait_until_idle().done == 200


@pytest.mark.usefixtures("tiny_batches")
def test_what_one_has_no_memory_for_goes_to_the_other(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, control: Control
) -> None:
    checkpoint, projections = llama(tmp_path, 12)
    control.say("no_room", "cpu:0")
    make().submit(checkpoint, projections)
    assert heard.wait_until_idle().done == 12
    assert not heard.of(Failed)
    assert_lapacks(sink, projections, tmp_path / "model.safetensors")


def test_workers_fetch_a_model_of_the_hub_by_ranges_at_the_commit_that_was_opened(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = control.hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    client = {"ENDPOINT": control.hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False}
    for name, value in (client | {"HF_HUB_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setattr(constants, name, value)
    close_session()
    llama(tmp_path, 40)
    commit = control.hub.push("org/tiny", {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()})
    checkpoint = open_checkpoint("org/tiny")
    projections = build_tree(checkpoint).scanned()
    control.hub.push("org/tiny", {"model.safetensors": b"another"})
    control.hub.requests.clear()
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed, heard.of(Notice)) == (40, 0, [])
    assert last.fetched == last.to_fetch == checkpoint.bytes
    assert_lapacks(sink, projections, tmp_path / "model.safetensors")
    asked = [request for request in control.hub.requests if request.file == "model.safetensors"]
    assert {f"bytes={t.begin}-{t.end - 1}" for t in checkpoint.tensors} <= {request.range for request in asked}
    assert all(commit in request.path for request in asked)
    assert not list(control.folder.rglob("model.safetensors"))  # and is not kept
    close_session()


@pytest.mark.usefixtures("control")
def test_what_is_ill_conditioned_is_solved_again_by_a_worker(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, projections = llama(tmp_path, 6)
    monkeypatch.setattr(
        outcomes,
        "is_ill_conditioned",
        lambda s: s.projection == projections[0] and s.provenance.solver != bounds.SVD,
    )
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    assert (last.done, last.failed, last.again.found, last.again.solved) == (6, 0, 1, 1)
    assert {event.device for event in heard.of(SolvingAgain)} <= {"cpu:0", "cpu:1"}
    solvers = [sink.kept[p.key].provenance.solver for p in projections]
    assert [solver == bounds.SVD for solver in solvers] == [True, False, False, False, False, False]
    assert_lapacks(sink, projections, tmp_path / "model.safetensors")


@pytest.mark.usefixtures("control")
def test_another_version_gets_nothing_and_this_process_does_it(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, projections = llama(tmp_path, 6)
    old = partial(Batch, software="rankscope-tui 0.0.1")
    monkeypatch.setattr(far, "Batch", old)
    make(scheduler=None).submit(checkpoint, projections)
    monkeypatch.setattr(devices, "pick", lambda _: ([Device("cpu", "")], []))
    assert heard.wait_until_idle().done == 6
    notes = [notice.text for notice in heard.of(Notice)]
    assert sorted(notes[:2]) == [
        f"cpu:{n} is not used for this: it runs {SOFTWARE}, and this is rankscope-tui 0.0.1" for n in (0, 1)
    ]
    reason = f"it runs {SOFTWARE}, and this is rankscope-tui 0.0.1"
    assert notes[2] == f"no worker can take {tmp_path} ({reason}): this process continues alone"
    assert_lapacks(sink, projections, tmp_path / "model.safetensors")


@pytest.mark.usefixtures("control")
def test_a_client_without_the_credentials_is_refused(
    tmp_path: Path, heard: Recorder, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed.comm.utils import get_tcp_server_address

    processes = elsewhere._open[KEY][0]._processes
    assert processes is not None
    address = processes.scheduler_address
    assert address.startswith("tls://127.0.0.1:")
    port = get_tcp_server_address(processes.scheduler.http_server)[1]
    for path in ("", "/status", "/health", "/info/main/workers.html", "/json/identity.json"):
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://127.0.0.1:{port}{path}")
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    checkpoint, projections = llama(tmp_path, 2)
    for open_one in (address, address.replace("tls", "tcp")):
        engine = Engine(sink, heard, ComputeSettings("cpu", 1, scheduler=open_one))
        engine.submit(checkpoint, projections)
        heard.wait(lambda h, open_one=open_one: any(n.fatal and open_one in n.text for n in h.of(Notice)))  # type: ignore[misc]
        engine.close()
    assert not sink.kept


def test_workers_stand_still_while_the_explorer_does(control: Control) -> None:
    held, _ = elsewhere._open[KEY]
    pids = list(held._client.run(os.getpid).values())
    held.signal(signal.SIGSTOP)
    stopped = [os.waitid(os.P_PID, pid, os.WSTOPPED) for pid in pids]
    held.signal(signal.SIGCONT)
    went_on = [os.waitid(os.P_PID, pid, os.WCONTINUED) for pid in pids]
    assert [found.si_pid for found in stopped if found] == [found.si_pid for found in went_on if found] == pids
    assert sorted(held._client.run(os.getenv, "RANKSCOPE_WORKER_DEVICE").values()) == ["cpu:0", "cpu:1"]
    assert control.folder.exists()


@pytest.mark.usefixtures("control")
def test_processes_are_given_back_when_there_is_nothing_to_do_and_come_again(
    tmp_path: Path, make: Make, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Event()
    original = elsewhere._left
    monkeypatch.setattr(elsewhere, "_left", lambda key: (original(key), given_back.set()))
    monkeypatch.setattr(far, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(far, "_TICK", 0.1)
    checkpoint, projections = llama(tmp_path, 6)
    engine = make()
    for count in (3, 6):
        engine.submit(checkpoint, projections[:count])
        heard.wait(lambda h, count=count: len(h.of(Saved)) == count)  # type: ignore[misc]
        while elsewhere._open[KEY][1] > 1:  # it may be given back and taken again before all are saved
            assert given_back.wait(engine_fakes.PATIENCE)
            given_back.clear()


@pytest.mark.usefixtures("tiny_batches")
def test_what_kills_three_workers_fails_alone(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, control: Control
) -> None:
    """The last test of this file: no test waits for the workers that are restarted."""
    checkpoint, projections = llama(tmp_path, 12)
    control.say("kills", projections[5].address)
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    (failed,) = heard.of(Failed)
    assert failed.projection == projections[5]
    assert failed.reason.startswith("3 worker processes died while it was computed")
    assert (last.done, last.failed) == (11, 1)
    assert_lapacks(sink, [*projections[:5], *projections[6:]], tmp_path / "model.safetensors")

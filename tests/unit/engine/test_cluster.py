"""Worker processes: the same answers as in this process, and what becomes of a batch whose worker dies or refuses."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import engine_fakes
import numpy as np
import pytest
import torch
from calibration_files import stats, write_gguf
from derived_examples import FORMULAS, stacked
from distributed.comm.utils import get_tcp_server_address
from engine_fakes import MemorySink, Recorder, llama, saved
from lapack_reference import lapack
from safetensors.torch import load_file

from rankscope.engine import bounds
from rankscope.engine.calibration.weighting import open_weighting
from rankscope.engine.catalogue.heads import attentions
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute import cluster, devices, elsewhere, far, outcomes
from rankscope.engine.compute.cluster import Cluster
from rankscope.engine.compute.devices import Device
from rankscope.engine.compute.engine import Engine, Settings
from rankscope.engine.compute.events import Computed, Failed, Notice, Saved, SolvingAgain, Started, Stopped
from rankscope.engine.compute.remote_batch import SOFTWARE, Batch
from rankscope.engine.derive import formulas
from rankscope.engine.derive.directions import directions_of
from rankscope.engine.derive.fixing import Gauge
from rankscope.engine.derive.flip import flipped
from rankscope.engine.derive.gauge import as_stored
from rankscope.engine.derive.heads import KINDS, heads_of
from rankscope.engine.derive.norm_weighting import NormWeighting
from rankscope.engine.derive.weighting import noise_of, weighted
from rankscope.engine.moment import FewNumbers
from rankscope.engine.spectrum import Projection

HERE = Path(__file__).parent
TWO = [Device("cpu:0", "a core"), Device("cpu:1", "another")]
KEY = ("cpu:0", "cpu:1", "1")
Make = Callable[..., Engine]


class Control:
    """The folder through which a test says what happens in the worker processes: see cluster_gate.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._options = cluster.nanny_options
        self._held: tuple[int, ...] = ()

    def options(self, *args: Any) -> dict[str, Any]:
        made = self._options(*args)
        made["env"] |= {"RANKSCOPE_TEST_GATE": str(self.folder), "OMP_NUM_THREADS": "1"}
        return made | {"preload": [str(HERE / "cluster_gate.py"), *made["preload"]]}

    def say(self, name: str, word: str) -> None:
        (self.folder / name).write_text(word)

    def hold(self) -> None:
        """Batches that begin from now on wait for `release`."""
        for name in ("gate", "reached"):
            os.mkfifo(self.folder / name)
        self._held = tuple(os.open(self.folder / name, os.O_RDWR) for name in ("gate", "reached"))

    def wait_until_held(self, count: int) -> None:
        """So many batches more have begun, and wait."""
        for _ in range(count):
            assert select.select([self._held[1]], [], [], engine_fakes.PATIENCE)[0]
            os.read(self._held[1], 1)

    def hold_no_more(self) -> None:
        """What begins from now on does not wait."""
        (self.folder / "gate").unlink()

    def release(self) -> None:
        (self.folder / "gate").unlink(missing_ok=True)
        for held in self._held:
            os.close(held)
        self._held = ()

    def clear(self) -> None:
        self.release()
        for file in self.folder.iterdir():
            if not file.is_dir():
                file.unlink()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    """Two worker processes, which the engines of this file share."""
    control = Control(tmp_path_factory.mktemp("control"))
    with pytest.MonkeyPatch.context() as patch:
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
    """A process that begins anew takes seconds where all cores are busy."""
    monkeypatch.setattr(engine_fakes, "PATIENCE", 60.0)
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
    """Engines that `auto` gives two devices."""
    real, made = devices.pick, []
    monkeypatch.setattr(devices, "pick", lambda spec: (TWO, []) if spec == "auto" else real(spec))

    def build(**settings: Any) -> Engine:
        made.append(Engine(sink, heard, Settings(**{"threads": 1, **settings})))
        return made[-1]

    yield build
    for engine in made:
        engine.close(engine_fakes.PATIENCE)


def assert_lapacks(sink: MemorySink, projections: list[Projection], file: Path) -> None:
    weights = load_file(file)
    for projection in projections:
        wanted = lapack(weights[projection.tensor])
        assert abs(sink.kept[projection.key].values - wanted).max() <= 1e-10 * wanted[0]


NAMES = {
    "self_attn.q_proj": (12, 12),
    "self_attn.k_proj": (6, 12),
    "self_attn.v_proj": (6, 12),
    "self_attn.o_proj": (12, 12),
    "mlp.up_proj": (20, 12),
    "mlp.gate_proj": (20, 12),
    "mlp.down_proj": (12, 20),
}


def block(folder: Path, seed: int, layers: int = 2) -> tuple[Checkpoint, list[Projection]]:
    """Layers of attention and MLP, with the gains of a norm before each."""
    random = torch.Generator().manual_seed(seed)
    path = "model.layers.{}.{}.weight"
    tensors = {
        path.format(n, name): torch.randn(shape, generator=random)
        for n in range(layers)
        for name, shape in NAMES.items()
    }
    for n in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[path.format(n, norm)] = torch.rand(12, generator=random) + 0.5
    folder.mkdir()
    return saved(folder, tensors, {"model_type": "llama", "num_attention_heads": 2})


def states(checkpoint: Checkpoint, raw: list[Projection], folder: Path) -> list[Projection]:
    """All that is computed of a checkpoint's projections: twins, weighted, their noise, in the gauge, directions."""
    names = [p.tensor for p in raw]
    file = write_gguf(folder / "i.gguf", {name: stats(20 if "down" in name else 12, seed=3) for name in names})
    weightings = (NormWeighting(checkpoint), open_weighting(str(file), checkpoint.name, checkpoint.config))
    under = [weighted(p, weighting) for weighting in weightings for p in raw]
    gauge = Gauge(checkpoint, build_tree(checkpoint).projections)
    fixed = [as_stored(gauge.fixed(p, weighting)) for weighting in (None, weightings[1]) for p in raw]
    assert not any(p.problem for p in (*under, *fixed))
    (attention, *_), _ = attentions(checkpoint, raw)
    shown: list[dict[str, Projection]] = [{}, {p.address: p for p in under[len(raw) :]}, {p.address: p for p in fixed}]
    heads = [p for state in shown for kind in KINDS for p in heads_of(attention, kind, state)]
    every = [*raw, *map(flipped, raw), *under, *map(noise_of, under), *fixed, *map(directions_of, raw), *heads]
    return list({p.key: p for p in every}.values())


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
    alone = Engine(here, told, Settings("cpu", 1))
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
    """Tiny matrices are cut into batches as large ones are."""
    monkeypatch.setitem(far._LEAST, "cpu", 1.0)


@pytest.mark.usefixtures("control")
def test_nothing_travels_but_names_and_spectra(tmp_path: Path, make: Make, heard: Recorder, sent: list[Batch]) -> None:
    checkpoint, raw = block(tmp_path / "a", 1)
    make().submit(checkpoint, states(checkpoint, raw, tmp_path))
    heard.wait_until_idle()
    operands = [o for batch in sent for p in batch.projections if p.derived for o in p.derived.operands]
    few = [operand.load.numbers for operand in operands if isinstance(operand.load, FewNumbers)]
    assert {len(numbers) for numbers in few} == {2, 4}  # which rows and columns a head has
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
def test_what_kills_three_workers_fails_alone(
    tmp_path: Path, make: Make, heard: Recorder, sink: MemorySink, control: Control
) -> None:
    checkpoint, projections = llama(tmp_path, 12)
    control.say("kills", projections[5].address)
    make().submit(checkpoint, projections)
    last = heard.wait_until_idle()
    (failed,) = heard.of(Failed)
    assert failed.projection == projections[5]
    assert failed.reason.startswith("3 worker processes died of it")
    assert (last.done, last.failed) == (11, 1)
    assert_lapacks(sink, [*projections[:5], *projections[6:]], tmp_path / "model.safetensors")


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
        f"cpu:{n} gets none of it: it runs {SOFTWARE}, and this is rankscope-tui 0.0.1" for n in (0, 1)
    ]
    reason = f"it runs {SOFTWARE}, and this is rankscope-tui 0.0.1"
    assert notes[2] == f"no worker can take {tmp_path} ({reason}): this process goes on alone"
    assert_lapacks(sink, projections, tmp_path / "model.safetensors")


@pytest.mark.usefixtures("control")
def test_a_client_without_the_credentials_is_refused(
    tmp_path: Path, heard: Recorder, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        engine = Engine(sink, heard, Settings("cpu", 1, scheduler=open_one))
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
        assert given_back.wait(engine_fakes.PATIENCE)
        given_back.clear()
    assert elsewhere._open[KEY][1] == 1

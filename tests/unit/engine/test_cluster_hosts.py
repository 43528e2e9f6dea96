"""A scheduler on other hosts: workers that see other files, workers that are lost, and a client that is killed."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engine_fakes
import pytest
from engine_fakes import MemorySink, Recorder, llama
from lapack_reference import lapack
from safetensors.torch import load_file

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.compute import cluster, far, share
from rankscope.engine.compute.engine import ComputeSettings, Engine
from rankscope.engine.compute.events import Failed, Notice, Started

if TYPE_CHECKING:
    from distributed import Nanny, SpecCluster

GATE = Path(__file__).parent / "cluster_gate.py"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[SpecCluster]:
    """A scheduler with a worker in the client's folder, one in an empty folder, and one in a copy of the client's."""
    from distributed import Nanny, Scheduler, SpecCluster

    (tmp_path / "here" / "model").mkdir(parents=True)
    (tmp_path / "nothing").mkdir()
    llama(tmp_path / "here" / "model", 40)
    shutil.copytree(tmp_path / "here", tmp_path / "copy")
    workers: dict[str, Any] = {}
    for name in ("here", "nothing", "copy"):
        options = cluster.nanny_options("cpu", 1)
        options["env"] |= {"RANKSCOPE_TEST_GATE": str(tmp_path), "OMP_NUM_THREADS": "1"}
        options["preload"] = [str(GATE), *options["preload"]]
        workers[name] = {"cls": Nanny, "options": {"host": "127.0.0.1", **options}}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": ":0"}}
    with SpecCluster(workers, scheduler, silence_logs=50) as found:
        yield found


async def close_all(nannies: Iterable[Nanny]) -> None:
    await asyncio.gather(*(nanny.close() for nanny in nannies))


def test_workers_that_see_another_file_or_none_get_nothing_and_lost_ones_are_done_without(
    tmp_path: Path, hosts: SpecCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far, "GONE_SECONDS", 0.0)
    monkeypatch.setitem(share._LEAST, "cpu", 1.0)
    monkeypatch.chdir(tmp_path / "here")
    heard, sink = Recorder(), MemorySink()
    checkpoint = open_checkpoint("/proc/self/cwd/model")
    projections = build_tree(checkpoint).scanned()
    engine = Engine(sink, heard, ComputeSettings("cpu", 1, scheduler=hosts.scheduler_address))
    engine.submit(checkpoint, projections[:30])
    assert (heard.wait_until_idle().done, heard.of(Failed)) == (30, [])
    notes = sorted(notice.text for notice in heard.of(Notice))
    assert [text.partition(" is not used for this: ")[0] for text in notes] == ["copy", "nothing"]
    assert "model.safetensors is another file there" in notes[0]
    assert "no such file or folder" in notes[1]
    os.mkfifo(tmp_path / "gate")
    held = os.open(tmp_path / "gate", os.O_RDWR)
    engine.submit(checkpoint, projections[30:])
    heard.wait(lambda h: len(h.of(Started)) > 30)
    for names in (("copy", "nothing"), ("here",)):  # left alone, those that take nothing give a reason
        hosts.sync(close_all, [hosts.workers[name] for name in names])
    heard.wait(lambda _: len(sink.kept) == 40)
    os.close(held)
    assert heard.of(Notice)[-1].text == "all worker processes are gone: this process continues alone"
    assert engine.close(engine_fakes.PATIENCE)
    weights = load_file(tmp_path / "here" / "model" / "model.safetensors")
    for projection in projections:
        wanted = lapack(weights[projection.tensor])
        assert abs(sink.kept[projection.key].values - wanted).max() <= 1e-10 * wanted[0]


STARTS = """
import os, sys
from rankscope.engine.compute.cluster import Cluster
from rankscope.engine.compute.devices import Device

if __name__ == "__main__":
    held = Cluster.local([Device("cpu:0", ""), Device("cpu:1", "")], 1)
    print(*held._client.run(os.getpid).values(), flush=True)
    sys.stdin.read()
"""


def test_a_killed_client_leaves_no_worker_not_even_one_that_stands_still(tmp_path: Path) -> None:
    script = tmp_path / "starts.py"
    script.write_text(STARTS)
    client = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    pids = [int(word) for word in client.stdout.readline().split()]
    watched = [os.pidfd_open(pid) for pid in pids]
    os.kill(pids[0], signal.SIGSTOP)
    client.kill()
    ended: set[int] = set()
    while len(ended) < 2:
        found = select.select([fd for fd in watched if fd not in ended], [], [], engine_fakes.PATIENCE)[0]
        assert found, "a worker outlived its client"
        ended.update(found)
    client.communicate()
    for fd in watched:
        os.close(fd)

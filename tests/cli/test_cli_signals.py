"""Signals to the commands: computed spectra are saved, one line says so, and the exit code is 128 + the signal."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_models import addresses, write_llama
from cli_process import PROGRAM, Run, finish, start

from rankscope.tui.cli.main import main

STUCK = f"""
import os, signal, sys, threading
from rankscope.engine.compute.worker_thread import Solver
from rankscope.tui.cli.ending import Ending

signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's own children may ignore it
solve, solved = Solver._spectrum, []

def solve_a_few(*arguments):
    solved.append(None)
    if len(solved) > 3:
        threading.Event().wait()  # LAPACK cannot be interrupted
    return solve(*arguments)

end = Ending._end

def end_although_impatient(*arguments):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    end(*arguments)

Solver._spectrum, Ending._end = solve_a_few, end_although_impatient
{PROGRAM}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_scan_is_ended_while_a_solver_is_stuck(tmp_path: Path, cli: Run, number: signal.Signals) -> None:
    write_llama(tmp_path / "m", 2)
    process = start("scan", tmp_path / "m", "--json", "--threads", "1", program=STUCK)
    assert process.stdout is not None
    printed = [process.stdout.readline() for _ in range(3)]
    process.send_signal(number)
    ran = finish(process)
    assert (ran.code, ran.out, len(printed)) == (128 + number, "", 3)
    assert ran.err.splitlines() == [f"rankscope: stopped by {number.name}; 3 new spectra are saved"]
    assert list(cli("tree", tmp_path / "m", "--json").states.values()).count("stored") == 3


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def test_a_server_that_never_answers_holds_up_no_signal(
    silent_server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    port = silent_server.getsockname()[1]
    process = start("scan", f"http://127.0.0.1:{port}/model.safetensors", program=STUCK)
    connection, _ = silent_server.accept()
    with connection:
        assert connection.recv(1)  # it sends a request, and waits
        process.send_signal(signal.SIGTERM)
        ran = finish(process)
    assert (ran.code, ran.err) == (128 + signal.SIGTERM, "rankscope: stopped by SIGTERM\n")


def test_a_command_leaves_the_handlers_as_they_were(cli: Run, tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    assert cli("ls").code == 0
    assert [signal.getsignal(number) for number in numbers] == before
    with ThreadPoolExecutor(1) as other:  # in a thread, where no handler can be set
        assert other.submit(main, ["ls", "--store", str(tmp_path)]).result() == 0


DEAF = f"""
import ctypes
from rankscope.tui.cli import commands

def tree(*_):
    print("begun", flush=True)
    while True:
        try:
            ctypes.CDLL(None).pause()
        except KeyboardInterrupt:  # as where it comes within a callback of C
            pass

commands.tree = tree
{PROGRAM}
"""


def test_a_main_thread_that_does_not_answer_holds_up_no_signal() -> None:
    process = start("tree", "demo", program=DEAF)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    ran = finish(process)
    assert (ran.code, ran.err) == (128 + signal.SIGTERM, "rankscope: stopped by SIGTERM\n")


def test_under_nohup_a_scan_goes_on(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m", 1)
    nohup = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {PROGRAM}"
    process = start("scan", tmp_path / "m", "--json", program=nohup)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert finish(process).code == 0
    states = cli("tree", tmp_path / "m", "--json").states
    assert {states[address] for address in addresses(1)} == {"stored"}

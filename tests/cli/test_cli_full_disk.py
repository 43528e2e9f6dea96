"""A scan on a full disk: it says so once, waits, and goes on; if it is ended instead, what is saved is kept."""

from __future__ import annotations

import errno
import re
import signal
from pathlib import Path

import pytest
from cli_models import addresses, write_llama
from cli_process import PROGRAM, Run, finish, start

from rankscope.store import segments, writer

FULL = f"""
import errno, signal
from rankscope.store import segments
real, calls = segments.write, []
def write(*args):
    calls.append(args)
    if len(calls) > 1 or len(args[2]) > 19_000:
        raise OSError(errno.ENOSPC, "No space left on device")
    return real(*args)
segments.write = write
signal.signal(signal.SIGINT, signal.default_int_handler)
{PROGRAM}
"""
"""A disk with room for one file, but not for a file of all spectra: on a slow machine they are saved together."""


def test_a_scan_waits_for_room_and_says_so_once(
    tmp_path: Path, cli: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_llama(tmp_path / "m")
    real, calls = segments.write, []

    def write(folder: Path, kind: str, data: bytes) -> str:
        calls.append(kind)
        if len(calls) < 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(folder, kind, data)

    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(segments, "write", write)
    ran = cli("scan", tmp_path / "m", "--json")
    assert ran.code == 0
    assert ran.states == dict.fromkeys(ran.states, "done")
    assert sorted(ran.states) == sorted(addresses())
    (line,) = (line for line in ran.err.splitlines() if "full disk" in line)
    assert line.startswith("full disk: ")
    assert f" in {store}/m--" in line
    assert "\n14/14  " in ran.err


def test_ctrl_c_on_a_full_disk_says_how_much_is_not_saved(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m")
    process = start("scan", tmp_path / "m", "--json", program=FULL)
    assert process.stderr is not None
    while "full disk: " not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    ran = finish(process)
    assert ran.code == 130
    saved = [row["address"] for row in ran.rows if row["state"] == "done"]
    said = re.search(
        r"stopped by SIGINT; \d+ new .* saved; (\d+) computed spectra are not saved", ran.err.splitlines()[-1]
    )
    assert said
    lost = int(said[1])
    assert 0 < lost <= 14 - len(saved)
    states = cli("tree", tmp_path / "m", "--json").states
    assert {address for address in addresses() if states[address] == "stored"} >= set(saved)

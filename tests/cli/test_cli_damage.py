"""One flipped byte in the store: every command names the file and the spectrum, keeps the others, and can go on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_models import addresses, lapack, tensor_name, write_llama
from cli_process import Run

from rankscope.engine.atomic import HOST
from rankscope.store import segments
from rankscope.store.layout import DERIVED_VERSION, READABLE
from rankscope.store.spectra import SpectraStore

BAD = "layers.1.attention.value"
OTHERS = [address for address in addresses() if address != BAD]


@pytest.fixture
def damaged(tmp_path: Path, cli: Run, store: Path) -> Path:
    """The path of a volume with everything computed of tmp_path/"m", and a flipped bit in the values of BAD."""
    arrays = write_llama(tmp_path / "m")
    assert cli("scan", tmp_path / "m").code == 0
    (folder,) = (path for path in store.iterdir() if segments.names(path))
    while any(name.startswith(segments.SEGMENT) for name in segments.names(folder)):
        segments.merge(folder, segments.names(folder))
    (name,) = segments.names(folder)
    data = bytearray((folder / name).read_bytes())
    (entry,) = (e for e in SpectraStore(store, folder.name).entries() if e.projection.address == BAD)
    values = SpectraStore(store, folder.name).get(entry.projection.key).values
    np.testing.assert_allclose(values, lapack(arrays[tensor_name(BAD)]), atol=1e-9)
    data[data.index(values.tobytes()) + 8 * 3 + 6] ^= 1
    (folder / name).write_bytes(data)
    return folder / name


def says(err: str, volume: Path) -> bool:
    """Whether one line names both file and address, and no line names another address."""
    (line,) = (line for line in err.splitlines() if BAD in line)
    return f"{volume}.damaged: " in line and not any(address in err for address in OTHERS)


def test_scan_computes_what_is_damaged_and_nothing_else(tmp_path: Path, cli: Run, damaged: Path) -> None:
    ran = cli("scan", tmp_path / "m", "--json")
    assert ran.code == 0
    assert ran.states == {address: "done" if address == BAD else "stored" for address in addresses()}
    assert says(ran.err, damaged)
    again = cli("scan", tmp_path / "m", "--json")
    assert (set(again.states.values()), "damaged" in again.err) == ({"stored"}, False)
    assert "all that it held is stored again" in cli("ls").err
    assert cli("doctor", "--verify").code == 0


@pytest.mark.parametrize("suffix", ["h5", "npz", "csv", "json"])
def test_export_writes_the_rest(tmp_path: Path, cli: Run, damaged: Path, suffix: str) -> None:
    out = tmp_path / f"out.{suffix}"
    for is_first in (True, False):
        ran = cli("export", tmp_path / "m", "-o", out)
        assert ran.code == 1
        assert f"13 spectra in {out}; 1 are not computed yet" in ran.err
        assert not is_first or says(ran.err, damaged)
    if suffix == "npz":
        assert sorted(np.load(out).files) == sorted(OTHERS)
    if suffix == "json":
        assert [row["address"] for row in json.loads(out.read_text())] == OTHERS


@pytest.mark.parametrize("view", [(), ("--view", "table", "--csv"), ("--unit", "stable_rank")])
def test_show_shows_the_rest(tmp_path: Path, cli: Run, damaged: Path, view: tuple[str, ...]) -> None:
    ran = cli("show", tmp_path / "m", *view)
    assert ran.code == 0
    assert says(ran.err, damaged)
    assert "1 of 14 are not computed yet" in ran.err
    if not view:
        first = ran.out.split("\n\n")[0].splitlines()
        assert [line.split()[3] == "." for line in first[2:4]] == [False, True]
        assert sum(line.split().count(".") for line in first[2:4]) == 1
    assert "damaged" not in cli("show", tmp_path / "m", *view).err


def test_doctor_reads_every_value_when_it_is_asked_to(cli: Run, damaged: Path) -> None:
    plain = cli("doctor")
    assert (plain.code, plain.err) == (0, "")
    ran = cli("doctor", "--verify")
    assert ran.code == 1
    assert says(ran.err, damaged)
    assert "verified: 13 spectra are as they were written, 1 are damaged" in ran.err
    again = cli("doctor", "--verify")
    assert (again.code, BAD in re.sub(r"\s", "", again.out)) == (1, True)


def test_what_was_set_aside_stays_listed(tmp_path: Path, cli: Run, damaged: Path) -> None:
    cli("show", tmp_path / "m")
    ran = cli("ls")
    assert ran.code == 0
    assert says(ran.err, damaged)
    (row,) = cli("ls", "--json").rows
    ((file, reason),) = ((found["file"], found["reason"]) for found in row["damaged"])
    assert (file, row["spectra"]) == (f"{damaged}.damaged", 13)
    assert BAD in reason
    damaged.with_name(f"{damaged.name}.damaged").unlink()
    assert cli("ls").err == ""


def test_a_damaged_index_is_named_by_ls(cli: Run, damaged: Path) -> None:
    damaged.write_bytes(damaged.read_bytes()[:-100])
    ran = cli("ls")
    assert f"{damaged}.damaged: Its bytes are not those that were written" in ran.err
    assert ran.out.split("\n")[1].split()[1:2] == ["0"]
    assert "cannot be told any more" in cli("ls").err


def test_rm_counts_what_it_deletes(tmp_path: Path, cli: Run, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    cli("show", tmp_path / "m")
    with monkeypatch.context() as patch:
        patch.setattr("rankscope.store.layout.FORMAT_VERSION", max(READABLE) + DERIVED_VERSION)
        cli("scan", tmp_path / "m", "--filter", BAD)
    (damaged.parent / f".tmp-{HOST}-{gone.pid}-0123456789abcdef").touch()
    rest = "13 spectra of .*, 1 unreadable file, 1 damaged file, 1 half-written file"
    assert re.fullmatch(f"removed {rest}\n", cli("rm", tmp_path / "m").err)
    assert not damaged.parent.exists()


def test_what_only_a_later_version_reads_can_be_removed(
    tmp_path: Path, cli: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_llama(tmp_path / "m", 1)
    with monkeypatch.context() as patch:
        patch.setattr("rankscope.store.layout.FORMAT_VERSION", 9)
        cli("scan", tmp_path / "m", "--filter", "attention.key")
    assert re.fullmatch("removed 0 spectra of .*, 1 unreadable file\n", cli("rm", tmp_path / "m").err)
    assert not any(segments.names(path) for path in store.iterdir())


def test_a_scan_with_nothing_to_do_sweeps(tmp_path: Path, cli: Run, store: Path) -> None:
    write_llama(tmp_path / "m", 1)
    cli("scan", tmp_path / "m")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder,) = (path for path in store.iterdir() if segments.names(path))
    mine, others = (folder / f".tmp-{HOST}-{pid}-0123456789abcdef" for pid in (gone.pid, os.getpid()))
    for path in (mine, others):
        path.touch()
    cli("show", tmp_path / "m")
    assert mine.exists()  # commands that only read delete nothing
    cli("scan", tmp_path / "m")
    assert (mine.exists(), others.exists()) == (False, True)

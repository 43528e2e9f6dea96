"""A store that several people use: what one of them cannot read is reported in a line, and all else works."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_models import addresses, write_llama
from cli_process import Run

from rankscope.tui.data.at_hand import choices

REASON = "It cannot be read (Permission denied)."


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make a folder or file unreadable, for root as well."""
    listed, opened, read = Path.iterdir, os.open, Path.read_bytes
    forbidden: set[Path] = set()

    def check(path: object) -> None:
        if isinstance(path, str | Path) and Path(path) in forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def list_folder(path: Path) -> Iterator[Path]:
        check(path)
        return listed(path)

    def read_file(path: Path) -> bytes:
        check(path)
        return read(path)

    monkeypatch.setattr(Path, "iterdir", list_folder)
    monkeypatch.setattr(Path, "read_bytes", read_file)
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: (check(path), opened(path, *rest, **more))[1])
    return forbidden.add


@pytest.fixture
def shared(tmp_path: Path, cli: Run, store: Path) -> tuple[Path, Path]:
    """A stored model, and the folder of another."""
    write_llama(tmp_path / "m", 1)
    assert cli("scan", tmp_path / "m").code == 0
    theirs = store / "org--theirs"
    theirs.mkdir()
    (theirs / f"seg-{'0' * 32}.h5").write_bytes(b"whatever")
    return tmp_path / "m", theirs


def test_a_folder_that_cannot_be_read_is_one_line(
    shared: tuple[Path, Path], cli: Run, store: Path, forbid: Callable[[Path], None]
) -> None:
    model, theirs = shared
    forbid(theirs)
    ran = cli("ls")
    assert (ran.code, ran.err) == (0, f"{theirs}: {REASON}\n")
    assert [line.split()[-5:-4] for line in ran.out.splitlines()[1:]] == [["7"]]
    damaged = {row["folder"]: row["damaged"] for row in map(json.loads, cli("ls", "--json").out.splitlines())}
    assert damaged.pop("org--theirs") == [{"file": str(theirs), "reason": REASON}]
    assert list(damaged.values()) == [[]]
    assert f"{theirs}: {REASON}" in " ".join(cli("doctor").out.split())
    for name in ("org/theirs", "org--theirs"):
        assert cli("show", name).error.startswith(f"rankscope: {theirs}: {REASON}")
    assert {found.name: found.kind for found in choices(store)}[
        "org--theirs"
    ] == "its folder in the store cannot be read: see  rankscope ls"
    assert cli("show", model).code == 0
    assert cli("scan", model, "--recompute").code == 0


def test_the_folder_of_an_open_model_that_cannot_be_read(
    shared: tuple[Path, Path], cli: Run, store: Path, forbid: Callable[[Path], None]
) -> None:
    model, _ = shared
    (folder,) = (path for path in store.iterdir() if path.name.startswith("m--"))
    forbid(folder)
    assert cli("show", model).error.startswith(f"rankscope: {folder}: {REASON}")
    assert set(cli("tree", model, "--json").states.values()) == {"not computed"}


def test_a_file_that_cannot_be_read_costs_its_spectra_alone(
    shared: tuple[Path, Path], cli: Run, store: Path, forbid: Callable[[Path], None]
) -> None:
    model, _ = shared
    (folder,) = (path for path in store.iterdir() if path.name.startswith("m--"))
    before = set(folder.iterdir())
    write_llama(model, 2, seed=3)
    assert cli("scan", model, "--filter", "layers.1").code == 0
    for file in set(folder.iterdir()) - before:
        forbid(file)
    assert cli("scan", model, "--filter", "layers.0").code == 0
    ran = cli("show", model, "-t", "90")
    assert ran.code == 0
    assert {line for line in ran.err.splitlines() if REASON in line}
    assert set(cli("ls").err.splitlines()) >= {line for line in ran.err.splitlines() if REASON in line}


def test_what_is_no_folder_of_ours_is_no_model(cli: Run, store: Path, forbid: Callable[[Path], None]) -> None:
    for name in ("lost+found", ".Trash-1000", "empty"):
        (store / name).mkdir(parents=True)
    for name in ("lost+found", ".Trash-1000"):
        forbid(store / name)
    ran = cli("ls")
    assert (ran.code, ran.out, ran.err) == (0, "", f"nothing is stored in {store} yet: try  rankscope scan demo\n")


def test_a_model_of_which_no_file_can_be_read(
    shared: tuple[Path, Path], cli: Run, forbid: Callable[[Path], None]
) -> None:
    _, theirs = shared
    for file in theirs.iterdir():
        forbid(file)
    assert cli("show", "org/theirs").error == (
        "rankscope: no spectra of org/theirs are stored that can be read: see  rankscope ls"
    )
    assert REASON in cli("ls").err


def test_many_that_fail_alike_are_one_line(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llama(tmp_path / "m", 2)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    ran = cli("scan", tmp_path / "m")
    assert ran.code == 1
    last = ran.err.splitlines()[-1]
    assert last.startswith(
        f"failed: 14 projections, from {addresses()[0]} to {addresses()[-1]}: cannot be saved: Input/"
    )
    assert str(tmp_path) in last
    assert ran.err.count("cannot be saved") == 1

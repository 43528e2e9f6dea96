"""Atomic writing: the whole file or nothing, and every part of the program writes this way."""

from __future__ import annotations

import ast
import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import rankscope.engine
import rankscope.store
import rankscope.tui
from rankscope.engine.atomic import HOST, TEMPORARY, write_atomically

OLD, NEW = b"what stood there", bytes(range(256)) * 40
WRITERS = {"write_text", "write_bytes", "touch", "mkstemp", "NamedTemporaryFile", "symlink_to", "hardlink_to"}


def test_a_file_is_there_whole_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:1000]))
    path = tmp_path / "a name"
    for data in (OLD, NEW, b""):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_where_the_disk_fails_the_old_file_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    seen: list[str] = []

    def fail(*_: object) -> int:
        seen.extend(path.name for path in tmp_path.iterdir() if path.name != "old")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "old"
    path.write_bytes(OLD)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, NEW)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (OLD, [path])
    (temporary,) = seen
    found = TEMPORARY.fullmatch(temporary)
    assert found is not None
    assert int(found["pid"]) == os.getpid()


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "new", []
    real = os.fsync

    def fsync(handle: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(path, NEW)
    assert seen == [(False, False), (True, True)]


def test_a_temporary_file_of_somebody_else_is_never_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as where two machines of one name share a folder, and a process of each has the same number."""
    monkeypatch.setattr(os, "urandom", bytes)
    theirs = tmp_path / f".tmp-{HOST}-{os.getpid()}-{'00' * 8}"
    theirs.write_bytes(OLD)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "new", NEW)
    assert (theirs.read_bytes(), list(tmp_path.iterdir())) == (OLD, [theirs])


def test_two_threads_write_one_name_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, real = threading.Barrier(2, timeout=10), os.write

    def write(handle: int, data: bytes) -> int:
        with suppress(threading.BrokenBarrierError):
            both.wait()  # both have opened their temporary files
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda data: write_atomically(tmp_path / "name", data), (OLD, NEW)))
    assert (tmp_path / "name").read_bytes() in (OLD, NEW)
    assert len(list(tmp_path.iterdir())) == 1


def test_no_other_file_of_ours_writes_one() -> None:
    found = []
    for room in (rankscope.engine, rankscope.store, rankscope.tui):
        for path in Path(next(iter(room.__path__))).rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            found += [(path.name, ast.unparse(call)) for call in calls if _writes(call)]
    assert found == []


def _writes(call: ast.Call) -> bool:
    """Whether a call makes a file: judged by its name, or an `open` with a mode that writes."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    words = [node.value for node in [*call.args, *(k.value for k in call.keywords)] if isinstance(node, ast.Constant)]
    is_mode = any(isinstance(word, str) and set(word) <= set("rwxabt+") and set(word) & set("wxa+") for word in words)
    return name in WRITERS or (name == "open" and is_mode)

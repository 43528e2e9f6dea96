"""One way to write a file: all of it or nothing, and nowhere else."""

from __future__ import annotations

import ast
import errno
import os
import stat
from pathlib import Path

import pytest

import rankscope.engine
import rankscope.store
import rankscope.tui
from rankscope.engine.atomic import TEMPORARY, write_atomically

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


def test_no_other_file_of_ours_writes_one() -> None:
    found = []
    for room in (rankscope.engine, rankscope.store, rankscope.tui):
        for path in Path(next(iter(room.__path__))).rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            found += [(path.name, ast.unparse(call)) for call in calls if _writes(call)]
    assert found == []


def _writes(call: ast.Call) -> bool:
    """Whether a call makes a file: by its name, or `open` with a mode that writes."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    words = [node.value for node in [*call.args, *(k.value for k in call.keywords)] if isinstance(node, ast.Constant)]
    is_mode = any(isinstance(word, str) and set(word) <= set("rwxabt+") and set(word) & set("wxa+") for word in words)
    return name in WRITERS or (name == "open" and is_mode)

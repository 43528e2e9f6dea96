"""A full disk: computed spectra wait until there is room, and merging makes room while it can."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rankscope.engine.spectrum import Spectrum
from rankscope.store import segments, spectra, writer
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]
PATIENCE = 10.0
BLOCK = 4096


class SmallDisk:
    """Fakes of the os calls for a disk that holds a number of bytes, in blocks, below a folder."""

    def __init__(self, folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.size = size
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=self.free // BLOCK, f_frsize=BLOCK))

    @property
    def free(self) -> int:
        files = [path.stat().st_size for path in self.folder.rglob("*") if path.is_file()]
        return max(0, self.size - sum(-(-size // BLOCK) * BLOCK for size in files))

    def write(self, handle: int, data: memoryview) -> int:
        """Write into what is left of the file's last block and of the disk; ENOSPC where nothing is left."""
        room = self.free + -os.fstat(handle).st_size % BLOCK
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(handle, data[:room])


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[str]:
    """The messages of a test's stores, which retry without a pause."""
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    lines: queue.Queue[str] = queue.Queue()
    return lines


def stored(root: Path) -> dict[int | None, Spectrum]:
    """The spectra that another process would find, by layer."""
    store = SpectraStore(root, "m")
    assert store.damaged == []
    return {entry.projection.layer: store.get(entry.projection.key) for entry in store.entries()}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_what_finds_no_room_waits_for_it(
    make: Make,
    same: Same,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heard: queue.Queue[str],
    code: int,
    call: str,
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    with SpectraStore(tmp_path, "m") as store:
        store.listen(heard.put)
        store.put(make(0)).result(PATIENCE)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            waiting = [store.put(make(n)) for n in (1, 2)]
            assert str(store.folder) in heard.get(timeout=PATIENCE)
            heard.get(timeout=PATIENCE)  # it was tried again
            assert not any(future.done() for future in waiting)
        for future in waiting:
            future.result(PATIENCE)
        while line := heard.get(timeout=PATIENCE):
            assert line.startswith("full disk: ")
        assert sorted(path.name for path in store.folder.iterdir()) == segments.names(store.folder)
    assert heard.empty()
    found = stored(tmp_path)
    assert all(same(found.pop(n), make(n)) for n in range(3))
    assert not found


def test_what_fits_is_saved_before_the_rest_waits(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: queue.Queue[str]
) -> None:
    """20 spectra take 80 kB each; 1 MB holds a dozen, however they are written; the missing space is stated in MB."""
    disk = SmallDisk(tmp_path, 1_000_000, monkeypatch)
    with SpectraStore(tmp_path, "m") as store:
        store.listen(heard.put)
        futures = [store.put(make(n, 10_000)) for n in range(20)]
        line = heard.get(timeout=PATIENCE)
        done = sum(future.done() for future in futures)
        assert 8 <= done <= 12
        assert len(stored(tmp_path)) == done
        missing = float(line.removeprefix("full disk: ").split(" MB missing in ")[0])
        assert missing * 1e6 == pytest.approx((20 - done) * 80_000 - disk.free, abs=1e5)
        disk.size *= 2
        for future in futures:
            future.result(PATIENCE)
    assert len(stored(tmp_path)) == 20


def test_merging_makes_room_as_far_as_it_can(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: queue.Queue[str]
) -> None:
    """36 spectra, each saved alone, take 600 kB as they are written and 60 kB merged."""
    SmallDisk(tmp_path, 160_000, monkeypatch)
    with SpectraStore(tmp_path, "m") as store:
        store.listen(heard.put)
        for n in range(36):
            store.put(make(n, 100)).result(PATIENCE)
        assert not store.look()  # no other process was there
    assert heard.empty()
    found = stored(tmp_path)
    assert all(same(found.pop(n), make(n, 100)) for n in range(36))


def test_a_merge_takes_as_many_files_as_there_is_room_for(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of killed processes are merged in several steps, each making room for the next."""
    with monkeypatch.context() as patch, SpectraStore(tmp_path, "m") as store:
        patch.setattr(spectra, "_MERGE_AT", 100)
        for n in range(24):
            store.put(make(n, 1000)).result(PATIENCE)
    assert len(segments.names(tmp_path / "m")) == 24
    disk = SmallDisk(tmp_path, 2**30, monkeypatch)
    disk.size += 100_000 - disk.free
    monkeypatch.setattr(spectra, "_MERGE_AT", 24)
    SpectraStore(tmp_path, "m").merge()
    names = segments.names(tmp_path / "m")
    assert {name[:3] for name in names} == {"vol"}
    assert 2 <= len(names) <= 8
    assert len(stored(tmp_path)) == 24


def test_leaving_while_the_disk_is_full_ends_and_says_how_much_is_lost(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: queue.Queue[str]
) -> None:
    disk = SmallDisk(tmp_path, 40_000, monkeypatch)
    store = SpectraStore(tmp_path, "m")
    store.listen(heard.put)
    store.put(make(0)).result(PATIENCE)
    disk.size = 0
    lost = [store.put(make(n)) for n in (1, 2, 3)]
    assert heard.get(timeout=PATIENCE)
    ended: list[int] = []
    closing = threading.Thread(target=lambda: ended.append(store.close()), daemon=True)
    closing.start()
    closing.join(PATIENCE)
    assert ended == [3]
    assert [getattr(future.exception(0), "errno", None) for future in lost] == [errno.ENOSPC] * 3
    assert same(stored(tmp_path)[0], make(0))
    assert [path.name for path in store.folder.iterdir()] == segments.names(store.folder)


def test_a_full_disk_halfway_leaves_no_rest(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: queue.Queue[str]
) -> None:
    disk = SmallDisk(tmp_path, 2 * BLOCK, monkeypatch)
    with SpectraStore(tmp_path, "m") as store:
        store.listen(heard.put)
        future = store.put(make(0))
        assert heard.get(timeout=PATIENCE) == f"full disk: 0.1 MB missing in {store.folder}"
        monkeypatch.setattr(writer, "RETRY_SECONDS", PATIENCE)
        while heard.qsize():  # attempts that began before
            heard.get()
        assert not future.done()
        disk.size *= 10
        store.close()
        assert future.done()
        assert [path.name for path in store.folder.iterdir()] == segments.names(store.folder)

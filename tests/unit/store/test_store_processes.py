"""Several processes, and processes that are killed. Workers are forked: a fresh interpreter costs 0.3 s."""

from __future__ import annotations

import os
import random
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest

from rankscope.engine.spectrum import Spectrum
from rankscope.store import layout, segments, spectra
from rankscope.store.entry import entry_of
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]

_write = os.write


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work(pipe)` in a child; return its pid and the end of the pipe that reads its report."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            work(writing)
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    return pid, reading


def reports(pipe: int) -> list[int]:
    """The bytes that the child reported, once it has ended."""
    with open(pipe, "rb") as file:
        return list(file.read())


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(root: Path, saved: list[int], make: Make, same: Same) -> None:
    store = SpectraStore(root, "m")
    for n in saved:
        assert same(store.get(make(n).projection.key), make(n))
    assert store.damaged == []


def puts_and_merges(root: Path, make: Make, pipe: int) -> None:
    with SpectraStore(root, "m") as store:
        for n in range(4):
            store.put(make(n)).result()
            _write(pipe, bytes([n]))
            store.merge()


def doomed(point: int, half: bool) -> None:
    """Kill this process before its `point`-th call of the operating system that changes a disk; with `half`, within
    its `point`-th write, the only call that can be done in part."""
    left = point

    def wrap(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                if half:
                    real(args[0], args[1][: len(args[1]) // 2])  # type: ignore[index, arg-type]
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        return call

    for name in ("write",) if half else ("open", "write", "fsync", "close", "replace", "rename", "unlink", "mkdir"):
        setattr(os, name, wrap(name))


@pytest.mark.parametrize(("half", "least"), [(False, 35), (True, 5)], ids=["before", "within"])
def test_a_kill_at_every_call_loses_nothing_that_was_reported(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool, least: int
) -> None:
    monkeypatch.setattr(spectra, "_MERGE_AT", 3)
    point, killed = 0, True
    while killed:
        root = tmp_path / str(point)

        def work(pipe: int, root: Path = root, point: int = point) -> None:
            doomed(point, half)
            puts_and_merges(root, make, pipe)

        pid, pipe = fork(work)
        saved = reports(pipe)
        killed = status(pid) == -signal.SIGKILL
        check(root, saved, make, same)
        with SpectraStore(root, "m") as store:
            store.put(make(9)).result()
            files = [path.name for path in store.folder.iterdir()]
        assert not any(name.startswith(".tmp") for name in files)
        check(root, [*saved, 9], make, same)
        point += 1
    assert saved == list(range(4))
    assert point > least


def test_a_kill_at_every_call_while_damage_is_dealt_with_costs_nothing_more(
    make: Make, same: Same, tmp_path: Path
) -> None:
    kept = [make(n) for n in range(4)]
    image = layout.build([entry_of(s) for s in kept], [s.values for s in kept])
    data = bytearray(image.data)
    data[image.part.place(2).start + 5] ^= 1
    point, killed = 0, True
    while killed:
        root = tmp_path / str(point)
        (root / "m").mkdir(parents=True)
        name = segments.write(root / "m", segments.VOLUME, image.data)
        (root / "m" / name).write_bytes(data)

        def work(_: int, root: Path = root, point: int = point) -> None:
            doomed(point, half=False)
            SpectraStore(root, "m").values(s.projection.key for s in kept)

        pid, pipe = fork(work)
        os.close(pipe)
        killed = status(pid) == -signal.SIGKILL
        for _ in range(2):
            store = SpectraStore(root, "m")
            assert len(store.values(s.projection.key for s in kept)) == 3
            assert not store.has(kept[2].projection.key)
            assert all(same(store.get(s.projection.key), s) for s in kept if s is not kept[2])
        assert [path for path, _ in store.set_aside] == [root / "m" / f"{name}.damaged"]
        assert len(segments.names(root / "m")) <= 2  # from a process that was killed between writing and renaming
        point += 1
    assert point > 7


def test_random_kills_of_two_writers(make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "_MERGE_AT", 4)
    rng = random.Random(5)

    def work(first: int) -> Callable[[int], None]:
        def run(pipe: int) -> None:
            def report(number: int, future: Future[None]) -> None:
                future.result()
                _write(pipe, bytes([number]))

            with SpectraStore(tmp_path, "m") as store:
                for n in range(first, first + 100):
                    store.put(make(n)).add_done_callback(partial(report, n))
                    if n % 5 == 0:
                        store.merge()

        return run

    saved: set[int] = set()
    for _ in range(8):
        children = [fork(work(0)), fork(work(100))]
        for (pid, pipe), wanted in zip(children, (rng.randrange(1, 40), rng.randrange(1, 40)), strict=True):
            saved.update(b"".join(os.read(pipe, 1) for _ in range(wanted)))
            os.kill(pid, signal.SIGKILL)
            saved.update(reports(pipe))
            assert status(pid) in (-signal.SIGKILL, 0)
        check(tmp_path, sorted(saved), make, same)
    assert len(saved) > 8


def test_two_writers_two_mergers_and_a_reader(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra, "_MERGE_AT", 4)

    def work(first: int) -> Callable[[int], None]:
        def run(_: int) -> None:
            with SpectraStore(tmp_path, "m") as store:
                for n in range(first, first + 30):
                    store.put(make(n)).result()
                    if n % 3 == 0:
                        store.merge()

        return run

    children = [fork(work(0)), fork(work(30))]
    expected = {make(n).projection.key: make(n) for n in range(60)}
    reader = SpectraStore(tmp_path, "m")
    seen: set[str] = set()
    running = {pid for pid, _ in children}
    while running:
        for pid in list(running):
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                assert code == 0
                running.discard(pid)
        reader.refresh()
        keys = {entry.projection.key for entry in reader.entries()}
        assert seen <= keys
        fresh = SpectraStore(tmp_path, "m")
        fresh_keys = {entry.projection.key for entry in fresh.entries()}
        assert fresh.damaged == []
        assert seen <= fresh_keys
        for key, values in reader.values(keys).items():
            assert values.tobytes() == expected[key].values.tobytes()
        seen = keys
    for _, pipe in children:
        os.close(pipe)
    check(tmp_path, list(range(60)), make, same)
    names = segments.names(tmp_path / "m")
    assert any(name.startswith("vol") for name in names)
    assert reader.damaged == []

"""The store on failing disks, with damaged files, and beside other threads: nothing saved is lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankscope.engine.spectrum import Spectrum
from rankscope.store import regular_files, segments, spectra
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]


def key(spectrum: Spectrum) -> str:
    return spectrum.projection.key


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failing_disk_fails_the_future_and_nothing_else(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            error = store.put(make(1)).exception(10)
        assert isinstance(error, OSError)
        assert (error.errno, error.filename) == (code, str(store.folder))
        assert not store.has(key(make(1)))
        store.put(make(2)).result()
        assert [same(store.get(key(make(n))), make(n)) for n in (0, 2)] == [True, True]
    again = SpectraStore(tmp_path, "m")
    assert {entry.projection.layer for entry in again.entries()} == {0, 2}
    assert sorted(path.name for path in again.folder.iterdir()) == segments.names(again.folder)


def test_a_merge_on_a_full_disk_loses_nothing(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = SpectraStore(tmp_path, "m")
    for n in range(3):
        store.put(make(n)).result()
    monkeypatch.setattr(spectra, "_MERGE_AT", 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(OSError, match="No space"):
            store.merge()
        store.close()  # retries in silence: the spectra are safe
    assert len(segments.names(store.folder)) == 3
    assert all(same(store.get(key(make(n))), make(n)) for n in range(3))


def test_a_folder_that_is_removed_comes_back(make: Make, tmp_path: Path) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
        shutil.rmtree(store.folder)
        assert isinstance(store.put(make(1)).exception(), OSError)
        store.put(make(2)).result()
        store.refresh()
        assert [entry.projection.layer for entry in store.entries()] == [2]


def test_one_bad_spectrum_is_refused_at_once(make: Make, tmp_path: Path) -> None:
    with SpectraStore(tmp_path, "m") as store:
        for values in (np.zeros(11), np.zeros(12, np.float32), np.zeros((12, 1))):
            with pytest.raises(ValueError, match="float64"):
                store.put(make(0, values=values))
        assert not store.folder.exists()


def test_a_cancelled_future_does_not_stop_the_writer(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, gate = threading.Event(), threading.Event()
    real = spectra.build
    monkeypatch.setattr(spectra, "build", lambda *args: (began.set(), gate.wait(10), real(*args))[2])
    with SpectraStore(tmp_path, "m") as store:
        first = store.put(make(0))
        assert began.wait(10)
        second: Future[None] = store.put(make(1))
        assert second.cancel()
        third = store.put(make(2))
        gate.set()
        first.result()
        third.result()
        assert {entry.projection.layer for entry in store.entries()} == {0, 2}


@pytest.mark.parametrize("cut", [False, True])
def test_damage_anywhere_in_a_segment_is_found_and_the_others_are_served(
    make: Make, same: Same, tmp_path: Path, cut: bool
) -> None:
    good = [make(0), make(1)]
    with SpectraStore(tmp_path, "m") as store:
        for spectrum in good:
            store.put(spectrum).result()
        before = segments.names(store.folder)
        store.put(make(2)).result()
        (name,) = set(segments.names(store.folder)) - set(before)
    intact = (store.folder / name).read_bytes()
    rng = random.Random(11)
    for _ in range(20 if cut else 150):
        data = bytearray(intact)
        place = rng.randrange(len(data))
        if cut:
            del data[place:]
        else:
            data[place] ^= 1 << rng.randrange(8)
        (store.folder / name).write_bytes(data)
        reader = SpectraStore(tmp_path, "m")
        assert not reader.has(key(make(2)))
        assert all(same(reader.get(key(spectrum)), spectrum) for spectrum in good)
        ((path, sentence),) = reader.damaged
        assert path == store.folder / f"{name}.damaged"
        assert path.read_bytes() == data
        assert sentence.endswith(".")
        assert segments.names(store.folder) == before
    SpectraStore(tmp_path, "m").refresh()
    with SpectraStore(tmp_path, "m") as again:
        assert again.damaged == []
        again.put(make(2)).result()
        assert same(again.get(key(make(2))), make(2))


def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a store that reads the same file for ever fail."""
    real, calls = segments.load_values, []

    def load_values(*args: Any) -> Any:
        calls.append(args)
        assert len(calls) < 5
        return real(*args)

    monkeypatch.setattr(segments, "load_values", load_values)


def test_damage_in_a_folder_that_can_only_be_read(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
        assert store.has(key(make(0)))  # the index is read before the damage is done
        path = store.folder / segments.names(store.folder)[0]
        data = bytearray(path.read_bytes())
        data[data.index(make(0).values.tobytes()) + 3] ^= 1
        path.write_bytes(data)

        def refuse(*_: object) -> Path:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "rename", refuse)
        few_calls(monkeypatch)
        assert store.values([key(make(0))]) == {}
        assert not store.has(key(make(0)))
        store.refresh()
        assert not store.has(key(make(0)))
        assert [found for found, _ in store.damaged] == [path]


def test_a_name_that_leads_nowhere_is_left_alone(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
        store.put(make(1)).result()
        assert len(store.entries()) == 2
        path = store.folder / segments.names(store.folder)[0]
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
        few_calls(monkeypatch)
        assert len(store.values([key(make(0)), key(make(1))])) == 1
        assert [found for found, _ in store.damaged] == [path]
    assert len(SpectraStore(tmp_path, "m").entries()) == 1


def test_a_merge_that_another_thread_has_done_is_not_done_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
        with monkeypatch.context() as patch:
            due = iter([True, False])  # when it was requested; when its turn came
            patch.setattr(spectra, "_is_due", lambda _: next(due))
            store.merge()
        assert [name[:3] for name in segments.names(store.folder)] == ["seg"]


def test_damage_found_by_a_merge_spares_the_rest(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SpectraStore(tmp_path, "m")
    for n in range(4):
        store.put(make(n)).result()
    monkeypatch.setattr(spectra, "_MERGE_AT", 4)
    bad = store.folder / segments.names(store.folder)[0]
    bad.write_bytes(bad.read_bytes()[:-1])
    store.merge()
    assert [path.name for path, _ in store.damaged] == [f"{bad.name}.damaged"]
    left = store.entries()
    assert len(left) == 3
    assert all(same(store.get(entry.projection.key), make(entry.projection.layer)) for entry in left)


def test_a_file_that_cannot_be_read_now_is_read_later(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
    reader = SpectraStore(tmp_path, "m")

    def fail(_: Path) -> bytes:
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(regular_files, "read_bytes", fail)
        assert reader.entries() == []
        ((path, sentence),) = reader.damaged
    assert path.exists()
    assert "Permission denied" in sentence
    reader.refresh()
    assert reader.has(key(make(0)))
    assert reader.damaged == []

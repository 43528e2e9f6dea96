"""SpectraStore: what counts, what is stale, what happens when the disk does not play along."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from platformdirs import user_data_path

from rankscope.engine.spectrum import Source, Spectrum
from rankscope.store import segments, spectra
from rankscope.store.entry import entry_of
from rankscope.store.folders import default_root, model_folder
from rankscope.store.spectra import SpectraStore, remove_model, stored_models

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]
LOCAL = Source("/models/a", "", "a.safetensors", "identity", 10, False)


def key(spectrum: Spectrum) -> str:
    return spectrum.projection.key


def test_creating_and_reading_make_neither_folder_nor_thread(tmp_path: Path) -> None:
    threads = threading.active_count()
    with SpectraStore(tmp_path / "root", "m") as store:
        assert store.entries() == []
        assert not store.has("k")
        assert store.entry("k") is None
        assert store.values(["k"]) == {}
        with pytest.raises(KeyError):
            store.get("k")
        store.merge()
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


def test_a_spectrum_just_put_is_known_without_reading(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SpectraStore(tmp_path, "m") as store:
        assert not store.has(key(make(0)))
        monkeypatch.setattr(segments, "load_part", None)
        store.put(make(0)).result()
        assert store.has(key(make(0)))
        assert store.entries() == [entry_of(make(0))]


def test_entries_never_touch_values(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
    monkeypatch.setattr(segments, "load_values", None)
    assert SpectraStore(tmp_path, "m").entry(key(make(0))) == entry_of(make(0))


def test_another_store_sees_it_after_refresh(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SpectraStore(tmp_path, "m") as writer, SpectraStore(tmp_path, "m") as reader:
        assert reader.entries() == []
        writer.put(make(0)).result()
        assert not reader.has(key(make(0)))
        reader.refresh()
        assert reader.has(key(make(0)))
        monkeypatch.setattr(segments, "load_part", None)  # nothing changed: nothing is read
        reader.refresh()
        assert reader.has(key(make(0)))


def test_batches_take_everything_pending_up_to_64(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, sizes = threading.Event(), []
    real = spectra.build

    def build(entries: list[object], values: list[object]) -> object:
        gate.wait(10)
        sizes.append(len(entries))
        return real(entries, values)  # type: ignore[arg-type]

    monkeypatch.setattr(spectra, "build", build)
    with SpectraStore(tmp_path, "m") as store:
        futures = [store.put(make(n)) for n in range(150)]
        gate.set()
        for future in futures:
            future.result()
        assert max(sizes) == 64
        assert sum(sizes) == 150
        assert len(sizes) <= 4
        assert len(store.entries()) == 150


def test_putting_from_many_threads(make: Make, same: Same, tmp_path: Path) -> None:
    with SpectraStore(tmp_path, "m") as store, ThreadPoolExecutor(8) as pool:

        def put_and_read(n: int) -> bool:
            store.put(make(n)).result()
            store.refresh()
            store.merge()
            return same(store.get(key(make(n))), make(n))

        assert all(pool.map(put_and_read, range(120)))
    assert len(SpectraStore(tmp_path, "m").entries()) == 120


def test_close_finishes_what_is_pending_and_merges(make: Make, same: Same, tmp_path: Path) -> None:
    store = SpectraStore(tmp_path, "m")
    for n in range(31):
        store.put(make(n)).result()
    futures = [store.put(make(n)) for n in range(31, 40)]
    store.close()
    assert all(future.done() for future in futures)
    assert [name[:3] for name in segments.names(store.folder)] == ["vol"]
    assert all(same(store.get(key(make(n))), make(n)) for n in range(40))
    with pytest.raises(RuntimeError):
        store.put(make(50))
    store.close()


def test_few_segments_are_not_merged(make: Make, tmp_path: Path) -> None:
    with SpectraStore(tmp_path, "m") as store:
        for n in range(31):
            store.put(make(n)).result()
        store.merge()
        assert len(segments.names(store.folder)) == 31


def test_readers_follow_a_merge(make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SpectraStore(tmp_path, "m") as store:
        for n in range(5):
            store.put(make(n)).result()
        reader = SpectraStore(tmp_path, "m")
        assert len(reader.entries()) == 5
        monkeypatch.setattr(spectra, "_MERGE_AT", 5)
        store.merge()
    assert [name[:3] for name in segments.names(store.folder)] == ["vol"]
    assert all(same(reader.get(key(make(n))), make(n)) for n in range(5))


def test_the_newest_of_a_key_counts(make: Make, same: Same, tmp_path: Path) -> None:
    old, new = make(0), make(0, computed_at="2026-01-01T00:00:00.000000Z", solver="svd")
    for folder, order in (("new-last", [old, new]), ("new-first", [new, old])):
        with SpectraStore(tmp_path, folder) as store:
            for spectrum in order:
                store.put(spectrum).result()
            assert store.entries() == [entry_of(new)]
        again = SpectraStore(tmp_path, folder)
        assert again.entries() == [entry_of(new)]
        assert same(again.get(key(new)), new)


def test_a_file_changed_in_place_makes_its_old_spectra_stale(make: Make, tmp_path: Path) -> None:
    def of(n: int, tensor: str, weights: str, source: Source = LOCAL) -> Spectrum:
        return make(n, tensor=tensor, weights_digest=weights, source=source)

    query, key_, other_tensor = of(1, "qkv", "old"), of(2, "qkv", "old"), of(3, "mlp", "old")
    other_file = of(4, "qkv", "old", replace(LOCAL, identity="another"))
    unchecked = of(5, "qkv", "")
    with SpectraStore(tmp_path, "m") as store:
        for spectrum in (query, key_, other_tensor, other_file, unchecked):
            store.put(spectrum).result()
        assert len(store.entries()) == 5
        store.put(of(6, "qkv", "new")).result()
        for reader in (store, SpectraStore(tmp_path, "m")):
            valid = {entry.projection.layer for entry in reader.entries()}
            assert valid == {3, 4, 5, 6}
            assert not reader.has(key(query))
            assert reader.values([key(key_), key(other_tensor)]).keys() == {key(other_tensor)}
            with pytest.raises(KeyError):
                reader.get(key(query))
        again = of(1, "qkv", "new")
        store.put(replace(again, computed_at="2026-01-01T00:00:00.000000Z")).result()
        assert store.has(key(query))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_what_is_stale_depends_on_time_and_not_on_the_order_of_files(
    make: Make, tmp_path: Path, order: tuple[int, ...]
) -> None:
    digests = {0: "first", 1: "second", 2: "third"}  # the number is the time, too
    with SpectraStore(tmp_path, "m") as store:
        for n in order:
            store.put(make(n, tensor="qkv", source=LOCAL, weights_digest=digests[n])).result()
        for reader in (store, SpectraStore(tmp_path, "m")):
            assert [entry.projection.layer for entry in reader.entries()] == [2]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
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
            error = store.put(make(1)).exception()
        assert isinstance(error, OSError)
        assert error.errno == code
        assert not store.has(key(make(1)))
        store.put(make(2)).result()
        assert [same(store.get(key(make(n))), make(n)) for n in (0, 2)] == [True, True]
    again = SpectraStore(tmp_path, "m")
    assert {entry.projection.layer for entry in again.entries()} == {0, 2}
    assert sorted(path.name for path in again.folder.iterdir()) == segments.names(again.folder)


def test_a_full_disk_halfway_leaves_no_rest(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.write, []

    def write(handle: int, data: memoryview) -> int:
        calls.append(handle)
        if len(calls) % 2 == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[:100])

    with SpectraStore(tmp_path, "m") as store:
        monkeypatch.setattr(os, "write", write)
        assert isinstance(store.put(make(0)).exception(), OSError)
        assert list(store.folder.iterdir()) == []
        monkeypatch.setattr(os, "write", real)
        store.put(make(0)).result()


def test_a_merge_on_a_full_disk_loses_nothing(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spectra, "_MERGE_AT", 3)
    store = SpectraStore(tmp_path, "m")
    for n in range(3):
        store.put(make(n)).result()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(OSError, match="No space"):
            store.merge()
        store.close()  # tries, and says nothing: the spectra are safe
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
    gate = threading.Event()
    real = spectra.build
    monkeypatch.setattr(spectra, "build", lambda *args: (gate.wait(10), real(*args))[1])
    with SpectraStore(tmp_path, "m") as store:
        first = store.put(make(0))
        while not first.running():
            pass
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
    """Fail instead of reading the same file for ever."""
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
            due = iter([True, False])  # when it was asked for; when its turn came
            patch.setattr(spectra, "_is_due", lambda _: next(due))
            store.merge()
        assert [name[:3] for name in segments.names(store.folder)] == ["seg"]


def test_damage_found_by_a_merge_spares_the_rest(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra, "_MERGE_AT", 4)
    store = SpectraStore(tmp_path, "m")
    for n in range(4):
        store.put(make(n)).result()
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
        patch.setattr(Path, "read_bytes", fail)
        assert reader.entries() == []
        ((path, sentence),) = reader.damaged
    assert path.exists()
    assert "Permission denied" in sentence
    reader.refresh()
    assert reader.has(key(make(0)))
    assert reader.damaged == []


def test_folder_names(tmp_path: Path) -> None:
    assert model_folder("meta-llama/Llama-3.1-8B") == "meta-llama--Llama-3.1-8B"
    assert model_folder("gpt2") == "gpt2"
    for wild in ("..", ".", "", ".hidden/x", "a b\\c:d\n", "../../etc"):
        name = model_folder(wild)
        assert Path(name).name == name
        assert not name.startswith(".")
        assert not set(name) & set(' \\/:\n"')
    one, two = tmp_path / "x" / "model one", tmp_path / "y" / "model one"
    for path in (one, two):
        path.mkdir(parents=True)
    assert model_folder(one).rsplit("--", 1)[0] == "model_one"
    assert len(model_folder(one).rsplit("--", 1)[1]) == 8
    assert model_folder(one) != model_folder(two)
    link = tmp_path / "link"
    link.symlink_to(one)
    assert model_folder(link) == model_folder(one) == model_folder(tmp_path / "x" / ".." / "x" / "model one")
    assert len(os.fsencode(model_folder(tmp_path / ("n" * 250)))) < 200


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANKSCOPE_STORE", str(tmp_path / "s"))
    assert default_root() == tmp_path / "s"
    monkeypatch.delenv("RANKSCOPE_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_root() == user_data_path("rankscope")
    assert not default_root().exists()


def test_stored_models(make: Make, tmp_path: Path) -> None:
    assert stored_models(tmp_path / "none") == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with SpectraStore(tmp_path, "org--model") as store:
        store.put(make(1)).result()
        store.put(make(3)).result()
    with SpectraStore(tmp_path, "a--12345678") as store:
        store.put(make(2, source=LOCAL)).result()
    local, hub = stored_models(tmp_path)
    assert (local.folder, local.name, local.spectra) == ("a--12345678", "/models/a", 1)
    assert (hub.folder, hub.name, hub.spectra) == ("org--model", "org/model", 2)
    assert hub.computed_at == make(3).computed_at
    assert hub.size == sum(path.stat().st_size for path in (tmp_path / "org--model").iterdir())


def test_remove_model_deletes_what_the_store_wrote_and_nothing_else(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for model in ("one", "two", "three"):
        with SpectraStore(root, model) as store:
            store.put(make(0)).result()
    name = segments.names(root / "one")[0]
    (root / "one" / f"{name}.damaged").touch()
    (root / "one" / f".tmp-{segments._HOST}-1-0123456789abcdef").touch()
    remove_model(root, "one")
    assert not (root / "one").exists()
    (root / "two" / "notes.h5").write_text("mine")
    remove_model(root, "two")
    assert [path.name for path in (root / "two").iterdir()] == ["notes.h5"]

    outside = tmp_path / "outside"
    shutil.copytree(root / "three", outside)
    (root / "link").symlink_to(outside)
    for escaping in ("../outside", "..", ".", "", str(outside), "three/../three", "three/", "link"):
        with pytest.raises(ValueError, match="not the name"):
            remove_model(root, escaping)
    assert segments.names(outside) == segments.names(root / "three") != []
    with pytest.raises(FileNotFoundError):
        remove_model(root, "absent")

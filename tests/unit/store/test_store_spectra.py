"""SpectraStore: which spectra count, which are stale, and what happens when the disk fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rankscope.engine.spectrum import FLIPPED, Source, Spectrum
from rankscope.store import segments, spectra
from rankscope.store.columns import METRICS
from rankscope.store.entries import Entries
from rankscope.store.entry import entry_of
from rankscope.store.spectra import SpectraStore

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
    with SpectraStore(tmp_path, "m") as before:
        for n in range(31):
            before.put(make(n)).result()
    store = SpectraStore(tmp_path, "m")
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
        return make(n, tensor=tensor, weights_digests=(weights,), source=source)

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
    digests = {0: "first", 1: "second", 2: "third"}  # the number is also the time
    with SpectraStore(tmp_path, "m") as store:
        for n in order:
            store.put(make(n, tensor="qkv", source=LOCAL, weights_digests=(digests[n],))).result()
        for reader in (store, SpectraStore(tmp_path, "m")):
            assert [entry.projection.layer for entry in reader.entries()] == [2]


def test_opening_a_store_makes_no_entries(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spectra = [make(n) for n in range(4)] + [make(1, derived=FLIPPED, key="twin")]
    with SpectraStore(tmp_path, "m") as store:
        for spectrum in spectra:
            store.put(spectrum).result()
    made: list[int] = []
    real = Entries.__getitem__
    monkeypatch.setattr(Entries, "__getitem__", lambda self, row: made.append(row) or real(self, row))
    store = SpectraStore(tmp_path, "m")
    stored = store.stored()
    keys = {s.projection.key for s in spectra}
    assert set(stored) == keys
    assert store.values(keys).keys() == keys
    assert all(store.has(key) for key in keys)
    assert stored.derived() == {"twin"}
    assert max(stored, key=stored.computed_at) == spectra[3].projection.key
    for spectrum in spectra:
        key, entry = spectrum.projection.key, entry_of(spectrum)
        assert stored.rank(key, 0.9) == entry.ranks[0.9]
        assert stored.rank(key, 0.123) is None
        assert [stored.number(key, name) for name in METRICS] == [getattr(entry, name) for name in METRICS]
        assert stored.projection(key) == spectrum.projection
    assert made == []
    assert dict(stored) == {s.projection.key: entry_of(s) for s in spectra}
    assert len(made) == len(spectra)


def test_what_was_stored_stays_as_it_was_when_it_was_asked_for(make: Make, tmp_path: Path) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(1)).result()
        stored = store.stored()
        store.put(make(1, solver="newer", computed_at="2030-01-01T00:00:00Z")).result()
        store.put(make(2)).result()
        assert list(stored.values()) == [entry_of(make(1))]
        assert len(store.stored()) == 2

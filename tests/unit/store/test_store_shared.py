"""Changes by other processes in a folder are seen, at the cost of one system call a look while nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rankscope.engine.spectrum import Spectrum
from rankscope.store import segments, spectra, watch
from rankscope.store.models import remove_model
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust new time stamps at once: the file systems of tests have fine clocks."""
    monkeypatch.setattr(watch, "SETTLED_SECONDS", 0.0)


def put(root: Path, *found: Spectrum) -> None:
    """Store a spectrum as another process does."""
    with SpectraStore(root, "m") as store:
        for spectrum in found:
            store.put(spectrum).result(10)


def keys(*found: Spectrum) -> set[str]:
    return {spectrum.projection.key for spectrum in found}


def test_a_look_sees_what_others_stored_and_removed(make: Make, tmp_path: Path) -> None:
    put(tmp_path, make(0))
    store = SpectraStore(tmp_path, "m")
    assert store.has(make(0).projection.key)
    assert (store.look(), store.news()) == (False, set())
    put(tmp_path, make(1), make(2))
    assert (store.look(), store.news()) == (True, keys(make(1), make(2)))
    assert store.has(make(2).projection.key)
    assert store.news() == set()
    remove_model(tmp_path, "m")
    assert store.look()
    assert store.news() == keys(make(0), make(1), make(2))
    assert store.entries() == []


def test_what_the_store_itself_saves_and_merges_is_nothing_of_others(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra, "_MERGE_AT", 3)
    with SpectraStore(tmp_path, "m") as store:
        assert store.entries() == []
        for n in range(8):
            store.put(make(n)).result(10)
            assert not store.look()
    assert any(name.startswith("vol") for name in segments.names(store.folder))


def test_where_nothing_changes_the_folder_is_not_listed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, make(0))
    store = SpectraStore(tmp_path, "m")
    assert len(store.entries()) == 1
    listed: list[Path] = []
    names = segments.names
    monkeypatch.setattr(segments, "names", lambda folder: (listed.append(folder), names(folder))[1])
    for _ in range(5):
        assert not store.look()
    assert listed == []
    put(tmp_path, make(1))
    listed.clear()
    assert store.look()
    assert len(listed) > 0


def test_two_changes_in_one_tick_of_the_clock_are_both_seen(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SETTLED_SECONDS", 2.0)
    put(tmp_path, make(0))
    tick = (tmp_path / "m").stat()
    store = SpectraStore(tmp_path, "m")
    assert len(store.entries()) == 1
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: tick if path == store.folder else real(path, **more))
    put(tmp_path, make(1))
    assert store.look()
    assert len(store.entries()) == 2


def test_a_folder_that_cannot_be_listed_is_named_and_what_was_read_stays(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, make(0))
    store = SpectraStore(tmp_path, "m")
    assert len(store.entries()) == 1

    def refuse(_: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(segments, "names", refuse)
        store.refresh()
        assert store.damaged == [(store.folder, "It cannot be read (Permission denied).")]
        assert len(store.entries()) == 1
    put(tmp_path, make(1))
    store.refresh()
    assert store.damaged == []
    assert len(store.entries()) == 2

"""Damage costs only what it hits, and is reported: flipped bytes in renewable files and in others."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from rankscope.engine.spectrum import Source, Spectrum
from rankscope.store import layout, segments, spectra
from rankscope.store.entry import entry_of
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]
Every = Callable[[Iterable[int], int], list[int]]
LOCAL = Source("/models/a", "", "a.safetensors", "identity", 10, False)
KINDS = [segments.SEGMENT, segments.VOLUME]
COUNT = 12


def key(spectrum: Spectrum) -> str:
    return spectrum.projection.key


def clear(folder: Path) -> None:
    """Make an empty folder."""
    folder.mkdir(exist_ok=True, parents=True)
    for path in folder.iterdir():
        path.unlink()


def lay(folder: Path, kind: str, kept: list[Spectrum]) -> Path:
    """A new folder with one file of these spectra."""
    clear(folder)
    return add(folder, kind, kept)


def add(folder: Path, kind: str, kept: list[Spectrum]) -> Path:
    image = layout.build([entry_of(s) for s in kept], [s.values for s in kept])
    return folder / segments.write(folder, kind, image.data)


def flipped(path: Path, data: bytes, place: int, bit: int) -> None:
    """Make these bytes, with one bit flipped, the only file of its folder."""
    clear(path.parent)
    path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def place_of(path: Path, spectrum: Spectrum) -> int:
    """The offset in a file at which the values of a spectrum begin."""
    return path.read_bytes().index(spectrum.values.tobytes())


def served(root: Path, kept: list[Spectrum], same: Same) -> tuple[SpectraStore, list[Spectrum]]:
    """A store that has read everything, and which of these spectra it serves; fail if one is wrong."""
    store = SpectraStore(root, "m")
    store.verify()
    found = store.values(map(key, kept))
    there = [s for s in kept if key(s) in found]
    assert all(same(store.get(key(s)), s) for s in there)
    assert [store.has(key(s)) for s in kept] == [s in there for s in kept]
    return store, there


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_among_the_values_costs_one_spectrum_which_is_named(
    make: Make, same: Same, tmp_path: Path, every: Every, kind: str
) -> None:
    kept = [make(n) for n in range(8)]
    path = lay(tmp_path / "m", kind, kept)
    intact, first = path.read_bytes(), place_of(path, kept[0])
    rng = random.Random(1)
    for place in every(range(first, first + 8 * COUNT * len(kept)), 8):
        flipped(path, intact, place, rng.randrange(8))
        hit = kept[(place - first) // (8 * COUNT)]
        for meeting in range(3):  # it is found; it was found before; it is computed again
            store, there = served(tmp_path, kept, same)
            assert there == [s for s in kept if s is not hit or meeting == 2]
            (aside, sentence), *more = store.set_aside if meeting else store.damaged
            assert (aside.name, more) == (f"{path.name}.damaged", [])
            assert (hit.projection.address in sentence) is (meeting < 2)
            assert not any(s.projection.address in sentence for s in kept if s is not hit)
            assert (store.damaged == []) is (meeting > 0)
            if meeting == 1:
                with SpectraStore(tmp_path, "m") as writer:
                    writer.put(hit).result(10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_anywhere_else_never_gives_a_wrong_value(
    make: Make, same: Same, tmp_path: Path, every: Every, kind: str
) -> None:
    kept = [make(n) for n in range(4)]
    path = lay(tmp_path / "m", kind, kept)
    intact, first = path.read_bytes(), place_of(path, kept[0])
    other = add(tmp_path / "m", kind, [make(9)])
    others = other.read_bytes()
    values = range(first, first + 8 * COUNT * len(kept))
    rng = random.Random(2)
    for place in every((p for p in range(len(intact)) if p not in values), 16):
        flipped(path, intact, place, rng.randrange(8))
        damaged = path.read_bytes()
        other.write_bytes(others)
        store, there = served(tmp_path, [*kept, make(9)], same)
        assert there[-1] == make(9)
        ((aside, sentence),) = store.damaged
        assert aside.read_bytes() == damaged  # kept for its owner to see
        assert sentence.endswith(".")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_what_cannot_be_renewed_is_served_where_it_is(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    kept = [make(n) for n in range(4)]
    path = lay(tmp_path / "m", kind, kept)
    flip(path, place_of(path, kept[2]) + 5)

    def refuse(*_: object) -> Path:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        if code == errno.EROFS:
            patch.setattr(Path, "rename", refuse)
        store, there = served(tmp_path, kept, same)
        assert there == [kept[n] for n in (0, 1, 3)]
        assert [found for found, _ in store.damaged] == [path]
        assert "layers.2.attention.key" in store.damaged[0][1]
        store.refresh()
        assert not store.has(key(kept[2]))
        assert list(store.folder.iterdir()) == [path]
    store, found = served(tmp_path, kept, same)  # there is room again
    assert found == there
    assert [aside.name for aside, _ in store.set_aside] == [f"{path.name}.damaged"]


def test_a_folder_of_others_that_forbids_renaming_does_not_fill(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [make(n) for n in range(4)]
    path = lay(tmp_path / "m", segments.SEGMENT, kept)
    flip(path, place_of(path, kept[2]))

    def refuse(*_: object) -> Path:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "rename", refuse)
    for _ in range(3):
        assert served(tmp_path, kept, same)[1] == [kept[n] for n in (0, 1, 3)]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("weights", ["", "changed"])
def test_what_was_replaced_does_not_come_back(make: Make, same: Same, tmp_path: Path, weights: str) -> None:
    old = make(1, source=LOCAL, weights_digests=("old" if weights else "",))
    new = replace(make(1, source=LOCAL, weights_digests=(weights,), solver="svd"), values=old.values[::-1].copy() + 1)
    new = replace(new, computed_at="2026-01-01T00:00:00.000000Z")
    other = make(2, source=LOCAL)
    lay(tmp_path / "m", segments.SEGMENT, [old])
    path = add(tmp_path / "m", segments.SEGMENT, [new, other])
    assert same(SpectraStore(tmp_path, "m").get(key(old)), new)
    flip(path, place_of(path, new))
    for _ in range(2):
        store = SpectraStore(tmp_path, "m")
        assert [entry.projection.layer for entry in store.entries()] == [2]
        assert store.values([key(old), key(other)]).keys() == {key(other)}
    with SpectraStore(tmp_path, "m") as store:
        assert not store.has(key(old))
        store.put(replace(new, computed_at="2020-01-01T00:00:00.000000Z")).result(10)  # by a clock that is wrong
    assert SpectraStore(tmp_path, "m").get(key(old)).values.tobytes() == new.values.tobytes()


def test_a_read_that_goes_wrong_once_costs_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [make(n) for n in range(4)]
    path = lay(tmp_path / "m", segments.VOLUME, kept)
    real, wrong = os.pread, [True]

    def pread(handle: int, count: int, start: int) -> bytes:
        data = bytearray(real(handle, count, start))
        data[3] ^= bool(wrong and wrong.pop())
        return bytes(data)

    monkeypatch.setattr(os, "pread", pread)
    store = SpectraStore(tmp_path, "m")
    assert len(store.values(map(key, kept))) == 4
    assert store.damaged == []
    assert list(path.parent.iterdir()) == [path]
    wrong += [True] * 2
    with pytest.raises(OSError, match="reads differently"):
        store.values(map(key, kept))
    assert list(path.parent.iterdir()) == [path]


def test_damage_of_several_names_each(make: Make, same: Same, tmp_path: Path) -> None:
    kept = [make(n) for n in range(6)]
    path = lay(tmp_path / "m", segments.VOLUME, kept)
    for n in (1, 4):
        flip(path, place_of(path, kept[n]) + n)
    store, there = served(tmp_path, kept, same)
    assert there == [kept[n] for n in (0, 2, 3, 5)]
    ((_, sentence),) = store.damaged
    assert "layers.1.attention.key, layers.4.attention.key are damaged and count as not computed" in sentence


def test_what_stands_elsewhere_is_not_lost(make: Make, same: Same, tmp_path: Path) -> None:
    kept = [make(n) for n in range(3)]
    path = lay(tmp_path / "m", segments.VOLUME, kept)
    flip(path, place_of(path, kept[0]))
    add(tmp_path / "m", segments.VOLUME, kept[:2])  # from a merger that was killed before it unlinked
    store, there = served(tmp_path, kept, same)
    assert there == kept
    assert "nothing is lost" in store.damaged[0][1]


def test_only_what_is_asked_for_is_read(make: Make, tmp_path: Path) -> None:
    kept = [make(n) for n in range(3)]
    path = lay(tmp_path / "m", segments.VOLUME, kept)
    flip(path, place_of(path, kept[0]))
    store = SpectraStore(tmp_path, "m")
    store.verify([key(kept[1])])
    assert store.damaged == []
    store.verify([key(kept[0])])
    assert len(store.damaged) == 1


def test_a_merge_takes_over_no_damage_that_came_after_the_file_was_read(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [make(n) for n in range(4)]
    (tmp_path / "m").mkdir()
    paths = [add(tmp_path / "m", segments.SEGMENT, [s]) for s in kept]
    store = SpectraStore(tmp_path, "m")
    assert len(store.entries()) == 4
    flip(paths[1], paths[1].read_bytes().index(b"layers.1.attention.key"), bit=2)  # hayers.1.attention.key
    monkeypatch.setattr(spectra, "_MERGE_AT", 4)
    store.merge()
    store, there = served(tmp_path, kept, same)
    assert there == [kept[n] for n in (0, 2, 3)]
    assert {entry.projection.address for entry in store.entries()} == {s.projection.address for s in there}
    assert [aside.name for aside, _ in store.set_aside] == [f"{paths[1].name}.damaged"]

"""Derived rows: files of format version 2 beside those of version 1, never in one file with them."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import h5py
import numpy as np
import pytest

from rankscope.engine import bounds
from rankscope.engine.derive.derived import derive
from rankscope.engine.derive.flip import flipped
from rankscope.engine.spectrum import Derived, Operand, Slice, Source, Spectrum
from rankscope.store import layout, segments, spectra
from rankscope.store.entry import entry_of
from rankscope.store.export import export
from rankscope.store.models import remove_spectra, stored_models
from rankscope.store.spectra import SpectraStore
from rankscope.tui.data.model import open_stored

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]
LOCAL = Source("/models/a", "", "a.safetensors", "identity", 10, False)
OTHER = replace(LOCAL, repo="/models/b", identity="of another checkpoint")


def stack_of(make: Make, number: int, *parents: Spectrum, **changes: Any) -> Spectrum:
    """Spectrum `number` as that of the stack of the parents' matrices, with the bytes that they had when read."""
    made = Derived("stack", 3, "[K; V]", is_further=True, parents=tuple(s.projection for s in parents))
    projection = derive(replace(make(number).projection, tensor="", slice=None, role="key_value"), made)
    digests = tuple(s.weights_digests[0] for s in parents)
    return replace(make(number, weights_digests=digests, **changes), projection=projection)


def state_of(make: Make, number: int, weighting: str = "x.imatrix", gauge: str = "") -> Spectrum:
    """Spectrum `number` as that of its projection in another state."""
    plain = make(number)
    operands = Operand(f"{number}" * 8), Operand("b" * 32)
    made = Derived("weigh", 1, "weighted", False, (plain.projection,), operands, weighting, gauge)
    return replace(make(number, values=np.linspace(5.0, 0.5, 12)), projection=derive(plain.projection, made))


def twin_of(make: Make, number: int) -> Spectrum:
    return replace(make(number), projection=flipped(make(number).projection))


def mixture(make: Make) -> list[Spectrum]:
    odd = make(7, source=OTHER, slice=Slice(1, 2, 3, 4, 5), tower="vision", expert=3, transposed=True, layer=None)
    both = stack_of(make, 1, make(1, source=LOCAL, weights_digests=("d1",)), odd)
    three = stack_of(make, 2, make(1), make(3), make(5, weights_digests=("d5",)))
    return [make(1), both, twin_of(make, 1), state_of(make, 1), three, make(2), state_of(make, 2, "", "folded")]


def put_all(root: Path, kept: list[Spectrum]) -> None:
    with SpectraStore(root, "m") as store:
        for spectrum in kept:
            store.put(spectrum).result()


def versions(folder: Path) -> dict[str, int]:
    found = {}
    for name in segments.names(folder):
        with h5py.File(folder / name) as file:
            found[name] = int(file.attrs["format_version"])
    return found


def key(spectrum: Spectrum) -> str:
    return spectrum.projection.key


def test_what_is_put_comes_back_to_the_bit_by_its_key(make: Make, same: Same, tmp_path: Path) -> None:
    kept = mixture(make)
    put_all(tmp_path, kept)
    again = SpectraStore(tmp_path, "m")
    assert len(again.entries()) == 7
    for spectrum in kept:
        assert same(again.get(key(spectrum)), spectrum)
        assert again.entry(key(spectrum)) == entry_of(spectrum)
    assert sorted(versions(tmp_path / "m").values()) == [1, 1, 1, 2, 2, 2, 2]


def test_parsing_gives_what_building_promised(make: Make, tmp_path: Path) -> None:
    kept = [s for s in mixture(make) if layout.version_of(s.projection) == 2]
    image = layout.build([entry_of(s) for s in kept], [s.values for s in kept])
    assert layout.parse(image.data) == image.part
    (tmp_path / "volume.h5").write_bytes(image.data)
    assert layout.parse_volume(tmp_path / "volume.h5") == image.part
    assert image.part.version == 2
    states = [made for e in layout.parse(image.data).entries if (made := e.projection.derived)]
    assert [type(made.is_further) for made in states] == [bool] * 4


def test_what_is_pending_together_goes_into_a_file_of_each_version(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, gate, real = threading.Event(), threading.Event(), spectra.build

    def build(*args: Any) -> Any:
        began.set()
        assert gate.wait(10)
        return real(*args)

    monkeypatch.setattr(spectra, "build", build)
    kept = mixture(make)
    with SpectraStore(tmp_path, "m") as store:
        first = store.put(make(9))
        assert began.wait(10)  # the others wait together
        futures = [store.put(spectrum) for spectrum in kept]
        gate.set()
        for future in (first, *futures):
            future.result()
    assert sorted(versions(tmp_path / "m").values()) == [1, 1, 2]
    assert all(same(SpectraStore(tmp_path, "m").get(key(s)), s) for s in kept)


def test_a_disk_that_fails_one_version_says_so_of_that_one_alone(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, began, gate = segments.write, threading.Event(), threading.Event()

    def write(folder: Path, kind: str, data: bytes) -> str:
        began.set()
        assert gate.wait(10)
        if b"[K; V]" in data:
            raise OSError(5, "Input/output error")
        return real(folder, kind, data)

    monkeypatch.setattr(segments, "write", write)
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(9))
        assert began.wait(10)
        derived, plain = store.put(stack_of(make, 3, make(3), make(5))), store.put(make(3))
        gate.set()
        assert isinstance(derived.exception(), OSError)
        assert plain.exception() is None
        assert {e.projection.layer for e in store.entries()} == {9, 3}


def test_versions_are_merged_each_with_its_own(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [make(n) for n in range(4)]
    kept += [twin_of(make, 2), *(stack_of(make, n, make(n), make(n + 1)) for n in range(4)), state_of(make, 3)]
    put_all(tmp_path, kept)
    monkeypatch.setattr(spectra, "_MERGE_AT", 5)
    SpectraStore(tmp_path, "m").merge()
    found = versions(tmp_path / "m")
    assert sorted((name[:3], version) for name, version in found.items()) == [("vol", 1), ("vol", 2)]
    store = SpectraStore(tmp_path, "m")
    assert all(same(store.get(key(s)), s) for s in kept)


def test_few_files_of_a_version_are_left_while_many_of_the_other_are_merged(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [make(0), make(1), *(stack_of(make, n, make(n), make(n + 1)) for n in range(3))]
    put_all(tmp_path, kept)
    monkeypatch.setattr(spectra, "_MERGE_AT", 3)
    with SpectraStore(tmp_path, "m") as store:
        store.merge()
    found = versions(tmp_path / "m")
    assert sorted((name[:3], version) for name, version in found.items()) == [("seg", 1), ("seg", 1), ("vol", 2)]
    assert all(same(SpectraStore(tmp_path, "m").get(key(s)), s) for s in kept)


def test_a_program_that_reads_version_1_alone_skips_the_others(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all(tmp_path, [*(make(n) for n in range(3)), stack_of(make, 1, make(1), make(2)), state_of(make, 1)])
    newer = {name for name, version in versions(tmp_path / "m").items() if version == 2}
    monkeypatch.setattr(layout, "READABLE", (1,))
    monkeypatch.setattr(spectra, "_MERGE_AT", 3)
    with SpectraStore(tmp_path, "m") as store:
        assert {e.projection.key for e in store.entries()} == {key(make(n)) for n in range(3)}
        sentence = "It has format version 2; this version of rankscope reads 1."
        assert sorted(store.damaged) == sorted((tmp_path / "m" / name, sentence) for name in newer)
    left = versions(tmp_path / "m")
    assert {name for name, version in left.items() if version == 2} == newer  # never merged or renamed
    assert sum(version == 1 for version in left.values()) == 1


def test_a_later_version_is_named_with_those_that_are_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layout, "DERIVED_VERSION", 4)
        put_all(tmp_path, [state_of(make, 1)])
    ((_, sentence),) = _damaged(tmp_path)
    assert sentence == "It has format version 4; this version of rankscope reads 1, 2 and 3."


def _damaged(root: Path) -> list[tuple[Path, str]]:
    store = SpectraStore(root, "m")
    assert store.entries() == []
    return store.damaged


@pytest.mark.parametrize("kind", [segments.SEGMENT, segments.VOLUME])
def test_damage_is_found_and_the_others_are_served(make: Make, same: Same, tmp_path: Path, kind: str) -> None:
    kept = mixture(make)
    put_all(tmp_path, [s for s in kept if layout.version_of(s.projection) == 1])
    derived = [s for s in kept if layout.version_of(s.projection) == 2]
    image = layout.build([entry_of(s) for s in derived], [s.values for s in derived])
    path = tmp_path / "m" / segments.write(tmp_path / "m", kind, image.data)
    first, size = (int(field) for field in image.data[:512].split()[1:3])
    rng = random.Random(3)
    for _ in range(20):
        data = bytearray(image.data)
        place = rng.choice([rng.randrange(512, first), rng.randrange(first + size, len(data))])
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        store = SpectraStore(tmp_path, "m")
        assert len(store.entries()) == 3
        assert [aside.name for aside, _ in store.damaged] == [f"{path.name}.damaged"]
        assert same(store.get(key(kept[0])), kept[0])


def test_a_merge_on_a_full_disk_loses_nothing(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [stack_of(make, n, make(n), make(n + 1)) for n in range(3)]
    put_all(tmp_path, kept)

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spectra, "_MERGE_AT", 3)
    store = SpectraStore(tmp_path, "m")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(OSError, match="No space"):
            store.merge()
    assert [name[:3] for name in segments.names(store.folder)] == ["seg"] * 3
    assert all(same(store.get(key(s)), s) for s in kept)


def read_as(make: Make, number: int, digest: str, second: int, source: Source = LOCAL) -> Spectrum:
    """Spectrum `number` of the tensor of that number, read when its bytes had this digest."""
    when = f"2026-01-01T00:00:{second:02}.000000Z"
    return make(number, tensor=f"t{number}", source=source, weights_digests=(digest,), computed_at=when)


@pytest.mark.parametrize("order", [1, -1], ids=["as computed", "the other way round"])
def test_a_parent_that_changed_in_place_takes_the_stack_with_it(make: Make, tmp_path: Path, order: int) -> None:
    one, two = read_as(make, 1, "one", 1), read_as(make, 2, "two", 1, OTHER)
    both = stack_of(make, 5, one, two, computed_at=one.computed_at)
    changed = read_as(make, 2, "changed", 2, OTHER)
    put_all(tmp_path, [one, two, both, changed][::order])
    store = SpectraStore(tmp_path, "m")
    assert {e.projection.key for e in store.entries()} == {key(one), key(changed)}
    assert not store.has(key(both))
    again = stack_of(make, 5, one, changed, computed_at="2026-01-01T00:00:03.000000Z")
    put_all(tmp_path, [again])
    assert SpectraStore(tmp_path, "m").entry(key(both)) == entry_of(again)


def test_a_stack_is_no_other_digest_of_its_parents_tensors(make: Make, tmp_path: Path) -> None:
    one, two = read_as(make, 1, "one", 1), read_as(make, 2, "two", 1)
    both = stack_of(make, 1, one, two, computed_at="2026-01-01T00:00:09.000000Z")  # newer than both, with their source
    assert both.projection.source != LOCAL
    named = replace(both, projection=replace(both.projection, source=LOCAL, tensor="t1"))  # and even with its tensor
    put_all(tmp_path, [one, two, named])
    store = SpectraStore(tmp_path, "m")
    assert {e.projection.key for e in store.entries()} == {key(one), key(two), key(both)}


def test_a_stack_that_read_newer_bytes_takes_older_rows_of_that_tensor_with_it(make: Make, tmp_path: Path) -> None:
    one, two = read_as(make, 1, "one", 1), read_as(make, 2, "two", 1)
    newer = stack_of(make, 5, one, read_as(make, 2, "changed", 2), computed_at="2026-01-01T00:00:02.000000Z")
    put_all(tmp_path, [one, two, newer])
    store = SpectraStore(tmp_path, "m")
    assert {e.projection.key for e in store.entries()} == {key(one), key(newer)}


def test_lists_and_totals_are_of_the_weights_alone(make: Make, tmp_path: Path) -> None:
    put_all(tmp_path, mixture(make))
    (found,) = stored_models(tmp_path)
    assert found.spectra == 2
    stored = open_stored("m", tmp_path)
    assert stored is not None
    assert {(p.address, p.derived) for p in stored.tree.projections} == {
        (make(n).projection.address, None) for n in (1, 2)
    }


@pytest.mark.parametrize("kind", ["segment", "export"])
def test_a_stranger_follows_the_description(make: Make, tmp_path: Path, kind: str) -> None:
    kept = mixture(make) if kind == "export" else [s for s in mixture(make) if layout.version_of(s.projection) == 2]
    path = tmp_path / "file.h5"
    if kind == "segment":
        path.write_bytes(layout.build([entry_of(s) for s in kept], [s.values for s in kept]).data)
    else:
        export([entry_of(s) for s in kept], {key(s): s.values for s in kept}, path)
        (tmp_path / "stored.h5").write_bytes(layout.build([entry_of(s) for s in kept], [s.values for s in kept]).data)
        with h5py.File(path) as file, h5py.File(tmp_path / "stored.h5") as stored:
            assert all(file[name][()].tobytes() == stored[name][()].tobytes() for name in stored)
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 2
        recipe = file.attrs["description"].split("Python:\n")[1].split("MATLAB:")[0]
        index, parents, sources = file["index"][()], file["parents"][()], file["sources"][()]
    assert len(recipe.splitlines()) == 2
    found: dict[str, Any] = {"h5py": h5py, "path": str(path)}
    exec(dedent(recipe), found)
    for s in kept:
        label = s.projection.derived.label if s.projection.derived else ""
        assert any(
            np.array_equal(values, s.values)
            for (address, said), values in found["spectra"].items()
            if (address, said) == (s.projection.address, label)
        )
    found["f"].close()
    (row,) = (n for n, i in enumerate(index) if i["formula"] == b"stack" and i["layer"] == 1)
    of_stack = [i for i in parents if i["row"] == row]
    assert index[row]["weights_digest"] == b""
    assert [i["address"] for i in of_stack] == [b"layers.1.attention.key", b"layers.7.attention.key"]
    assert [i["weights_digest"] for i in of_stack] == [b"d1", b""]
    assert [sources[i["source_id"]]["repo"] for i in of_stack] == [b"/models/a", b"/models/b"]
    assert [(i["weighting"], i["gauge"], i["further"]) for i in index if i["formula"] == b"weigh"] == [
        (b"x.imatrix", b"", 0),
        (b"", b"folded", 0),
    ]


def test_the_share_that_was_clipped_comes_back(make: Make, same: Same, tmp_path: Path) -> None:
    made = state_of(make, 1)
    clipped = replace(made, provenance=replace(made.provenance, clipped=3e-7))
    put_all(tmp_path, [clipped, state_of(make, 2), make(3)])
    store = SpectraStore(tmp_path, "m")
    assert same(store.get(key(clipped)), clipped)
    assert sorted(e.provenance.clipped for e in store.entries()) == [0.0, 0.0, 3e-7]


def test_what_is_removed_is_gone_for_good_and_nothing_else(make: Make, same: Same, tmp_path: Path) -> None:
    older = state_of(make, 1)
    newer = replace(older, computed_at="2027-01-01T00:00:00.000000Z")
    kept = [make(1), twin_of(make, 1), state_of(make, 2), stack_of(make, 1, make(1), make(2))]
    put_all(tmp_path, [older])
    put_all(tmp_path, [newer, *kept])
    image = layout.build([entry_of(s) for s in (older, kept[2])], [older.values, kept[2].values])
    segments.write(tmp_path / "m", segments.VOLUME, image.data)  # of both, as a merge leaves them
    assert remove_spectra(tmp_path, "m", lambda p: p.key == key(older)) == 1
    store = SpectraStore(tmp_path, "m")
    assert store.entry(key(older)) is None
    assert {e.projection.key for e in store.entries()} == {key(s) for s in kept}
    assert all(same(store.get(key(s)), s) for s in kept)
    assert store.damaged == []


def test_removing_from_a_damaged_file_keeps_what_is_intact(make: Make, same: Same, tmp_path: Path) -> None:
    spectra_ = [state_of(make, n) for n in range(3)]
    image = layout.build([entry_of(s) for s in spectra_], [s.values for s in spectra_])
    data = bytearray(image.data)
    data[image.part.place(0)[0]] ^= 1
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / segments.write(tmp_path / "m", segments.VOLUME, image.data)
    path.write_bytes(data)
    assert remove_spectra(tmp_path, "m", lambda p: p.layer == 1) == 1
    store = SpectraStore(tmp_path, "m")
    assert {e.projection.key for e in store.entries()} == {key(spectra_[2])}
    assert same(store.get(key(spectra_[2])), spectra_[2])


def test_a_disk_that_fails_while_spectra_are_removed_loses_nothing(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [state_of(make, n) for n in range(3)]
    put_all(tmp_path, kept)
    image = layout.build([entry_of(s) for s in kept], [s.values for s in kept])
    segments.write(tmp_path / "m", segments.VOLUME, image.data)

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(OSError, match="No space"):
            remove_spectra(tmp_path, "m", lambda p: p.layer == 1)
    store = SpectraStore(tmp_path, "m")
    assert all(same(store.get(key(s)), s) for s in (kept[0], kept[2]))


def test_spectra_under_weightings_are_counted_by_name(make: Make, tmp_path: Path) -> None:
    put_all(tmp_path, [*mixture(make), state_of(make, 3, "imatrix"), state_of(make, 4, "imatrix")])
    (found,) = stored_models(tmp_path)
    assert (found.spectra, found.weighted) == (2, {"imatrix": 2, "x.imatrix": 1})


def test_stated_bounds_under_a_weighting_are_not_worked_out_anew(make: Make, same: Same, tmp_path: Path) -> None:
    old = {"solver": bounds.GRAM, "solver_version": 1, "error_bound": 0.25, "noise_floor": 0.5}
    plain, under = make(1), state_of(make, 2)
    kept = [replace(s, provenance=replace(s.provenance, **old)) for s in (plain, under)]
    put_all(tmp_path, kept)
    store = SpectraStore(tmp_path, "m")
    assert same(store.get(key(kept[1])), kept[1])
    assert not same(store.get(key(kept[0])), kept[0])  # its bounds follow from its shape

"""Sign-flipped twins in the store, beside files that were written before there were any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.lib.recfunctions import repack_fields

from rankscope.engine.derive.flip import flipped
from rankscope.engine.spectrum import Source, Spectrum
from rankscope.store import columns, layout, segments, spectra
from rankscope.store.entry import entry_of
from rankscope.store.export import export
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]


def twin_of(make: Make, number: int, **changes: object) -> Spectrum:
    twin = flipped(make(number).projection)
    return make(number, key=twin.key, derived=twin.derived, values=np.linspace(9.0, 1.0, 12), **changes)


def write_old(folder: Path, kept: list[Spectrum]) -> str:
    """Write a segment as it was before the index had the columns of ADDED; return its name."""
    image = layout.build([entry_of(s) for s in kept], [s.values for s in kept])
    path = folder.parent / "old.h5"
    path.write_bytes(image.data)
    with h5py.File(path, "r+") as file:
        index = file["index"][()]
        del file["index"]
        file["index"] = repack_fields(index[[name for name in index.dtype.names if name not in columns.ADDED]])
    segments.prepare(folder)
    return segments.write(folder, segments.SEGMENT, path.read_bytes())


def test_a_twin_lies_beside_its_projection(make: Make, same: Same, tmp_path: Path) -> None:
    both = [make(1), twin_of(make, 1)]
    with SpectraStore(tmp_path, "m") as store:
        for spectrum in both:
            store.put(spectrum).result()
    again = SpectraStore(tmp_path, "m")
    assert sorted(entry.projection.null for entry in again.entries()) == ["", "flip"]
    assert {entry.projection.address for entry in again.entries()} == {make(1).projection.address}
    assert all(same(again.get(spectrum.projection.key), spectrum) for spectrum in both)


def test_a_file_without_the_column_holds_no_twins(make: Make, same: Same, tmp_path: Path) -> None:
    old = [make(n) for n in range(3)]
    name = write_old(tmp_path / "m", old)
    with h5py.File(tmp_path / "m" / name, "r") as file:
        assert not columns.ADDED.keys() & set(file["index"].dtype.names)
        assert file.attrs["format_version"] == layout.FORMAT_VERSION == 1
    store = SpectraStore(tmp_path, "m")
    assert store.damaged == []
    assert all(same(store.get(spectrum.projection.key), spectrum) for spectrum in old)
    assert {entry.projection.null for entry in store.entries()} == {""}


def test_old_and_new_files_are_merged(make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = [make(n) for n in range(3)], [make(5), twin_of(make, 0), twin_of(make, 5)]
    write_old(tmp_path / "m", old)
    with SpectraStore(tmp_path, "m") as store:
        for spectrum in new:
            store.put(spectrum).result()
        monkeypatch.setattr(spectra, "_MERGE_AT", 2)
    assert [name[:3] for name in segments.names(tmp_path / "m")] == ["vol"]
    again = SpectraStore(tmp_path, "m")
    assert all(same(again.get(spectrum.projection.key), spectrum) for spectrum in (*old, *new))


def test_a_missing_column_that_was_always_there_is_no_file_of_ours(make: Make, tmp_path: Path) -> None:
    image = layout.build([entry_of(make(0))], [make(0).values])
    path = tmp_path / "file.h5"
    path.write_bytes(image.data)
    with h5py.File(path, "r+") as file:
        index = file["index"][()]
        del file["index"]
        file["index"] = repack_fields(index[[name for name in index.dtype.names if name != "address"]])
    with pytest.raises(layout.UnknownFormatError, match="cannot be read"):
        layout.parse(path.read_bytes())


def test_a_twin_of_weights_that_have_changed_since_is_stale_too(make: Make, tmp_path: Path) -> None:
    local = Source("/models/a", "", "a.safetensors", "identity", 10, False)
    old, twin = (
        make(1, source=local, weights_digests=("old",)),
        twin_of(make, 1, source=local, weights_digests=("old",)),
    )
    newer = make(1, source=local, weights_digests=("new",), computed_at="2026-01-01T00:00:00.000000Z")
    with SpectraStore(tmp_path, "m") as store:
        for spectrum in (old, twin, newer):
            store.put(spectrum).result()
        assert store.entries() == [entry_of(newer)]
        assert not store.has(twin.projection.key)


def test_an_export_keeps_what_is_what(make: Make, tmp_path: Path) -> None:
    both = [make(1), twin_of(make, 1)]
    export([entry_of(s) for s in both], {s.projection.key: s.values for s in both}, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file["index"]["null"].tolist() == [b"", b"flip"]
        assert "random signs" in file.attrs["description"]

"""The file format: round trips, and readers who have only the file."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import h5py
import numpy as np
import pytest

from rankscope.engine.metrics import threshold_rank
from rankscope.engine.spectrum import FLIPPED, Run, Slice, Source, Spectrum
from rankscope.store import layout, segments
from rankscope.store.entry import entry_of
from rankscope.store.export import export
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]


def awkward(make: Make) -> list[Spectrum]:
    local = Source("/home/\udcff/модель", "", "a b.gguf", "d" * 32, 2**40, False)
    run = Run("run-2", "rankscope-tui 0.2.0", "", "", "", "b", "rankscope scan 'x y'", "2025-02-01T00:00:00Z")
    tiny = np.array([2.0, np.nextafter(1.0, 2.0), 5e-324, 0.0])
    huge = np.array([1.7e308, 1e308, 1e-308])
    return [
        make(0),
        make(1, slice=Slice(1, 32, 64, 0), tower="vision", expert=7, transposed=True, dequantisation="q4_1"),
        make(2, layer=None, source=local, run=run, weights_digests=("e" * 32,), address="other.été/..", block="=x"),
        make(3, count=4, values=tiny, rows=4, cols=4),
        make(4, count=3, values=huge, rows=3, cols=9, error_bound=float("inf")),
        make(5, count=6, values=np.zeros(6), frobenius_norm=0.0),
        make(6, count=0, values=np.zeros(0), rows=0, cols=5),
        make(7, layer=0, expert=0, count=1),
        make(8, derived=FLIPPED),
        make(9, slice=Slice(1, 1, 6, 6, 255), expert=255, transposed=True),
        make(10, slice=Slice(0, 1, 0, 12, 0), expert=0),
    ]


def build(spectra: list[Spectrum]) -> layout.Image:
    return layout.build([entry_of(s) for s in spectra], [s.values for s in spectra])


def test_what_is_put_comes_back_to_the_bit(make: Make, same: Same, tmp_path: Path) -> None:
    spectra = awkward(make)
    with SpectraStore(tmp_path, "m") as store:
        for future in [store.put(spectrum) for spectrum in spectra]:
            future.result()
        for spectrum in spectra:
            assert store.entry(spectrum.projection.key) == entry_of(spectrum)
    again = SpectraStore(tmp_path, "m")
    assert len(again.entries()) == len(spectra)
    for spectrum in spectra:
        key = spectrum.projection.key
        assert same(again.get(key), spectrum)
        assert again.entry(key) == entry_of(spectrum)
        assert not again.values([key])[key].flags.writeable


def test_parsing_gives_what_building_promised(make: Make, tmp_path: Path) -> None:
    image = build(awkward(make))
    assert layout.parse(image.data) == image.part
    path = tmp_path / "volume.h5"
    path.write_bytes(image.data)
    assert layout.parse_volume(path) == image.part
    types = {type(entry.projection.transposed) for entry in layout.parse(image.data).entries}
    assert types == {bool}


def test_images_are_built_by_several_threads_at_once(make: Make) -> None:
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda n: build([make(n)]), range(64)))
    assert [list(layout.parse(image.data).entries) for image in images] == [[entry_of(make(n))] for n in range(64)]


@pytest.mark.parametrize("kind", ["segment", "export"])
def test_a_stranger_follows_the_description(make: Make, tmp_path: Path, kind: str) -> None:
    spectra = [make(n, count=n + 1) for n in range(9)]
    twins = [make(n, key=f"twin {n}", derived=FLIPPED, values=np.ones(12)) for n in (0, 4)]
    path = tmp_path / "file.h5"
    written = [*spectra, *twins]
    if kind == "segment":
        path.write_bytes(build(written).data)
    else:
        export([entry_of(s) for s in written], {s.projection.key: s.values for s in written}, path)
    with h5py.File(path, "r") as file:
        assert file.attrs["format"] == "rankscope-spectra"
        assert file.attrs["format_version"] == 1
        assert file["values"].attrs["units"] == "1"
        recipe = file.attrs["description"].split("Python:\n")[1].split("MATLAB:")[0]
    assert len(recipe.splitlines()) == 2
    found: dict[str, Any] = {"h5py": h5py, "path": str(path)}
    exec(dedent(recipe), found)
    assert found["spectra"].keys() == {s.projection.address for s in spectra}
    for spectrum in spectra:
        assert found["spectra"][spectrum.projection.address].tobytes() == spectrum.values.tobytes()
    found["f"].close()


def test_tables_name_their_rows_and_columns(make: Make, tmp_path: Path) -> None:
    spectra = awkward(make)
    path = tmp_path / "file.h5"
    path.write_bytes(build(spectra).data)
    with h5py.File(path, "r") as file:
        assert file["values"].chunks is None
        assert file["values"].dtype == np.dtype("<f8")
        table = file["rank_table"]
        assert table.dtype == np.dtype("<u4")
        assert [dimension.label for dimension in table.dims] == ["projection", "threshold"]
        assert table.dims[0][0] == file["index"]
        assert table.dims[1][0][()].tolist() == [0.6, 0.8, 0.9, 0.95, 0.99]
        for row, spectrum in zip(table[()], spectra, strict=True):
            assert row.tolist() == [threshold_rank(spectrum.values, t) for t in (0.6, 0.8, 0.9, 0.95, 0.99)]
        index, sources, runs = file["index"][()], file["sources"][()], file["runs"][()]
        assert (len(sources), len(runs)) == (2, 2)
        assert sources[index["source_id"][2]]["file"] == b"a b.gguf"
        assert runs[index["run_id"][2]]["run_id"] == b"run-2"
        assert np.isnan(index["effective_rank"][5])
        assert np.isnan(index["sigma_max"][6])
        assert (index["layer"][2], index["expert"][0], index["slice_axis"][0]) == (-1, -1, -1)
        assert h5py.check_string_dtype(index.dtype["address"]).encoding == "utf-8"


def clear(folder: Path, kept: Spectrum) -> None:
    """Make the folder anew, with one segment of this spectrum."""
    for path in folder.iterdir():
        path.unlink()
    segments.write(folder, segments.SEGMENT, build([kept]).data)


def test_no_flipped_byte_of_a_volume_reaches_hdf5_or_the_user(make: Make, same: Same, tmp_path: Path) -> None:
    spectra = [make(n, count=40) for n in range(30)]
    with SpectraStore(tmp_path, "m") as store:
        store.put(spectra[0]).result()
    image = build(spectra[1:])
    name = segments.write(tmp_path / "m", segments.VOLUME, image.data)
    volume = tmp_path / "m" / name
    first, size = (int(field) for field in image.data[:512].split()[1:3])
    rng = random.Random(7)
    for _ in range(60):
        place = rng.choice([rng.randrange(512, first), rng.randrange(first + size, len(image.data))])
        data = bytearray(image.data)
        data[place] ^= 1 << rng.randrange(8)
        volume.write_bytes(data)
        store = SpectraStore(tmp_path, "m")
        assert [entry.projection.layer for entry in store.entries()] == [0], place
        assert [path.name for path, _ in store.damaged] == [f"{name}.damaged"]
    for _ in range(20):
        data = bytearray(image.data)
        place = first + rng.randrange(size)
        data[place] ^= 1 << rng.randrange(8)
        clear(tmp_path / "m", spectra[0])
        volume.write_bytes(data)
        store = SpectraStore(tmp_path, "m")
        assert len(store.entries()) == 30  # the index is intact: it is served until the values are read
        hit = spectra[1 + (place - first) // (8 * 40)]
        assert store.values(s.projection.key for s in spectra).keys() == {
            s.projection.key for s in spectra if s is not hit
        }
        assert not store.has(hit.projection.key)
        assert [path.name for path, _ in store.damaged] == [f"{name}.damaged"]
        with pytest.raises(KeyError):
            store.get(hit.projection.key)
        assert all(same(store.get(s.projection.key), s) for s in spectra if s is not hit)


def test_a_volume_that_is_merged_away_while_it_is_opened_is_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build([make(n) for n in range(3)])
    path = tmp_path / "volume.h5"
    path.write_bytes(image.data)
    real = layout._digest

    def verified(*parts: bytes) -> str:
        path.unlink()
        return real(*parts)

    monkeypatch.setattr(layout, "_digest", verified)
    assert layout.parse_volume(path) == image.part


@pytest.mark.parametrize("kind", [segments.SEGMENT, segments.VOLUME])
def test_a_later_format_is_left_alone(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
    with monkeypatch.context() as patch:
        patch.setattr(layout, "FORMAT_VERSION", 9)
        data = build([make(1)]).data
    if kind == segments.VOLUME:
        data = b"rankscope-spectra-9 of another shape\n".ljust(512, b"\0") + data[512:]
    later = tmp_path / "m" / segments.write(tmp_path / "m", kind, data)
    monkeypatch.setattr("rankscope.store.spectra._MERGE_AT", 1)
    store = SpectraStore(tmp_path, "m")
    store.merge()
    assert [entry.projection.layer for entry in store.entries()] == [0]
    assert [path for path, _ in store.damaged] == [later]
    assert "version 9" in store.damaged[0][1]
    assert later.read_bytes() == data

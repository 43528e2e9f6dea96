"""Leading directions: float32, in files of format version 3, with every promise that spectra have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from rankscope.engine.derive.directions import directions_of
from rankscope.engine.spectrum import Spectrum
from rankscope.store import layout, segments, spectra
from rankscope.store.entry import entry_of
from rankscope.store.models import remove_spectra, stored_models
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]


def of(make: Make, number: int) -> Spectrum:
    """Spectrum `number` as that projection's leading directions."""
    plain = make(number)
    projection = directions_of(plain.projection)
    numbers = np.random.default_rng(number).random(projection.stored_count).astype(np.float32)
    return replace(plain, projection=projection, values=numbers)


def put_all(root: Path, kept: list[Spectrum]) -> None:
    with SpectraStore(root, "m") as store:
        for spectrum in kept:
            store.put(spectrum).result()


def key(spectrum: Spectrum) -> str:
    return spectrum.projection.key


def versions(folder: Path) -> list[int]:
    found = []
    for name in segments.names(folder):
        with h5py.File(folder / name) as file:
            found.append(int(file.attrs["format_version"]))
    return sorted(found)


def test_they_come_back_to_the_bit_beside_the_spectra(make: Make, same: Same, tmp_path: Path) -> None:
    kept = [make(1), of(make, 1), make(2), of(make, 2)]
    put_all(tmp_path, kept)
    store = SpectraStore(tmp_path, "m")
    for spectrum in kept:
        assert same(store.get(key(spectrum)), spectrum)
        assert store.entry(key(spectrum)) == entry_of(spectrum)
    assert versions(tmp_path / "m") == [1, 1, 3, 3]
    (model,) = stored_models(tmp_path)
    assert model.spectra == 2  # directions are no spectra


def test_a_file_says_how_it_is_read(make: Make, tmp_path: Path) -> None:
    kept = of(make, 3)
    put_all(tmp_path, [kept])
    (name,) = segments.names(tmp_path / "m")
    with h5py.File(tmp_path / "m" / name) as file:
        code = file.attrs["description"].partition("Python:\n")[2]
        assert "values" not in file
        assert file["directions"].dtype == "<f4"
        assert file["index"]["formula"].tolist() == [b"directions"]
    found: dict[str, object] = {"h5py": h5py, "path": tmp_path / "m" / name}
    exec("\n".join(line.strip() for line in code.splitlines()), found)
    np.testing.assert_array_equal(found["sigma"], kept.values[:8])  # type: ignore[arg-type]
    np.testing.assert_array_equal(found["u"], kept.values[8 : 8 + 8 * 12].reshape(8, 12))  # type: ignore[arg-type]


def test_a_program_that_reads_versions_1_and_2_skips_them_and_says_so(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all(tmp_path, [make(1), of(make, 1)])
    monkeypatch.setattr(layout, "READABLE", (1, 2))
    monkeypatch.setattr(spectra, "_MERGE_AT", 1)
    with SpectraStore(tmp_path, "m") as store:
        store.merge()
        assert set(store.stored()) == {key(make(1))}
        ((_, sentence),) = store.damaged
    assert sentence == "It has format version 3; this version of rankscope reads 1 and 2."
    assert versions(tmp_path / "m") == [1, 3]


def test_they_are_merged_among_themselves(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [of(make, n) for n in range(3)] + [make(n) for n in range(3)]
    put_all(tmp_path, kept)
    monkeypatch.setattr(spectra, "_MERGE_AT", 3)
    SpectraStore(tmp_path, "m").merge()
    assert versions(tmp_path / "m") == [1, 3]
    store = SpectraStore(tmp_path, "m")
    assert all(same(store.get(key(s)), s) for s in kept)


@pytest.mark.parametrize("kind", [segments.SEGMENT, segments.VOLUME])
def test_a_flipped_bit_costs_the_one_that_it_hits(make: Make, same: Same, tmp_path: Path, kind: str) -> None:
    kept = [of(make, n) for n in range(3)]
    image = layout.build([entry_of(s) for s in kept], [s.values for s in kept])
    first, size = (int(field) for field in image.data[:512].split()[1:3])
    data = bytearray(image.data)
    data[first + size // 2] ^= 1  # in the second of three of one size
    put_all(tmp_path, [make(1)])
    path = tmp_path / "m" / segments.write(tmp_path / "m", kind, image.data)
    path.write_bytes(data)
    store = SpectraStore(tmp_path, "m")
    found = store.values([key(s) for s in kept])
    assert set(found) == {key(kept[0]), key(kept[2])}
    assert all(same(store.get(key(s)), s) for s in (kept[0], kept[2]))
    (lost,) = store.lost()
    assert lost.projection.key == key(kept[1])
    assert store.get(key(make(1))) == make(1)


def test_changed_weights_take_them_along(make: Make, tmp_path: Path) -> None:
    local = replace(make(1).projection.source, content_addressed=False)
    old = of(lambda n: make(n, source=local, weights_digests=("old",)), 1)
    new = make(
        2, source=local, tensor=old.projection.tensor, weights_digests=("new",), computed_at="2026-01-01T00:00:00Z"
    )
    put_all(tmp_path, [old])
    assert SpectraStore(tmp_path, "m").has(key(old))
    put_all(tmp_path, [new])
    assert not SpectraStore(tmp_path, "m").has(key(old))


def test_removing_them_leaves_the_spectra(make: Make, tmp_path: Path) -> None:
    kept = [make(1), of(make, 1), of(make, 2)]
    put_all(tmp_path, kept)
    assert remove_spectra(tmp_path, "m", lambda p: p.is_directions) == 2
    store = SpectraStore(tmp_path, "m")
    assert set(store.stored()) == {key(make(1))}


def test_numbers_of_another_shape_or_type_are_refused(make: Make, tmp_path: Path) -> None:
    kept = of(make, 1)
    with SpectraStore(tmp_path, "m") as store:
        for wrong in (kept.values[:-1], kept.values.astype(np.float64)):
            with pytest.raises(ValueError, match="values must be float32"):
                store.put(replace(kept, values=wrong))

"""Wrong clocks: a new result still replaces the one that it was computed to replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from rankscope.engine.spectrum import Derived, Projection, Source, Spectrum
from rankscope.store import entries, segments, spectra
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
LOCAL = Source("/models/a", "", "a.safetensors", "identity", 10, False)
TIMES = {n: f"20{n}-01-01T00:00:00.000000Z" for n in range(20, 30)}


def key(spectrum: Spectrum) -> str:
    return spectrum.projection.key


def put(root: Path, *wanted: Spectrum) -> None:
    """Store from a separate process, which has looked at what is stored before it computed."""
    with SpectraStore(root, "m") as store:
        store.entries()
        for spectrum in wanted:
            store.put(spectrum).result(10)
            assert solver(store, spectrum) == spectrum.provenance.solver


def solver(store: SpectraStore, spectrum: Spectrum) -> str:
    entry = store.entry(key(spectrum))
    return entry.provenance.solver if entry else ""


def columns(root: Path) -> set[str]:
    """The columns that any index has."""
    found: set[str] = set()
    for name in segments.names(root / "m"):
        with h5py.File(root / "m" / name) as file:
            found |= set(file["index"].dtype.names)
    return found


def derived_of(parent: Projection) -> Projection:
    made = Derived("stack", 1, "stacked", is_further=True, parents=(parent,))
    return replace(parent, derived=made, key="derived")


@pytest.mark.parametrize("is_derived", [False, True])
def test_the_last_computed_counts_whatever_the_clocks_say(make: Make, tmp_path: Path, is_derived: bool) -> None:
    first = make(1, computed_at=TIMES[26])
    if is_derived:
        first = replace(first, projection=derived_of(first.projection))
    clocks = (25, 25, 29, 20, 27)  # a year back, stopped, ahead, far back, mended
    made = [first, *(replace(first, computed_at=TIMES[year]) for year in clocks)]
    made = [replace(s, provenance=replace(s.provenance, solver=str(n))) for n, s in enumerate(made)]
    for number, spectrum in enumerate(made):
        put(tmp_path, spectrum)
        assert solver(SpectraStore(tmp_path, "m"), first) == str(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectra, "_MERGE_AT", 2)
        SpectraStore(tmp_path, "m").merge()
    assert [name[:3] for name in segments.names(tmp_path / "m")] == ["vol"]
    assert solver(SpectraStore(tmp_path, "m"), first) == "5"


def test_changed_weights_count_whatever_the_clocks_say(make: Make, tmp_path: Path) -> None:
    def of(number: int, weights: str, year: int) -> Spectrum:
        return make(number, tensor="qkv", source=LOCAL, weights_digests=(weights,), computed_at=TIMES[year])

    put(tmp_path, of(1, "old", 26), of(2, "old", 26))
    put(tmp_path, of(3, "new", 25))  # the file was changed in place, and the clock went back
    store = SpectraStore(tmp_path, "m")
    assert [entry.projection.layer for entry in store.entries()] == [3]
    put(tmp_path, of(1, "new", 25))
    assert {e.projection.layer for e in SpectraStore(tmp_path, "m").entries()} == {1, 3}


def test_weights_that_changed_between_two_rows_of_a_file_count_as_changed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, weights in ((1, "old"), (2, "old"), (3, "new")):
        read = {"tensor": "qkv", "source": LOCAL, "weights_digests": (weights,)}
        put(tmp_path, make(number, computed_at=TIMES[20 + number], **read))
    monkeypatch.setattr(spectra, "_MERGE_AT", 2)
    SpectraStore(tmp_path, "m").merge()
    assert len(segments.names(tmp_path / "m")) == 1
    assert [entry.projection.layer for entry in SpectraStore(tmp_path, "m").entries()] == [3]


def test_results_that_did_not_know_of_each_other_go_by_time(make: Make, tmp_path: Path) -> None:
    with SpectraStore(tmp_path, "m") as one, SpectraStore(tmp_path, "m") as other:
        assert one.entries() == other.entries() == []
        one.put(make(1, computed_at=TIMES[26], solver="later")).result(10)
        other.put(make(1, computed_at=TIMES[25], solver="sooner")).result(10)
    assert solver(SpectraStore(tmp_path, "m"), make(1)) == "later"


def test_files_have_the_column_only_where_a_clock_went_back(make: Make, tmp_path: Path) -> None:
    put(tmp_path, make(1, computed_at=TIMES[25]))
    put(tmp_path, make(1, computed_at=TIMES[26]))
    assert "generation" not in columns(tmp_path)
    put(tmp_path, make(1, computed_at=TIMES[24]))
    assert "generation" in columns(tmp_path)


def test_a_program_that_does_not_know_the_column_reads_the_file(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, make(1, computed_at=TIMES[25], solver="old"), make(2))
    put(tmp_path, make(1, computed_at=TIMES[24], solver="new"), make(3))
    assert "generation" in columns(tmp_path)
    real = entries.Columns

    def known(kinds: dict[str, str], table: entries.Table) -> entries.Columns:
        return real(kinds, table[[name for name in table.dtype.names or () if name != "generation"]])

    monkeypatch.setattr(entries, "Columns", known)
    store = SpectraStore(tmp_path, "m")
    assert {e.projection.layer for e in store.entries()} == {1, 2, 3}
    assert store.damaged == []
    assert solver(store, make(1)) == "old"

"""Exports, read as other programs read them."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import pytest

from rankscope.engine.derive.flip import flipped
from rankscope.engine.spectrum import Slice, Spectrum
from rankscope.store.entry import entry_of
from rankscope.store.export import csv_text, escape_name, export, json_text, row

Make = Callable[..., Spectrum]

KEYS = [
    *("address", "tensor", "slice", "tower", "layer", "block", "role", "expert", "rows", "cols", "dtype"),
    *("state", "error", "ranks", "effective_rank", "stable_rank", "sigma_max", "sigma_min", "frobenius_norm"),
    *("solver", "error_bound", "noise_floor", "device", "seconds", "sigma_min_is_bound", "null"),
    *("weighting", "gauge", "derived"),
]


def save(spectra: list[Spectrum], path: Path) -> Path:
    values = {spectrum.projection.key: spectrum.values for spectrum in spectra}
    export([entry_of(spectrum) for spectrum in spectra], values, path)
    return path


def test_row_has_these_keys_in_this_order(make: Make) -> None:
    spectrum = make(1, expert=4)
    entry = entry_of(spectrum)
    full = row(spectrum.projection, entry, "saved", None, {0.6: 3, 0.97: 9})
    assert list(full) == KEYS
    assert full["slice"] == {"axis": 0, "groups": 1, "offset": 12, "width": 12}
    assert full["ranks"] == {"0.6": 3, "0.97": 9}
    assert (full["state"], full["error"], full["layer"], full["expert"]) == ("saved", None, 1, 4)
    assert (full["sigma_max"], full["solver"], full["seconds"]) == (spectrum.values[0], "gram", 0.25)
    empty = row(make(2).projection, None, "failed", "It has NaN.", None)
    assert list(empty) == KEYS
    assert (empty["error"], empty["slice"]) == ("It has NaN.", None)
    assert all(empty[name] is None for name in KEYS[13:])
    assert (full["null"], row(flipped(spectrum.projection), entry, "saved", None, None)["null"]) == (None, "flip")


def test_json_is_strict_and_has_no_nan(make: Make, tmp_path: Path) -> None:
    zero = make(2, values=np.zeros(12), error_bound=float("inf"), noise_floor=float("nan"))
    path = save([make(1), zero], tmp_path / "a.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    one, two = json.loads(path.read_text(), parse_constant=refuse)
    entry = entry_of(make(1))
    assert one == row(entry.projection, entry, "stored", None, entry.ranks)
    assert list(one) == KEYS
    assert [two[name] for name in ("effective_rank", "stable_rank", "error_bound", "noise_floor")] == [None] * 4
    assert json.loads(json_text([])) == []


@pytest.mark.parametrize(("smallest", "is_bound"), [(1e-9, True), (1e-7, True), (1e-6, False)])
def test_a_smallest_value_below_the_noise_floor_is_named_a_bound(make: Make, smallest: float, is_bound: bool) -> None:
    entry = entry_of(make(0, values=np.append(np.ones(11), smallest)))
    entry = replace(entry, provenance=replace(entry.provenance, noise_floor=1e-7))
    assert row(entry.projection, entry, "stored", None, None)["sigma_min_is_bound"] is is_bound
    zero = replace(entry, sigma_max=0.0, sigma_min=0.0)
    assert row(zero.projection, zero, "stored", None, None)["sigma_min_is_bound"] is False


def test_csv_is_one_row_a_projection(make: Make, tmp_path: Path) -> None:
    spectra = [make(0), make(1, layer=None), make(2, values=np.zeros(12))]
    with open(save(spectra, tmp_path / "a.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    ranks = ["rank_0.6", "rank_0.8", "rank_0.9", "rank_0.95", "rank_0.99"]
    slices = ["slice_axis", "slice_groups", "slice_offset", "slice_width"]
    assert list(rows[0]) == [*KEYS[:2], *slices, *KEYS[3:13], *ranks, *KEYS[14:]]
    for found, spectrum in zip(rows, spectra, strict=True):
        entry = entry_of(spectrum)
        assert found["address"] == spectrum.projection.address
        assert float(found["sigma_min"]) == spectrum.values[-1]
        assert [int(found[name]) for name in ranks] == list(entry.ranks.values())
    assert [rows[0][name] for name in slices] == [""] * 4
    assert [rows[1][name] for name in slices] == ["0", "1", "12", "12"]
    assert rows[1]["layer"] == ""
    assert rows[2]["effective_rank"] == ""


def test_csv_text_is_never_a_formula(make: Make, tmp_path: Path) -> None:
    wild = ["=1+1", "+1", "-1", "@SUM(A1)", '=a,b\n"c"', "plain=1"]
    spectra = [make(n, tensor=text, error_bound=-1.5) for n, text in enumerate(wild)]
    with open(save(spectra, tmp_path / "a.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [found["tensor"] for found in rows] == [*(f"'{text}" for text in wild[:-1]), "plain=1"]
    assert {found["error_bound"] for found in rows} == {"-1.5"}


def test_csv_columns_do_not_depend_on_the_first_row(make: Make) -> None:
    projection = make(0).projection
    text = csv_text([row(projection, None, "failed", "x", None), row(projection, None, "saved", None, {0.97: 5})])
    first, second = csv.DictReader(text.splitlines())
    assert (first["rank_0.97"], second["rank_0.97"]) == ("", "5")
    assert list(first)[:2] == ["address", "tensor"]


def test_npz_has_one_array_an_address(make: Make, tmp_path: Path) -> None:
    names = ["file", "layers.1.attention.key", "other.../../etc/passwd", "a\\b:c\x07%2F", "été", "/abs", ".."]
    spectra = [make(n, count=n, address=name) for n, name in enumerate(names)]
    with np.load(save(spectra, tmp_path / "a.npz"), allow_pickle=False) as archive:
        assert {unquote(name) for name in archive.files} == set(names)
        for name, spectrum in zip(names, spectra, strict=True):
            array = archive[escape_name(name)]
            assert array.dtype == np.float64
            assert array.tobytes() == spectrum.values.tobytes()
        for name in archive.files:
            assert not any(bad in name for bad in ("/", "\\", "..", "\x07", ":"))


def test_npz_refuses_two_spectra_of_one_address(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Two spectra have the address x"):
        save([make(0, address="x"), make(1, address="x")], tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_h5_is_compressed_and_complete(make: Make, tmp_path: Path) -> None:
    spectra = [make(n, count=500, slice=Slice(1, 2, 3, 4)) for n in range(3)] + [make(9, count=0)]
    with h5py.File(save(spectra, tmp_path / "a.h5"), "r") as file:
        assert (file["values"].compression, file["values"].shuffle) == ("gzip", True)
        assert file.userblock_size == 0
        index, values = file["index"][()], file["values"][()]
        for found, spectrum in zip(index, spectra, strict=True):
            assert values[found["offset"] :][: found["count"]].tobytes() == spectrum.values.tobytes()
            assert found["key"].decode() == spectrum.projection.key
    with h5py.File(save([], tmp_path / "none.h5"), "r") as file:
        assert (file["values"].shape, file["index"].shape, file["rank_table"].shape) == ((0,), (0,), (0, 5))


def test_an_unknown_suffix_names_the_four(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.h5, \.npz, \.csv or \.json"):
        save([make(0)], tmp_path / "a.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_missing_values_are_an_error(make: Make, tmp_path: Path) -> None:
    for suffix in (".h5", ".npz"):
        with pytest.raises(ValueError, match=r"layers\.0\.attention\.key"):
            export([entry_of(make(0))], {}, tmp_path / f"a{suffix}")
    export([entry_of(make(0))], {}, tmp_path / "a.CSV")


def test_a_full_disk_leaves_the_old_export(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="No space"):
        save([make(0)], path)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.csv"]

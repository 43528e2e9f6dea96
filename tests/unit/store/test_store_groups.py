"""The groups of an export: odd addresses, missing numbers, and states of one matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import pytest

from rankscope.engine.spectrum import Derived, Spectrum
from rankscope.store.entry import entry_of
from rankscope.store.export import export

Make = Callable[..., Spectrum]


def save(spectra: list[Spectrum], path: Path) -> Path:
    values = {spectrum.projection.key: spectrum.values for spectrum in spectra}
    export([entry_of(spectrum) for spectrum in spectra], values, path, "groups")
    return path


def test_no_address_hides_another(make: Make, tmp_path: Path) -> None:
    names = [
        *("layers.0.attention.key", "layers.3.expert.17.gate", "vision.layers.0.mlp.up", "layers.0"),
        *("other.a", "other.a.b", "other.a.singular_values", "other.component"),
        *("projections.layers.0.mlp.up", "layers.1..threshold", "singular_values", "a/b", "x" * 70_000),
    ]
    spectra = [make(number, address=name) for number, name in enumerate(names)]
    with h5py.File(save(spectra, tmp_path / "a.h5")) as file:
        found: dict[str, str] = {}
        file.visititems(
            lambda path, item: found.update({item.attrs["address"]: path}) if "address" in item.attrs else None
        )
        assert set(found) == set(names)
        for name, spectrum in zip(names, spectra, strict=True):
            assert file[found[name]][:].tobytes() == spectrum.values.tobytes()
        assert unquote(found["singular_values"]) == "singular_values/singular_values"
        table = file["projections"]
        assert [file[f"{path}/singular_values"].attrs["address"] for path in table["path"].asstr()[:]] == names
        assert list(table["address"].asstr()[:]) == names


def test_missing_numbers_are_nan_and_odd_texts_are_kept_apart(make: Make, tmp_path: Path) -> None:
    odd = make(1, layer=None, tensor="a\0b\ud800", error_bound=float("inf"))
    empty = make(2, count=0)
    with h5py.File(save([make(0, expert=4), odd, empty], tmp_path / "a.h5")) as file:
        table = file["projections"]
        np.testing.assert_array_equal(table["layer"][:], [0, np.nan, 2])
        np.testing.assert_array_equal(table["expert"][:], [4, np.nan, np.nan])
        assert np.isnan(table["sigma_max"][2])
        assert table["tensor"].asstr()[1] == "a\\x00b\\ud800"
        values = file["layers/1/attention/key/singular_values"]
        assert "layer" not in values.attrs
        assert "error_bound" not in values.attrs
        assert file["layers/2/attention/key/singular_values"].shape == (0,)
    with h5py.File(save([], tmp_path / "none.h5")) as file:
        assert list(file["projections"]) == ["path"]


def test_a_weighting_stands_in_the_path(make: Make, tmp_path: Path) -> None:
    made = Derived("weighted_diagonal", 1, "imatrix a.gguf", False, weighting="imatrix", gauge="fixed")
    with h5py.File(save([make(0, derived=made), make(1)], tmp_path / "a.h5")) as file:
        assert set(file["layers/0/attention"]) == {"key@imatrix@fixed"}
        sigma = file["layers/0/attention/key@imatrix@fixed/singular_values"]
        assert (sigma.attrs["address"], sigma.attrs["weighting"]) == ("layers.0.attention.key", "imatrix")
        assert list(file["projections/weighting"].asstr()[:]) == ["imatrix", ""]


def test_two_spectra_of_one_address_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Two spectra have the address x"):
        save([make(0, address="x"), make(1, address="x")], tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []

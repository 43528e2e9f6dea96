"""`rankscope export --layout groups`, read back as programs read it that know nothing of rankscope."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from cli_models import HIDDEN, KV, SHAPES, Arrays, addresses, lapack, tensor_name, threshold_rank, write_llama
from cli_process import Run

from rankscope.tui.cli.main import main

KEY = "layers/0/attention/key"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("groups")


@pytest.fixture(scope="module")
def arrays(folder: Path) -> Arrays:
    return write_llama(folder / "m", 1)


@pytest.fixture(scope="module")
def exported(folder: Path, arrays: Arrays) -> Path:
    assert arrays
    of = [str(folder / "m"), "--store", str(folder / "store")]
    assert main(["scan", *of]) == 0
    assert main(["export", *of, "--layout", "groups", "-o", str(folder / "m.h5")]) == 0
    return folder / "m.h5"


def test_h5py_finds_a_dataset_at_each_address(exported: Path, arrays: Arrays) -> None:
    with h5py.File(exported) as file:
        for address in addresses(1):
            sigma = file[address.replace(".", "/")]["singular_values"]
            true = lapack(arrays[tensor_name(address)])
            np.testing.assert_allclose(sigma[:], true, atol=1e-7 * true[0])
            rows, cols = SHAPES[address.split(".", 2)[2]][1]
            assert (sigma.attrs["address"], sigma.attrs["rows"], sigma.attrs["cols"]) == (address, rows, cols)
            assert sigma.attrs["tensor"] == tensor_name(address)
            np.testing.assert_allclose(sigma.attrs["frobenius_norm"], np.linalg.norm(true), rtol=1e-6)
            (scale,) = sigma.dims[0].values()
            np.testing.assert_array_equal(scale[:], np.arange(1, len(true) + 1))
        assert (sigma.dtype, sigma.chunks, sigma.attrs["units"]) == (np.float64, None, "1")


def test_xarray_takes_the_scales_for_coordinates(exported: Path, arrays: Arrays) -> None:
    import xarray

    true = lapack(arrays[tensor_name(KEY.replace("/", "."))])
    with xarray.open_dataset(exported, group=KEY, engine="h5netcdf") as found:
        assert dict(found.sizes) == {"component": KV, "threshold": 5}
        np.testing.assert_allclose(found.singular_values.sel(component=3), true[2], atol=1e-7 * true[0])
        assert int(found.threshold_rank.sel(threshold=0.9)) == threshold_rank(true, 0.9)
        assert found.singular_values.attrs["role"] == "key"
    with xarray.open_datatree(exported, engine="h5netcdf") as tree:
        held = [node for node in tree.subtree if "singular_values" in node.data_vars]
        assert {node.path.strip("/") for node in held} == {address.replace(".", "/") for address in addresses(1)}


def test_pandas_has_a_row_a_projection(exported: Path, arrays: Arrays) -> None:
    import pandas
    import xarray

    true = [threshold_rank(lapack(arrays[tensor_name(address)]), 0.9) for address in addresses(1)]
    with h5py.File(exported) as file:
        recipe = re.search(r"pandas\.DataFrame\(.*?\.items\(\)\}\)", file.attrs["description"], re.DOTALL)
    assert recipe is not None
    scope = {"pandas": pandas, "h5py": h5py, "path": exported}
    plain = eval(recipe[0], scope)  # the commands that the file prints for its readers
    with xarray.open_dataset(exported, group="projections", engine="h5netcdf") as found:
        frame = found.to_dataframe()
    assert frame.index.tolist() == [address.replace(".", "/") for address in addresses(1)]
    for table in (plain, frame.reset_index()):
        assert table["address"].tolist() == addresses(1)
        assert table["rank_0.9"].tolist() == true
        assert table.loc[table["role"] == "query", "cols"].tolist() == [HIDDEN]
        assert "expert" not in table  # no projection has one


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed: it comes with hdf5-tools")
def test_h5dump_prints_the_values(exported: Path, arrays: Arrays) -> None:
    command = ["h5dump", "-y", "-m", "%.17g", "-d", f"/{KEY}/singular_values", str(exported)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    data = re.search(r"DATA \{(.*?)\}", text, re.DOTALL)
    assert data is not None
    true = lapack(arrays[tensor_name(KEY.replace("/", "."))])
    np.testing.assert_allclose([float(word) for word in data[1].split(",")], true, atol=1e-7 * true[0])
    assert "DIMENSION_LIST" in text


def test_another_format_has_no_layout(folder: Path, cli: Run, exported: Path) -> None:
    other = exported.with_suffix(".npz")
    ran = cli("export", folder / "m", "--store", folder / "store", "--layout", "groups", "-o", other)
    said = "rankscope: the layout groups is for .h5 files, not for 'm.npz': name the file m.h5"
    assert (ran.code, ran.error) == (2, said)
    assert not other.exists()


def test_the_layout_is_index_unless_asked(folder: Path, cli: Run, exported: Path) -> None:
    assert cli("export", folder / "m", "--store", folder / "store", "-o", folder / "plain.h5").code == 0
    with h5py.File(folder / "plain.h5") as file, h5py.File(exported) as groups:
        assert {"values", "index"} <= set(file)
        assert set(groups) == {"layers", "projections"}

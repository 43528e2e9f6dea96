"""`show`, `tree`, `export`, `ls`, `rm` and `doctor`: what is stored, read back by other programs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
import torch
from cli_models import EMBEDDING, KEYS, addresses, lapack, tensor_name, threshold_rank, write_llama
from cli_process import Run

ODD = "layers.0/../../etc\n\x1b[31m.[red]w.weight"


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_show_prints_the_rank_of_every_projection(tmp_path: Path, cli: Run) -> None:
    arrays = write_llama(tmp_path / "m")
    scanned = cli("scan", tmp_path / "m")
    shown = cli("show", tmp_path / "m")
    assert (shown.code, shown.err, shown.out) == (0, "", scanned.out)
    blocks = [table(block) for block in shown.out.strip().split("\n\n")]
    assert [block[0][0] for block in blocks] == ["k60:", "k80:", "k90:"]
    for block, threshold in zip(blocks, (0.6, 0.8, 0.9), strict=True):
        ranks = {a: str(threshold_rank(lapack(arrays[tensor_name(a)]), threshold)) for a in addresses()}
        assert block[2:4] == [[n, *(ranks[a] for a in addresses() if f".{n}." in a)] for n in "01"]


def test_show_marks_what_is_not_computed(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m")
    cli("scan", tmp_path / "m", "--filter", "layers.1.attention.key")
    shown = cli("show", tmp_path / "m", "-t", "60")
    lines = table(shown.out)
    assert lines[2] == ["0", *"......."]
    assert lines[3][2].isdecimal()
    assert [*lines[3][1:2], *lines[3][3:]] == [*"......"]
    assert shown.err == "13 of 14 are not computed yet\n"


def test_show_filters(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m")
    cli("scan", tmp_path / "m")
    lines = table(cli("show", tmp_path / "m", "--filter", "layers.1.attention", "-t", "90").out)
    assert lines[1] == ["layer", "query", "key", "value", "output"]
    assert [line[0] for line in lines[2:] if line] == ["1", "min", "median", "max"]
    assert "zzz" in cli("show", tmp_path / "m", "--filter", "zzz").error


@pytest.mark.parametrize("command", [("show",), ("export", "-o", "out.csv")])
def test_nothing_stored_is_wrong_input(tmp_path: Path, cli: Run, command: tuple[str, ...]) -> None:
    write_llama(tmp_path / "m")
    assert "nothing is stored" in cli(*command, tmp_path / "m").error


def test_the_spectra_outlive_the_weights(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llama(tmp_path / "m")
    scanned = cli("scan", tmp_path / "m", "-t", "97")
    shutil.rmtree(tmp_path / "m")
    name = table(cli("ls").out)[1][0]
    monkeypatch.chdir(tmp_path)
    for model in (tmp_path / "m", name, "./m", f"{tmp_path}/m/"):
        assert cli("show", model, "-t", "97").out == scanned.out
        assert "may be a part" in cli("show", model).err
        assert cli("scan", model).code == 2
    assert cli("export", name, "-o", tmp_path / "out.npz").code == 0


def test_tree_lists_every_tensor_from_headers(tmp_path: Path, cli: Run) -> None:
    arrays = write_llama(tmp_path / "m")
    cli("scan", tmp_path / "m", "--filter", "query")
    rows = {row["address"]: row for row in cli("tree", tmp_path / "m", "--json").rows}
    assert list(rows)[:14] == addresses()
    assert {row["tensor"] for row in rows.values()} == set(arrays)
    assert all(list(row) == KEYS for row in rows.values())
    assert {a for a, row in rows.items() if row["state"] == "stored"} == {a for a in addresses() if "query" in a}
    assert (rows[EMBEDDING]["block"], rows[EMBEDDING]["rows"], rows[EMBEDDING]["cols"]) == ("other", 50, 24)
    lines = table(cli("tree", tmp_path / "m").out)
    assert lines[0] == ["address", "shape", "dtype", "state"]
    assert lines[1] == ["layers.0.attention.query", "24", "x", "24", "F32", "stored"]
    assert lines[2] == ["layers.0.attention.key", "12", "x", "24", "F32", "not", "computed"]
    assert len(lines) == 1 + len(arrays)


def test_export_npz(tmp_path: Path, cli: Run) -> None:
    arrays = write_llama(tmp_path / "m", changes={ODD: np.diag(np.arange(1.0, 9.0))})
    cli("scan", tmp_path / "m")
    cli("scan", tmp_path / "m", "--filter", "other*red*")
    assert cli("export", tmp_path / "m", "-o", tmp_path / "a.npz").code == 0
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == addresses()
        for address in addresses():
            assert file[address].dtype == np.float64
            np.testing.assert_allclose(file[address], lapack(arrays[tensor_name(address)]), atol=1e-9)
    assert cli("export", tmp_path / "m", "-o", tmp_path / "odd.npz", "--filter", "other*red*").code == 0
    with np.load(tmp_path / "odd.npz") as file:
        (name,) = file.files
        assert name.isprintable()
        assert not re.search(r"/|\\|\.\.", name)
        assert unquote(unquote(name)) == f"other.{ODD}"
        np.testing.assert_allclose(file[name], np.arange(8.0, 0.0, -1.0), rtol=1e-12)


def test_export_h5(tmp_path: Path, cli: Run) -> None:
    arrays = write_llama(tmp_path / "m")
    cli("scan", tmp_path / "m")
    assert cli("export", tmp_path / "m", "-o", tmp_path / "a.h5").code == 0
    with h5py.File(tmp_path / "a.h5") as file:
        index, thresholds = file["index"][:], list(file["rank_threshold"])
        assert [row["address"].decode() for row in index] == addresses()
        for row, ranks in zip(index, file["rank_table"][:], strict=True):
            sigma = lapack(arrays[row["tensor"].decode()])
            found = file["values"][row["offset"] : row["offset"] + row["count"]]
            np.testing.assert_allclose(found, sigma, atol=1e-9)
            assert list(ranks) == [threshold_rank(sigma, t) for t in thresholds]


def test_export_csv_and_json(tmp_path: Path, cli: Run) -> None:
    arrays = write_llama(tmp_path / "m")
    cli("scan", tmp_path / "m")
    for suffix in ("csv", "json"):
        assert cli("export", tmp_path / "m", "-o", tmp_path / f"a.{suffix}").code == 0
    rows = json.loads((tmp_path / "a.json").read_text())
    with open(tmp_path / "a.csv", newline="") as file:
        flat = list(csv.DictReader(file))
    assert [row["address"] for row in rows] == [row["address"] for row in flat] == addresses()
    for row, line in zip(rows, flat, strict=True):
        sigma = lapack(arrays[row["tensor"]])
        ranks = {f"{t:g}": threshold_rank(sigma, t) for t in (0.6, 0.8, 0.9, 0.95, 0.99)}
        assert (list(row), row["ranks"]) == (KEYS, ranks)
        assert {name: int(line[f"rank_{name}"]) for name in ranks} == ranks
        assert float(line["sigma_max"]) == row["sigma_max"] == pytest.approx(sigma[0], rel=1e-12)


def test_tied_layers_are_computed_once_and_each_shown_and_exported(tmp_path: Path, cli: Run) -> None:
    shared = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    names = {f"layers.{n}.attention.query": f"model.layers.{n}.self_attn.q_proj.weight" for n in range(3)}
    (tmp_path / "m").mkdir()
    torch.save(dict.fromkeys(names.values(), shared), tmp_path / "m" / "pytorch_model.bin")
    scanned = cli("scan", tmp_path / "m", "--json")
    assert scanned.states == dict.fromkeys(names, "done")
    assert cli("export", tmp_path / "m", "-o", tmp_path / "out.npz").code == 0
    exported = np.load(tmp_path / "out.npz")
    for address in names:
        np.testing.assert_allclose(exported[address], lapack(shared.numpy()), rtol=1e-6)
    assert table(cli("ls").out)[1][1] == "1"


@pytest.mark.parametrize("suffix", ["h5", "npz", "csv", "json"])
def test_a_partial_export_says_so(tmp_path: Path, cli: Run, suffix: str) -> None:
    write_llama(tmp_path / "m")
    cli("scan", tmp_path / "m", "--filter", "mlp")
    ran = cli("export", tmp_path / "m", "-o", tmp_path / f"a.{suffix}")
    assert ran.code == 1
    assert "6 spectra" in ran.err
    assert "8 are not computed yet" in ran.err
    assert (tmp_path / f"a.{suffix}").stat().st_size
    assert cli("export", tmp_path / "m", "-o", tmp_path / f"b.{suffix}", "--filter", "mlp").code == 0


@pytest.mark.parametrize("name", ["a", "a.txt", "a.h5.gz", "", "missing/a.h5", "folder.csv", "file/a.json"])
def test_an_output_that_cannot_be_written_is_wrong_input(tmp_path: Path, cli: Run, name: str) -> None:
    write_llama(tmp_path / "m", 1)
    cli("scan", tmp_path / "m", "--filter", "query")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert cli("export", tmp_path / "m", "-o", f"{tmp_path}/{name}" if name else "").error
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_ls_and_rm(tmp_path: Path, cli: Run, store: Path) -> None:
    empty = cli("ls")
    assert (empty.code, empty.out) == (0, "")
    assert str(store) in empty.err
    for number in range(3):
        write_llama(tmp_path / f"m{number}", 1, seed=number)
        cli("scan", tmp_path / f"m{number}")
    lines = table(cli("ls").out)
    assert lines[0] == ["model", "spectra", "size", "last", "computed"]
    assert [line[:2] for line in lines[1:]] == [[f"{tmp_path}/m{number}", "7"] for number in range(3)]
    shutil.rmtree(tmp_path / "m1")
    assert cli("rm", tmp_path / "m0").err == f"removed 7 spectra of {tmp_path}/m0\n"
    assert cli("rm", tmp_path / "m1").code == 0
    assert [line[0] for line in table(cli("ls").out)[1:]] == [f"{tmp_path}/m2"]
    assert "nothing is stored" in cli("rm", tmp_path / "m0").error
    assert "nothing is stored" in cli("rm", "no/such").error
    assert set(cli("scan", tmp_path / "m2", "--json").states.values()) == {"stored"}
    assert len(list(store.iterdir())) == 1


def test_rm_knows_the_demo_by_its_name(cli: Run) -> None:
    assert cli("scan", "demo", "--filter", "layers.3.attention.key").code == 0
    assert cli("rm", "demo").err.startswith("removed 1 spectra of ")
    assert cli("ls").out == ""


def test_doctor_says_what_it_sees(cli: Run, store: Path) -> None:
    ran = cli("doctor")
    assert (ran.code, ran.err) == (0, "")
    seen = {line[:10].strip(): line for line in ran.out.splitlines()}
    assert {"rankscope", "packages", "devices", "threads", "store", "Hub cache", "demo", "terminal"} <= set(seen)
    assert "cpu" in seen["devices"]
    assert f"{store}: 0 models" in seen["store"]
    assert ", writable" in seen["store"].replace(";", ",")


@pytest.mark.parametrize("command", [("ls",), ("scan", "m"), ("show", "m"), ("rm", "m"), ("doctor",)])
def test_a_store_that_is_no_folder_is_wrong_input(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    write_llama(tmp_path / "m", 1)
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert "is not a folder" in cli(*command, "--store", "file").error
    assert (tmp_path / "file").read_text() == "mine"


def test_a_store_that_cannot_be_written_is_said_before_computing(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_llama(tmp_path / "m", 1)
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, who may write anywhere
    assert "cannot write" in cli("scan", tmp_path / "m").error
    assert "NOT writable" in cli("doctor").out


def test_an_unreadable_store_is_one_line(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llama(tmp_path / "m", 1)

    def refuse(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied", f"{tmp_path}/store")

    monkeypatch.setattr("rankscope.store.segments.names", refuse)
    line = cli("show", tmp_path / "m").error
    assert line.startswith(f"rankscope: {tmp_path}/store/m--")
    assert "It cannot be read (Permission denied)" in line

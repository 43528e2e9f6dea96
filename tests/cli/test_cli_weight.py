"""`--weight FILE`: scanned once beside the weights as they are, shown under its name, and removed alone."""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from calibration_files import legacy, stats, write_gguf
from cli_models import HIDDEN, INNER, KEYS, Arrays, addresses, lapack, tensor_name, threshold_rank, write_llama
from cli_process import Run
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rankscope.engine.derive import moment_factors
from rankscope.engine.formats.safetensors import SAFETENSORS as safetensors  # noqa: N811
from rankscope.engine.null import null_rank

Array = NDArray[np.float64]
NOT_APART = "{} does not keep position 0 apart: where it holds most of the energy, ranks describe only that"
GGUF = {
    "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.output": "attn_output", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down",
}  # fmt: skip


def columns(address: str) -> int:
    return INNER if address.endswith("down") else HIDDEN


def second_moments(address: str, seed: int = 0) -> tuple[NDArray[np.float32], float]:
    """Sums of x x^T over tokens, and how many: of each projection its own."""
    rng = np.random.default_rng([seed, *address.encode()])
    x = rng.standard_normal((60, columns(address))) * np.logspace(0, -1.5, columns(address))
    return (x.T @ x).astype(np.float32), 60.0


def write_moments(file: Path, names: list[str], seed: int = 0) -> Path:
    held: dict[str, Any] = {}
    for address in names:
        sums, count = second_moments(address, seed)
        held[f"{tensor_name(address)}.xx"] = sums
        held[f"{tensor_name(address)}.x"] = np.zeros(len(sums), np.float32)
        held[f"{tensor_name(address)}.count"] = np.array([count], np.float32)
    save_file(held, file)
    return file


def squares(address: str) -> NDArray[np.float32]:
    return np.random.default_rng([*address.encode()]).random(columns(address)).astype(np.float32) * 100


def write_imatrix(file: Path, names: list[str]) -> Path:
    """A legacy file, by the names that GGUF gives the tensors."""
    data = struct.pack("<i", len(names))
    for address in names:
        _, layer, place = address.split(".", 2)
        name = f"blk.{layer}.{GGUF[place]}.weight".encode()
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", 100, columns(address))
        data += squares(address).tobytes()
    file.write_bytes(data)
    return file


def under_moments(arrays: Arrays, address: str, seed: int = 0) -> Array:
    """Singular values of W C^1/2, formed explicitly."""
    sums, count = second_moments(address, seed)
    values, vectors = np.linalg.eigh(sums.astype(np.float64) / count)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return lapack(arrays[tensor_name(address)].astype(np.float64) @ root)


def noise_rank(address: str, rows: int) -> float:
    """Mean k90 of Gaussian noise of so many rows under the moments of an address."""
    sums, _ = second_moments(address)
    root = np.linalg.cholesky(sums.astype(np.float64) + 1e-9 * np.eye(len(sums)))
    rng = np.random.default_rng(1)
    drawn = [threshold_rank(lapack(rng.standard_normal((rows, len(sums))) @ root), 0.9) for _ in range(20)]
    return float(np.mean(drawn))


def under_imatrix(arrays: Arrays, address: str) -> Array:
    return lapack(arrays[tensor_name(address)].astype(np.float64) * np.sqrt(squares(address).astype(np.float64) / 100))


@pytest.fixture
def arrays(tmp_path: Path) -> Arrays:
    return write_llama(tmp_path / "m", 1)


@pytest.fixture
def moments(tmp_path: Path) -> Path:
    return write_moments(tmp_path / "a.moments", addresses(1))


@pytest.fixture
def imatrix(tmp_path: Path) -> Path:
    return write_imatrix(tmp_path / "a.imatrix", addresses(1))


def test_weights_are_read_once_for_all_weightings(
    tmp_path: Path, cli: Run, arrays: Arrays, moments: Path, imatrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, eigen = [], []
    read, eigh = safetensors.read_matrix, moment_factors._eigh

    def reading(tensor: Any, *args: Any) -> Any:
        reads.append(tensor.name)
        return read(tensor, *args)

    def decomposing(c: Any) -> Any:
        eigen.append(len(c))
        return eigh(c)

    monkeypatch.setattr(safetensors, "read_matrix", reading)
    monkeypatch.setattr(moment_factors, "_eigh", decomposing)
    named = ("--weight", "none", "--weight", moments, "--weight", imatrix)
    ran = cli("scan", tmp_path / "m", "--json", *named)
    assert ran.code == 0
    assert sorted(reads) == sorted(map(tensor_name, addresses(1)))
    assert len(eigen) == 7  # of each C, for the matrix and for its noise
    rows = {(row["address"], row["weighting"]): row for row in ran.rows}
    assert len(ran.rows) == len(rows) == 21
    for address in addresses(1):
        for weighting, sigma, derived in (
            (None, lapack(arrays[tensor_name(address)]), None),
            ("moments", under_moments(arrays, address), "weigh_full"),
            ("imatrix", under_imatrix(arrays, address), "weigh_diagonal"),
        ):
            row = rows[address, weighting]
            assert list(row) == KEYS
            assert (row["state"], row["gauge"], row["derived"], row["null"]) == ("done", None, derived, None)
            assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-12)
            assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(sigma), rel=1e-12)
            assert row["ranks"] == {f"{t:g}": threshold_rank(sigma, t) for t in (0.6, 0.8, 0.9)}
    again = cli("scan", tmp_path / "m", "--json", *named)
    assert [row["state"] for row in again.rows] == ["stored"] * 21
    assert len(reads) == 7


def test_show_says_and_shows_the_weighting(tmp_path: Path, cli: Run, arrays: Arrays, moments: Path) -> None:
    cli("scan", tmp_path / "m", "--weight", moments)
    shown = cli("show", tmp_path / "m", "--weight", moments, "-t", "90")
    title, _, line, *_ = shown.out.splitlines()
    assert title.endswith("; weighted by moments a.moments (60 tokens)")
    assert line.split() == ["0", *(str(threshold_rank(under_moments(arrays, a), 0.9)) for a in addresses(1))]
    ran = cli("show", tmp_path / "m", "--weight", moments, "--view", "table", "--csv")
    rows = {row["address"]: row for row in csv.DictReader(io.StringIO(ran.out))}
    for address in addresses(1):
        row = rows[address]
        assert "k/kf" not in row
        assert row["spikes"] == ""
        assert float(row["k/k0"]) == pytest.approx(float(row["k90"]) / float(row["k0"]))
        k0 = float(row["k0"])
        assert k0 == pytest.approx(
            noise_rank(address, arrays[tensor_name(address)].shape[0]), rel=0.35
        )  # one draw, of few components
        assert k0 < 0.8 * null_rank(*arrays[tensor_name(address)].shape, 0.9)
    ratios = cli("show", tmp_path / "m", "--weight", moments, "--unit", "k/k0", "-t", "90").out.splitlines()[2].split()
    assert ratios == ["0", *(f"{float(rows[address]['k/k0']):.2f}" for address in addresses(1))]
    energy = cli("show", tmp_path / "m", "--weight", moments, "--view", "energy", "--filter", "attention.key")
    assert "weighted by moments a.moments" in energy.out
    assert "noise" in energy.out
    spectrum = cli("show", tmp_path / "m", "--weight", moments, "--view", "spectrum", "--filter", "attention.key")
    assert "noise" not in spectrum.out
    assert "edge" not in spectrum.out


def test_raw_and_weighted_spectra_are_never_mixed(tmp_path: Path, cli: Run, arrays: Arrays, moments: Path) -> None:
    cli("scan", tmp_path / "m")
    assert "--weight" in cli("show", tmp_path / "m", "--weight", moments).error
    other = write_moments(tmp_path / "b.moments", addresses(1), seed=1)
    cli("scan", tmp_path / "m", "--weight", moments)
    assert f"rankscope scan {tmp_path / 'm'} --weight" in cli("show", tmp_path / "m", "--weight", other).error
    plain = cli("show", tmp_path / "m", "-t", "90").out.splitlines()
    assert plain[2].split()[1:] == [str(threshold_rank(lapack(arrays[tensor_name(a)]), 0.9)) for a in addresses(1)]
    assert "weighted" not in plain[0]


def test_exports_name_the_weighting(tmp_path: Path, cli: Run, arrays: Arrays, moments: Path) -> None:
    cli("scan", tmp_path / "m", "--weight", moments)
    assert cli("export", tmp_path / "m", "-o", tmp_path / "raw.npz").code == 2
    assert cli("export", tmp_path / "m", "--weight", moments, "-o", tmp_path / "w.npz").code == 0
    with np.load(tmp_path / "w.npz") as found:
        assert set(found) == {f"{address}@moments" for address in addresses(1)}
        for address in addresses(1):
            true = under_moments(arrays, address)
            np.testing.assert_allclose(found[f"{address}@moments"], true, atol=1e-7 * true[0])
    cli("export", tmp_path / "m", "--weight", moments, "-o", tmp_path / "w.csv")
    rows = list(csv.DictReader((tmp_path / "w.csv").read_text().splitlines()))
    assert {row["weighting"] for row in rows} == {"moments"}
    assert list(rows[0])[-3:] == ["weighting", "gauge", "derived"]


def test_lists_count_by_weighting_and_rm_takes_one(tmp_path: Path, cli: Run, moments: Path, imatrix: Path) -> None:
    write_llama(tmp_path / "m", 1)
    named = ("--weight", "none", "--weight", moments, "--weight", imatrix, "--null", "flip")
    cli("scan", tmp_path / "m", *named)
    other = write_moments(tmp_path / "b.moments", addresses(1)[:3], seed=1)
    cli("scan", tmp_path / "m", "--weight", other, "--filter", "layers.0.attention.[qkv]*")
    assert "7 + 7 imatrix + 10 moments" in cli("ls").out
    assert json.loads(cli("ls", "--json").out)["weighted"] == {"imatrix": 7, "moments": 10}
    assert cli("rm", tmp_path / "m", "--weight", moments).code == 0
    assert json.loads(cli("ls", "--json").out)["weighted"] == {"imatrix": 7, "moments": 3}
    assert cli("rm", tmp_path / "m", "--weight", moments).code == 2
    assert cli("rm", tmp_path / "m", "--weight", "none").code == 0
    left = json.loads(cli("ls", "--json").out)
    assert (left["spectra"], left["weighted"]) == (0, {"imatrix": 7, "moments": 3})
    cli("rm", tmp_path / "m", "--weight", "moments")
    shown = cli("show", tmp_path / "m", "--weight", imatrix, "--unit", "k/k0")
    assert (shown.code, shown.err.splitlines()) == (0, [NOT_APART.format("an imatrix")])
    assert json.loads(cli("ls", "--json").out)["weighted"] == {"imatrix": 7}


def test_what_has_no_moments_is_named_and_not_shown_raw(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m", 1)
    part = write_moments(tmp_path / "part.moments", [a for a in addresses(1) if not a.endswith("down")])
    ran = cli("scan", tmp_path / "m", "--weight", "none", "--weight", part)
    assert ran.code == 1
    assert "failed: layers.0.mlp.down@moments: " in ran.err
    line = cli("show", tmp_path / "m", "--weight", part, "-t", "90").out.splitlines()[2].split()
    assert line[-1] == "."
    assert all(cell.isdecimal() for cell in line[:-1])


@pytest.mark.parametrize("command", [("scan",), ("show",), ("export", "-o", "x.npz"), ("plot", "-o", "x.png")])
def test_a_file_that_holds_no_moments_is_one_line(tmp_path: Path, cli: Run, command: tuple[str, ...]) -> None:
    write_llama(tmp_path / "m", 1)
    (tmp_path / "not").write_text("hello")
    first, *rest = command
    for file in (tmp_path / "not", tmp_path / "gone.imatrix", tmp_path):
        ran = cli(first, tmp_path / "m", *rest, "--weight", file)
        assert ran.code == 2
        assert len(ran.err.splitlines()) == 1


def test_random_signs_are_of_the_weights_as_they_are(tmp_path: Path, cli: Run, moments: Path) -> None:
    write_llama(tmp_path / "m", 1)
    assert "--weight none" in cli("scan", tmp_path / "m", "--weight", moments, "--null", "flip").error
    cli("scan", tmp_path / "m", "--weight", moments)
    assert "k/kf" in cli("show", tmp_path / "m", "--weight", moments, "--unit", "k/kf").error


def test_spectra_are_shown_when_the_weights_are_gone(tmp_path: Path, cli: Run, moments: Path) -> None:
    write_llama(tmp_path / "m", 1)
    cli("scan", tmp_path / "m", "--weight", moments)
    before = cli("show", tmp_path / "m", "--weight", moments, "--unit", "k/k0").out
    shutil.rmtree(tmp_path / "m")
    after = cli("show", tmp_path / "m", "--weight", moments, "--unit", "k/k0")
    assert (after.code, after.out) == (0, before)


def test_two_models_are_compared_under_one_weighting(tmp_path: Path, cli: Run, moments: Path) -> None:
    one, two = write_llama(tmp_path / "m", 1), write_llama(tmp_path / "n", 1, seed=1)
    for name in "mn":
        cli("scan", tmp_path / name, "--weight", moments)
    ran = cli("show", tmp_path / "m", "--against", tmp_path / "n", "--weight", moments, "--side", "B", "-t", "90")
    line = ran.out.splitlines()[2].split()
    assert line == ["0", *(str(threshold_rank(under_moments(two, a), 0.9)) for a in addresses(1))]
    assert line[1:] != [str(threshold_rank(under_moments(one, a), 0.9)) for a in addresses(1)]


def test_a_picture_says_the_weighting(tmp_path: Path, cli: Run, moments: Path) -> None:
    pytest.importorskip("matplotlib")
    write_llama(tmp_path / "m", 1)
    cli("scan", tmp_path / "m", "--weight", moments)
    assert cli("plot", tmp_path / "m", "--weight", moments, "--view", "energy", "-o", tmp_path / "f.svg").code == 0
    assert "weighted by moments a.moments" in (tmp_path / "f.svg").read_text()


def test_norm_takes_the_gains_of_the_model(tmp_path: Path, cli: Run) -> None:
    gains = {
        f"model.layers.0.{name}.weight": np.random.default_rng(n).random(HIDDEN).astype(np.float32) * 3
        for n, name in enumerate(("input_layernorm", "post_attention_layernorm"))
    }
    arrays = write_llama(tmp_path / "m", 1, changes=gains)
    rows = {row["address"]: row for row in cli("scan", tmp_path / "m", "--weight", "norm", "--json").rows}
    attention, mlp = gains.values()
    for address, row in rows.items():
        fed = mlp if "mlp" in address else attention
        gain = np.ones(columns(address)) if address.endswith(("output", "down")) else fed.astype(np.float64)
        sigma = lapack(arrays[tensor_name(address)].astype(np.float64) * gain)
        assert row["weighting"] == "norm"
        assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-12)
        assert row["ranks"]["0.9"] == threshold_rank(sigma, 0.9)
    before = cli("show", tmp_path / "m", "--weight", "norm", "--unit", "k/k0")
    shutil.rmtree(tmp_path / "m")  # the gains are gone too: their digests tell
    after = cli("show", tmp_path / "m", "--weight", "norm", "--unit", "k/k0")
    assert (after.code, after.out) == (0, before.out)
    assert "weighted by norm gains" in after.out


def test_a_file_named_as_a_weighting_is_named_with_its_folder(
    tmp_path: Path, cli: Run, moments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_llama(tmp_path / "m", 1)
    monkeypatch.chdir(tmp_path)
    for name in ("none", "norm"):
        shutil.copy(moments, tmp_path / name)
    cli("scan", "m", "--weight", "./none")
    assert json.loads(cli("ls", "--json").out)["weighted"] == {"moments": 7}
    assert cli("show", "m").code == 2
    assert cli("show", "m", "--weight", "./norm").code == 0  # the same numbers


def test_fused_and_transposed_tensors_are_turned_and_cut_first(tmp_path: Path, cli: Run) -> None:
    folder = tmp_path / "gpt2"
    folder.mkdir()
    rng = np.random.default_rng(2)
    fused = rng.standard_normal((8, 24)).astype(np.float32)  # Conv1D: (input, output)
    save_file({"h.0.attn.c_attn.weight": fused}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": 2, "n_embd": 8}))
    x = rng.standard_normal((40, 8))
    moments = {"h.0.attn.c_attn.weight.xx": x.T @ x, "h.0.attn.c_attn.weight.count": np.array([40.0])}
    save_file(moments | {"h.0.attn.c_attn.weight.x": x.sum(0)}, tmp_path / "gpt2.moments")
    ran = cli("scan", folder, "--weight", tmp_path / "gpt2.moments", "--json")
    rows = {row["role"]: row for row in ran.rows}
    assert set(rows) == {"query", "key", "value"}
    for n, role in enumerate(("query", "key", "value")):
        sigma = lapack(fused[:, 8 * n : 8 * n + 8].T.astype(np.float64) @ x.T) / np.sqrt(40)  # of all outputs W x
        assert rows[role]["sigma_max"] == pytest.approx(sigma[0], rel=1e-12)
        assert rows[role]["sigma_min"] == pytest.approx(sigma[-1], rel=1e-6)


def write_gguf_model(file: Path, arrays: Arrays) -> Path:
    """The model of write_llama, one layer, as GGUF has it."""
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    for address in addresses(1):
        writer.add_tensor(f"blk.0.{GGUF[address.split('.', 2)[2]]}.weight", arrays[tensor_name(address)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_one_imatrix_in_two_layouts_is_one_for_two_formats_of_the_model(
    tmp_path: Path, cli: Run, arrays: Arrays
) -> None:
    held = {
        f"blk.0.{leaf}.weight": stats(INNER if leaf == "ffn_down" else HIDDEN, seed=n)
        for n, leaf in enumerate(GGUF.values())
    }
    (tmp_path / "old.dat").write_bytes(legacy(held))
    write_gguf(tmp_path / "new.gguf", held)
    model = write_gguf_model(tmp_path / "m.gguf", arrays)
    for opened in (tmp_path / "m", model):
        rows = cli("scan", opened, "--weight", tmp_path / "new.gguf", "--json").rows
        assert len(rows) == 7
        for row in rows:
            sums, (count,) = held[f"blk.0.{GGUF[row['address'].split('.', 2)[2]]}.weight"]
            root = np.sqrt(sums.reshape(-1).astype(np.float64) / count)
            sigma = lapack(arrays[tensor_name(row["address"])] * root)
            assert row["ranks"]["0.9"] == threshold_rank(sigma, 0.9)
            assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-6)
        again = cli("scan", opened, "--weight", tmp_path / "old.dat", "--json").rows
        assert [row["state"] for row in again] == ["stored"] * 7

"""`rankscope scan`: what it prints and saves, against LAPACK."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cli_models import EMBEDDING, KEYS, addresses, lapack, tensor_name, threshold_rank, write_llama
from cli_process import Run


def test_rows_have_these_keys_and_the_values_of_lapack(tmp_path: Path, cli: Run) -> None:
    arrays = write_llama(tmp_path / "m")
    ran = cli("scan", tmp_path / "m", "--json")
    assert ran.code == 0
    assert sorted(row["address"] for row in ran.rows) == sorted(addresses())
    for row in ran.rows:
        weights = arrays[tensor_name(row["address"])]
        sigma = lapack(weights)
        assert list(row) == KEYS
        assert row["tensor"] == tensor_name(row["address"])
        assert f"layers.{row['layer']}.{row['block']}.{row['role']}" == row["address"]
        assert (row["rows"], row["cols"]) == weights.shape
        assert [row[name] for name in ("slice", "tower", "expert", "error")] == [None] * 4
        assert (row["dtype"], row["state"], row["device"]) == ("F32", "done", "cpu")
        assert row["ranks"] == {f"{t:g}": threshold_rank(sigma, t) for t in (0.6, 0.8, 0.9)}
        assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-12)
        assert row["sigma_min"] == pytest.approx(sigma[-1], abs=1e-9 * sigma[0])
        assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(weights.astype(np.float64)), rel=1e-12)
        assert row["stable_rank"] == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2, rel=1e-12)
        p = sigma / sigma.sum()
        assert row["effective_rank"] == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-9)
        assert 0 < row["error_bound"] < 1e-9 * sigma[0]
        assert 0 < row["noise_floor"] < 1e-6 * sigma[0]
        assert row["seconds"] > 0
        assert row["solver"]


def test_a_fused_tensor_names_its_slice(tmp_path: Path, cli: Run) -> None:
    gate_up = np.random.default_rng(3).standard_normal((20, 24)).astype(np.float32)
    write_llama(tmp_path / "m", 1, changes={"model.layers.7.mlp.gate_up_proj.weight": gate_up})
    ran = cli("scan", tmp_path / "m", "--json", "--filter", "layers.7")
    found = {row["role"]: row for row in ran.rows}
    assert {role: row["slice"] for role, row in found.items()} == {
        "gate": {"axis": 0, "groups": 1, "offset": 0, "width": 10},
        "up": {"axis": 0, "groups": 1, "offset": 10, "width": 10},
    }
    assert found["up"]["sigma_max"] == pytest.approx(lapack(gate_up[10:])[0], rel=1e-12)


def test_a_second_scan_finds_all_stored_and_recompute_does_it_again(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m")
    first = cli("scan", tmp_path / "m", "--json")
    second = cli("scan", tmp_path / "m", "--json")
    assert [row["address"] for row in second.rows] == addresses()
    assert set(second.states.values()) == {"stored"}
    assert second.err == "1 matrix (embed_tokens) is left out: --filter '*' adds them\n"
    by_address = {row["address"]: row for row in first.rows}
    assert all(row == {**by_address[row["address"]], "state": "stored"} for row in second.rows)
    again = cli("scan", tmp_path / "m", "--json", "--recompute")
    assert again.states == dict.fromkeys(sorted(addresses()), "done")


def test_the_table_of_a_scan(tmp_path: Path, cli: Run) -> None:
    arrays = write_llama(tmp_path / "m")
    ran = cli("scan", tmp_path / "m", "-t", "95")
    k = {a: threshold_rank(lapack(arrays[tensor_name(a)]), 0.95) for a in addresses()}
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0][:2] == ["k95:", "components"]
    assert lines[1] == ["layer", "query", "key", "value", "output", "gate", "up", "down"]
    assert lines[2:4] == [[str(n), *(str(k[a]) for a in addresses() if f".{n}." in a)] for n in (0, 1)]
    pairs = list(zip(*([k[a] for a in addresses() if f".{n}." in a] for n in (0, 1)), strict=True))
    assert [lines[4], lines[6]] == [["min", *(str(min(p)) for p in pairs)], ["max", *(str(max(p)) for p in pairs)]]
    counted, rest = ran.err.splitlines()[-2:]
    assert counted.startswith("14/14  ")
    assert counted.endswith("/s  0 failed")
    assert rest == "1 matrix (embed_tokens) is left out: --filter '*' adds them"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.key", ["layers.0.attention.key", "layers.1.attention.key"]),
        ("layers.1.mlp.up", ["layers.1.mlp.up"]),
        ("mlp.up", ["layers.0.mlp.up", "layers.1.mlp.up"]),
        ("layers.1", [a for a in addresses() if ".1." in a]),
        ("layers.[0]*.mlp.*", [a for a in addresses() if ".0.mlp" in a]),
        ("embed_tokens", [EMBEDDING]),
        (EMBEDDING, [EMBEDDING]),
    ],
)
def test_a_filter_computes_what_it_names_and_no_more(
    tmp_path: Path, cli: Run, pattern: str, expected: list[str]
) -> None:
    write_llama(tmp_path / "m")
    assert sorted(cli("scan", tmp_path / "m", "--json", "--filter", pattern).states) == sorted(expected)
    states = cli("tree", tmp_path / "m", "--json").states
    assert sorted(a for a, state in states.items() if state == "stored") == sorted(expected)


@pytest.mark.parametrize("pattern", ["layers.9", "ey", "*.nothing", "input_layernorm"])
def test_a_filter_that_names_no_matrix_is_wrong_input(tmp_path: Path, cli: Run, pattern: str) -> None:
    write_llama(tmp_path / "m")
    assert pattern in cli("scan", tmp_path / "m", "--filter", pattern).error


def test_a_filter_for_another_tensor_prints_it_with_its_ranks(tmp_path: Path, cli: Run) -> None:
    arrays = write_llama(tmp_path / "m")
    sigma = lapack(arrays["model.embed_tokens.weight"])
    ran = cli("scan", tmp_path / "m", "--filter", "embed_tokens", "-t", "0.9", "99")
    assert [line.split() for line in ran.out.splitlines()] == [
        ["tensor", "k90", "k99"],
        [EMBEDDING, str(threshold_rank(sigma, 0.9)), str(threshold_rank(sigma, 0.99))],
    ]


@pytest.mark.parametrize("words", [("0.95",), ("95",), ("95%",), ("0.95", "95", "0.5"), ("95", "-t", "50%")])
def test_thresholds_are_parts_or_percentages(tmp_path: Path, cli: Run, words: tuple[str, ...]) -> None:
    arrays = write_llama(tmp_path / "m", 1)
    more = {"0.5": 0.5} if len(words) > 1 else {}
    for row in cli("scan", tmp_path / "m", "--json", "-t", *words).rows:
        sigma = lapack(arrays[tensor_name(row["address"])])
        wanted = {"0.6": 0.6, "0.8": 0.8, "0.9": 0.9, "0.95": 0.95, **more}
        assert row["ranks"] == {name: threshold_rank(sigma, t) for name, t in wanted.items()}


def test_thresholds_that_differ_little_stay_apart(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m", 1)
    for row in cli("scan", tmp_path / "m", "--json", "-t", "0.9999999", "1").rows:
        assert list(row["ranks"]) == ["0.6", "0.8", "0.9", "0.9999999", "1"]
        assert row["ranks"]["1"] == min(row["rows"], row["cols"])


@pytest.mark.parametrize("word", ["0", "0%", "101", "101%", "-1", "x", "nan", "inf", "1e-13", ""])
def test_other_thresholds_are_wrong_use(tmp_path: Path, cli: Run, word: str) -> None:
    write_llama(tmp_path / "m", 1)
    for command in ("scan", "show"):
        assert f"{word!r} is not a threshold" in cli(command, tmp_path / "m", "--threshold", "0.9", word).error


def test_one_bad_matrix_fails_alone(tmp_path: Path, cli: Run) -> None:
    bad, packed = "layers.0.attention.query", "layers.1.mlp.up"
    nan = np.full((24, 24), np.nan, np.float32)
    integers = np.ones((40, 24), np.int8)
    write_llama(tmp_path / "m", changes={tensor_name(bad): nan, tensor_name(packed): integers})
    ran = cli("scan", tmp_path / "m", "--json")
    assert ran.code == 1
    failed = {row["address"]: row for row in ran.rows if row["state"] == "failed"}
    assert set(failed) == {bad, packed}
    assert "NaN" in failed[bad]["error"]
    assert "I8" in failed[packed]["error"]
    assert [list(row) for row in failed.values()] == [KEYS, KEYS]
    assert all(row[name] is None for row in failed.values() for name in KEYS[13:])
    assert [line for line in ran.err.splitlines() if line.startswith("failed: ")] == [
        f"failed: {address}: {failed[address]['error']}" for address in (bad, packed)
    ]
    good = set(addresses()) - {bad, packed}
    assert {a for a, state in ran.states.items() if state == "done"} == good
    states = cli("tree", tmp_path / "m", "--json").states
    assert {a for a, state in states.items() if state == "stored"} == good
    again = cli("scan", tmp_path / "m", "--json")
    assert (again.code, {a for a, s in again.states.items() if s == "failed"}) == (1, {bad, packed})


def test_infinite_weights_fail_too(tmp_path: Path, cli: Run) -> None:
    weights = np.ones((24, 24), np.float32)
    weights[3, 4] = np.inf
    write_llama(tmp_path / "m", 1, changes={tensor_name("layers.0.attention.query"): weights})
    assert cli("scan", tmp_path / "m", "--filter", "query").code == 1


def test_a_zero_matrix_has_ranks_0_and_no_effective_rank(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m", 1, changes={tensor_name("layers.0.mlp.up"): np.zeros((40, 24), np.float32)})
    for state in ("done", "stored"):
        (row,) = cli("scan", tmp_path / "m", "--json", "--filter", "up").rows
        assert (row["state"], row["ranks"]) == (state, {"0.6": 0, "0.8": 0, "0.9": 0})
        assert (row["effective_rank"], row["stable_rank"]) == (None, None)
        assert (row["sigma_max"], row["sigma_min"], row["frobenius_norm"]) == (0.0, 0.0, 0.0)
    assert cli("show", tmp_path / "m", "-t", "90").out.splitlines()[2].split() == ["0", *["."] * 5, "0", "."]


def test_a_changed_file_is_computed_anew_and_the_old_is_not_shown(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m", seed=1)
    cli("scan", tmp_path / "m")
    arrays = write_llama(tmp_path / "m", seed=2)
    assert "rankscope scan" in cli("show", tmp_path / "m").error
    assert set(cli("tree", tmp_path / "m", "--json").states.values()) == {"not computed"}
    ran = cli("scan", tmp_path / "m", "--json")
    assert set(ran.states.values()) == {"done"}
    for row in ran.rows:
        assert row["sigma_max"] == pytest.approx(lapack(arrays[tensor_name(row["address"])])[0], rel=1e-12)


def test_a_recompute_that_fails_shows_none_of_the_old_numbers(tmp_path: Path, cli: Run) -> None:
    file = tmp_path / "m" / "model.safetensors"
    nan = np.full((24, 24), np.nan, np.float32)
    query = "layers.0.attention.query"
    write_llama(tmp_path / "m", 1)
    cli("scan", tmp_path / "m")
    before = file.stat()
    write_llama(tmp_path / "other", 1, changes={tensor_name(query): nan})
    file.write_bytes((tmp_path / "other" / file.name).read_bytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as far as the headers tell, the same file
    ran = cli("scan", tmp_path / "m", "--json", "--recompute")
    failed = [row for row in ran.rows if row["state"] == "failed"]
    assert (ran.code, len(ran.rows), [row["address"] for row in failed]) == (1, 7, [query])
    assert all(failed[0][name] is None for name in KEYS[13:])


def test_rows_go_to_stdout_while_a_terminal_shows_the_bar(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_llama(tmp_path / "m")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    ran = cli("scan", tmp_path / "m", "--json")
    assert sorted(ran.states) == sorted(addresses())
    assert "address" not in ran.err
    assert "14/14" in ran.err


def test_a_device_that_is_not_there_is_wrong_input(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m", 1)
    assert "cuda:97" in cli("scan", tmp_path / "m", "--device", "cuda:97").error

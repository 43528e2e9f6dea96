"""`rankscope show --view ...`: every view against LAPACK, on terminals and in pipes."""

from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_models import SHAPES, Arrays, addresses, lapack, tensor_name, threshold_rank, write, write_llama
from cli_process import Run
from numpy.typing import NDArray
from safetensors.numpy import load_file

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
MATRIX = "layers.1.attention.key"


@pytest.fixture
def model(scanned: Path) -> Path:
    """A llama of two layers, all stored."""
    return scanned


@pytest.fixture
def arrays(model: Path) -> Arrays:
    found: Arrays = load_file(model / "model.safetensors")
    return found


@pytest.fixture
def other(tmp_path: Path, cli: Run) -> tuple[Path, Arrays]:
    """Other weights, a layer more, and no gate in layer 1."""
    arrays = write_llama(tmp_path / "other", 3, seed=5)
    del arrays[tensor_name("layers.1.mlp.gate")]
    write(tmp_path / "other", arrays)
    cli("scan", tmp_path / "other")
    return tmp_path / "other", arrays


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")


def values_of(arrays: Arrays, address: str) -> NDArray[np.float64]:
    return lapack(arrays[tensor_name(address)])


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def records(text: str) -> dict[str, dict[str, str]]:
    return {row["address"]: row for row in csv.DictReader(io.StringIO(text))}


# The heatmap


def test_the_heatmap_is_what_show_prints_without_a_view(model: Path, cli: Run) -> None:
    assert cli("show", model, "--view", "heatmap", "--unit", "k").out == cli("show", model).out


def test_thresholds_with_commas_and_with_spaces_are_the_same(model: Path, cli: Run) -> None:
    wanted = cli("show", model, "-t", "60", "80", "97")
    for words in (("-t", "60,80,97"), ("-t", "60,", "80,97"), ("-t", "60%,0.8", "-t", "97")):
        assert cli("show", model, *words) == wanted
    for wrong in ("60,,80", ",", "60,x", "60;80"):
        assert "is not a threshold" in cli("show", model, "-t", wrong).error


def test_a_unit_of_the_heatmap(model: Path, arrays: Arrays, cli: Run) -> None:
    ran = cli("show", model, "--unit", "stable_rank")
    assert (ran.code, ran.err) == (0, "")
    lines = table(ran.out)
    assert len([line for line in lines if line and line[0] == "layer"]) == 1  # no threshold changes it
    stable = {a: (values_of(arrays, a) ** 2).sum() / values_of(arrays, a)[0] ** 2 for a in addresses()}
    for layer in (0, 1):
        assert lines[2 + layer] == [str(layer), *(f"{stable[a]:.2f}" for a in addresses() if f"layers.{layer}." in a)]
    of_key = [stable[f"layers.{n}.attention.key"] for n in (0, 1)]
    over = [f"{reduce(of_key):.2f}" for reduce in (min, np.median, max)]
    assert [line[2] for line in lines[4:7]] == over


def test_a_unit_at_several_thresholds_is_several_tables(model: Path, arrays: Arrays, cli: Run) -> None:
    ran = cli("show", model, "--unit", "percent", "-t", "60,90", "--filter", MATRIX)
    blocks = [table(block) for block in ran.out.strip().split("\n\n")]
    count = min(SHAPES["attention.key"][1])
    for block, threshold in zip(blocks, (0.6, 0.9), strict=True):
        assert block[2] == ["1", f"{100 * threshold_rank(values_of(arrays, MATRIX), threshold) / count:.1f}"]


def test_kf_needs_the_twins_and_says_how_to_get_them(model: Path, arrays: Arrays, cli: Run) -> None:
    line = cli("show", model, "--unit", "k/kf").error
    assert line.endswith(f"run  rankscope scan {model} --null flip")
    assert cli("scan", model, "--null", "flip", "--filter", MATRIX).code == 0
    lines = table(cli("show", model, "--unit", "k/kf", "-t", "90").out)
    assert [word == "." for word in lines[3][1:]] == [a != MATRIX for a in addresses() if "layers.1." in a]
    # The twin has the same weights but for their signs: a rank that any such matrix may have.
    k = threshold_rank(values_of(arrays, MATRIX), 0.9)
    assert any(lines[3][2] == f"{k / kf:.2f}" for kf in range(1, 13))


# The table


def test_the_table_has_the_numbers_of_lapack(model: Path, arrays: Arrays, cli: Run) -> None:
    header, *rows = table(cli("show", model, "--view", "table", "-t", "97").out)
    assert header[:10] == ["address", "shape", "k60", "k80", "k90", "k95", "k97", "k99", "k97", "%"]
    found = {row[0]: row[1:8] for row in rows if row and row[0] in addresses()}
    assert list(found) == addresses()
    for address, cells in found.items():
        rows_, cols = arrays[tensor_name(address)].shape
        ranks = [threshold_rank(values_of(arrays, address), t / 100) for t in (60, 80, 90, 95, 97, 99)]
        assert cells == [f"{rows_}x{cols}", *map(str, ranks)]


def test_the_table_sorts_by_name_or_heading(model: Path, arrays: Arrays, cli: Run) -> None:
    stable = {a: (values_of(arrays, a) ** 2).sum() / values_of(arrays, a)[0] ** 2 for a in addresses()}
    wanted = sorted(stable, key=lambda address: -stable[address])
    for name in ("stable_rank", "stable"):
        ran = cli("show", model, "--view", "table", "--sort", name)
        assert [line[0] for line in table(ran.out) if line and line[0] in stable] == wanted
        assert list(records(cli("show", model, "--view", "table", "--sort", name, "--csv").out)) == wanted
    line = cli("show", model, "--view", "table", "--sort", "zzz").error
    assert "no column 'zzz'" in line
    assert "k90" in line


def test_a_rank_adds_what_its_factors_keep_and_cost(model: Path, arrays: Arrays, cli: Run) -> None:
    for k in (1, 7, 12, 20):
        rows = records(cli("show", model, "--view", "table", "--rank", str(k), "--csv").out)
        for address, row in rows.items():
            weights = arrays[tensor_name(address)].astype(np.float64)
            if k > min(weights.shape):
                assert {row[f"{name}_{k}"] for name in ("sigma", "energy", "relative_error", "factors")} == {""}
                continue
            left, sigma, right = np.linalg.svd(weights, full_matrices=False)
            error = np.linalg.norm(weights - (left[:, :k] * sigma[:k]) @ right[:k]) / np.linalg.norm(weights)
            assert float(row[f"sigma_{k}"]) == pytest.approx(sigma[k - 1], rel=1e-9)
            assert float(row[f"relative_error_{k}"]) == pytest.approx(error, abs=1e-7)
            assert float(row[f"energy_{k}"]) == pytest.approx(100 * (1 - error**2), abs=1e-6)
            assert int(row[f"factors_{k}"]) == left[:, :k].size + right[:k].size
            share = (left[:, :k].size + right[:k].size) / weights.size
            assert float(row[f"factors_{k}_percent"]) == pytest.approx(100 * share)


# Compare


def test_compare_has_a_column_a_projection_and_differences(model: Path, arrays: Arrays, cli: Run) -> None:
    ran = cli("show", model, "--view", "compare", "--filter", "key")
    lines = table(ran.out)
    k = [threshold_rank(values_of(arrays, f"layers.{n}.attention.key"), 0.9) for n in (0, 1)]
    assert ["0", "key", "1", "key"] in lines
    assert ["k90", str(k[0]), str(k[1]), f"{k[1] - k[0]:+d}"] in lines
    assert ["1", "key:", MATRIX] in lines
    assert cli("show", model, "--view", "compare").error.startswith("rankscope: 14 projections")
    rows = records(cli("show", model, "--view", "compare", "--filter", "key", "--csv").out)
    assert [int(row["k90"]) for row in rows.values()] == k


def test_no_column_of_compare_is_cut_off_on_a_narrow_terminal(
    model: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch, 50)
    out = ESCAPES.sub("", cli("show", model, "--view", "compare", "--filter", "layers.0.attention").out)
    text, *_ = out.partition("query:")
    assert max(map(len, text.splitlines()[1:])) <= 50
    for role in ("query", "key", "value", "output"):
        assert f" {role} " in text.replace("\n", " \n")


# Charts


@pytest.mark.parametrize("view", ["spectrum", "energy", "layers"])
def test_a_piped_chart_is_plain_text_of_one_size(model: Path, cli: Run, view: str) -> None:
    ran = cli("show", model, "--view", view)
    *chart, last = ran.out.splitlines()
    assert (ran.code, ran.err, len(chart)) == (0, "", 30)
    assert max(map(len, chart)) <= 100
    assert "\x1b" not in ran.out
    assert "k90" in last


@pytest.mark.parametrize("view", ["spectrum", "energy", "layers"])
def test_a_chart_is_as_wide_as_the_terminal(model: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, view: str) -> None:
    for width in (60, 130):
        on_a_terminal(monkeypatch, width)
        lines = ESCAPES.sub("", cli("show", model, "--view", view).out).splitlines()
        assert width - 8 <= max(map(len, lines)) <= width
        assert len(lines) <= 24


def test_colours_are_as_many_as_asked_for(model: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def colours(choice: str) -> set[str]:
        ran = cli("show", model, "--view", "spectrum", "--filter", "layers.0.attention", "--color", choice)
        return set(re.findall(r"\x1b\[[0-9;]*?((?:38;5;)?[0-9]+)m", ran.out)) - {"0", "1"}

    assert colours("auto") == colours("mono") == set()
    assert {c for c in colours("256") if c.startswith("38;5;")}
    assert {c for c in colours("16") if not c.startswith("38;5;")}
    assert not {c for c in colours("16") if c.startswith("38;5;")}
    monkeypatch.setenv("NO_COLOR", "1")
    assert colours("256")
    on_a_terminal(monkeypatch)
    assert colours("auto") == set()
    monkeypatch.delenv("NO_COLOR")
    assert colours("auto")


def test_an_energy_curve_ends_at_all_of_it(model: Path, cli: Run) -> None:
    lines = cli("show", model, "--view", "energy", "--filter", MATRIX, "--color", "mono").out.splitlines()
    assert lines[0].startswith(MATRIX)
    assert lines[1].startswith("100 %")


def test_a_spectrum_says_what_a_rank_keeps(model: Path, arrays: Arrays, cli: Run) -> None:
    out = cli("show", model, "--view", "spectrum", "--filter", "layers.1.attention", "--rank", "7").out
    lines = {line.split()[0]: line for line in out.splitlines() if re.search(r" k 7\b", line)}
    assert list(lines) == ["^", "query", "key", "value", "output"]
    for role in ("query", "key"):
        sigma = values_of(arrays, f"layers.1.attention.{role}")
        share = 100 * (sigma[:7] ** 2).sum() / (sigma**2).sum()
        assert f"  sigma {sigma[6]:.3g}  energy {share:.1f} %  " in lines[role]


def test_lines_are_drawn_across_the_layers(model: Path, cli: Run) -> None:
    plain = cli("show", model, "--view", "layers").out
    words = ("--line", "target=9", "--line", "of keys=5@key", "--line", "of none=5@nothing")
    drawn = cli("show", model, "--view", "layers", *words).out
    assert "target" not in plain
    assert "target 9" in drawn
    assert "of keys 5" in drawn
    assert "of none" not in drawn
    assert "is not a line" in cli("show", model, "--view", "layers", "--line", "target").error


def test_points_of_the_layers_as_csv(model: Path, arrays: Arrays, cli: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(cli("show", model, "--view", "layers", "--csv", "-t", "60,97").out)))
    found = {(r["threshold"], f"layers.{r['layer']}.{r['block']}.{r['role']}"): int(r["median"]) for r in rows}
    assert found == {(str(t), a): threshold_rank(values_of(arrays, a), t) for t in (0.6, 0.97) for a in addresses()}


def test_the_heatmap_as_csv(model: Path, arrays: Arrays, cli: Run) -> None:
    rows = records(cli("show", model, "--csv", "-t", "60,97").out)
    assert list(rows) == addresses()
    for address, row in rows.items():
        ranks = [threshold_rank(values_of(arrays, address), t) for t in (0.6, 0.97)]
        assert [int(row[name]) for name in ("k60", "k97")] == ranks
    (row,) = records(cli("show", model, "--csv", "--unit", "percent", "-t", "97", "--filter", MATRIX).out).values()
    k = threshold_rank(values_of(arrays, MATRIX), 0.97)
    assert float(row["percent_97"]) == pytest.approx(100 * k / 12)


@pytest.mark.parametrize("view", ["spectrum", "energy"])
def test_every_value_as_csv(model: Path, arrays: Arrays, cli: Run, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all projections, more than a chart draws, read in batches."""
    monkeypatch.setattr("rankscope.tui.cli.show._BATCH", 5)
    rows = list(csv.DictReader(io.StringIO(cli("show", model, "--view", view, "--csv").out)))
    assert list(dict.fromkeys(row["address"] for row in rows)) == addresses()
    for address in addresses():
        mine, sigma = [row for row in rows if row["address"] == address], values_of(arrays, address)
        assert {row["curve"] for row in mine} == {address}
        assert [int(row["k"]) for row in mine] == list(range(1, len(sigma) + 1))
        np.testing.assert_allclose([float(row["sigma"]) for row in mine], sigma, atol=1e-10)
        shares = [float(row["energy"]) for row in mine]
        np.testing.assert_allclose(shares, np.cumsum(sigma**2) / (sigma**2).sum(), rtol=1e-9)
    assert {row["is_below_noise_floor"] for row in rows} == {"False"}


def test_csv_of_a_chart_has_what_is_stored_of_both_models(
    model: Path, arrays: Arrays, other: tuple[Path, Arrays], cli: Run
) -> None:
    path, theirs = other
    words = (
        "show",
        model,
        "--against",
        path,
        "--pair",
        "address",
        "--view",
        "spectrum",
        "--filter",
        "layers.1.mlp",
        "--csv",
    )
    sides = {"B/A": "AB", "A": "A", "B": "B"}
    for side, letters in sides.items():
        ran = cli(*words, "--side", side)
        found: dict[str, list[float]] = {}
        for row in csv.DictReader(io.StringIO(ran.out)):
            found.setdefault(row["curve"], []).append(float(row["sigma"]))
        gate = "layers.1.mlp.gate"
        named = [f"{a} {x}" for a in addresses() if "1.mlp" in a for x in (letters if a != gate else "A")]
        assert list(found) == named
        for curve, values in found.items():
            address, letter = curve.split()
            np.testing.assert_allclose(values, values_of(arrays if letter == "A" else theirs, address), rtol=1e-9)


# Two models


def test_against_another_model_the_ratio_is_shown(
    model: Path, arrays: Arrays, other: tuple[Path, Arrays], cli: Run
) -> None:
    path, theirs = other

    def k(weights: Arrays, address: str) -> int:
        return threshold_rank(values_of(weights, address), 0.9)

    ran = cli("show", model, "--against", path, "--pair", "address", "-t", "90")
    only_in_b = [f"only in B: {a.replace('.1.', '.2.')}" for a in addresses() if ".1." in a]
    listed = ["1 addresses are only in A, 7 only in B", "only in A: layers.1.mlp.gate", *only_in_b]
    assert ran.err.splitlines() == listed
    shown = table(ran.out)[2:4]
    of_layer = [[a for a in addresses() if f".{n}." in a] for n in (0, 1)]
    for line, expected in zip(shown, of_layer, strict=True):
        cells = [f"{k(theirs, a) / k(arrays, a):.3f}" if tensor_name(a) in theirs else "-" for a in expected]
        assert line[1:] == cells
    for side, weights in (("A", arrays), ("B", theirs)):
        line = table(cli("show", model, "--against", path, "--pair", "address", "--side", side, "-t", "90").out)[2]
        assert line[1:] == [str(k(weights, a)) for a in of_layer[0]]
    rows = records(
        cli("show", model, "--against", path, "--pair", "address", "--view", "table", "--side", "B", "--csv").out
    )
    assert {row["model"] for row in rows.values()} == {"B"}
    assert int(rows[MATRIX]["k90"]) == k(theirs, MATRIX)
    assert rows["layers.1.mlp.gate"]["k90"] == ""


def test_what_the_second_model_lacks_is_counted(model: Path, tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "b", seed=3)
    assert "nothing is stored" in cli("show", model, "--against", tmp_path / "b").error
    cli("scan", tmp_path / "b", "--filter", "query")
    ran = cli("show", model, "--against", tmp_path / "b", "-t", "90")
    assert ran.err == "12 of 14 are not computed yet in B\n"
    assert [cell == "." for cell in table(ran.out)[2][1:]] == [False] + [True] * 6
    assert cli("show", model, "--against", tmp_path / "b", "--filter", "query").err == ""


def test_compare_and_charts_show_both_models(model: Path, other: tuple[Path, Arrays], cli: Run) -> None:
    path, _ = other
    out = cli("show", model, "--against", path, "--view", "compare", "--filter", MATRIX).out
    assert ["key", "A", "key", "B"] in table(out)
    legend = cli("show", model, "--against", path, "--view", "spectrum", "--filter", MATRIX).out.splitlines()[0]
    assert re.search(r"\bA\b.*\bB\b", legend)


# Wrong use


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--view", "nothing"), "invalid choice"),
        (("--view", "table", "--unit", "k/k0"), "--unit goes with --view heatmap"),
        (("--rank", "5"), "--rank with --view heatmap needs --unit energy"),
        (("--view", "table", "--rank", "0"), "'0' is not a rank"),
        (("--sort", "k90"), "--sort goes with --view table"),
        (("--line", "a=5"), "--line goes with --view layers"),
        (("--view", "facets", "--csv"), "--csv goes with"),
        (("--view", "energy", "--csv", "--rank", "5"), "--rank with --csv needs --view table"),
        (("--side", "A"), "--against"),
        (("--unit", "zzz"), "k/k0"),
        (("--unit", "\x1b[31m"), "no unit"),
        (("--color", "blue"), "invalid choice"),
        (("--against", "no/such"), "no/such"),
    ],
)
def test_wrong_use_of_a_view_is_one_line(model: Path, cli: Run, words: tuple[str, ...], said: str) -> None:
    assert said in cli("show", model, *words).error


@pytest.mark.parametrize("view", ["heatmap", "table", "compare", "spectrum", "energy", "layers"])
@pytest.mark.parametrize("variable", ["LC_ALL=ja_JP.eucJP", "PYTHONIOENCODING=latin-1"])
def test_a_terminal_without_utf_8_gets_ascii(
    model: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, view: str, variable: str
) -> None:
    on_a_terminal(monkeypatch)
    words = ("show", model, "--view", view, "--filter", "layers.0.attention")
    before = cli(*words).out
    assert not before.isascii()
    monkeypatch.setenv(*variable.split("="))
    ran = cli(*words)
    assert ran.code == 0
    assert ran.out.isascii()
    assert "\\u" not in ran.out
    assert "--" in ran.out
    assert sorted(map(len, before.splitlines())) == sorted(map(len, ran.out.splitlines()))


def test_views_outlive_the_weights(tmp_path: Path, cli: Run) -> None:
    model = tmp_path / "m"
    write_llama(model)
    cli("scan", model)
    before = {view: cli("show", model, "--view", view).out for view in ("spectrum", "energy", "layers", "table")}
    shutil.rmtree(model)
    assert {view: cli("show", model, "--view", view).out for view in before} == before

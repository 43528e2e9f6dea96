"""A metric is one function and one row: these two put it in the table, the comparison, files and, with `is_unit`,
the units."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_models import SHAPES, Arrays, addresses, lapack, tensor_name, write_llama
from cli_process import Run

from rankscope.engine.errors import InputError
from rankscope.engine.spectrum import Projection, Values
from rankscope.tui.data.measures import BY_NAME, Measure, units
from rankscope.tui.screens.command_line import parse_command

KEYS = ("layers.0.attention.key", "layers.1.attention.key")


def head_share(values: Values, p: Projection, _: float) -> float:
    """The share of the sum of all values that the first of every four rows of the matrix has."""
    return float(values[: p.rows // 4].sum() / values.sum())


TRIAL = Measure("head_share", "head", "sum of the first m / 4 sigma / sum sigma", 3, from_values=head_share)


@pytest.fixture
def arrays(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """The weights of a stored llama; the trial metric is added as a row."""
    found = write_llama(tmp_path / "m")
    assert cli("scan", tmp_path / "m").code == 0
    monkeypatch.setitem(BY_NAME, TRIAL.name, TRIAL)
    return found


def share(arrays: Arrays, address: str) -> float:
    """The trial metric by LAPACK."""
    values = lapack(arrays[tensor_name(address)])
    rows, _ = SHAPES[address.split(".", 2)[2]][1]
    return float(sum(values[: rows // 4]) / sum(values))


def test_the_table_and_its_files_have_a_column_more(tmp_path: Path, arrays: Arrays, cli: Run) -> None:
    expected = {address: share(arrays, address) for address in addresses()}
    ran = cli("show", tmp_path / "m", "--view", "table", "--sort", "head_share")
    header, *lines = [line.split() for line in ran.out.splitlines()]
    assert header[-3:] == ["k0", "k*", "head"]
    found = {words[0]: words[-1] for words in lines if words and words[0] in expected}
    assert list(found) == sorted(expected, key=expected.__getitem__, reverse=True)
    assert found == {address: f"{number:.3f}" for address, number in expected.items()}
    assert ran.out.splitlines()[-1] == "head: sum of the first m / 4 sigma / sum sigma"
    rows = list(csv.DictReader(io.StringIO(cli("show", tmp_path / "m", "--view", "table", "--csv").out)))
    assert list(rows[0])[-3:] == ["head_share", "condition_number_is_bound", "numerical_rank_is_bound"]
    np.testing.assert_allclose([float(row["head_share"]) for row in rows], list(expected.values()), rtol=1e-9)


def test_the_comparison_has_a_line_more(tmp_path: Path, arrays: Arrays, cli: Run) -> None:
    ran = cli("show", tmp_path / "m", "--view", "compare", "--filter", "*.key")
    (line,) = [line.split() for line in ran.out.splitlines() if line.startswith("head ")]
    first, second = (share(arrays, address) for address in KEYS)
    difference = 100 * (second / first - 1)
    assert line == [
        "head",
        f"{first:.3f}",
        f"{second:.3f}",
        f"{difference:+.{0 if abs(difference) >= 10 else 1}f}",
        "%",
    ]


def test_a_unit_is_what_asks_to_be_one(
    tmp_path: Path, arrays: Arrays, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "k percent k/k0 k/kf k/k* k/raw energy effective_rank stable_rank sigma_1 u1_participation"
    sentence = f"no unit 'head_share': {names}"
    assert cli("show", tmp_path / "m", "--unit", "head_share").error == f"rankscope: {sentence}"
    with pytest.raises(InputError) as error:
        parse_command("unit head_share")
    assert str(error.value) == sentence
    assert " ".join(unit.name for unit in units()) == names.replace("k/raw ", "")
    monkeypatch.setitem(BY_NAME, TRIAL.name, replace(TRIAL, is_unit=True))
    assert parse_command("unit head_share") == ("unit", "head_share")
    assert units()[-1].titled(0.9) == "head"
    lines = [line.split() for line in cli("show", tmp_path / "m", "--unit", "head_share").out.splitlines()]
    assert lines[2][:3] == ["0", *(f"{share(arrays, address):.3f}" for address in addresses()[:2])]


def test_a_bound_comes_from_the_function(
    tmp_path: Path, arrays: Arrays, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_wide(values: Values, p: Projection, floor: float) -> tuple[float, bool]:
        return head_share(values, p, floor), p.rows < p.cols

    bound = replace(TRIAL, from_values=of_wide, may_be_bound=True)
    monkeypatch.setitem(BY_NAME, TRIAL.name, bound)
    wanted = ("show", tmp_path / "m", "--filter", "layers.0", "--view")
    table = {line.split()[0]: line for line in cli(*wanted, "table").out.splitlines() if line}
    rows = list(csv.DictReader(io.StringIO(cli(*wanted, "table", "--csv").out)))
    for row in rows:
        is_wide = row["address"].endswith((".key", ".value", ".down"))
        assert table[row["address"]].endswith(f"{'>' if is_wide else ' '} {share(arrays, row['address']):.3f}")
        assert (row["head_share_is_bound"], row["condition_number_is_bound"]) == (str(is_wide), "False")
    # Values known only as lower bounds have no difference.
    compared = cli("show", tmp_path / "m", "--filter", "*.key", "--view", "compare").out.splitlines()
    (line,) = [line.split() for line in compared if line.startswith("head ")]
    assert line == ["head", *(word for a in KEYS for word in (">", f"{share(arrays, a):.3f}"))]

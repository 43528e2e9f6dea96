"""A series of five folders: scanned one after the other, and shown with the models as the axis."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_models import Arrays, tensor_name, write_llama
from cli_process import Run

from rankscope.engine.errors import InputError
from rankscope.tui.cli.main import main_tui
from rankscope.tui.data.series_model import is_series, numbered, open_series

STEPS = (100, 200, 1000, 2000, 3000)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, Arrays]:
    """Folders step-100 ... of small llamas in the working folder, and their weights."""
    monkeypatch.chdir(tmp_path)
    return {step: write_llama(tmp_path / f"step-{step}", seed=seed) for seed, step in enumerate(STEPS)}


def _rank(weights: Arrays, address: str) -> int:
    squares = np.linalg.svd(weights[tensor_name(address)].astype(np.float64), compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(squares) / squares.sum(), 0.9) + 1)


def _rows(text: str) -> dict[str, dict[str, str]]:
    return {row["address"]: row for row in csv.DictReader(io.StringIO(text))}


def test_ranks_by_step_are_those_of_lapack(runs: dict[int, Arrays], cli: Run) -> None:
    ran = cli("scan", "step-*", "-t", "90")
    assert ran.code == 0
    assert [line for line in ran.err.splitlines() if line.startswith("model ")][:2] == [
        "model 1 of 5: step-100", "model 2 of 5: step-1000",
    ]  # fmt: skip
    rows = _rows(cli("show", "step-*", "--view", "series", "-t", "90", "--csv").out)
    assert len(rows) == 5 * 14
    for step, weights in runs.items():
        for address in ("layers.0.attention.key", "layers.1.mlp.up"):
            assert int(rows[f"step.{step}.{address}"]["k90"]) == _rank(weights, address)
    lines = cli("show", *(f"step-{step}" for step in reversed(STEPS)), "-t", "90").out.splitlines()
    assert [line.split()[0] for line in lines[2:7]] == [f"step.{step}" for step in STEPS]  # in the order of training
    keys = [_rank(runs[100], f"layers.{layer}.attention.key") for layer in range(2)]
    assert float(lines[2].split()[2]) == pytest.approx(np.median(keys), abs=0.5)
    assert "step.1000 is step-1000" in lines
    assert lines[1].split()[0] == "step"
    chart = cli("show", "step-*", "--view", "layers", "--filter", "layers.1.mlp.up", "-t", "90").out
    assert all(str(step) in chart.splitlines()[-2] for step in STEPS)
    assert "k90 by step" in chart
    assert "layer" not in chart
    by_step = [_rank(weights, "layers.1.mlp.up") for weights in runs.values()]
    assert f"up {min(by_step)}/{sorted(by_step)[2]}/{max(by_step)}" in chart


def test_columns_say_what_a_projection_is_in_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Run
) -> None:
    """Of each model its name and number, and tower, layer and expert as its own table has them."""
    monkeypatch.chdir(tmp_path)
    experts = {
        f"model.layers.0.mlp.experts.{e}.{role}_proj.weight": np.eye(8, 6, dtype=np.float32) * (e + 1)
        for e in range(3)
        for role in ("gate", "up")
    }
    for seed, step in enumerate((10, 20)):
        write_llama(tmp_path / f"step-{step}", seed=seed, changes=experts)
    assert cli("scan", "step-*").code == 0
    alone = _rows(cli("show", "step-20", "--csv").out)
    assert {row["expert"] for row in alone.values()} == {"", "0", "1", "2"}
    for view in ("series", "table"):
        rows = _rows(cli("show", "step-*", "--view", view, "--csv").out)
        assert len(rows) == 2 * len(alone)
        for address, row in alone.items():
            ours = rows[f"step.20.{address}"]
            assert (ours["model"], ours["model_number"]) == ("step.20", "20")
            assert all(ours[name] == row[name] for name in ("tower", "layer", "block", "role", "expert"))
    points = list(csv.DictReader(io.StringIO(cli("show", "step-*", "--view", "layers", "-t", "90", "--csv").out)))
    key, expert = (next(p for p in points if (p["block"], p["model"]) == (b, "step.20")) for b in ("mlp", "expert"))
    assert (key["model_number"], key["layer"], key["projections"]) == ("20", "", "2")
    assert (expert["model_number"], expert["projections"]) == ("20", "3")
    one = cli("show", "step-*", "--view", "layers", "--filter", "layers.1.mlp.up", "-t", "90", "--csv").out
    found = list(csv.DictReader(io.StringIO(one)))
    assert [(p["model"], p["layer"]) for p in found] == [("step.10", "1"), ("step.20", "1")]


def test_stored_spectra_alone_suffice_and_equal_models_are_two(runs: dict[int, Arrays], cli: Run) -> None:
    """step-200 is a link to the file of step-100: one tensor, one content key, and still two steps."""
    shutil.rmtree("step-200")
    Path("step-200").mkdir()
    for name in ("config.json", "model.safetensors"):
        Path(f"step-200/{name}").hardlink_to(f"step-100/{name}")
    assert cli("scan", "step-100", "step-200", "step-1000").code == 0
    shutil.move("step-1000", "away")
    rows = _rows(cli("show", "step-100", "step-200", "step-1000", "-t", "90", "--csv").out)
    found = [rows[f"step.{step}.layers.0.attention.key"]["k90"] for step in (100, 200, 1000)]
    ours = _rank(runs[100], "layers.0.attention.key")
    assert found == [str(n) for n in (ours, ours, _rank(runs[1000], "layers.0.attention.key"))]


def test_one_that_cannot_be_opened_is_said_and_the_others_are_scanned(runs: dict[int, Arrays], cli: Run) -> None:
    Path("step-200/model.safetensors").write_bytes(b"damaged")
    ran = cli("scan", *(f"step-{step}" for step in STEPS[:3]), "-t", "90")
    assert ran.code == 2
    assert any(line.startswith("step-200: ") for line in ran.err.splitlines())
    rows = _rows(cli("show", "step-100", "step-1000", "-t", "90", "--csv").out)
    assert {row["state"] for row in rows.values()} == {"stored"}
    assert len(rows) == 28
    ran = cli("show", "step-100", "step-2000", "-t", "90", "--csv")
    assert "14 of 28 are not computed yet" in ran.err
    assert int(_rows(ran.out)["step.100.layers.0.mlp.up"]["k90"]) == _rank(runs[100], "layers.0.mlp.up")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "stop-*"], "stop-* matches nothing: no file and no folder has such a name"),
        (["scan", "step-[9]*"], "step-[9]* matches nothing"),
        (["show", "step-100", "step-200"], "nothing is stored of step-100 step-200: run  rankscope scan step-100 s"),
        (["show", "step-*", "--gauge", "fixed"], "--gauge is for one model: leave it out for a series"),
        (["show", "step-*", "--weight", "norm"], "--weight is for one model: leave it out for a series"),
        (["show", "step-*", "--against", "step-100"], "--against is for one model: leave it out for a series"),
        (["show", "step-*", "--view", "heads"], "--view heads is for one model, not for a series: name one"),
        (["show", "step-*", "--view", "mla"], "--view mla is for one model, not for a series: name one"),
        (["show", "step-*", "--view", "gauge"], "--view gauge is for one model, not for a series: name one"),
        (["show", "step-*", "--view", "delta"], "--view delta is for one model, not for a series: name one"),
        (["show", "step-*", "--view", "directions"], "--view directions is for one model, not for a series: name one"),
        (["show", "step-100", "nowhere"], "nowhere"),
        (["show", "org/model@step*"], "org/model"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(runs: dict[int, Arrays], cli: Run, words: list[str], said: str) -> None:
    assert runs
    ran = cli(*words)
    assert ran.code == 2
    assert said in ran.error


def test_the_explorer_refuses_it_too(
    runs: dict[int, Arrays], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    assert main_tui(["step-*", "--weight", "norm"]) == 2
    assert "--weight is for one model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "word", "numbers"),
    [
        (["step1000", "step2000"], "step", [1000, 2000]),
        (["stage1-step140000-tokens294B", "stage1-step20000-tokens42B"], "model", [140000, 20000]),
        (["checkpoint-500", "checkpoint-1500"], "checkpoint", [500, 1500]),
        (["main", "step1000"], "model", [0, 1]),
        (["a", "b", "c"], "model", [0, 1, 2]),
        (["v1", "v1-b"], "model", [0, 1]),
        (["160m", "410m"], "model", [160, 410]),
        (["9" * 5000, "1"], "model", [0, 1]),
        (["one"], "model", [0]),
    ],
)
def test_models_are_numbered_by_what_tells_them_apart(labels: list[str], word: str, numbers: list[int]) -> None:
    assert numbered(labels) == (word, numbers)


def test_a_name_with_wild_characters_that_exists_is_that_model(runs: dict[int, Arrays], tmp_path: Path) -> None:
    assert runs
    Path("step-100").rename("step-[1]")
    assert not is_series(["step-[1]"])
    assert not is_series(["https://host.invalid/model.safetensors?download=true"])
    assert is_series(["step-*0"])
    assert len(open_series(["step-[1]", "step-200"], tmp_path / "store").tree.projections) == 28
    with pytest.raises(InputError, match="matches nothing"):
        open_series(["~nobody-of-this-name/*"], tmp_path / "store")

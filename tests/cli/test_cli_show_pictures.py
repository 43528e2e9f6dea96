"""`rankscope plot` and `rankscope ls --json`."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_models import SHAPES, tensor_name, write, write_llama
from cli_process import Run

SIGNATURES = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.fixture
def model(scanned: Path) -> Path:
    return scanned


@pytest.mark.parametrize(
    ("view", "suffix", "words"),
    [
        ("heatmap", ".png", ("--unit", "k/k0", "-t", "80")),
        ("spectrum", ".pdf", ("--filter", "key", "--normalised")),
        ("energy", ".svg", ("--filter", "layers.1.attention.key")),
        ("layers", ".png", ("-t", "60,90", "--line", "target=5")),
        ("facets", ".svg", ("--normalised",)),
    ],
)
def test_every_view_makes_a_picture(
    model: Path, tmp_path: Path, cli: Run, view: str, suffix: str, words: tuple[str, ...]
) -> None:
    """What draws a view does not know the suffix; what writes a sheet knows nothing else."""
    path = tmp_path / f"picture{suffix}"
    ran = cli("plot", model, "--view", view, "-o", path, *words)
    assert (ran.code, ran.out) == (0, "")
    assert path.read_bytes().startswith(SIGNATURES[suffix])
    assert view in ran.err
    assert str(path) in ran.err


@pytest.mark.filterwarnings("error")
def test_values_at_both_ends_of_the_floats_are_drawn_and_written(tmp_path: Path, cli: Run) -> None:
    """Of layer 0 the smallest there are, of layer 1 the largest: sigma_1 is the entry of a matrix of one entry."""
    ends = (5e-323, 1.7e308)
    corner = {(role, n): np.zeros(shape) for role, (_, shape) in SHAPES.items() for n in range(2)}
    for (_, n), matrix in corner.items():
        matrix[0, 0], matrix[1, 1] = ends[n], ends[n] / 10
    write(tmp_path / "m", {tensor_name(f"layers.{n}.{role}"): matrix for (role, n), matrix in corner.items()})
    assert cli("scan", tmp_path / "m").code == 0
    for view in (["spectrum"], ["layers", "--unit", "sigma_1"], ["heatmap", "--unit", "sigma_1"]):
        assert cli("show", tmp_path / "m", "--view", *view).code == 0
        assert cli("plot", tmp_path / "m", "--view", *view, "-o", tmp_path / "a.svg").code == 0
    assert cli("show", tmp_path / "m", "--view", "facets").code == 0
    assert "1.7e308" in cli("show", tmp_path / "m", "--view", "layers", "--unit", "sigma_1").out.replace(
        "1.700e+", "1.7e"
    )
    swapped = {tensor_name(f"layers.{1 - n}.{role}"): matrix for (role, n), matrix in corner.items()}
    write(tmp_path / "swapped", {**swapped, tensor_name("layers.0.mlp.up"): corner["mlp.up", 0]})
    assert cli("scan", tmp_path / "swapped").code == 0
    for view in ("heatmap", "layers"):  # B/A has no float, or is 0, but for one
        words = (tmp_path / "m", "--against", tmp_path / "swapped", "--view", view, "--unit", "sigma_1")
        assert cli("plot", *words, "-o", tmp_path / "b.svg").code == cli("show", *words).code == 0
    rows = list(csv.DictReader(io.StringIO(cli("show", tmp_path / "m", "--view", "table", "--csv").out)))
    assert [float(row["sigma_1"]) for row in rows] == pytest.approx(
        [ends[int(row["layer"])] for row in rows], rel=1e-12
    )


def test_what_is_missing_is_said(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m")
    assert "nothing is stored" in cli("plot", tmp_path / "m", "-o", tmp_path / "a.png").error
    cli("scan", tmp_path / "m", "--filter", "mlp")
    ran = cli("plot", tmp_path / "m", "-o", tmp_path / "a.png")
    assert ran.code == 0
    assert ran.err.endswith("8 of 14 are not computed yet\n")


def test_two_models_in_one_picture(model: Path, tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "b", seed=4)
    cli("scan", tmp_path / "b")
    for view in ("heatmap", "layers", "spectrum"):
        ran = cli("plot", model, "--view", view, "--against", tmp_path / "b", "-o", tmp_path / f"{view}.svg")
        assert ran.code == 0
        assert "B/A" in ran.err or view != "heatmap"
        assert (tmp_path / f"{view}.svg").stat().st_size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "-o"),
        (("-o", ""), "picture"),
        (("-o", "a.txt"), ".png"),
        (("-o", "missing/a.png"), "cannot write"),
        (("-o", "folder.png"), "cannot write"),
        (("-o", "a.png", "--view", "table"), "invalid choice"),
        (("-o", "a.png", "--normalised"), "--normalised goes with"),
        (("-o", "a.png", "--view", "spectrum", "--unit", "k/k0"), "--unit goes with"),
        (("-o", "a.png", "--side", "B"), "--against"),
        (("-o", "a.png", "--filter", "zzz"), "zzz"),
    ],
)
def test_wrong_use_of_plot_is_one_line_and_no_file(
    model: Path, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert said in cli("plot", model, *words).error
    assert sorted(tmp_path.rglob("*")) == before


def test_ls_as_json_is_a_line_a_model(tmp_path: Path, cli: Run, store: Path) -> None:
    for name, layers in (("m", 2), ("b", 1)):
        write_llama(tmp_path / name, layers)
        cli("scan", tmp_path / name)
    shutil.rmtree(tmp_path / "b")
    rows = cli("ls", "--json").rows
    assert [(row["model"], row["spectra"]) for row in rows] == [(f"{tmp_path}/b", 7), (f"{tmp_path}/m", 14)]
    for row in rows:
        files = [path for path in (store / row["folder"]).iterdir() if path.is_file()]
        assert row["bytes"] == sum(path.stat().st_size for path in files)
        assert row["computed_at"].endswith("Z")


def test_ls_as_json_of_nothing_is_nothing(cli: Run) -> None:
    ran = cli("ls", "--json")
    assert (ran.code, ran.out) == (0, "")


def test_layers_of_two_towers_stand_one_after_the_other_by_their_names(tmp_path: Path, cli: Run) -> None:
    rng = np.random.default_rng(4)
    seeing = {
        f"vision_tower.layers.{n}.self_attn.q_proj.weight": rng.standard_normal((8, 8), np.float32) for n in (0, 1)
    }
    write_llama(tmp_path / "m", layers=3, changes=seeing)
    assert cli("scan", tmp_path / "m", "--filter", "*.query").code == 0
    drawn = cli("show", tmp_path / "m", "--view", "layers", "-t", "90", "--filter", "*layers.[12].*query").out
    assert drawn.splitlines()[-2].split() == ["1", "2", "vision.1"]  # 1, then 2 for both of them

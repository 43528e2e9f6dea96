"""Spectra weighted by second moments, in the explorer: chosen, computed, told apart from raw ones, found again."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_looking import HUGE, SMALL, WIDE, View, exploring
from app_models import Weights, matrix, numpy_rank, save_model
from calibration_files import legacy, stats, write_gguf
from safetensors.numpy import save_file

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.errors import InputError
from rankscope.engine.formats.safetensors import SAFETENSORS
from rankscope.tui.data.chosen_weighting import offers, opened_under
from rankscope.tui.data.model import open_model
from rankscope.tui.data.session import Session

LAYERS, EXPERTS = 2, 3
CONFIG = {"model_type": "qwen3_moe", "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
ATTENTION = {"q_proj": (24, 24), "k_proj": (12, 24), "v_proj": (12, 24), "o_proj": (24, 24)}
EXPERT = {"gate_proj": (20, 24), "up_proj": (20, 24), "down_proj": (24, 20)}
REFUSED, UNSEEN = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.experts.1.gate_proj"
"""The first has sums over other inputs than the model has; no token reached the second."""
COMPUTED = LAYERS * (len(ATTENTION) + EXPERTS * len(EXPERT)) - 2


def moe_weights(seed: int = 0) -> Weights:
    shapes = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(LAYERS)
        for name, shape in (
            {f"self_attn.{name}": shape for name, shape in ATTENTION.items()}
            | {f"mlp.experts.{e}.{name}": shape for e in range(EXPERTS) for name, shape in EXPERT.items()}
        ).items()
    }
    weights = {f"{name}.weight": matrix(shape, seed + n) for n, (name, shape) in enumerate(shapes.items())}
    for layer in range(LAYERS):  # gains that fall by three decades
        gain = np.logspace(1, -2, 24).astype(np.float32)
        weights |= {f"model.layers.{layer}.{norm}_layernorm.weight": gain for norm in ("input", "post_attention")}
    return weights


def mean_squares(name: str, cols: int) -> Any:
    """E[x^2] of a tensor's input, spread over decades."""
    return 10.0 ** np.random.default_rng([*name.encode()]).uniform(-2, 2, cols)


def write_moments(file: Path, weights: Weights) -> Path:
    held: dict[str, Any] = {}
    for tensor, values in weights.items():
        if values.ndim == 2:
            name = tensor.removesuffix(".weight")
            cols = values.shape[1] - 4 * (name == REFUSED)
            held[f"{tensor}.x2"] = 100 * mean_squares(name, cols)
            held[f"{tensor}.x"] = np.zeros(cols)
            held[f"{tensor}.count"] = np.array([0.0 if name == UNSEEN else 100.0])
    save_file(held, file, {"datasets": "wiki"})
    return file


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model with experts, and moments of its inputs beside it."""
    folder = save_model(tmp_path_factory.mktemp("models") / "moe", moe_weights(), CONFIG)
    write_moments(folder / "wiki.moments", moe_weights())
    (folder / "no.imatrix").write_text("notes on an imatrix")
    return folder


def ranks(names: list[str], threshold: float = 0.9, *, weighted: bool = True) -> list[str]:
    """Threshold ranks of the attention of layer 0, by LAPACK: of W, or of W with scaled columns."""
    weights, found = moe_weights(), []
    for name in names:
        values = weights[f"model.layers.0.self_attn.{name}.weight"].astype(np.float64)
        scale = np.sqrt(mean_squares(f"model.layers.0.self_attn.{name}", values.shape[1])) if weighted else 1.0
        found.append(str(numpy_rank(values * scale, threshold)))
    return found


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """A count of reads by tensor, from now on."""
    reads: Counter[str] = Counter()
    read = SAFETENSORS.read_matrix

    def reading(tensor: Any, *args: Any) -> Any:
        reads[tensor.name] += 1
        return read(tensor, *args)

    monkeypatch.setattr(SAFETENSORS, "read_matrix", reading)
    return reads


async def choose(seen: View, word: str) -> None:
    """Choose the menu line that contains a word."""
    await seen.press("w")
    line = next(n for n, line in enumerate(line for line in seen.box[1:-1] if line.strip()) if word in line)
    await seen.press("home", *["j"] * line, "enter")
    await seen.until(lambda: ("weighted by" in seen.lines[0]) is (word != "none"), "the weighting")


async def test_a_weighting_is_chosen_computed_and_told_apart(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with exploring(moe, root, WIDE) as seen:
        await choose(seen, "wiki.moments")
        reads = count_reads(monkeypatch)
        assert "moe  weighted by moments wiki.moments (wiki, 100 tokens)" in seen.lines[0]
        assert f"0/{COMPUTED + 2} stored" in seen.lines[0]
        assert "k90 moments" in seen.lines[1]
        assert seen.cells(0)[:5] == [".", ".", ".", ".", "u"]
        assert seen.cells(1)[0] == "?"
        await seen.press("s")
        assert f"compute {COMPUTED} projections by moments and {COMPUTED} of noise under the same, for k0" in seen.text
        await seen.answer("y")
        await seen.sees(f"{COMPUTED} computed in ")
        assert seen.cells(0)[:4] == ranks(list(ATTENTION))
        assert set(reads.values()) == {1}
        assert len(reads) == COMPUTED
        assert "spectrum  singular values by index, moments" in seen.text


def test_files_beside_the_model_are_told_by_name_and_content(root: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "moe", moe_weights(), CONFIG)
    held = {"blk.0.attn_q.weight": stats(24)}
    write_gguf(folder / "a.IMatrix.gguf", held)
    (folder / "b-imatrix.dat").write_bytes(legacy(held))
    write_moments(folder / "c-moments.safetensors", moe_weights())
    write_gguf(folder / "plain.gguf", held)
    save_file({"x": np.ones(3)}, folder / "d-moments.safetensors")
    (folder / "imatrix.txt").write_text("notes on blk.0.attn_q.weight")
    (folder / "imatrix").mkdir()
    session = Session(open_model(str(folder / "model.safetensors"), root), root, print, ComputeSettings("cpu", 1))
    found = {Path(offer.text).name: offer.about for offer in offers(session, {})}
    assert {name: about for name, about in found.items() if name not in ("none", "norm")} == {
        "a.IMatrix.gguf": "imatrix, beside the model",
        "b-imatrix.dat": "imatrix, beside the model",
        "c-moments.safetensors": "moments, beside the model",
    }
    given = str(folder / "b-imatrix.dat")
    again = [offer.text for offer in offers(session, {given: "imatrix b"})]
    assert again.count(given) == 1


async def test_what_is_refused_says_why(moe: Path, root: Path) -> None:
    async with exploring(moe, root, HUGE, weight=str(moe / "wiki.moments")) as seen:
        await seen.press("3", "j")
        assert seen.job.endswith("24x24  not weighted by moments")
        assert f"{REFUSED}.weight has moments of 20 in the file, and 24 input features in the model" in seen.foot
        seen.app.explorer.state.set_filter("expert.1.gate")
        await seen.press("5")
        await seen.until(lambda: "unseen" in seen.pane("table")[1], "the table")
        assert f"{UNSEEN}.weight is unseen: no token of the calibration reached it" in seen.foot
        await seen.press("enter")
        assert not seen.has_engine


async def test_switching_there_and_back_keeps_what_was_looked_at(moe: Path, root: Path) -> None:
    async with exploring(moe, root, WIDE, weight=str(moe / "wiki.moments")) as seen:
        await seen.press("3", "enter")
        await seen.until(lambda: seen.cells(0)[0] == ranks(["q_proj"])[0], "the query")
        await seen.press("l", "space", "6")
        assert "marked projections, moments, differences to the first" in seen.text
        await choose(seen, "none")
        await seen.rests()
        assert (seen.selected, seen.lines[0].split("  ")[1]) == ("layers.0.attention.key", "2 layers")
        assert [p.derived for p in seen.app.explorer.state.marks.values()] == [None]
        assert "marked projections, differences" in seen.text
        assert "moments" not in seen.text
        await seen.press("3")
        assert seen.cells(0)[:4] == [".", "+.", ".", "."]
        await choose(seen, "wiki.moments")
        assert seen.cells(0)[0] == ranks(["q_proj"])[0]
        assert seen.selected == "layers.0.attention.key"
    async with exploring(moe, root, WIDE, weight=str(moe / "wiki.moments")) as seen:
        assert seen.cells(0)[0] == ranks(["q_proj"])[0]
        assert not seen.has_engine


async def test_stored_spectra_outlive_their_file(moe: Path, root: Path, tmp_path: Path) -> None:
    file = write_moments(tmp_path / "gone.moments", moe_weights())
    async with exploring(moe, root, WIDE, weight=str(file)) as seen:
        await seen.press("3", "l", "h", "enter")
        await seen.until(lambda: seen.cells(0)[0] not in ".:*", "the query")
    file.unlink()
    async with exploring(moe, root, WIDE) as seen:
        await choose(seen, "stored: moments gone.moments")
        assert seen.cells(0)[:2] == [*ranks(["q_proj"]), "?"]
        await seen.press("3", "l", "enter")
        assert "it is not stored under moments gone.moments (wiki, 100 tokens), which is not at hand" in seen.foot


async def test_the_ratio_to_the_weights_as_they_are(moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with exploring(moe, root, WIDE) as seen:
        seen.app.explorer.state.set_unit("k/raw")
        await seen.pilot.pause()
        assert "there is no k/raw without a weighting" in seen.foot
        await choose(seen, "wiki.moments")
        await seen.press("colon")
        await seen.type("unit k/raw")
        reads = count_reads(monkeypatch)
        await seen.scan()
        await seen.sees("0 failed, saved")
        assert (len(reads), set(reads.values())) == (COMPUTED, {1})  # for both
        pairs = zip(ranks(list(ATTENTION)), ranks(list(ATTENTION), weighted=False), strict=True)
        assert seen.cells(0)[:4] == [f"{int(k) / int(raw):.2f}" for k, raw in pairs]
        await seen.press("3", "l", "h", "2")
        await seen.chart("query", "raw", "noise")
        await choose(seen, "none")
        assert seen.cells(0)[:4] == ranks(list(ATTENTION), weighted=False)


async def test_the_gains_of_the_norms(moe: Path, root: Path) -> None:
    async with exploring(moe, root, SMALL) as seen:
        await seen.press("colon")
        await seen.type("weight norm")
        await seen.sees("weighted by norm gains")
        await seen.press("3", "s")
        await seen.answer("y")
        await seen.sees("0 failed, saved")
        gain = np.logspace(1, -2, 24).astype(np.float32).astype(np.float64)
        query = moe_weights()["model.layers.0.self_attn.q_proj.weight"]
        await seen.press("l", "h")
        state = seen.app.explorer.state
        assert state.lens.number(state.selected[0]) == numpy_rank(query * gain, 0.9)
        assert "k90 norm" in seen.text


async def test_a_wrong_name_changes_nothing(moe: Path, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.moments"
    save_file({"x.weight.x2": np.ones(3), "x.weight.x": np.ones(3), "x.weight.count": np.ones(1)}, other)
    async with exploring(moe, root, WIDE) as seen:
        for name, why in (
            (tmp_path / "nowhere.dat", "no such file"),
            (other, "moments other.moments (1 tokens): layers.0.attention.query: model.layers.0.self_attn"),
        ):
            seen.app.explorer.weigher.use_named(str(name))
            await seen.sees(why)
            assert "weighted" not in seen.lines[0]
        assert seen.cells(0)[0] == "."
    with pytest.raises(InputError, match=r"^--weight .*other\.moments: moments other\.moments .*: layers\.0"):
        opened_under(str(other), [open_model(str(moe), root)], root, print)


async def test_what_is_taken_away_says_the_weighting(
    moe: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copied: list[str] = []
    monkeypatch.setattr("rankscope.tui.screens.clipboard.copy", lambda _, text: copied.append(text) or "there")
    async with exploring(moe, root, WIDE, weight=str(moe / "wiki.moments")) as seen:
        await seen.press("3", "l", "h", "enter")
        await seen.until(lambda: seen.cells(0)[0] not in ".:*", "the query")
        await seen.press("y")
        await seen.sees("copied there")
        await seen.press("e", "enter")
        await seen.sees("heatmap-by_moments.csv")
        await seen.press("5")
        await seen.rests()
        await seen.press("e", "enter")
        await seen.sees("table-by_moments.csv")
    assert copied == [f"{ranks(['q_proj'])[0]} @moments"]
    heatmap, table = (_rows(tmp_path / f"moe-{view}-by_moments.csv") for view in ("heatmap", "table"))
    assert {row["weighting"] for row in (*heatmap.values(), *table.values())} == {"moments"}
    query = table["layers.0.attention.query"]
    assert heatmap["layers.0.attention.query"]["k90"] == query["k90"] == ranks(["q_proj"])[0]
    assert (query["spikes"], query["k/raw"]) == ("", "")
    assert "k/kf" not in query
    assert float(query["k/k0"]) == pytest.approx(float(query["k90"]) / float(query["k0"]))
    assert float(query["k0"]) < 9  # by shape alone it would be 15


def _rows(file: Path) -> dict[str, dict[str, str]]:
    return {row["address"]: row for row in csv.DictReader(file.read_text().splitlines())}


async def test_two_models_are_shown_under_one_weighting(moe: Path, root: Path, tmp_path: Path) -> None:
    second = save_model(tmp_path / "second", moe_weights(seed=1), CONFIG)
    async with exploring(moe, root, WIDE, weight=str(moe / "wiki.moments")) as seen:
        seen.app.explorer.hold_against(str(second))
        await seen.sees("B is second")
        await seen.press("3", "enter")
        await seen.until(lambda: seen.cells(0)[0] not in ".:*", "the ratio")
        assert "k90 moments B/A" in seen.text
        name = "model.layers.0.self_attn.q_proj"
        theirs = moe_weights(seed=1)[f"{name}.weight"] * np.sqrt(mean_squares(name, 24))
        assert seen.cells(0)[0] == f"{numpy_rank(theirs, 0.9) / int(ranks(['q_proj'])[0]):.3f}"
        await choose(seen, "none")
        assert seen.cells(0)[0] == "."

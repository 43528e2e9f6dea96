"""The stack of keys and values in the explorer: a role beside the model's own, computed when it is asked for."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_looking import DEADLINE, SMALL, WIDE, View, exploring
from app_models import LLAMA, Weights, fill, llama_weights, numpy_rank, save_model, spectrum_of
from safetensors.numpy import load_file
from textual.pilot import Pilot

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.derive.latent import norms_note
from rankscope.store.spectra import SpectraStore
from rankscope.tui.data.model import Model, open_model
from rankscope.tui.data.stacks import with_stacks
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.settings.config import Config

LAYERS = 2
FULL = 48
"""KV heads (d_k + d_v) of the llama."""
Matrix = np.ndarray[Any, np.dtype[np.float64]]


def stack(weights: Weights, layer: int, gain: Any = 1.0) -> Matrix:
    """Keys over values, each of norm 1, by numpy."""
    name = f"model.layers.{layer}.self_attn"
    both = [weights[f"{name}.{part}_proj.weight"].astype(np.float64) * gain for part in "kv"]
    return np.concatenate([each / np.linalg.norm(each) for each in both])


def ranks(weights: Weights, threshold: float = 0.9, gain: Any = 1.0) -> list[str]:
    return [str(numpy_rank(stack(weights, layer, gain), threshold)) for layer in range(LAYERS)]


def fill_stacks(folder: Path, root: Path) -> Model:
    """Store the spectra of a llama and of its stacks, without torch."""
    model = with_stacks(fill(folder, root), root)
    weights = load_file(folder / "model.safetensors")
    with SpectraStore(root, model.folder) as store:
        for p in model.further:
            assert p.layer is not None
            assert p.derived is not None
            label = f"{p.derived.label}; {norms_note(1.0, 1.0, 1.0)}"
            found = spectrum_of(replace(p, derived=replace(p.derived, label=label)), stack(weights, p.layer))
            store.put(replace(found, weights_digests=("", ""))).result()
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = llama_weights(LAYERS)
    for layer in range(LAYERS):  # gains that fall by two decades
        gain = np.logspace(0, -2, FULL).astype(np.float32)
        weights[f"model.layers.{layer}.input_layernorm.weight"] = gain
    return save_model(tmp_path / "llama", weights, LLAMA)


def column(seen: View, heading: str) -> list[str]:
    """A column of the heatmap, its cursor's brackets taken off."""
    titles = seen.pane("heatmap")[1].split()[1:]
    return [seen.cells(row)[titles.index(heading)] for row in range(LAYERS)]


def computed(seen: View) -> list[str]:
    """The column of the stacks, where it is shown."""
    return column(seen, "key_value") if "key_value" in seen.pane("heatmap")[1] else []


async def to_stacks(seen: View) -> None:
    """Go to the node of all stacks: below the roles, the last of which is down."""
    await seen.press("0", "g", "j")
    while not seen.labels[seen.app.explorer.tree_pane.cursor_line].startswith(("> roles", "v roles")):
        await seen.press("j")
    await seen.press("l")
    while "key_value, derived" not in seen.labels[seen.app.explorer.tree_pane.cursor_line]:
        await seen.press("j")


async def test_enter_on_its_node_computes_it_and_no_scan_does(folder: Path, root: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    async with exploring(folder, root, WIDE) as seen:
        await seen.scan()
        await seen.sees("14/14 stored", "14 computed")
        await seen.press("3")
        assert "key_value" not in seen.pane("heatmap")[1]
        await seen.press("s")
        assert "everything is computed" in seen.foot
        await to_stacks(seen)
        assert seen.selected == "attention.key_value over 2 layers"
        await seen.press("enter")
        await seen.until(lambda: computed(seen) == ranks(weights), "the stacks")
        assert "14/14 stored" in seen.lines[0]
        assert any("layers (2) #" in label or label.startswith("v layers") for label in seen.labels)
        assert [label for label in seen.labels if "roles" in label] == ["v roles (7)"]
        await seen.press("l", "j")
        assert seen.selected == "layers.0.attention.key_value"
        await seen.press("J", "1")
        await seen.rests()
        assert seen.selected == "layers.1.attention.key_value"
        assert f"k90 {ranks(weights)[1]}" in seen.pane("chart")[-1]
        await seen.press("4")
        await seen.rests()
        assert "key_value" in "".join(seen.pane("chart")[:2])
        await seen.press("i")
        assert "made of several" in seen.foot
        await seen.press("5", "colon")
        await seen.type(f"export {tmp_path / 'table.csv'}")
        await seen.until((tmp_path / "table.csv").exists, "the file")
    rows = {row["address"]: row for row in csv.DictReader((tmp_path / "table.csv").read_text().splitlines())}
    for layer, k in enumerate(map(int, ranks(weights))):
        row = rows[f"layers.{layer}.attention.key_value"]
        assert (row["kv_lora_rank"], row["cache"]) == (str(k), str(FULL))
        assert float(row["saved"]) == pytest.approx(100 * (1 - k / FULL))
    assert rows["layers.0.attention.key"]["kv_lora_rank"] == ""


async def test_whole_layers_and_filters_leave_it_alone(folder: Path, root: Path) -> None:
    """A layer, a block and the model are what they were, once it is stored too; a filter names it."""
    fill_stacks(folder, root)
    async with exploring(folder, root, WIDE) as seen:
        state = seen.app.explorer.state
        await seen.until(lambda: "key_value" in seen.pane("heatmap")[1], "the column")
        assert {p.role for p in state.selected} == {"query", "key", "value", "output"}
        assert seen.pane("heatmap")[2].count("[") == 4
        await seen.press("slash")
        await seen.type("key")
        assert {p.role for p in (*state.shown, *state.further)} == {"key"}
        await seen.press("escape", "slash")
        await seen.type("*.key_value")
        assert not state.shown
        assert column(seen, "key_value") == ranks(load_file(folder / "model.safetensors"))
        await seen.press("s")
        assert "a scan does not" in seen.foot


async def test_without_the_weights_and_on_a_narrow_screen(folder: Path, root: Path) -> None:
    fill_stacks(folder, root)
    weights = load_file(folder / "model.safetensors")
    shutil.rmtree(folder)
    async with exploring(folder, root, SMALL) as seen:
        await seen.press("3")
        line = next(line for line in seen.pane("heatmap") if "key_value" in line)
        numbers = sorted(map(int, ranks(weights)))
        assert [numbers[0], numbers[-1]] == [int(line.split()[-4]), int(line.split()[-2])]
        assert "14/14 stored" in seen.lines[0]


async def test_under_a_weighting_and_in_the_fixed_gauge(folder: Path, root: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    gain = weights["model.layers.0.input_layernorm.weight"].astype(np.float64)
    async with exploring(folder, root, WIDE, weight="norm") as seen:
        await to_stacks(seen)
        await seen.press("enter")
        await seen.until(lambda: computed(seen) == ranks(weights, gain=gain) != ranks(weights), "the stacks")
        await seen.press("colon")
        await seen.type("unit k/k0")  # noise weighted alike is of projections
        await seen.until(lambda: computed(seen) == ["-", "-"], "no such number of stacks")
        await seen.press("colon")
        await seen.type("weight none")
        await seen.until(lambda: "weighted by" not in seen.lines[0], "the weights as they are")
        await seen.until(lambda: "key_value" not in seen.pane("heatmap")[1], "no column of stacks")
        await seen.press("v")
        await seen.until(lambda: "gauge-fixed" in seen.lines[0], "the gauge")
        await seen.until(lambda: not seen.app.explorer.state.further, "no stacks in the gauge")


async def test_two_models_are_held_against_each_other(folder: Path, root: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    others = weights | {n: w[:, ::-1].copy() * np.float32(2) for n, w in weights.items() if "v_proj" in n}
    other = save_model(tmp_path / "other", others, LLAMA)
    for each in (folder, other):
        fill_stacks(each, root)
    async with exploring(folder, root, WIDE, against=other) as seen:
        await seen.until(lambda: "key_value" in seen.pane("heatmap")[1], "the column")
        await seen.press("d", "d")
        expected = [f"{int(b) / int(a):.3f}" for a, b in zip(ranks(weights), ranks(others), strict=True)]
        await seen.until(lambda: column(seen, "key_value") == expected, str(expected))


def test_encoders_have_none(tmp_path: Path, root: Path) -> None:
    shapes = {f"attention.self.{name}": (24, 24) for name in ("query", "key", "value")}
    weights = {f"encoder.layer.0.{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    bert = save_model(tmp_path / "bert", weights, {"model_type": "bert", "hidden_size": 24, "num_attention_heads": 2})
    opened = open_model(str(bert), root)
    assert {p.role for p in opened.tree.scanned()} == {"query", "key", "value"}
    assert with_stacks(opened, root).further == ()


@pytest.mark.parametrize("size", [SMALL, (160, 50)])
@pytest.mark.parametrize("keys", [["3"], ["5"]])
def test_how_it_looks(
    folder: Path, root: Path, snap_compare: Callable[..., bool], size: tuple[int, int], keys: list[str]
) -> None:
    fill_stacks(folder, root)
    app = RankScopeApp([open_model(str(folder), root)], root, ComputeSettings("cpu", 1), Config())

    async def look(pilot: Pilot[None]) -> None:
        view = View(app, pilot)
        await view.until(lambda: app.explorer.is_running and app.explorer.state.loaded, "the store")
        await view.press(*keys)
        await view.sees("key_value")
        await view.rests()

    assert snap_compare(app, terminal_size=size, run_before=look)
    assert app.close(DEADLINE)

"""`i`: what the first direction of the selected projection is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_gate import Gate
from app_looking import HUGE, SMALL, View, exploring
from app_models import LLAMA, llama_weights, save_model

LAYERS = 3
LAST_UNIT = ("j",) * 9
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A llama in whose second layer one neuron is up's first direction."""
    weights = llama_weights(LAYERS)
    weights[UP][17] *= 50
    norm = {f"model.layers.{n}.post_attention_layernorm.weight": np.ones(48, np.float32) for n in range(LAYERS)}
    weights |= norm
    return save_model(tmp_path / "tiny", weights, LLAMA)


async def select(view: View, address: str) -> None:
    await view.press("slash")
    await view.type(address)
    await view.press("n")
    await view.sees(address)


@pytest.mark.parametrize("size", [SMALL, HUGE])
async def test_it_is_computed_shown_whole_and_found_again(model: Path, root: Path, size: tuple[int, int]) -> None:
    async with exploring(model, root, size) as view:
        await select(view, "layers.1.mlp.up")
        await view.press("i")
        await view.sees("sigma_1 = one neuron: output 17, ")
        await view.sees("layers.2.mlp.up: cosine ")
        assert "layers.0.mlp.up: cosine " in view.text
        sigma = np.linalg.svd(llama_weights(LAYERS)[UP] * np.where(np.arange(80) == 17, 50, 1)[:, None])[1]
        for value in sigma[:8]:
            assert f"{value:.4g}" in view.text
        await view.press("i")
        assert "one neuron" not in view.text
    async with exploring(model, root, size) as view:  # none of it is a spectrum
        await view.sees("0/21")
        await select(view, "layers.1.mlp.up")
        await view.press("i")
        await view.sees("sigma_1 = one neuron: output 17, ")


async def test_while_it_is_computed_the_box_says_so(model: Path, root: Path, gate: Gate) -> None:
    async with exploring(model, root, SMALL) as view:
        await select(view, "layers.1.mlp.up")
        await view.press("i")
        await view.sees("computing the leading directions")
        gate.open()
        await view.sees("sigma_1 = one neuron: output 17, ")


async def test_of_several_it_asks_for_one(model: Path, root: Path) -> None:
    async with exploring(model, root, SMALL) as view:
        await view.press("i")
        await view.sees("i shows one projection: select one")


async def test_why_there_is_none_is_said(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(LAYERS)
    weights[UP][3, 4] = np.nan
    async with exploring(save_model(tmp_path / "bad", weights, LLAMA), root, SMALL) as view:
        await select(view, "layers.1.mlp.up")
        await view.press("i")
        await view.sees("the weights hold NaN or infinite values")


async def test_participation_is_a_unit_where_directions_are_stored(model: Path, root: Path) -> None:
    async with exploring(model, root, SMALL) as view:
        await view.press("u")
        assert "partic.u_1" not in view.text
        await view.press("escape")
        await select(view, "layers.1.mlp.up")
        await view.press("i")
        await view.sees("one neuron: output 17, ")
        await view.press("escape", "u")
        assert "partic.u_1" in view.text
        await view.press(*LAST_UNIT, "enter", "3", "escape")
        await view.sees("1 / sum u^4", "1.0", "0/21")
        look, state = view.app.explorer.look, view.app.explorer.state
        places = {p.address: place for place, (p,) in state.grid.cells.items()}
        texts = {address: look.cell(*place).text for address, place in places.items()}
        assert texts["layers.1.mlp.up"] == "1.0"
        assert {texts[f"layers.{n}.mlp.down"] for n in range(LAYERS)} == {"."}
        await select(view, "layers.2.mlp.down")
        await view.press("i")
        await view.sees("of 48 carry it")
        await view.press("escape")
        await view.until(lambda: look.cell(*places["layers.2.mlp.down"]).text != ".", "what was just computed")
    async with exploring(model, root, SMALL) as view:
        await view.press("u", *LAST_UNIT, "enter", "3")
        await view.sees("1 / sum u^4", "1.0")


async def test_without_its_fixed_gauge_it_is_shown(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(LAYERS)
    weights[UP][17] *= 50
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = np.nan
    weights |= {f"model.layers.{n}.post_attention_layernorm.weight": np.ones(48, np.float32) for n in range(LAYERS)}
    async with exploring(save_model(tmp_path / "bad", weights, LLAMA), root, SMALL) as view:
        await select(view, "layers.1.mlp.up")
        await view.press("i")
        await view.sees("sigma_1 = one neuron: output 17, ")
        session = view.app.explorer.state.session
        await view.until(lambda: bool(session.failures), "the fixed gauge to fail")
        assert "one neuron" in view.text


async def test_of_two_models_it_is_of_the_side_that_is_shown(model: Path, tmp_path: Path, root: Path) -> None:
    other = llama_weights(LAYERS)
    other[UP][5] *= 50
    second = save_model(tmp_path / "second", other, LLAMA)
    async with exploring(model, root, SMALL, against=second) as view:
        await select(view, "layers.1.mlp.up")
        for side, title, neuron in (("A", "of A: tiny", 17), ("B", "of B: second", 5), ("B/A", "of A: tiny; d", 17)):
            assert view.app.explorer.state.lens.side == side
            await view.press("i")
            await view.sees(f"layers.1.mlp.up {title}", f"one neuron: output {neuron}, ")
            await view.press("escape", "d")


async def test_under_a_weighting_the_energy_is_of_that(model: Path, root: Path) -> None:
    async with exploring(model, root, SMALL) as view:
        await view.press("w", "j", "enter")
        await view.sees("norm")
        await select(view, "layers.1.attention.query")
        await view.press("i")
        await view.sees("output energy under norm")

"""Exports: file names tell what the files hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_looking import WIDE, exploring
from app_models import fill, llama_weights, save_model

CSV = {"0_key-1_key": [0, 1], "0_key-1_key-2_key-and_3_more": range(6)}


@pytest.mark.parametrize("named", CSV)
@pytest.mark.parametrize(("pane", "view"), [("6", "compare"), ("2", "energy")])
async def test_exports_of_marks_are_named_for_them(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, pane: str, view: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(llama, root)
    async with exploring(llama, root, WIDE) as seen:
        seen.app.explorer.state.mark_matching(f"layers.[0-{max(CSV[named])}].attention.key")
        await seen.press("6", pane)
        await seen.rests()
        await seen.press("e", "enter")
        await seen.sees("written: ")
    (file,) = tmp_path.glob("*.csv")
    assert file.name == f"tiny-llama-{view}-{named}.csv"
    addresses = {f"layers.{layer}.attention.key" for layer in CSV[named]}
    text = file.read_text()
    assert all(address in text for address in addresses)
    assert text.count(".query") == 0


async def test_a_name_that_no_file_system_takes_is_cut(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "\u5c42" * 90
    weights = llama_weights(1) | {f"{name}.weight": llama_weights(1)["model.layers.0.self_attn.q_proj.weight"]}
    folder = save_model(tmp_path / "m" / "odd", weights, {})
    fill(folder, root, [f"other.{name}"])
    async with exploring(folder, root, WIDE) as seen:
        await seen.press("slash")
        await seen.type(f"other.{name[:3]}*")
        await seen.press("1")
        await seen.rests()
        await seen.press("e", "enter")
        await seen.sees("written: ")
    (file,) = tmp_path.glob("*.csv")
    assert file.name.startswith("odd-spectrum-other.\u5c42\u5c42")

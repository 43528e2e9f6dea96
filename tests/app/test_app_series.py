"""A series in the explorer: the models are its rows, a projection is shown by model, and nothing is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_looking import SMALL, exploring
from app_models import LLAMA, fill, llama_weights, matrix, rank_in, save_model

from rankscope.tui.data.series_model import open_series

STEPS = (100, 200, 1000, 2000, 3000)


@pytest.fixture
def folders(root: Path, tmp_path: Path) -> dict[int, Path]:
    """Five computed llamas of two layers, of other weights each."""
    found = {}
    for number, step in enumerate(STEPS):
        weights = {
            name: w if w.ndim == 1 else matrix(w.shape, 7 * number + at)  # type: ignore[arg-type]
            for at, (name, w) in enumerate(llama_weights(2).items())
        }
        found[step] = save_model(tmp_path / f"step-{step}", weights, LLAMA)
        fill(found[step], root)
    return found


async def test_views_have_the_models_as_their_axis(folders: dict[int, Path], root: Path) -> None:
    async with exploring(open_series([str(f) for f in folders.values()], root), root) as view:
        assert "5 models: step-100" in view.lines[0]
        assert "v step (5)" in view.text
        assert "layers (5)" not in view.text
        assert "70/70 stored" in view.lines[0]
        assert view.selected == "step.100.attention"
        await view.press("slash")
        await view.type("layers.1.attention.key")
        await view.press("3")
        ranks = [rank_in(folder, 1, "key", 0.9) for folder in folders.values()]
        assert [view.cells(row)[0] for row in range(5)] == list(map(str, ranks))
        await view.press("5", "j", "j")
        assert view.selected == "step.1000.layers.1.attention.key"
        await view.press("4")
        assert "k90 by step" in view.text
        chart = await view.chart(f"key {min(ranks)}/{sorted(ranks)[2]}/{max(ranks)}")
        assert all(any(str(step) in line for line in chart) for step in STEPS)
        await view.press("1")
        await view.chart("step.1000.layers.1.attention.key")
        await view.press("J")
        assert view.selected == "step.2000.layers.1.attention.key"


async def test_cells_hold_all_layers_and_nothing_is_computed(folders: dict[int, Path], root: Path) -> None:
    (gone := folders[200]).rename(gone.with_name("away"))
    names = [str(folder) for folder in folders.values()]
    async with exploring(open_series(names, root), root, SMALL) as view:
        await view.press("3", "z", "j")
        assert "2 layers: median" in view.job
        await view.press("enter")
        assert {"step.200", "L0", "L1"} <= set(view.text.split())
        await view.press("escape")
        for key in ("s", "w", "v", "i", "x", "7", "8", "9", "6", "2", "f", "a", "z", "question_mark", "escape"):
            await view.press(key)
            if len(view.app.screen_stack) > 2:
                await view.press("escape")
        await view.press("7")
        await view.sees("a series has no single heads: open one of its models alone")
        await view.press("3", "colon")
        await view.type("plan 20%")
        assert view.foot == "a plan is for one model: open it alone"
        assert not view.has_engine
        assert all("failed" not in toast.message for toast in view.app._notifications)

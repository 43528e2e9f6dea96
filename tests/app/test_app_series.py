"""A series in the explorer: rows are models, a projection is shown by model, and nothing is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_looking import SMALL, exploring
from app_models import LLAMA, fill, llama_weights, matrix, rank_in, save_model

from rankscope.tui.data.series_model import open_series
from rankscope.tui.data.tour import Tour

STEPS = (100, 200, 1000, 2000, 3000)


@pytest.fixture
def folders(root: Path, tmp_path: Path) -> dict[int, Path]:
    """Five computed llamas of two layers with different weights."""
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


async def test_words_name_what_the_keys_move_along(folders: dict[int, Path], root: Path) -> None:
    names = [str(folders[step]) for step in (100, 200)]
    async with exploring(open_series(names, root), root, (120, 60)) as view:
        await view.press("3", "question_mark")
        helped = {" ".join(line.split()) for line in view.box}
        assert {
            "J The same role in the next step", "K The same role in the previous step",
            "L The next role of the step", "H The previous role of the step",
            "up k Previous step; in the overview: role", "left h Previous role; in the overview: step",
            "home g First step", "end G Last step",
            "3 Threshold ranks by step and role", "4 The number that u chooses by step, one line a role",
        } <= helped  # fmt: skip
        await view.press("escape")
        assert "  JK step" in view.foot
        found = {command.title: command.help for command in view.app.get_system_commands(view.app.explorer)}
        assert found["next step"] == "The same role in the next step (J)"
        assert found["heatmap: up"] == "Previous step; in the overview: role (up k)"
        assert not [title for title in found if "layer" in title and title != "layers"]
        await view.press("colon")
        await view.sees(": 12: step 12; k 512; ")
        await view.type("77")
        assert view.foot == "there is no step 77 here: there are 100 to 200"
        await view.press("colon")
        await view.type("nothing")
        assert view.foot.startswith("no command 'nothing': :12 goes to step 12; ")
        await view.press("2", "z")
        assert view.foot == "a chart a step: z goes back to one chart of the selection"


async def test_the_tour_of_a_series_and_its_chart_name_the_models(folders: dict[int, Path], root: Path) -> None:
    chat = folders[100].rename(folders[100].with_name("chat"))
    async with exploring(open_series([str(chat), str(folders[200])], root), root) as view:
        tour = Tour.of(view.app.explorer.state)
        assert tour is not None
        steps = [step.shows for step in tour.steps(view.app.explorer.state)]
        assert steps[2] == "k90 by model and role: components with 90 % of energy"
        assert steps[5] == "the same by model: where does value need more?"
        assert tour.answer(view.app.explorer.state)[0].startswith("Which model's value projection needs most ")
        await view.press("4", "J")
        await view.rests()
        assert view.app.explorer.painting is not None
        assert view.pane("chart")[-2].strip().endswith("model.1")

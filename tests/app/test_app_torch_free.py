"""A computed model opens and answers every key without torch: shown in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from app_models import fill

PROGRAM = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from app_looking import exploring
from app_rest import pilots_wait_for_rest
from rankscope.tui.settings import keys
pilots_wait_for_rest()

async def main():
    async with exploring(Path(sys.argv[2]), Path(sys.argv[3])) as view:
        print(*view.cells(5))
        own = {"0": [*keys.EXPLORER, *keys.TREE], "3": keys.HEATMAP, "1": keys.CHART, "2": keys.CHART, "4": []}
        for pane, table in own.items():
            await view.press(pane)
            for key in (key for binding in table for key in binding.key.split(",")):
                if key == "q" or key.isdigit():
                    continue
                await view.press(key)
                while view.app.screen is not view.app.explorer or view.app.explorer.query_one("#prompt").display:
                    await view.press("escape")
            await view.press(pane)
            await view.until(lambda: "k90" in view.text, "the view")
        await view.press("colon")
        await view.type("t 97")
        await view.until(lambda: "k97" in view.text, "the ranks")
        assert not view.has_engine

asyncio.run(main())
print(*sorted(sys.modules))
"""
LATER = """
    engine.checkpoint.remote engine.compute.outcomes engine.compute.queue engine.compute.reader engine.compute.reporter
    engine.compute.worker_thread engine.formats.gguf_blocks engine.plan.plan_file engine.quantised.modules
    tui.data.glossary tui.data.latent_ranks tui.data.records tui.data.tour tui.data.view_records
    tui.screens.command_line tui.screens.completing
"""
LISTING = """
import sys
from pathlib import Path
import rankscope.tui.cli.launch, rankscope.tui.screens.app, rankscope.tui.screens.picker
from rankscope.tui.data.named import resolve
from rankscope.tui.data.views import VIEWS
rankscope.tui.screens.picker.choices(Path(sys.argv[1]))
widgets = [resolve(view.widget) for view in VIEWS if view.widget]
print(*sorted(sys.modules))
"""


def _run(program: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_computed_model_answers_every_key_without_torch(llama: Path, root: Path) -> None:
    fill(llama, root)
    cells, modules = _run(PROGRAM, Path(__file__).parent, llama, root)
    assert all(cell.isdigit() for cell in cells.split())
    assert {"textual", "numpy", "h5py"} <= set(modules.split())
    assert not set(modules.split()) & {"torch", "gguf", "transformers"}


def test_starting_and_picking_import_neither_torch_nor_the_charts(root: Path) -> None:
    (modules,) = _run(LISTING, root)
    assert "textual" in modules.split()
    assert not set(modules.split()) & {"torch", "plotext", "gguf", "transformers"}
    assert "rankscope.tui.widgets.plan_map" in modules.split()
    assert not set(modules.split()) & {f"rankscope.{name}" for name in LATER.split()}

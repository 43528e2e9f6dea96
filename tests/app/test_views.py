"""The list of views: what is made of it, and that a new view is one row and one file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from app_models import fill

from rankscope.tui.data.named import resolve
from rankscope.tui.data.views import BY_KEY, VIEWS, View, ViewPlace, keyed, named_for, placed, taking

PROGRAM = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import stub_views
stub_views.add()
from app_looking import exploring
from app_rest import pilots_wait_for_rest
from rankscope.tui.settings import keys
pilots_wait_for_rest()

async def main():
    async with exploring(Path(sys.argv[2]), Path(sys.argv[3])) as view:
        for pane in "28":
            await view.press("0", pane)
            tables = [keys.EXPLORER, keys.PANES.get(view.app.explorer.focused_pane.id, [])]
            pressed = [key for table in tables for binding in table for key in binding.key.split(",")]
            opening = {"u", "e", "s", "slash", "colon", "question_mark"}  # each waits for an answer
            moving = {"q", "tab", "shift+tab", "escape", "backspace"}  # to another pane, or away
            await view.rush(*(key for key in pressed if not key.isdigit() and key not in opening | moving))
        for key in sorted(opening | moving - {"q"}):
            await view.press("2", key)
            while view.app.screen is not view.app.explorer or view.app.explorer.query_one("#prompt").display:
                await view.press("escape")
        await view.press("M", "escape", "escape", "8", "2")
        await view.sees("2 squares  n squared by n", "8 counted  projections counted", "42 projections", "squares ")
        await view.press("question_mark")
        await view.sees("Squares, of nothing", "How many projections")
        await view.press("escape", "ctrl+p")
        await view.type("squares")
        await view.press("e")
        await view.sees("export the squares", "tiny-llama-squares")
        await view.press("enter")
        await view.sees("written: ")
        await view.press("8", "y")
        await view.sees(" 42")
        await view.press("colon")
        await view.type("export counted.csv")
        await view.sees("counted.csv")
        await view.press("J")
        await view.sees("0-9 view")

asyncio.run(main())
from rankscope.tui.cli.main import main as rankscope
model, store = sys.argv[2], ("--store", sys.argv[3])
assert rankscope(["show", model, *store, "--view", "squares", "--csv"]) == 0
assert rankscope(["plot", model, *store, "--view", "squares", "-o", "squares.svg"]) == 0
assert rankscope(["show", model, *store, "--view", "squares", "--sort", "k90"]) == 2
assert rankscope(["show", model, *store, "--view", "facets", "--csv"]) == 2
"""


def test_a_new_view_is_a_row_and_a_file(llama: Path, root: Path, tmp_path: Path) -> None:
    """Every key is pressed in it and out of it; it is drawn, listed, exported, shown and plotted."""
    fill(llama, root)
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(llama), str(root)]
    environ = {**os.environ, "TMUX": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["n,square", *(f"{n},{n * n}" for n in range(1, 10))]
    (exported,) = tmp_path.glob("tiny-llama-squares-*.csv")
    assert exported.read_text().splitlines()[9] == "9,81"
    assert (tmp_path / "counted.csv").read_text().split() == ["projections", "42"]
    assert "squares" in (tmp_path / "squares.svg").read_text()
    assert done.stderr.splitlines()[-2:] == [
        "rankscope: --sort goes with --view table, not with squares",
        "rankscope: --csv goes with --view heatmap, table, compare, heads, layers, spectrum, directions, series, "
        "gauge, mla or squares, not with facets",
    ]


def test_the_keys_are_those_of_the_table_and_no_two_share_one() -> None:
    assert [view.key for view in keyed()] == list(View) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [view.name for view in keyed()] == [view.name.lower() for view in View]
    assert [view.name for view in placed(ViewPlace.TOP)] == ["heatmap", "table", "compare", "heads", "delta", "plan"]
    assert len({view.name for view in VIEWS}) == len(VIEWS)


def test_what_the_command_line_offers() -> None:
    assert named_for("text") == [
        "heatmap",
        "spectrum",
        "energy",
        "layers",
        "table",
        "compare",
        "heads",
        "delta",
        "facets",
        "directions",
        "series",
        "gauge",
        "mla",
    ]
    assert named_for("picture") == ["heatmap", "spectrum", "energy", "layers", "facets"]
    assert taking("rank") == ["heatmap", "table", "compare", "layers", "spectrum", "energy"]
    charts = ["layers", "spectrum", "energy"]
    beside = ["directions", "series", "gauge", "mla", "delta"]
    assert taking("csv") == ["heatmap", "table", "compare", "heads", *charts, *beside]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_every_name_in_the_table_is_code(view: object) -> None:
    for field in ("widget", "draw", "small", "readout", "csv", "text", "picture"):
        name = getattr(view, field)
        assert not name or callable(resolve(name)), (field, name)


def test_what_is_shown_small_is_drawn_by_the_view_that_it_belongs_to() -> None:
    (facets,) = [view for view in VIEWS if view.small_of is not None]
    assert BY_KEY[facets.drawn_as].name == "spectrum"

"""Snapshots of the whole screen of every view at two sizes; `pytest --snapshot-update` after an intended change.

A third size covers the views that show more there than a larger chart. Fixed data: spectra of a made-up llama by numpy,
stored before the explorer opens; no engine runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from app_looking import DEADLINE, HUGE, SMALL, WIDE, View
from app_models import LLAMA, fill, llama_weights, save_model
from textual.pilot import Pilot

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.tui.data.model import open_model
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.settings.config import Config

# Keys ("@": until the chart is drawn), and a text that is seen after them.
VIEWS = {
    "tree": (["j"], "mlp"),
    "spectrum": (["n", "J", "1"], "layers.1.attention.query"),
    "energy": (["j", "2"], "gate"),
    "facets": (["2", "z"], "layer 0"),
    "rank": (["n", "L", "1", "@", "colon", "k", "space", "1", "0", "enter"], "k 10  sigma"),
    "heatmap": (["3", "l"], ".attention."),
    "turned": (["3", "z"], "layers.0.attention"),
    "layers": (["4"], "k90 by layer"),
    "table": (["5", "l", "l", "l", "o", "g"], "k80"),
    "compare": (["n", "space", "L", "space", "6"], "+"),
    "units": (["3", "u"], "stable"),
    "help": (["question_mark"], "in the tree"),
}
SIZES = {"80x24": SMALL, "120x40": WIDE, "200x60": HUGE}
SHOWN = [(name, size) for name in VIEWS for size in SIZES if size != "200x60" or name in ("facets", "heatmap", "table")]


@pytest.fixture
def app(llama: Path, root: Path) -> Iterator[RankScopeApp]:
    """The explorer on a computed model."""
    app = RankScopeApp([fill(llama, root)], root, ComputeSettings("cpu", 1), Config())
    yield app
    assert app.close(DEADLINE)


def _looking(app: RankScopeApp, keys: list[str], seen: str) -> Callable[[Pilot[None]], object]:
    async def look(pilot: Pilot[None]) -> None:
        view = View(app, pilot)
        await view.until(lambda: app.explorer.is_running and app.explorer.state.loaded, "the store")
        for key in keys:
            await (view.rests() if key == "@" else view.press(key))
        await view.sees(seen)
        await view.rests()

    return look


@pytest.mark.parametrize(("name", "size"), SHOWN)
def test_a_view(app: RankScopeApp, snap_compare: Callable[..., bool], name: str, size: str) -> None:
    assert snap_compare(app, terminal_size=SIZES[size], run_before=_looking(app, *VIEWS[name]))


@pytest.mark.parametrize("size", SIZES)
def test_two_models(llama: Path, tmp_path: Path, root: Path, snap_compare: Callable[..., bool], size: str) -> None:
    weights = {name: w * 2 if "k_proj" in name else w for name, w in llama_weights(4).items()}
    other = save_model(tmp_path / "other-llama", weights, LLAMA)
    fill(llama, root)
    fill(other, root)
    models = [open_model(str(folder), root) for folder in (llama, other)]
    app = RankScopeApp(models, root, ComputeSettings("cpu", 1), Config())
    assert snap_compare(app, terminal_size=SIZES[size], run_before=_looking(app, ["3", "d", "d"], "B/A"))
    assert app.close(DEADLINE)


@pytest.mark.parametrize("size", [SMALL, (160, 50)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_plan(app: RankScopeApp, snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    keys = ["colon", *"plan", "space", *"30", "percent_sign", "enter"]
    assert snap_compare(app, terminal_size=size, run_before=_looking(app, keys, "worst first"))

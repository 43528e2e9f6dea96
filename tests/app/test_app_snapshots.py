"""The whole screen of a computed model at three sizes; `pytest --snapshot-update` after a change that is meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from app_looking import HUGE, SMALL, WIDE, View
from app_models import fill
from textual.pilot import Pilot

from rankscope.tui.app import RankScopeApp


@pytest.mark.parametrize(
    ("size", "keys", "seen"),
    [(SMALL, "3", "k90"), (WIDE, "2", "90 %"), (HUGE, "4", "k60 by")],
    ids=["80x24", "120x40", "200x60"],
)
def test_the_screen(
    llama: Path, root: Path, snap_compare: Callable[..., bool], size: tuple[int, int], keys: str, seen: str
) -> None:
    model = fill(llama, root)
    app = RankScopeApp(model, root, "cpu", 1, 0.9)

    async def look(pilot: Pilot[None]) -> None:
        view = View(app, pilot)
        await view.until(lambda: app.is_running and hasattr(app, "explorer") and app.explorer.loaded, "the store")
        await view.press("j", keys)
        await view.sees(seen, "layers.0.mlp")
        if keys != "3":
            await view.chart(seen)

    assert snap_compare(app, terminal_size=size, run_before=look)
    app.explorer.painter.close()
    app.session.close()

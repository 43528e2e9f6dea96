"""The style of a pane's lines: worked out once for all of them, and always the present one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from app_looking import exploring
from app_models import fill
from rich.color import Color
from rich.style import Style
from textual.dom import DOMNode
from textual.widget import Widget

STYLE: Callable[[DOMNode], Style] = DOMNode.rich_style.fget  # type: ignore[assignment]


def _backgrounds(pane: Widget) -> set[Color | None]:
    """The backgrounds of the lines inside a pane's border."""
    drawn = pane.render_lines(pane.size.region)
    return {segment.style.bgcolor for strip in drawn for segment in strip if segment.style}


async def test_it_is_worked_out_once_for_all_lines(llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[DOMNode] = []
    async with exploring(fill(llama, root), root) as view:
        for name, key in {"tree": "3", "heatmap": "3", "chart": "3", "table": "5"}.items():
            await view.press(key)
            await view.rests()
            pane = view.app.explorer.query_one(f"#{name}", Widget)
            pane.styles.background = "rgb(1,2,3)"
            await view.pilot.pause()
            assert Color.from_rgb(1, 2, 3) in _backgrounds(pane)

            pane.refresh()
            with monkeypatch.context() as patched:
                patched.setattr(DOMNode, "rich_style", property(lambda node: asked.append(node) or STYLE(node)))
                pane.render_lines(pane.size.region)
            assert pane.size.height > 5
            assert asked.count(pane) == 1

"""Clicks, where the settings let them come to the explorer."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_looking import SMALL, WIDE, View, exploring
from app_models import fill
from app_terminal import Terminal


async def _click(view: View, text: str, pane: str, line: int | None = None) -> None:
    """Click on a text in a pane, in this line or in the first line that has it."""
    widget = view.app.explorer.query_one(f"#{pane}")
    lines = view.pane(pane)
    y = next(n for n, found in enumerate(lines) if text in found and line in (None, n))
    edge = widget.content_region.offset - widget.region.offset
    await view.pilot.click(widget, offset=(lines[y].index(text) + edge.x, y + edge.y))
    await view.pilot.pause()


@pytest.mark.parametrize("size", [SMALL, WIDE])
async def test_a_click_selects_a_cell_of_the_heatmap(llama: Path, root: Path, size: tuple[int, int]) -> None:
    async with exploring(fill(llama, root), root, size) as view:
        await view.press("3")
        lines = view.pane("heatmap")
        if size == WIDE:  # layers are rows
            line, x = 2 + 4, lines[1].index("value") + len("value") - 1
        else:  # layers are columns
            line = next(n for n, text in enumerate(lines) if text.startswith(" value"))
            x = next(text for text in lines if text.startswith(" layer")).index("4")
        await view.pilot.click("#heatmap", offset=(x + 1, line + 1))
        await view.pilot.pause()
        assert view.selected == "layers.4.attention.value"
        await view.pilot.click("#heatmap", offset=(1, 1))  # a heading is no cell
        assert view.selected == "layers.4.attention.value"


async def test_a_click_sorts_the_table_and_selects_a_row(llama: Path, root: Path) -> None:
    async with exploring(fill(llama, root), root, WIDE) as view:
        await view.press("5")
        await _click(view, "k90", "table", 0)
        assert "v k90" in view.pane("table")[0]
        address = view.pane("table")[4].split()[0]
        await _click(view, address, "table", 4)
        assert view.selected == address


async def test_a_click_on_a_pane_gives_it_the_keys_and_one_on_a_hint_does_what_it_says(llama: Path, root: Path) -> None:
    async with exploring(fill(llama, root), root, WIDE) as view:
        await view.pilot.click("#chart", offset=(10, 5))
        assert view.app.explorer.state.pane == view.app.explorer.state.chart
        await _click(view, "threshold", "keys")
        assert view.app.explorer.state.threshold == 0.95
        await _click(view, "help", "keys")
        assert "keys, marks, words" in view.text


def test_the_mouse_is_taken_from_the_terminal_where_that_is_asked_for(tmp_path: Path, llama: Path, root: Path) -> None:
    program = "import sys; from rankscope.tui.cli.main import main_tui; sys.exit(main_tui())"
    terminal = Terminal(tmp_path, program, llama, "--store", root, "--mouse")
    terminal.until(b"\x1b[?1000h")
    terminal.until(b"0/42")
    terminal.press(b"q")
    assert terminal.end() == 0

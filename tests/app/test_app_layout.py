"""The panes at every size: one at a time on 80 columns, all on 120; nothing is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_looking import HUGE, SMALL, WIDE, View, exploring
from app_models import LLAMA, fill, llama_weights, matrix, save_model


def _visible(view: View) -> set[str]:
    explorer = view.app.explorer
    panes = (explorer.tree_pane, explorer.heatmap, explorer.table, explorer.compare, explorer.chart)
    return {w.id for w in panes if w.region.area and w.id}


def _fits(view: View) -> None:
    width, height = view.app.size
    assert len(view.lines) == height
    assert all(len(line) <= width for line in view.lines)
    assert "\u2026" not in view.text  # no name is abbreviated


async def test_one_pane_at_a_time_on_a_small_screen(llama: Path, root: Path) -> None:
    model = fill(llama, root)
    async with exploring(model, root, SMALL) as view:
        shown = {"0": "tree", "1": "chart", "2": "chart", "3": "heatmap", "4": "chart", "5": "table", "6": "compare"}
        for key, pane in shown.items():
            await view.press(key)
            # The overview takes one line a role, so the chart of the selection fits under it.
            assert _visible(view) == ({"heatmap", "chart"} if pane == "heatmap" else {pane})
            assert view.app.explorer.focused is not None
            assert view.app.explorer.focused.id == pane
            assert view.app.explorer.focused.size.width >= 78
            if pane == "chart":
                await view.until(lambda: "\u2501" in view.text, "the chart")
            _fits(view)
        await view.press("3", "z", "0")
        for pane in ("heatmap", "chart", "tree"):
            await view.press("tab")
            assert _visible(view) == {pane}


@pytest.mark.parametrize(("size", "panels"), [(WIDE, 1), (HUGE, 3)])
async def test_all_panes_on_a_wide_screen(llama: Path, root: Path, size: tuple[int, int], panels: int) -> None:
    model = fill(llama, root)
    async with exploring(model, root, size) as view:
        assert _visible(view) == {"tree", "heatmap", "chart"}
        await view.press("4")
        await view.chart("layer 0: query ")
        assert sum(f"k{t} by layer" in view.text for t in (60, 80, 90)) == panels
        assert all(str(row) in view.pane("heatmap")[2 + row] for row in range(6))
        _fits(view)


@pytest.mark.parametrize(
    ("size", "layers", "is_overview"),
    [((99, 24), 6, True), ((100, 24), 51, False), ((100, 24), 52, True), (WIDE, 42, False), (WIDE, 43, True)],
)
async def test_the_overview_is_the_default_where_the_table_is_narrow_or_fills_three_screens(
    tmp_path: Path, root: Path, size: tuple[int, int], layers: int, is_overview: bool
) -> None:
    """At 24 lines 17 layers are in view; at 40, above a chart, 14."""
    weights = {f"model.layers.{n}.self_attn.k_proj.weight": matrix((24, 48), n) for n in range(layers)}
    async with exploring(save_model(tmp_path / "deep", weights, LLAMA), root, size) as view:
        await view.press("3")
        assert view.app.explorer.heatmap.overview is is_overview
        if not is_overview:
            page = (size[1] - 3 if size[0] < 120 else 18) - 4
            assert sum(
                str(layer) in view.pane("heatmap")[2 + layer].split() for layer in range(min(page, layers))
            ) == min(page, layers)
        await view.press("z")
        assert view.app.explorer.heatmap.overview is not is_overview


async def test_wide_and_low_shows_the_tree_and_one(llama: Path, root: Path) -> None:
    async with exploring(llama, root, (140, 24)) as view:
        assert _visible(view) == {"tree", "heatmap"}
        await view.press("2")
        assert _visible(view) == {"tree", "chart"}
        _fits(view)


async def test_a_resize_in_the_middle_keeps_selection_view_and_focus(llama: Path, root: Path) -> None:
    model = fill(llama, root)
    async with exploring(model, root, HUGE) as view:
        await view.press("2", "n", "J", "J")
        await view.chart("layers.2.attention.query")
        for size, panes in ((SMALL, {"chart"}), (WIDE, {"tree", "heatmap", "chart"}), ((40, 10), {"chart"})):
            await view.pilot.resize_terminal(*size)
            await view.until(lambda s=size: view.app.size == s, "the new size")  # type: ignore[misc]
            await view.until(lambda p=panes: _visible(view) == p, "the panes")  # type: ignore[misc]
            assert view.app.explorer.focused is view.app.explorer.chart
            assert view.selected == "layers.2.attention.query"
            width = view.app.explorer.chart.size.width
            await view.until(
                lambda w=width: max(len(line.rstrip()) for line in view.pane("chart")) <= w,
                "a chart that fits",  # type: ignore[misc]
            )
            assert view.pane("chart")[-1].startswith("48x48  k60")
        await view.press("3")
        assert "heatmap" in _visible(view)


@pytest.mark.parametrize("size", [SMALL, WIDE, HUGE])
async def test_f_shows_the_focused_pane_alone_with_its_lines(llama: Path, root: Path, size: tuple[int, int]) -> None:
    model = fill(llama, root)
    async with exploring(model, root, size) as view:
        await view.press("n")
        explorer = view.app.explorer
        for key, pane in (("0", "tree"), ("1", "chart"), ("3", "heatmap"), ("4", "chart"), ("5", "table")):
            await view.press(key)
            before, focused = _visible(view), explorer.focused
            await view.press("f")
            assert _visible(view) == {pane}
            assert focused is explorer.focused is not None
            assert focused.region.size == (size[0], size[1] - 3)
            _fits(view)
            assert view.job.startswith("layers.0.attention.query  48x48")
            await view.press("f")
            assert _visible(view) == before
        await view.press("f", "2")  # another view fills the screen too
        await view.rests()
        assert _visible(view) == {"chart"}
        assert view.pane("chart")[-1].startswith("48x48")
        await view.press("full_stop", "escape")
        assert "tree" in _visible(view) or size == SMALL
        assert explorer.state.k is not None  # the next escape clears it
        await view.press("escape")
        assert explorer.state.k is None


async def test_a_read_out_leaves_out_whole_numbers_where_there_is_no_room(llama: Path, root: Path) -> None:
    model = fill(llama, root)
    async with exploring(model, root, SMALL) as view:
        await view.press("n", "1")
        line = (await view.chart("layers.0.attention.query", "effective rank"))[-1].rstrip()
        assert line.split("  ")[-1].split()[:2] == ["effective", "rank"]
        await view.pilot.resize_terminal(200, 60)
        await view.chart("floor 1e-12  numpy  cpu")


async def test_a_model_of_many_roles_scrolls_to_every_column(tmp_path: Path, root: Path) -> None:
    names = [f"module{i:02}" for i in range(30)]
    weights = {f"model.layers.{n}.{name}.weight": matrix((12, 12), n) for n in range(3) for name in names}
    folder = save_model(tmp_path / "odd", weights, {"model_type": "never_heard_of"})
    model = fill(folder, root)
    async with exploring(model, root, SMALL) as view:
        await view.press("n", "3", "z")
        seen = ""
        for name in names:
            seen = view.pane("heatmap")[1]
            assert view.pane("heatmap")[2].count("[") == 1
            assert name in seen
            _fits(view)
            await view.press("l")
        assert "module00" not in seen
        await view.press(*"h" * 29)
        assert "module00" in view.pane("heatmap")[1]
        assert view.pane("heatmap")[2].startswith(">    0")  # the layer's number stays


async def test_eighty_layers_scroll_by_half_pages(tmp_path: Path, root: Path) -> None:
    weights = {f"model.layers.{n}.self_attn.q_proj.weight": matrix((8, 8), n) for n in range(80)}
    folder = save_model(tmp_path / "deep", weights, LLAMA)
    async with exploring(folder, root, SMALL) as view:
        await view.press("3", "z", "G")
        assert any(line.startswith(">   79") for line in view.pane("heatmap"))
        await view.press("g", "ctrl+d", "ctrl+d", "ctrl+d")
        row = view.app.explorer.heatmap.cursor[0]
        assert row == 24
        assert any(line.startswith(f">   {row}") for line in view.pane("heatmap"))
        assert view.pane("heatmap")[1].split() == ["layer", "query"]


async def test_the_heatmap_takes_no_more_lines_than_it_has_layers(tmp_path: Path, root: Path) -> None:
    folder = save_model(tmp_path / "one", llama_weights(1), LLAMA)
    async with exploring(folder, root, WIDE) as view:
        assert view.app.explorer.heatmap.size.height == 3
        assert view.app.explorer.chart.size.height > 25

"""Colours: as many as the terminal has, the nearest of them, and every theme readable."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from app_models import fill
from rich.color import Color as RichColor
from rich.color_triplet import ColorTriplet
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.pilot import Pilot
from textual.theme import BUILTIN_THEMES

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.tui.drawing.nearest_colour import Nearest
from rankscope.tui.screens import app as app_module
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.settings.config import Config
from rankscope.tui.settings.palette import Depth, Palette, palette
from rankscope.tui.settings.terminal import ANSI_THEME, depth_of, set_up

STYLES = Path(app_module.__file__).with_name("app.tcss")
DEADLINE = 2000


@pytest.mark.parametrize(
    ("environ", "depth"),
    [
        ({"TERM": "xterm-256color"}, Depth.MANY),
        ({"TERM": "tmux-256color"}, Depth.MANY),
        ({"TERM": "screen-256color", "COLORTERM": ""}, Depth.MANY),
        ({"TERM": "xterm-direct"}, Depth.MANY),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, Depth.MANY),
        ({"TERM": "screen", "COLORTERM": "24bit"}, Depth.MANY),
        ({"TERM": "xterm", "COLORTERM": "yes"}, Depth.SIXTEEN),
        ({"TERM": "linux"}, Depth.SIXTEEN),
        ({"TERM": "vt100"}, Depth.SIXTEEN),
        ({}, Depth.SIXTEEN),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, Depth.MONO),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, Depth.MONO),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, Depth.MANY),
    ],
    ids=str,
)
def test_how_many_colours(environ: Mapping[str, str], depth: Depth) -> None:
    assert depth_of(Config(), environ) is depth
    for chosen in Depth:
        assert depth_of(Config(depth=chosen), environ) is chosen


@pytest.mark.parametrize(
    ("config", "before", "after"),
    [
        (Config(), {"TERM": "xterm-256color"}, {"TEXTUAL_COLOR_SYSTEM": "256"}),
        (Config(), {"TERM": "linux"}, {"TEXTUAL_COLOR_SYSTEM": "standard", "TEXTUAL_THEME": ANSI_THEME}),
        (Config(theme="nord"), {"TERM": "linux"}, {"TEXTUAL_COLOR_SYSTEM": "standard", "TEXTUAL_THEME": "nord"}),
        (
            Config(theme="nord"),
            {"TERM": "dumb"},
            {"TEXTUAL_COLOR_SYSTEM": "standard", "TEXTUAL_THEME": ANSI_THEME, "NO_COLOR": "1"},
        ),
        (
            Config(depth=Depth.MANY),
            {"NO_COLOR": "1", "TEXTUAL_THEME": "nord", "TEXTUAL_COLOR_SYSTEM": "truecolor"},
            {"TEXTUAL_THEME": "nord", "TEXTUAL_COLOR_SYSTEM": "truecolor"},
        ),
    ],
    ids=str,
)
def test_what_textual_is_told(config: Config, before: dict[str, str], after: dict[str, str]) -> None:
    environ = dict(before)
    settled = set_up(config, environ)
    assert {name: value for name, value in environ.items() if name != "TERM"} == after
    assert settled.depth is settled.palette.depth is depth_of(config, before)


def test_chosen_shades_hold_where_they_can_be_shown() -> None:
    many = Palette(series=(200,) * 8)
    few = Palette(sequential=(1,) * 6, below=(2,) * 6, above=(3,) * 4, series=(15,) * 8)
    for colours, term, wanted in (
        (many, "xterm-256color", many),
        (many, "linux", palette(Depth.SIXTEEN)),
        (many, "dumb", palette(Depth.MONO)),
        (few, "linux", replace(few, depth=Depth.SIXTEEN, dim=palette(Depth.SIXTEEN).dim)),
        (Palette(), "linux", palette(Depth.SIXTEEN)),
    ):
        assert set_up(Config(palette=colours), {"TERM": term}).palette == wanted


def _shown(*colours: str) -> list[int | None]:
    style = [Segment("x", Style(color=colour)) for colour in colours]
    found = Nearest().apply(style, Color(0, 0, 0))
    return [s.style.color.number if s.style and s.style.color else None for s in found]


def test_the_nearest_colour_is_the_nearest_by_eye() -> None:
    exact = [RichColor.from_ansi(n).get_truecolor() for n in range(16, 256)]
    numbers = _shown(*(triplet.hex for triplet in exact))
    assert [RichColor.from_ansi(n or 0).get_truecolor() for n in numbers] == exact
    nord, solarized = _shown("#2e3440", "#002b36")  # dark greys, which Rich makes teal and blue
    assert (nord, solarized) == (236, 235)
    assert _shown("red", "color(53)", "default") == [1, 53, None]
    plain = Segment("x", None)
    assert Nearest().apply([plain], Color(0, 0, 0)) == [plain]
    (bold,) = Nearest().apply([Segment("x", Style(bold=True, bgcolor="#000000"))], Color(0, 0, 0))
    assert bold.style == Style(bold=True, bgcolor="color(16)")


def test_the_styles_name_no_colour_of_their_own() -> None:
    rules = re.sub(r"/\*.*?\*/", "", STYLES.read_text(), flags=re.S)
    for name, value in re.findall(r"[;{]\s*([\w-]*(?:color|background|border|outline|tint)):\s*([^;]+)(?=;)", rules):
        assert "#" not in value, (name, value)
        colours = set(value.split()) - {"solid", "round", "double", "none"}
        assert all(word.startswith("$") or word.endswith("%") for word in colours), (name, value)


def _luminance(triplet: ColorTriplet) -> float:
    red, green, blue = (((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in triplet)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(style: Style) -> float:
    """As WCAG defines it: 1 cannot be seen, 21 is black on white."""
    assert style.color
    assert style.bgcolor
    dark, light = sorted(_luminance(c.get_truecolor()) for c in (style.color, style.bgcolor))
    return (light + 0.05) / (dark + 0.05)


def _words(app: RankScopeApp) -> Iterator[tuple[str, float]]:
    """Every word on the screen and its contrast in 256 colours."""
    for strip in app.screen._compositor.render_strips():
        for text, style, _ in Nearest().apply(list(strip), Color(0, 0, 0)):
            if style is not None and any(c.isalnum() for c in text):
                yield text.strip(), _contrast(style)


async def _loaded(pilot: Pilot[None], app: RankScopeApp) -> None:
    for _ in range(DEADLINE):
        if app.explorer.state.loaded:
            return
        await pilot.pause(0.005)
    raise AssertionError("the store was not read")


async def _drawn(pilot: Pilot[None], app: RankScopeApp) -> None:
    """Once the chart has the colours of the theme."""
    explorer = app.explorer
    for _ in range(DEADLINE):
        await pilot.pause()
        if explorer.painting is not None and explorer.painting.request == explorer.request():
            return
        await pilot.pause(0.005)
    raise AssertionError("the chart was not drawn")


async def test_every_word_can_be_read_in_every_theme(llama: Path, root: Path) -> None:
    app = RankScopeApp([fill(llama, root)], root, ComputeSettings("cpu", 1), Config())
    async with app.run_test(size=(130, 40)) as pilot:
        await _loaded(pilot, app)
        for keys in ("0", "3", ":", "5"):
            await pilot.press("escape", *({":": "colon"}.get(key, key) for key in keys))
            for name, theme in BUILTIN_THEMES.items():
                app.theme = name
                await _drawn(pilot, app)
                if not theme.ansi:  # there the terminal's user chooses
                    dim = {word: round(ratio, 1) for word, ratio in _words(app) if ratio < 2.5}
                    assert not dim, (name, keys)
    assert app.close(20)


PROGRAM = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from rankscope.tui.settings.palette import Depth
from rankscope.tui.settings.config import Config
from rankscope.tui.settings.terminal import set_up
config = set_up(Config(depth=Depth(sys.argv[4])), os.environ)
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.data.model import open_model
from app_rest import pilots_wait_for_rest
pilots_wait_for_rest()

async def main():
    root = Path(sys.argv[3])
    app = RankScopeApp([open_model(sys.argv[2], root)], root, ComputeSettings("cpu", 1), config)
    async with app.run_test(size=(130, 40)) as pilot:
        while not app.explorer.state.loaded:
            await pilot.pause(0.005)
        for keys in (["0"], ["3"], ["colon"], ["escape", "u"], ["escape", "question_mark"]):
            await pilot.press(*keys)
            await pilot.pause()
            for strip in app.screen._compositor.render_strips():
                print(strip.render(app.console))
    app.close(20)

asyncio.run(main())
"""


@pytest.mark.parametrize("depth", Depth)
def test_no_more_colours_are_sent_than_there_are(llama: Path, root: Path, depth: Depth) -> None:
    fill(llama, root)
    command = [sys.executable, "-c", PROGRAM, Path(__file__).parent, llama, root, depth]
    environ = {k: v for k, v in os.environ.items() if k not in ("TEXTUAL_COLOR_SYSTEM", "TEXTUAL_THEME", "NO_COLOR")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    codes = set(re.findall(r"\x1b\[([\d;]*)m", done.stdout))
    parts = {part for code in codes for part in re.findall(r"[34]8;5;\d+|[34]8;2;[\d;]+|\d+", code)}
    many = {part for part in parts if part.startswith(("38;5;", "48;5;"))}
    few = {part for part in parts if re.fullmatch(r"[34][0-7]|9[0-7]|10[0-7]", part)}
    assert not {part for part in parts if ";2;" in part}
    if depth is Depth.MANY:
        assert many
        assert not few
    elif depth is Depth.SIXTEEN:
        assert few
        assert not many
    else:
        assert not few | many
        assert {"1", "7"} <= parts  # told by shape: bold, reverse

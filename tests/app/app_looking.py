"""A running explorer under test: press keys, read what the user sees."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from textual.events import Key
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Tree

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.tui.data.chosen_weighting import opened_under
from rankscope.tui.data.model import Model, open_model
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.screens.memory import Memory
from rankscope.tui.settings.config import Config
from rankscope.tui.settings.palette import DIM

SMALL, WIDE, HUGE = (80, 24), (120, 40), (200, 60)
DEADLINE = 60.0
"""Seconds after which a test gives up waiting; nothing passes or fails by being slower or faster."""


class View:
    """The explorer through a user's eyes and hands."""

    def __init__(self, app: RankScopeApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    async def press(self, *keys: str) -> None:
        """Press keys one after the other, and let the app come to rest."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def rush(self, *keys: str, later: float = 0.0) -> None:
        """Queue all keys before the first is answered, with the clock moved on by this many seconds."""
        for key in keys:
            event = Key(key, key if len(key) == 1 else None)
            event.time += later
            self.app.post_message(event)
        await self.pilot.pause()

    async def answer(self, key: str) -> None:
        """Press a key with the clock moved on by a second: a question takes no answer at once."""
        await self.pilot.pause()
        await self.rush(key, later=1.0)

    async def scan(self) -> None:
        """Compute everything that the filter shows."""
        await self.press("s")
        await self.answer("y")

    async def type(self, text: str) -> None:
        """Type a text and press enter."""
        names = {
            " ": "space", ".": "full_stop", "*": "asterisk", "%": "percent_sign", "/": "slash", "?": "question_mark",
            "[": "left_square_bracket", "]": "right_square_bracket", "-": "minus", "_": "underscore",
        }  # fmt: skip
        await self.press(*(names.get(c, c) for c in text), "enter")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}; on screen:\n{self.text}"
            await self.pilot.pause(0.01)

    async def sees(self, *texts: str) -> None:
        """Wait until all of these texts are on the screen."""
        await self.until(lambda: all(text in self.text for text in texts), " and ".join(map(repr, texts)))

    async def rests(self) -> None:
        """Wait until the chart shows the selection, and nothing is being read."""
        explorer = self.app.explorer

        def is_drawn() -> bool:
            painting = explorer.painting
            if (
                explorer._chart_timer is not None or explorer.chart._rule_timer is not None
            ):  # moves are not answered yet
                return False
            return not explorer.chart.region.area or (painting is not None and painting.request == explorer.request())

        await self.until(lambda: is_drawn() and explorer.painter.is_idle, "the chart of what is selected")
        await self.pilot.pause()
        await self.until(lambda: is_drawn() and explorer.painter.is_idle, "the chart of what is selected")

    @property
    def text(self) -> str:
        """The whole screen."""
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """The screen, line by line."""
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip) for strip in strips]

    @property
    def box(self) -> list[str]:
        """The lines of the question or the help that covers the explorer."""
        box = self.app.screen.query_one("#box").region
        return [line[box.x + 1 : box.right - 1] for line in self.lines[box.y : box.bottom]]

    def pane(self, name: str) -> list[str]:
        """The lines of one widget of the explorer."""
        widget = self.app.explorer.query_one(f"#{name}", Widget)
        return [widget.render_line(y).text for y in range(widget.size.height)]

    def cells(self, row: int) -> list[str]:
        """The heatmap cells of a line, without the cursor's brackets."""
        return [word.strip("[]") for word in self.pane("heatmap")[2 + row].lstrip(" >").split()[1:]]

    @property
    def job(self) -> str:
        """The job line."""
        return self.pane("job")[0].rstrip()

    @property
    def foot(self) -> str:
        """The last line: key hints or a sentence."""
        return self.pane("keys")[0].strip()

    @property
    def labels(self) -> list[str]:
        """The tree's open lines, without guides."""
        tree = self.app.explorer.query_one(Tree)
        lines = (tree.render_line(y).text for y in range(min(tree.last_line + 1, tree.size.height)))
        return [line.lstrip("\u2502\u251c\u2514\u2500 ").rstrip() for line in lines]

    @property
    def selected(self) -> str:
        """The selection, as the job line names it."""
        explorer = self.app.explorer
        return explorer.state.selection.label(explorer.state.grid)

    def colours(self) -> set[int]:
        """The colours (of 256) in which the chart's canvas draws measured curves; noise and levels are dim."""
        chart = self.app.explorer.chart
        segments = [s for y in range(1, chart.size.height - 1) for s in chart.render_line(y)]
        dotted = [s for s in segments if s.style and any("\u2800" < c <= "\u28ff" for c in s.text)]
        return {s.style.color.number or 0 for s in dotted if s.style and s.style.color} - {DIM}

    async def chart(self, *texts: str) -> list[str]:
        """The chart's lines, once these texts are in it."""
        await self.until(lambda: all(any(t in line for line in self.pane("chart")) for t in texts), f"chart of {texts}")
        return self.pane("chart")

    @property
    def has_engine(self) -> bool:
        """Whether an engine was ever started."""
        return any(thread.name in ("rankscope-devices", "rankscope-reader") for thread in threading.enumerate())


@asynccontextmanager
async def exploring(
    model: Model | Path | str,
    root: Path,
    size: tuple[int, int] = WIDE,
    threshold: float = 0.9,
    *,
    against: Model | Path | str | None = None,
    config: Config | None = None,
    weight: str = "none",
    memory: Memory | None = None,
) -> AsyncIterator[View]:
    """Open the explorer on a model, or on two, with its store read; close and save at the end. It remembers only
    what is in `memory`."""
    names = [each for each in (model, against) if each is not None]
    opened = [each if isinstance(each, Model) else open_model(str(each), root) for each in names]
    under = opened_under(weight, opened, root, print)
    app = RankScopeApp(
        opened, root, ComputeSettings("cpu", 1), config or Config(threshold=threshold), under=under, memory=memory
    )
    try:
        async with app.run_test(size=size) as pilot:
            view = View(app, pilot)
            await view.until(
                lambda: isinstance(app.screen, type(app.explorer)) and app.explorer.state.loaded, "the store"
            )
            await pilot.pause()
            yield view
    finally:
        assert app.close(DEADLINE), "a thread of the engine did not end"

"""Sessions without an engine, and the table and the comparison in a small app."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from app_looking import DEADLINE
from app_models import LLAMA, Weights, fill, save_model
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.spectrum import Projection
from rankscope.tui.data.grid import make_grid
from rankscope.tui.data.lens import Lens
from rankscope.tui.data.pair import Pair
from rankscope.tui.data.session import Session
from rankscope.tui.data.view_records import Content
from rankscope.tui.drawing.cells import Look
from rankscope.tui.settings.palette import Palette
from rankscope.tui.widgets.compare import Compare
from rankscope.tui.widgets.sheet import Sheet
from rankscope.tui.widgets.table import MetricTable
from rankscope.tui.widgets.top_pane import TopPane


def session_of(
    folder: Path, root: Path, weights: Weights | None = None, addresses: Iterable[str] | None = None
) -> Session:
    """A session on a model (made of `weights` where they are given) with these addresses' spectra stored."""
    if weights is not None:
        save_model(folder, weights, LLAMA)
    session = Session(fill(folder, root, addresses), root, lambda _: None, ComputeSettings("cpu", 1))
    session.load()
    return session


def find(session: Session, *addresses: str) -> list[Projection]:
    """The projections at these addresses, in this order."""
    by_address = {p.address: p for p in session.model.tree.projections}
    return [by_address[address] for address in addresses]


def written(pane: TopPane) -> Content:
    """The records that a pane gives for CSV."""
    return pane.content(Content((pane._look.lens,), (), make_grid(())))


class Sheets(App[None]):
    """An app with the table of everything that a scan computes, and an empty comparison; the table has the focus."""

    CSS = "MetricTable, Compare { height: 1fr; border: solid white; }"

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.lens = Lens(pair, 0.9)
        self.shown = pair.first.model.tree.scanned()
        self.grid = make_grid(self.shown)
        self.moves: list[object] = []

    def compose(self) -> ComposeResult:
        look = Look(self.lens, Palette())
        self.table, self.compare = MetricTable(look, id="table"), Compare(look, id="compare")
        yield self.table
        yield self.compare

    def on_mount(self) -> None:
        self.table.set_rows(self.shown, self.grid)
        self.table.focus()

    def on_metric_table_row_selected(self, event: MetricTable.RowSelected) -> None:
        self.moves.append(event.selection)


def lines(sheet: Sheet) -> list[str]:
    """The lines that a user sees inside the pane's border."""
    return [sheet.render_line(y).text.rstrip() for y in range(sheet.size.height)]


def words(sheet: Sheet) -> list[list[str]]:
    """The words of each line: header, rows, foot."""
    return [line.split() for line in lines(sheet)]


async def press(pilot: Pilot[None], *keys: str) -> None:
    """Press keys and let the app come to rest."""
    await pilot.press(*keys)
    await pilot.pause()


def _state(app: App[None]) -> str:
    """What the sheets of an app show, and how much of it."""
    found = app.screen.query(Sheet)
    return "\n".join(
        f"{s}: {s.size} of {s.virtual_size} at {s.scroll_offset}, cursor {s.cursor}, {s.is_on_screen}:\n"
        + "\n".join(lines(s))
        for s in found
    )


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain; {_state(pilot.app)}"
        await pilot.pause(0.01)


def column(sheet: Sheet, heading: str) -> list[str]:
    """The visible cells under a heading, from the top."""
    header, *rows = lines(sheet)
    end = header.index(f" {heading}") + len(heading) + 1
    return [row[:end].split()[-1] for row in rows if len(row) >= end]


def ranked(numbers: Sequence[float], descending: bool) -> list[int]:
    """The order of numbers by size: neighbours change places until sorted, equal numbers never do."""
    order = list(range(len(numbers)))
    for _ in numbers:
        for at in range(len(order) - 1):
            here, there = numbers[order[at]], numbers[order[at + 1]]
            if here < there if descending else here > there:
                order[at], order[at + 1] = order[at + 1], order[at]
    return order

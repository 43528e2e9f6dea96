"""Models without weights: projections of any shape and number, and a fake session that knows their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import cast

from textual.app import App, ComposeResult
from textual.geometry import Region
from textual.pilot import Pilot
from textual.widget import Widget

from rankscope.engine.catalogue.experts import sample
from rankscope.engine.derive.flip import flipped
from rankscope.engine.spectrum import Projection, Source
from rankscope.tui.data.grid import Grid, Selection, make_grid
from rankscope.tui.data.lens import Lens
from rankscope.tui.data.measures import BY_NAME
from rankscope.tui.data.number_columns import NumberColumns
from rankscope.tui.data.pair import Pair, Side
from rankscope.tui.data.session import Session, State
from rankscope.tui.drawing.cells import Look
from rankscope.tui.settings.palette import Depth, palette
from rankscope.tui.widgets.heatmap import Heatmap

SOURCE = Source("here", "", "model.safetensors", "id", 1, False)
ATTENTION = ("query", "key", "value", "output")
MLP = ("gate", "up", "down")


def projection(
    layer: int, block: str, role: str, expert: int | None = None, shape: tuple[int, int] = (1024, 4096), tower: str = ""
) -> Projection:
    """A projection whose key is its address."""
    parts = [tower, "layers", str(layer), block, "" if expert is None else str(expert), role]
    address = ".".join(filter(None, parts))
    return Projection(
        address, f"{address}.weight", None, tower, layer, block, role, expert, *shape, "F32", "", False, SOURCE, address
    )


def layers(count: int, mlp: bool = True, tower: str = "") -> list[Projection]:
    """The projections of a plain decoder."""
    roles = [("attention", role) for role in ATTENTION] + [("mlp", role) for role in MLP if mlp]
    return [projection(n, block, role, tower=tower) for n in range(count) for block, role in roles]


def moe(count: int, experts: int) -> list[Projection]:
    """The projections of a model with attention and this many experts a layer."""
    found = layers(count, mlp=False)
    for layer in range(count):
        found += [projection(layer, "expert", role, e, (2048, 4096)) for e in range(experts) for role in MLP]
    return found


class Told:
    """A fake session that knows what a test told it: ranks at any threshold by address, entries, states."""

    def __init__(self, projections: Iterable[Projection]) -> None:
        self.model = SimpleNamespace(
            tree=SimpleNamespace(projections=tuple(projections)), every=tuple(projections), checkpoint=None
        )
        self.ranks: dict[str, int] = {}
        self.entries: dict[str, SimpleNamespace] = {}
        self.states: dict[str, State] = {}
        self.experts: int | None = None
        self.has_spectra = True
        self.weighting = ("", "")
        self.shown_as = self.gauge = ""
        self.said = None

    @property
    def columns(self) -> NumberColumns:
        """Made anew each time: the fake session tracks no changes."""
        return NumberColumns(self.model.tree.projections)

    def figures(self, _: Projection) -> None:
        return None

    def sampled(self, projections: Iterable[Projection]) -> list[Projection]:
        return sample(projections, self.experts)

    def rank(self, p: Projection, _: float) -> int | None:
        return self.ranks.get(p.key)

    def entry(self, p: Projection) -> SimpleNamespace | None:
        return self.entries.get(p.key)

    def has(self, p: Projection) -> bool:
        return p.key in self.entries

    def number(self, p: Projection, name: str) -> float | None:
        found: float | None = getattr(self.entries.get(p.key), name, None)
        return found

    def all_ranks(self, _: float) -> dict[str, int]:
        return self.ranks

    def ranks_of_twins(self, _: float) -> dict[str, int | None]:
        return {p.key: self.ranks.get(flipped(p).key) for p in self.model.tree.projections}

    def all_numbers(self, name: str) -> dict[str, float | None]:
        return {key: getattr(entry, name, None) for key, entry in self.entries.items()}

    def facts(self, _: Projection) -> None:
        return None

    def state(self, p: Projection) -> State:
        known = State.STORED if p.key in self.ranks or p.key in self.entries else State.NOT_COMPUTED
        return self.states.get(p.key, known)

    def tell(self, ranks: Mapping[str, int]) -> None:
        """Set ranks by address."""
        self.ranks |= ranks


class Seen:
    """The view state over a fake session, or over two."""

    def __init__(self, projections: list[Projection], unit: str = "k", depth: Depth = Depth.MANY) -> None:
        self.told = Told(projections)
        self.other: Told | None = None
        self.grid: Grid = make_grid(projections)
        self.lens = Lens(Pair(cast(Session, self.told)), 0.9, BY_NAME[unit])
        self.look = Look(self.lens, palette(depth))
        self.look.show(self.grid)

    def against(self, projections: list[Projection], side: Side) -> Told:
        """Compare with a second model."""
        self.other = Told(projections)
        self.lens.pair = Pair(cast(Session, self.told), cast(Session, self.other))
        self.lens.side = side
        self.look.show(self.grid)
        return self.other

    def unit(self, name: str) -> None:
        """Show another unit."""
        self.lens.measure = BY_NAME[name]
        self.look.forget()


def ranked(projections: list[Projection], unit: str = "k", depth: Depth = Depth.MANY) -> Seen:
    """A model with all ranks computed: the rank of layer 3's fifth projection is 305."""
    seen = Seen(projections, unit, depth)
    counts: Counter[tuple[str | None, int | None]] = Counter()
    for p in projections:
        counts[p.tower, p.layer] += 1
        seen.told.tell({p.key: 100 * (p.layer or 0) + counts[p.tower, p.layer]})
    return seen


class Shown(App[None]):
    """An app with one heatmap and a widget that can take the focus; it keeps the heatmap's messages."""

    CSS = "Heatmap { border: solid white; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1; }"

    def __init__(self, seen: Seen, overview: bool = False) -> None:
        super().__init__()
        self.seen = seen
        self.heatmap = Heatmap(seen.look, id="heatmap")
        self.heatmap.set_overview(overview)
        self.moves: list[Selection] = []

    def compose(self) -> ComposeResult:
        yield self.heatmap

    def on_mount(self) -> None:
        self.heatmap.set_rows((), self.seen.grid)
        self.heatmap.focus()

    def on_heatmap_cell_selected(self, event: Heatmap.CellSelected) -> None:
        self.moves.append(event.selection)

    @property
    def lines(self) -> list[str]:
        """The visible lines of the heatmap."""
        return [self.heatmap.render_line(y).text for y in range(self.heatmap.size.height)]


class Eyes:
    """Press keys, read lines, and note which parts of the heatmap were drawn again."""

    def __init__(self, app: Shown, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot
        self.heatmap = app.heatmap

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    @property
    def lines(self) -> list[str]:
        return self.app.lines

    @contextmanager
    def drawing(self) -> Iterator[list[Region]]:
        """The parts of the heatmap that are drawn again within the block; all of it where no part is named."""
        found: list[Region] = []
        refresh = self.heatmap.refresh

        def watched(*regions: Region, **kwargs: bool) -> Heatmap:
            found.extend(regions or [self.heatmap.size.region])
            return refresh(*regions, **kwargs)

        self.heatmap.refresh = watched  # type: ignore[method-assign, assignment]
        try:
            yield found
        finally:
            self.heatmap.refresh = refresh  # type: ignore[method-assign]

    @property
    def selected(self) -> Selection:
        """The last selection that the heatmap reported."""
        return self.app.moves[-1]


@asynccontextmanager
async def showing(seen: Seen, size: tuple[int, int] = (80, 24), overview: bool = False) -> AsyncIterator[Eyes]:
    """A heatmap with the focus that fills the terminal, at rest."""
    app = Shown(seen, overview)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        assert isinstance(app.focused, Widget)
        yield Eyes(app, pilot)

"""Charts are drawn off the event loop: one thread reads values, lays out the chart and hands back lines."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rich.text import Text

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from .grid import Grid, Selection
from .session import Session, State
from .text import percent

_CACHED = 64


@dataclass(frozen=True, slots=True)
class Request:
    """Everything a chart depends on; `version` counts the events that changed a shown projection."""

    selection: Selection
    view: int
    threshold: float
    thresholds: tuple[float, ...]
    axes: int
    width: int
    height: int
    version: int
    grid: Grid = field(compare=False, hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class Painting:
    """The lines of a chart and its read-out."""

    request: Request
    lines: tuple[Text, ...]
    readout: Text


class Painter:
    """Draws the newest request; one that was overtaken before its turn is not drawn at all."""

    def __init__(self, session: Session, deliver: Callable[[Painting], None]) -> None:
        self._session = session
        self._deliver = deliver
        self._thread = ThreadPoolExecutor(1, "rankscope-charts")
        self._cache: dict[Request, Painting] = {}
        self._wanted: Request | None = None

    def request(self, request: Request) -> None:
        """Ask for a chart; `deliver` is called with it, from the painter's thread or at once."""
        self._wanted = request
        if (known := self._cache.get(request)) is not None:
            self._deliver(known)
        else:
            self._thread.submit(self._paint, request)

    def run(self, work: Callable[[], None]) -> None:
        """Other slow work (reading the store), in turn with the charts."""
        self._thread.submit(work)

    def close(self) -> None:
        """Drop what waits."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _paint(self, request: Request) -> None:
        if request is not self._wanted:
            return
        try:
            lines = paint(self._session, request)
            line = readout(self._session, request)
        except Exception as error:  # noqa: BLE001 - an error in a chart must not take the explorer down
            lines, line = (
                [],
                Text(f"this chart cannot be drawn: {type(error).__name__}: {printable(str(error))}", "red"),
            )
        painting = Painting(request, tuple(lines), line)
        if len(self._cache) >= _CACHED:
            self._cache.pop(next(iter(self._cache)))
        self._cache[request] = painting
        self._deliver(painting)


def paint(session: Session, request: Request) -> list[Text]:
    """The lines of the chart that is asked for."""
    from . import charts, views

    selected = request.selection.projections(request.grid)
    if request.view == views.View.LAYERS:
        columns = views.layer_columns(request.grid, request.selection)
        fits = request.width >= 40 * len(request.thresholds)
        thresholds = request.thresholds if fits else (request.threshold,)
        for threshold in thresholds:
            session.load_ranks([p for row in request.grid.rows for p in request.grid.row(row)], threshold)
        panels = [views.layers_chart(session, request.grid, columns, t) for t in thresholds]
        return charts.beside(panels, request.width, request.height)
    done = [p for p in selected if session.entry(p) is not None]
    shown = views.thin(done)
    session.load_values(shown)
    title = printable(request.selection.label(request.grid))
    if len(done) > len(shown):
        title += f" ({len(shown)} of {len(done)})"
    axes = views.Axes(request.axes)
    if request.view == views.View.ENERGY:
        chart = views.energy_chart(session, shown, title, request.thresholds, axes)
    else:
        chart = views.spectrum_chart(session, shown, title, axes)
    return charts.draw(chart, request.width, request.height)


def readout(session: Session, request: Request) -> Text:
    """One line on what is selected: the numbers of one projection, or how much of a group is computed."""
    from .views import View

    if request.view == View.LAYERS:
        return _over_layers(session, request)
    selected = request.selection.projections(request.grid)
    done = [p for p in selected if session.entry(p) is not None]
    if len(selected) == 1:
        return _single(session, selected[0], request.thresholds, request.width)
    if not selected:
        return Text("nothing is selected", "dim")
    if not done:
        return Text(f"{len(selected)} projections, none computed yet: enter computes them", "dim")
    ranks = [k for p in done if (k := session.rank(p, request.threshold)) is not None]
    name = f"k{percent(request.threshold)}"
    spread = f"{name} {min(ranks)} to {max(ranks)}" if ranks else ""
    return Text("  ".join(filter(None, [f"{len(done)} of {len(selected)} computed", spread])))


def _over_layers(session: Session, request: Request) -> Text:
    """Smallest and largest rank over the layers, role by role, of the roles that are drawn."""
    from .views import layer_columns

    parts = [f"k{percent(request.threshold)} min-max"]
    for column in layer_columns(request.grid, request.selection):
        ranks = [k for p in request.grid.column(column) if (k := session.rank(p, request.threshold)) is not None]
        if ranks:
            parts.append(f"{column.heading} {min(ranks)}-{max(ranks)}")
    return _whole(parts, request.width)


def _whole(parts: list[str], width: int) -> Text:
    """The parts that fit: a number that does not is left out whole, not cut."""
    while len(parts) > 1 and len("  ".join(parts)) > width:
        parts.pop()
    return Text("  ".join(parts), no_wrap=True)


def _single(session: Session, p: Projection, thresholds: tuple[float, ...], width: int) -> Text:
    entry = session.entry(p)
    if entry is None:
        state = session.state(p)
        reason = session.failures.get(p.key) or p.problem or p.note
        if reason:
            return Text(f"{p.rows}x{p.cols}  {printable(reason)}" if p.rows else printable(reason), "red")
        hint = ": enter computes it" if state is State.NOT_COMPUTED else ""
        return Text(f"{p.rows}x{p.cols}  {p.dtype}  {state}{hint}", "dim")
    parts = [f"{p.rows}x{p.cols}"]
    parts += [f"k{percent(t)} {k}" for t in thresholds if (k := session.rank(p, t)) is not None]
    if entry.effective_rank is not None and entry.stable_rank is not None:
        parts += [f"effective rank {entry.effective_rank:.1f}", f"stable rank {entry.stable_rank:.2f}"]
    parts += [f"sigma_1 {entry.sigma_max:.4g}", f"floor {entry.noise_floor:.0e}", entry.solver, entry.device]
    return _whole(parts, width)

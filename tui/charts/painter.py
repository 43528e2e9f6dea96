"""Draws charts off the event loop: a thread reads values, lays out the chart and returns lines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rich.text import Text

from rankscope.engine.errors import printable

from ..data.named import resolve
from ..data.pair import Pair
from ..data.views import BY_KEY
from .request import LayerMark, Painting, Request

if TYPE_CHECKING:
    from .figure import Figure
    from .spectrum_charts import Shown

_CACHED = 64


class Painter:
    """Draws the newest request; one that was overtaken before its turn is not drawn at all."""

    def __init__(self, pair: Pair, deliver: Callable[[Painting], None]) -> None:
        self._pair = pair
        self._deliver = deliver
        self._thread = ThreadPoolExecutor(1, "rankscope-charts")
        self._cache: dict[Request, Painting] = {}
        self._wanted: Request | None = None
        self._pending = 0
        self._lock = threading.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for or runs in the thread."""
        return self._pending == 0

    def request(self, request: Request) -> None:
        """Request a chart; `deliver` is called with it, from the painter's thread or at once."""
        self._wanted = request
        if (known := self._cache.get(request)) is not None:
            self._deliver(known)
        else:
            self.run(partial(self._paint, request))

    def run(self, work: Callable[[], None]) -> None:
        """Run other slow work (reading the store), in turn with the charts."""
        with self._lock:
            self._pending += 1
        self._thread.submit(work).add_done_callback(self._ended)

    def _ended(self, _: Future[None]) -> None:
        with self._lock:
            self._pending -= 1

    def close(self) -> None:
        """Drop what waits."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _paint(self, request: Request) -> None:
        if request is not self._wanted:
            return
        try:
            painting = paint(self._pair, request)
        except Exception as error:  # noqa: BLE001 - an error in a chart must not take the explorer down
            why = f"this chart cannot be drawn: {type(error).__name__}: {printable(str(error))}"
            painting = Painting(request, (), Text(why, "red"))
        if len(self._cache) >= _CACHED:
            self._cache.pop(next(iter(self._cache)))
        self._cache[request] = painting
        self._deliver(painting)


def paint(pair: Pair, request: Request) -> Painting:
    """Draw a request in the caller's thread. Reads files."""
    from . import plot

    figure, found = figure_of(pair, request)
    drawing = plot.draw(figure, request.palette, request.width, request.height)
    line: Text = resolve(BY_KEY[request.view].readout)(pair, request)
    if figure.at is not None and drawing.rulers:
        return Painting(request, drawing.lines, line, at=LayerMark(*figure.at, drawing.rulers))
    if found is None or drawing.ruler is None or not found.values:
        return Painting(request, drawing.lines, line)
    ruler = replace(drawing.ruler, count=max(map(len, found.values)))  # a dim curve may be longer
    return Painting(request, drawing.lines, line, ruler, found.curves, found.values)


def figure_of(pair: Pair, request: Request) -> tuple[Figure, Shown | None]:
    """The figure of a request; and its curves, if it is one chart over ranks. Reads files."""
    view = BY_KEY[request.view]
    drawer = view.small if request.facets and view.small else view.draw
    found: tuple[Figure, Shown | None] = resolve(drawer)(pair, request)
    return found

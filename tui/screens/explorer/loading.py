"""Numbers on the screen that are computed from values: read in chunks, and reported in a few messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from rankscope.engine.spectrum import Projection

from ...data.changes import Keys
from ...data.state import ExplorerState
from ...data.views import BY_KEY
from ...widgets.top_pane import TopPane
from ..messages import NumbersLoaded

CHUNK = 512
"""Spectra whose numbers are computed between two charts."""
MOST_TOLD = 16
"""About as many messages are posted for a load: each may sort 45,000 rows, and send what has changed on screen."""

Runner = Callable[[Callable[[], None]], None]


@dataclass(slots=True)
class Load:
    """The numbers to read after one change: of the lens, and of a pane (None: of none). `rest` is still to read; `done`
    is read, and reported when it has `each` items."""

    turn: int
    pane: TopPane | None
    of_lens: bool
    rest: dict[str, Projection] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    each: int = CHUNK


class Loader:
    """Reads in the painter's thread, by `run`, so that charts requested meanwhile come between two chunks. What is in
    view is read first. `tell` is called in that thread.
    """

    def __init__(self, state: ExplorerState, run: Runner, tell: Callable[[NumbersLoaded], object]) -> None:
        self._state = state
        self._run = run
        self._tell = tell
        self._turn = 0
        self.in_view: tuple[str, ...] = ()
        """Content keys to read before all others."""

    def load(self, pane: TopPane, keys: Keys) -> None:
        """Load the numbers that the lens and a pane show, for these keys. None loads all of them, and replaces earlier
        loads."""
        lens = self._state.lens
        of_pane = BY_KEY[self._state.top].from_values and not pane.compares_marks
        if pane.compares_marks:
            self._run(partial(self._load_marks, pane))
        of_lens = lens.needs_values
        if keys is None:
            self._turn += 1
            of_lens = of_lens or bool(lens.unread())  # an older file may lack a threshold
        if of_lens or of_pane:
            self.in_view = pane.keys_in_view()
            self._run(partial(self._begin, Load(self._turn, pane if of_pane else None, of_lens), keys))

    def _begin(self, load: Load, keys: Keys) -> None:
        """Find what has to be read."""
        wanted = self._unread(load.pane) if keys is None else keys
        if wanted is None or wanted:
            load.rest = {p.key: p for p in self._state.rows if wanted is None or p.key in wanted}
        load.each = max(CHUNK, -(-len(load.rest) // MOST_TOLD))
        self._next(load)

    def _unread(self, pane: TopPane | None) -> Keys:
        of_lens, of_pane = self._state.lens.unread(), set() if pane is None else pane.unread()
        return None if of_pane is None else of_lens | of_pane

    def _next(self, load: Load) -> None:
        """Read the next chunk, unless a newer load has replaced this one."""
        if load.turn != self._turn:
            load.rest.clear()
        seen = [load.rest[key] for key in self.in_view if key in load.rest]
        try:
            self._read(load, seen[:CHUNK] or list(islice(load.rest.values(), CHUNK)))
        except OSError:
            load.rest.clear()
            raise
        finally:
            is_seen = 0 < len(seen) <= CHUNK  # everything in view is read
            if load.done and (is_seen or len(load.done) >= load.each or not load.rest):
                self._tell(NumbersLoaded(load.done, load.of_lens))
                load.done = set()
        if load.rest:
            self._run(partial(self._next, load))

    def _read(self, load: Load, wanted: list[Projection]) -> None:
        if wanted:
            self._state.lens.load(wanted)
            if load.pane is not None:
                load.pane.load(wanted)
        for p in wanted:
            del load.rest[p.key]
            load.done.add(p.key)

    def _load_marks(self, pane: TopPane) -> None:
        marks = self._state.marks
        pane.load(tuple(marks.values()))
        self._tell(NumbersLoaded(set(marks), False))

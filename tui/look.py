"""What projections, cells and groups look like; worked out again only where something changed.

A model of 61 layers x 256 experts has 47,000 projections: counting them afresh cost 270 ms a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rankscope.engine.spectrum import Projection

from .grid import Column, Grid, Row, Selection
from .session import Session, State
from .widgets.heatmap import Cell, fold

MARKS = {
    State.NOT_COMPUTED: ".",
    State.QUEUED: ":", State.RUNNING: "*", State.STORED: "#", State.DONE: "#", State.FAILED: "!",
}  # fmt: skip
LEGEND = (
    (".", "not computed"),
    (":", "queued"),
    ("*", "running"),
    ("#", "done: computed and saved"),
    ("!", "failed: select it to see why"),
    ("?", "unsupported quantisation"),
    ("-", "there is no such matrix"),
)


@dataclass(frozen=True, slots=True)
class Count:
    """How many projections of a group are done, have failed, and are there in all."""

    done: int = 0
    failed: int = 0
    total: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.done + other.done, self.failed + other.failed, self.total + other.total)


class Look:
    """The looks of one session's projections at `threshold`, in the grid that is shown."""

    def __init__(self, session: Session, threshold: float) -> None:
        self._session = session
        self.threshold = threshold
        self._grid = Grid((), (), {})
        self._places: dict[str, list[tuple[Row, Column]]] = {}
        self._cells: dict[tuple[Row, Column], Cell] = {}
        self._counts: dict[tuple[Row, Column], Count] = {}

    def show(self, grid: Grid) -> None:
        """Look at another grid."""
        self._grid = grid
        self._places = {}
        for place, members in grid.cells.items():
            for p in members:
                self._places.setdefault(p.key, []).append(place)
        self.forget()

    def forget(self, keys: Iterable[str] | None = None) -> None:
        """States or ranks changed: of these keys, None: of any."""
        if keys is None:
            self._cells.clear()
            self._counts.clear()
            return
        for place in (place for key in keys for place in self._places.get(key, ())):
            self._cells.pop(place, None)
            self._counts.pop(place, None)

    def mark(self, projection: Projection) -> str:
        """The state as one character."""
        if projection.problem:
            return "?" if projection.rows else "-"
        return MARKS[self._session.state(projection)]

    def rank(self, projection: Projection) -> int | None:
        """The threshold rank at the current threshold."""
        return self._session.rank(projection, self.threshold)

    def cell(self, row: Row, column: Column) -> Cell:
        """What the heatmap shows of a layer and role."""
        found = self._cells.get((row, column))
        if found is None:
            members = self._grid.cells.get((row, column), ())
            found = self._cells[row, column] = fold([self._cell(p) for p in members]) if members else Cell("-")
        return found

    def count(self, selection: Selection) -> Count:
        """The count of a cell, a block, a layer, a role or the model."""
        rows = self._grid.rows if selection.row is None else (selection.row,)
        if selection.column is not None:
            columns: Iterable[Column] = (selection.column,)
        else:
            columns = [c for c in self._grid.columns if selection.block in (None, c.block)]
        return sum((self._count((row, column)) for row in rows for column in columns), Count())

    def _count(self, place: tuple[Row, Column]) -> Count:
        found = self._counts.get(place)
        if found is None:
            marks = [self.mark(p) for p in self._grid.cells.get(place, ())]
            found = self._counts[place] = Count(marks.count("#"), marks.count("!"), len(marks))
        return found

    def _cell(self, p: Projection) -> Cell:
        rank = self.rank(p)
        if rank is None or self._session.state(p) is State.RUNNING:
            return Cell(self.mark(p))
        from rankscope.engine.null import null_rank

        return Cell("", rank, rank / null_rank(p.rows, p.cols, self.threshold))

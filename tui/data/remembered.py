"""The explorer's memory of how a model was last shown: taken from its state, saved as JSON, and shown again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rankscope.engine.spectrum import Projection

from .changes import Change
from .chosen_weighting import NONE, Offer, lasting
from .comparison import MOST_MARKS
from .filter import find
from .grid import Column, Row, Selection
from .measures import units
from .state import ExplorerState
from .views import BY_KEY, View, ViewPlace

VERSION = 1
"""The version of the JSON that `written` returns."""
_MOST_CHARACTERS = 4096
_NOT_REMEMBERED = (View.PLAN, View.DELTA)
"""Views that are not remembered: their content is not saved, so they would be empty."""
"""Characters of a text; a longer one was not written by this program."""


class UnreadableError(ValueError):
    """The data is no valid memory; the text tells what is wrong with it. `is_newer`: a later version wrote it."""

    def __init__(self, why: str, *, is_newer: bool = False) -> None:
        super().__init__(why)
        self.is_newer = is_newer


@dataclass(frozen=True, slots=True)
class Remembered:
    """How a model was last shown; views as keys of data.views, projections by their addresses.

    `row` is tower and layer, `column` block and role of the selection, `block` and `single` the rest of it. `stored` is
    name and label of a weighting whose file is not at hand but whose spectra are stored.
    """

    pane: int = View.TREE
    top: int = View.HEATMAP
    chart: int = View.SPECTRUM
    came_from: int = View.TREE
    row: tuple[str, int] | None = None
    column: tuple[str, str] | None = None
    block: str | None = None
    single: str | None = None
    unit: str = "k"
    threshold: float = 0.9
    marks: tuple[str, ...] = ()
    k: int | None = None
    pattern: str = ""
    overview: bool | None = None
    small: bool = False
    panels: bool = False
    axes: int = 0
    relative: bool = False
    weighting: str = NONE
    stored: tuple[str, str] | None = None
    fixed: bool = False

    @classmethod
    def of(cls, state: ExplorerState, shown: Offer) -> Remembered:
        """How a model is shown now, under a weighting and in a gauge."""
        at, stored = state.selection, shown.stored
        return cls(
            state.pane,
            state.top,
            state.chart,
            state.came_from,
            (at.row.tower, at.row.layer) if at.row is not None else None,
            (at.column.block, at.column.role) if at.column is not None else None,
            at.block,
            at.single.address if at.single is not None else None,
            state.lens.measure.name,
            state.threshold,
            tuple(p.address for p in state.marks.values()),
            state.k,
            state.pattern,
            state.overview,
            state.small,
            state.panels,
            state.axes,
            state.relative,
            lasting(shown.text) if stored is None else shown.text,
            stored,
            shown.fixed,
        )

    @property
    def offer(self) -> Offer | None:
        """The weighting and the gauge; None for unmodified weights."""
        is_raw = self.weighting == NONE and self.stored is None and not self.fixed
        return None if is_raw else Offer(self.weighting, "", self.stored, self.fixed)

    def written(self, **about: str) -> bytes:
        """The memory as JSON; `about` are further fields."""
        view = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({"version": VERSION, **about, "view": view}, indent=1).encode()

    def show(self, state: ExplorerState) -> str:
        """Show the model in this way again, as far as possible; return a sentence if only a part of the model is shown,
        else ""."""
        if self.pattern and find(state.session.model.every, self.pattern):
            state.set_filter(self.pattern)
        measure = next((m for m in units(state.pair.shown_as) if m.name == self.unit), state.lens.measure)
        if (measure, self.threshold) != (state.lens.measure, state.threshold):
            state.lens.measure = measure
            state.set_threshold(self.threshold)
        ours = {p.address: p for p in state.session.model.every}
        if state.pair.second is not None:
            ours = {p.address: p for p in state.pair.second.model.every} | ours
        if marks := [p for address in self.marks if (p := ours.get(address)) is not None and p.rows][:MOST_MARKS]:
            state.set_marks({p.key: p for p in marks})
        self._show_views(state)
        self._select(state, ours)
        if self.k is not None:
            state.set_rank(self.k)
        return f"opened as you left it, with the filter {state.pattern}: an empty / shows all" if state.pattern else ""

    def _show_views(self, state: ExplorerState) -> None:
        state.overview, state.small, state.panels = self.overview, self.small, self.panels
        state.axes, state.relative = self.axes, self.relative
        state.changed(Change.AXES)
        for key in (self.top, self.chart, self.pane):
            if key in BY_KEY and key not in _NOT_REMEMBERED:
                state.show(key)
        if self.came_from in BY_KEY and self.came_from not in _NOT_REMEMBERED:
            state.came_from = self.came_from

    def _select(self, state: ExplorerState, projections: Mapping[str, Projection]) -> None:
        """Restore the selection if it is shown."""
        row = Row(*self.row) if self.row is not None else None
        column = Column(*self.column) if self.column is not None else None
        single = projections.get(self.single) if self.single is not None else None
        there = Selection(row, column, self.block, single)
        is_gone = self.single is not None and single is None
        is_hidden = single is not None and state.pattern and single.key not in {p.key for p in state.rows}
        if there.projections(state.grid) and not (is_gone or is_hidden):
            state.select(there)


def read(data: bytes) -> Remembered:
    """Read what `written` returned.

    Raises:
        UnreadableError: it is something else, or from a later version.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise UnreadableError("is damaged") from None
    version, view = (found.get("version"), found.get("view")) if isinstance(found, dict) else (None, None)
    if type(version) is int and version > VERSION:
        raise UnreadableError("is of a later version of rankscope-tui", is_newer=True)
    if version != VERSION or not isinstance(view, dict):
        raise UnreadableError("is damaged")
    names = {f.name for f in fields(Remembered)}
    taken: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in view.items() if name in names}
    if not all(_FITS[name](value) for name, value in taken.items()):
        raise UnreadableError("is damaged")
    return Remembered(**taken)


Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_CHARACTERS


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_pair_of(first: Check, second: Check) -> Check:
    return lambda value: isinstance(value, tuple) and len(value) == 2 and first(value[0]) and second(value[1])


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MOST_MARKS and all(map(_is_text, value))


def _is_view(*places: ViewPlace) -> Check:
    return lambda key: _is_count(key) and (key not in BY_KEY or BY_KEY[key].place in places)


_FITS: Mapping[str, Check] = {
    "pane": _is_view(*ViewPlace),
    "top": _is_view(ViewPlace.TOP),
    "chart": _is_view(ViewPlace.CHART),
    "came_from": _is_view(ViewPlace.TREE, ViewPlace.TOP),
    "row": _or_none(_is_pair_of(_is_text, _is_count)),
    "column": _or_none(_is_pair_of(_is_text, _is_text)),
    "block": _or_none(_is_text),
    "single": _or_none(_is_text),
    "unit": _is_text,
    "threshold": _is_share,
    "marks": _is_list,
    "k": _or_none(_is_count),
    "pattern": _is_text,
    "overview": _or_none(_is_flag),
    "small": _is_flag,
    "panels": _is_flag,
    "axes": _is_count,
    "relative": _is_flag,
    "weighting": _is_text,
    "stored": _or_none(_is_pair_of(_is_text, _is_text)),
    "fixed": _is_flag,
}

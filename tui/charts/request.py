"""What a chart should show, and what is drawn: data exchanged by the event loop and the drawing thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from rich.text import Text

from rankscope.engine.spectrum import Projection, Values

from ..data.grid import Grid, Selection
from ..data.measures import BY_NAME, Measure
from ..data.pair import Curve, Side
from ..data.reference_lines import ReferenceLine
from ..settings.palette import Palette
from .ruler import Ruler


class Axes(IntEnum):
    """The steps of the axes key."""

    LOG_LOG = 0
    LOG_Y = 1
    LINEAR = 2
    ABOVE_NOISE = 3
    """For energy: the difference to that of noise."""


@dataclass(frozen=True, slots=True)
class Request:
    """Everything a chart depends on; `version` counts events that changed a shown projection.

    `compare`: draw the curves of `marks`, not of the selection. `origin`: the selection before a walk over layers or
    roles. `normalised`: divide singular values by the largest. `lines`: reference lines of the layers view. `measure`:
    the number of the layers view.
    """

    selection: Selection
    view: int
    threshold: float
    thresholds: tuple[float, ...]
    axes: int
    width: int
    height: int
    version: int
    grid: Grid = field(compare=False, hash=False, repr=False)
    side: Side = Side.A
    normalised: bool = False
    facets: bool = False
    origin: Selection | None = None
    marks: tuple[Projection, ...] = ()
    compare: bool = False
    lines: tuple[ReferenceLine, ...] = ()
    measure: Measure = BY_NAME["k"]
    palette: Palette = field(default_factory=Palette)


class LayerMark(NamedTuple):
    """The selected layer below charts over layers: its place on their axes, its name, and where these axes are."""

    x: float
    name: str
    rulers: tuple[Ruler, ...]


@dataclass(frozen=True, slots=True)
class Painting:
    """The lines of a chart and its read-out. For a cursor on ranks, `ruler` is their place in the chart, and `curves`
    and `values` what is drawn; without ranks there is no `ruler`. Over layers, `at` is the selected one."""

    request: Request
    lines: tuple[Text, ...]
    readout: Text
    ruler: Ruler | None = None
    curves: tuple[Curve, ...] = ()
    values: tuple[Values, ...] = field(default=(), compare=False, repr=False)
    at: LayerMark | None = None

    def columns(self, k: int | None) -> dict[int, list[int]]:
        """The columns of a vertical rule, by line of the chart: at rank `k`, or at the selected layer."""
        if self.at is not None:
            found = [(ruler, ruler.place(self.at.x)) for ruler in self.at.rulers]
        elif self.ruler is not None and k is not None:
            column = self.ruler.column(min(k, self.ruler.count))
            found = [] if column is None else [(self.ruler, column)]
        else:
            return {}
        lines: dict[int, list[int]] = {}
        for ruler, column in found:
            for y in range(ruler.top, ruler.top + ruler.rows):
                lines.setdefault(y, []).append(column)
        return lines

"""plotext's canvas that also remembers which curve drew a cell: curves that share cells get them in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

from plotext._matrix import matrix_class
from rich.text import Text

RUN = 3
"""Neighbouring cells that a curve keeps before the next gets its turn: fewer look like dots, more like an end."""
_WIDE = 60
"""Charts with at least as many columns have runs of that length; narrower ones have shorter runs, so that every curve
gets its turn."""

CanvasCell: TypeAlias = "tuple[int, int]"
"""Column from the left and row from below, as plotext counts."""


class Layer(IntEnum):
    """Drawing order in a cell: curves cover dim things, and dots cover curves. Curves do not cover each other."""

    DIM = 0
    CURVE = 1
    DOT = 2


@dataclass(frozen=True, slots=True)
class Ink:
    """How one thing is drawn. `turns`: how often a curve gets a shared cell while others get one. `sign` replaces
    plotext's character, which is rounded differently for whole cells than for dots in them."""

    style: str
    layer: Layer = Layer.DIM
    turns: int = 1
    sign: str = ""


class Canvas(matrix_class):
    """The matrix of a plotext figure. What is plotted with a colour from `colour` is kept apart, cell by cell; axes and
    their numbers are in the matrix."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inks: list[Ink] = []
        self._claims: dict[CanvasCell, list[tuple[int, str]]] = {}

    def colour(self, ink: Ink) -> tuple[int, int, int]:
        """A new colour to pass to plotext, which identifies a thing drawn in this ink."""
        self._inks.append(ink)
        return 0, *divmod(len(self._inks) - 1, 256)

    def insert_element(self, col: int, row: int, marker: str, fullground: Any = None, *rest: Any, **more: Any) -> None:
        """Called by plotext for every character."""
        if isinstance(fullground, tuple):
            self._claims.setdefault((col, row), []).append((256 * fullground[1] + fullground[2], marker))
        else:
            super().insert_element(col, row, marker, fullground, *rest, **more)  # type: ignore[no-untyped-call]

    def set_canvas(self) -> str:
        """Called by plotext to build a string of the canvas, which is not needed."""
        self.canvas = ""
        return self.canvas

    def lines(self) -> list[Text]:
        """The finished canvas as lines, from the top, after plotext has built it."""
        seen = self._seen()
        return [self._line(row, seen) for row in reversed(self.Rows)]

    def _line(self, row: int, seen: dict[CanvasCell, tuple[str, str]]) -> Text:
        line = Text(no_wrap=True)
        text, style = "", ""
        for col, below in enumerate(self.marker[row]):
            marker, ink = seen.get((col, row), (below, ""))
            if ink != style:
                line.append(text, style or None)
                text, style = "", ink
            text += marker
        return line.append(text, style or None)

    def _seen(self) -> dict[CanvasCell, tuple[str, str]]:
        """Character and style of every cell that is drawn in."""
        found: dict[CanvasCell, tuple[str, str]] = {}
        shared: dict[CanvasCell, dict[int, str]] = {}
        for cell, claims in self._claims.items():
            top = max(self._inks[number].layer for number, _ in claims)
            owners = {number: marker for number, marker in claims if self._inks[number].layer is top}
            if top is Layer.CURVE and len(owners) > 1:
                shared[cell] = owners
            else:
                number, marker = owners.popitem()
                ink = self._inks[number]
                found[cell] = ink.sign or marker, ink.style
        run = max(1, min(RUN, RUN * self.cols // _WIDE))
        owned = {cell: tuple(owners) for cell, owners in shared.items()}
        for cell, number in in_turn(owned, self._claims_to_shared(shared), run):
            found[cell] = shared[cell][number], self._inks[number].style
        return found

    def _claims_to_shared(self, shared: Iterable[CanvasCell]) -> list[float]:
        """Each curve's claim on shared cells: the larger, the fewer cells it has for itself."""
        among = set(shared)
        count = Counter(number for claims in self._claims.values() for number, _ in claims)
        common = Counter(number for cell in among for number, _ in self._claims[cell])
        return [ink.turns * common[number] / max(1, count[number]) for number, ink in enumerate(self._inks)]


def in_turn(
    shared: Mapping[CanvasCell, Sequence[int]], needs: Sequence[float], run: int
) -> Iterator[tuple[CanvasCell, int]]:
    """The owner that each shared cell shows, from left to right and down. Curves that share cells take turns in runs;
    each run goes to the curve that has waited longest, counted over all cells it shares with any curve."""
    waited = [0.0] * len(needs)
    runs: dict[tuple[int, ...], tuple[int, int]] = {}
    for cell in sorted(shared, key=lambda cell: (cell[0], -cell[1])):
        owners = tuple(shared[cell])
        due = sum(needs[owner] for owner in owners)
        for owner in owners:
            waited[owner] += needs[owner] / due
        owner, left = runs.get(owners, (0, 0))
        if not left:
            owner, left = max(owners, key=waited.__getitem__), run
        waited[owner] -= 1.0
        runs[owners] = owner, left - 1
        yield cell, owner

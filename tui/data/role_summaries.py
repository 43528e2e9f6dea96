"""Two models compared role by role, whatever their layers: smallest number, median and largest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rankscope.engine.spectrum import Projection

from .grid import Column, make_grid
from .lens import Lens
from .pair import Pair
from .spread import known, middle_of


@dataclass(frozen=True, slots=True)
class Spread:
    """One role in one model: its number of layers, of projections with known numbers, and the spread of these
    numbers."""

    layers: int
    known: int
    least: float
    middle: float
    most: float


@dataclass(frozen=True, slots=True)
class RoleSummary:
    """One role of one tower, in both models; None where a model has no number for it."""

    tower: str
    column: Column
    first: Spread | None
    second: Spread | None

    @property
    def label(self) -> str:
        """`attention.key`, `vision.mlp.up`."""
        return ".".join(filter(None, (self.tower, self.column.block, self.column.role)))

    @property
    def ratio(self) -> float | None:
        """The second median over the first."""
        both = self.first is not None and self.second is not None and self.first.middle
        return self.second.middle / self.first.middle if both and self.second and self.first else None


def role_summaries(lens: Lens, ours: Sequence[Projection], theirs: Sequence[Projection]) -> Iterator[RoleSummary]:
    """Yield every role that either model has, in the order of grids. Reads files."""
    assert lens.pair.second is not None
    alone = (Lens(Pair(session), lens.threshold, lens.measure) for session in lens.pair.sessions)
    found = [dict(_spreads(one, members)) for one, members in zip(alone, (ours, theirs), strict=True)]
    order = make_grid([*ours, *theirs])
    towers = dict.fromkeys(row.tower for row in order.rows)
    for tower in towers:
        for column in order.columns:
            first, second = (spreads.get((tower, column)) for spreads in found)
            if first is not None or second is not None:
                yield RoleSummary(tower, column, first, second)


def records(
    lenses: Iterable[Lens], ours: Sequence[Projection], theirs: Sequence[Projection]
) -> Iterator[dict[str, object]]:
    """Yield one record per role and lens. Reads files."""
    for lens in lenses:
        for role in role_summaries(lens, ours, theirs):
            yield {
                "tower": role.tower or None,
                "block": role.column.block,
                "role": role.column.role,
                "threshold": lens.threshold,
                "unit": lens.measure.name,
                **_of("a", role.first),
                **_of("b", role.second),
                "ratio": role.ratio,
            }


def _of(letter: str, spread: Spread | None) -> dict[str, object]:
    names = ("layers", "known", "least", "middle", "most")
    said = ("layers", "projections", "min", "median", "max")
    return {
        f"{to}_{letter}": None if spread is None else getattr(spread, name)
        for to, name in zip(said, names, strict=True)
    }


def _spreads(lens: Lens, members: Sequence[Projection]) -> Iterator[tuple[tuple[str, Column], Spread]]:
    lens.load(members)
    grid = make_grid(members)
    for tower in dict.fromkeys(row.tower for row in grid.rows):
        rows = [row for row in grid.rows if row.tower == tower]
        for column in grid.columns:
            cells = [cell for row in rows if (cell := grid.cells.get((row, column)))]
            numbers = known(lens.numbers(lens.pair.group([p for cell in cells for p in cell])))
            if (middle := middle_of(numbers)) is not None:
                spread = Spread(len(cells), len(numbers), float(numbers[0]), middle, float(numbers[-1]))
                yield (tower, column), spread

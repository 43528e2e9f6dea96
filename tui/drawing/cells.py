"""What projections, cells and groups look like, computed again only where something has changed.

A model of 61 layers x 256 experts has 47,000 projections: counting them all again took 270 ms for each key press.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.style import Style

from rankscope.engine.derive.weighting import is_unseen
from rankscope.engine.spectrum import Projection, Values

from ..data.grid import Column, Grid, Row, Selection
from ..data.lens import Lens
from ..data.measures import BY_NAME
from ..data.pair import NumberGroup, Side
from ..data.session import State
from ..data.spread import far_of, known, median_of, middle_of
from ..data.wording import MARKS, UNSEEN
from ..settings.palette import Depth, Palette
from .cell import GREYED, PLAIN, Cell, Count, most_telling, of_state, signed, written_forms
from .shades import Shades

GridPlace = tuple[Row, Column]


class Look:
    """Cells of projections in the grid that is shown, seen through a lens.

    Whoever changes the lens must call `turn` after it.
    """

    def __init__(self, lens: Lens, palette: Palette) -> None:
        self.lens = lens
        self.palette = palette
        self._marked: frozenset[str] = frozenset()
        self._grid = Grid((), (), {})
        self._experts = self._grid
        self._places: dict[str, list[tuple[GridPlace, Projection]]] = {}
        self._expert_places: dict[str, list[tuple[GridPlace, Projection]]] = {}
        self._longest = self._most_rows = 0
        self.sign_width = 0
        """Characters for the sign of ratios between different shapes, 0 if there are none."""
        self.tells_noise = True
        """Whether comparing with noise is meaningful for the shapes that are shown."""
        self._cells: dict[GridPlace, Cell] = {}
        self._counts: dict[GridPlace, Count] = {}
        self._counted = lens.side
        self._groups: dict[GridPlace, NumberGroup] = {}
        self._ratios: dict[GridPlace, float | None] = {}
        self._shades = Shades()

    # What is shown

    def show(self, grid: Grid) -> None:
        """Show another grid."""
        self._grid = grid
        self._groups.clear()
        self._shades.show(grid)
        self._places = _places(grid)
        shown = [p for members in grid.cells.values() for p in members]
        self._longest = max((p.count for p in shown), default=0)
        self._most_rows = max((p.rows for p in shown), default=0)
        self.sign_width = int(any(map(self.lens.pair.differs_in_shape, shown)))
        self.show_experts(Grid((), (), {}))
        self.forget()

    def show_experts(self, grid: Grid) -> None:
        """Also show the experts of one layer, a row for each."""
        for place in self._experts.cells:
            for held in (self._cells, self._ratios, self._groups):
                held.pop(place, None)
        self._experts = grid
        self._expert_places = _places(grid)

    def forget(self, keys: Iterable[str] | None = None) -> None:
        """Drop what was computed of projections with these content keys, whose states or numbers changed; None means
        all."""
        if keys is None:
            self._counts.clear()
            self.turn()
            return
        changed = []
        for places in (self._places, self._expert_places):
            for place, p in (found for key in keys for found in places.get(key, ())):
                self._cells.pop(place, None)
                self._counts.pop(place, None)
                self._ratios.pop(place, None)
                changed.append((place[1], p))
        if self._shades.widen(self.lens, changed):
            self._cells.clear()

    def turn(self) -> None:
        """Drop cells and shades after the lens has changed. Counts of finished projections are kept unless the model
        changes."""
        if self.lens.side is not self._counted:
            self._counts.clear()
        self._counted = self.lens.side
        self._cells.clear()
        self._ratios.clear()
        self._shades.turn()

    @property
    def marked(self) -> frozenset[str]:
        """Content keys of the projections that are marked for comparison."""
        return self._marked

    @marked.setter
    def marked(self, keys: frozenset[str]) -> None:
        changed, self._marked = keys ^ self._marked, keys
        self.forget(changed)

    # Projections

    def mark(self, projection: Projection) -> str:
        """The state of a projection on the lens's side, as one character."""
        session, there = self.lens.session(projection)
        if there is None:
            return "-"
        if there.problem:
            return UNSEEN if is_unseen(there) else "?" if there.rows else "-"
        return MARKS[session.state(there)]

    def number_text(self, projection: Projection) -> str:
        """The number in at most `width` characters, "" if it is unknown."""
        number = self.lens.number(projection)
        if number is None:
            return ""
        sign = self.lens.sign(projection)
        return sign + self.short(number, self.width - len(sign))

    # Cells

    def cell(self, row: Row, column: Column) -> Cell:
        """The heatmap's cell for a layer and role, or for an expert and role."""
        place = (row, column)
        found = self._cells.get(place)
        if found is None:
            members = self._members(place)
            is_one = len(members) == 1
            found = self._single_cell(members[0], column) if is_one else self._median_cell(self._group(place), column)
            self._cells[place] = found
        return found

    def numbers(self, row: Row, column: Column) -> Values | Sequence[float]:
        """The numbers of the projections in a place, in their order; NaN if one is unknown, or being computed again."""
        members = self._members((row, column))
        if len(members) == 1:
            number = self.cell(row, column).number
            return (math.nan if number is None else number,)
        if not members or not self.lens.pair.has_spectra:
            return (math.nan,) * len(members)
        return self.lens.numbers(self._group((row, column)))

    def blend(self, cells: Sequence[Cell], column: Column) -> Cell:
        """Several cells of a role as one without text: the median of their tones, else the most telling mark."""
        if len(cells) == 1:
            return cells[0]
        tones = [cell.tone for cell in cells if cell.tone is not None and not cell.is_greyed]
        is_marked = any(cell.is_marked for cell in cells)
        marks = {cell.mark for cell in cells}
        if tones:
            blend = self._shaded((MARKS[State.DONE],), None, median_of(tones), is_marked, column=column)
            return replace(blend, has_failed="!" in marks or any(cell.has_failed for cell in cells))
        grey = next((cell for cell in cells if cell.is_greyed), None)
        return of_state(most_telling(marks), is_marked) if grey is None else replace(grey, is_marked=is_marked)

    @property
    def last_head(self) -> str:
        """The heading of `last_number` in the overview, "" if the numbers before it are k/k0 already or noise is not
        meaningful."""
        if not self.tells_noise:
            return ""
        if self.lens.side is Side.RATIO:
            return " A k:k0"
        return "" if self.lens.measure.name == "k/k0" else " k:k0"

    def last_number(self, row: Row, column: Column) -> float | None:
        """The median k/k0 of a cell, whatever the unit; that of the first model if the lens compares two."""
        if self.lens.measure.name == "k" and self.lens.side is not Side.RATIO:
            return self.cell(row, column).tone
        place = (row, column)
        if not self.lens.pair.has_spectra:
            return None
        if place not in self._ratios:
            side = Side.A if self.lens.side is Side.RATIO else self.lens.side
            lens = replace(self.lens, measure=BY_NAME["k/k0"], side=side)
            self._ratios[place] = middle_of(known(lens.numbers(self._group(place))))
        return self._ratios[place]

    def count(self, selection: Selection) -> Count:
        """The count of a cell, a block, a layer, a role or the model."""
        rows = self._grid.rows if selection.row is None else (selection.row,)
        if selection.column is not None:
            columns: Iterable[Column] = (selection.column,)
        else:
            columns = [c for c in self._grid.counted if selection.block in (None, c.block)]
        return sum((self._count((row, column)) for row in rows for column in columns), Count())

    # Numbers and shades

    def short(self, number: float, width: int) -> str:
        """A number in at most `width` characters, with fewer digits if necessary."""
        return next(form for form in written_forms(self.lens.written(number), number) if len(form) <= width)

    @property
    def width(self) -> int:
        """Characters for a number of this unit, from shapes alone, so that columns never move during a scan."""
        measure = self.lens.measure
        if self.lens.side is Side.RATIO:
            return len("1.234") + self.sign_width
        if measure.digits is None:
            return len("0.1234")
        if measure.limits:
            return len(measure.written(1.0 if measure.diverges else 100.0))
        return len(measure.written(self._most_rows if measure.needs_directions else self._longest))

    def beside(self, members: int) -> int:
        """Characters beside the number in a cell of `members` experts: for the farthest one, or for how many are
        computed."""
        some = self.lens.pair.first.experts
        return self.width + 2 if some is None or some >= members else len(f" {some}/{members}")

    @property
    def is_mono(self) -> bool:
        """Whether shades are characters."""
        return self.palette.depth is Depth.MONO

    def limits(self, column: Column | None = None) -> tuple[float, ...]:
        """Where the shade changes: at the unit's limits, or spread over the numbers of the model or (with --contrast
        role) of this role; () without any number."""
        return self._shades.limits(self.lens, column)

    def shaded(self, tone: float, column: Column | None = None) -> tuple[Style, str]:
        """The shade of a number of a role as a style, and as a character for terminals without colours."""
        limits = self.limits(column)
        level = self.palette.level(tone, limits) if self.is_mono else ""
        return self.palette.shade(tone, limits, self.lens.diverges), level

    def _members(self, place: GridPlace) -> tuple[Projection, ...]:
        return (self._grid if place[0].member is None else self._experts).cells.get(place, ())

    def _group(self, place: GridPlace) -> NumberGroup:
        found = self._groups.get(place)
        if found is None:
            found = self._groups[place] = self.lens.pair.group(self._members(place))
        return found

    def _count(self, place: GridPlace) -> Count:
        found = self._counts.get(place)
        if found is None:
            marks = [self.mark(p) for p in self._grid.cells.get(place, ())]
            total = len(marks) - marks.count("-")
            found = self._counts[place] = Count(marks.count("#"), marks.count("!"), total)
        return found

    def _single_cell(self, p: Projection, column: Column) -> Cell:
        is_marked = p.key in self._marked
        number, mark = self.lens.number(p), self.mark(p)
        if number is None or mark == MARKS[State.RUNNING]:
            return of_state(self._missing_state(p, mark), is_marked)
        forms = signed(written_forms(self.lens.written(number), number), self.lens.sign(p))
        forms = (self.lens.text(p), *forms[1:])
        return self._shaded(forms, number, self.lens.tone(p), is_marked, self.lens.is_greyed(p), column)

    def _median_cell(self, group: NumberGroup, column: Column) -> Cell:
        """The cell of several projections (experts, KV heads): the median, and after "^" the number farthest from it,
        29 ^33, if the median does not represent them all (far_of). If only a part is computed, how many: 104 8/256. If
        the user wanted the missing ones too, their state is shown instead of the farthest, and of the count if that
        does not fit: a few do not represent all.
        """
        members = group.members
        is_marked = bool(self._marked) and any(p.key in self._marked for p in members)
        if not self.lens.pair.has_spectra:
            return of_state(most_telling(self._missing_states(members, members)), is_marked)
        every = self.lens.numbers(group)
        numbers = known(every)
        is_part = len(numbers) < len(members)
        lacking = (p for p, number in zip(members, every.tolist(), strict=True) if math.isnan(number))
        marks = self._missing_states(members, lacking) if is_part else set()
        middle = middle_of(numbers)
        if middle is None:
            return of_state(most_telling(marks), is_marked)
        forms = written_forms(self.lens.written(middle), middle)
        count = f" {len(numbers)}/{len(members)}" if is_part else ""
        if marks:
            forms = (f"{forms[0]}{count}", most_telling(marks))
        else:
            far = far_of(numbers, ranks=self.lens.is_rank)
            whole = [forms[0] if far is None else f"{forms[0]} ^{self.lens.written(far)}", forms[0]]
            forms = (*(f"{form}{count}" for form in whole), *whole, *forms)
        forms = signed(forms, self._sign_of(members, every))
        above = self.lens.greyed_above
        is_greyed = above is not None and bool(2 * (numbers > above).sum() > len(numbers))
        tones = self.lens.tones(group)
        if above is not None and not is_greyed:
            tones = tones[every <= above]
        cell = self._shaded(forms, middle, middle_of(known(tones)), is_marked, is_greyed, column)
        return replace(cell, has_failed="!" in marks)

    def _missing_states(self, members: Sequence[Projection], lacking: Iterable[Projection]) -> set[str]:
        """The states of experts without a number, except those left out of the sample."""
        sampled = {id(p) for p in self.lens.pair.first.sampled(members)}
        marks = [(p, self._missing_state(p, self.mark(p))) for p in lacking]
        return {mark for p, mark in marks if id(p) in sampled or mark != MARKS[State.NOT_COMPUTED]}

    def _sign_of(self, members: Sequence[Projection], numbers: Values) -> str:
        """The sign of the first of them that has one and a number."""
        if not self.sign_width:
            return ""
        found = (p for p, number in zip(members, numbers.tolist(), strict=True) if not math.isnan(number))
        return next(filter(None, map(self.lens.sign, found)), "")

    def _missing_state(self, p: Projection, mark: str) -> str:
        """The state of what a number needs: of the projection, or if that is done, of the other spectrum it is compared
        to."""
        if self.lens.measure.needs_directions:
            return mark if mark in f"-?{UNSEEN}" else MARKS[State.NOT_COMPUTED]
        session, there = self.lens.session(p)
        if mark != MARKS[State.DONE] or there is None:
            return mark
        if not (self.lens.measure.exists(session.shown_as) and self.lens.measure.fits(there)):
            return "-"
        other = self.lens.measure.beside(there)
        return mark if other is None else MARKS[session.state(other)]

    def _shaded(
        self,
        forms: tuple[str, ...],
        number: float | None,
        tone: float | None,
        is_marked: bool,
        is_greyed: bool = False,
        column: Column | None = None,
    ) -> Cell:
        style, level = self.shaded(tone, column) if tone is not None else (PLAIN, "")
        if is_greyed:
            style = GREYED
        if is_marked:
            style += Style(underline=True)
        return Cell(forms, style, number, tone, level, is_marked, is_greyed)


def _places(grid: Grid) -> dict[str, list[tuple[GridPlace, Projection]]]:
    """The places of the projections with each content key."""
    found: dict[str, list[tuple[GridPlace, Projection]]] = {}
    for place, members in grid.cells.items():
        for p in members:
            found.setdefault(p.key, []).append((place, p))
    return found

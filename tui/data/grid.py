"""Layers x roles: the grid that tree, heatmap, charts and tables share, and the selection in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from rankscope.engine.catalogue.rules import BLOCKS, ROLES
from rankscope.engine.derive.head_matrices import BY_KV_HEAD, GROUP_OV, head_of
from rankscope.engine.spectrum import Projection

LAYER, EXPERT, KV_HEAD, HEAD = "layer", "expert", "KV head", "head"
_SHORT = {LAYER: "L", EXPERT: "e", KV_HEAD: "kv", HEAD: "h"}
_MULTIPLIED = ("value", "value_b", "output")
"""Roles that GROUP_OV replaces in the fixed gauge."""


@dataclass(frozen=True, slots=True)
class OfSeries(Projection):
    """A projection of a model of a series (series.py): `tower` and `layer` are the word and the number of the model,
    which stands in the place of a layer. `inside` is what it is in its own model; always given."""

    inside: Projection | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """The expert, head or layer that a projection of a cell is: its kind (EXPERT, KV_HEAD, HEAD, in a series LAYER)
    and the number; for a layer also its tower, and its expert if it has one."""

    what: str
    number: int
    tower: str = ""
    expert: int | None = None

    @property
    def label(self) -> str:
        """`e17`, `kv3`, `h11`; of a series `L3`, `vision.L3`, `L3.e17`."""
        expert = None if self.expert is None else f"{_SHORT[EXPERT]}{self.expert}"
        return ".".join(filter(None, (self.tower, f"{_SHORT[self.what]}{self.number}", expert)))

    @property
    def words(self) -> str:
        """`expert 17`; of a series `layer 3`, `vision layer 3 expert 17`."""
        expert = "" if self.expert is None else f"{EXPERT} {self.expert}"
        return " ".join(filter(None, (self.tower, self.what, str(self.number), expert)))


def member_of(p: Projection) -> Member | None:
    """The expert or head that a projection belongs to, in a series the layer; None if it belongs to none."""
    if isinstance(p, OfSeries) and p.inside is not None and p.inside.layer is not None:
        return Member(LAYER, p.inside.layer, p.inside.tower or "", p.inside.expert)
    if p.expert is not None:
        return Member(EXPERT, p.expert)
    head = head_of(p)
    return None if head is None else Member(KV_HEAD if head.kind in BY_KV_HEAD else HEAD, head.number)


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of one tower, or one of its experts or KV heads."""

    tower: str
    layer: int
    member: Member | None = None

    @property
    def label(self) -> str:
        """`12`, or `vision.12`; for an expert `e17`, for a KV head `kv3`."""
        if self.member is not None:
            return self.member.label
        return f"{self.tower}.{self.layer}" if self.tower else str(self.layer)


@dataclass(frozen=True, slots=True)
class Column:
    """One role of one block."""

    block: str
    role: str

    @property
    def heading(self) -> str:
        """The role, with its block if the role is ambiguous."""
        return self.role if self.block in ("attention", "mlp", "other") else f"{self.block}.{self.role}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Projections by layer and role; a cell with several (experts, KV heads) holds them all, in order.

    `derived` are the roles of matrices made of several: where they are shown they are among the `columns`. They always
    have cells, and belong to no layer or block as a whole.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[Row, Column], tuple[Projection, ...]]
    derived: tuple[Column, ...] = ()

    @property
    def counted(self) -> tuple[Column, ...]:
        """The columns that make up a layer: those of the model's own projections."""
        return tuple(column for column in self.columns if column not in self.derived)

    @property
    def rows_are(self) -> str:
        """What its rows are: layers, or members of one; of a series what its models are called, `step` or `model`."""
        if self.rows and (member := self.rows[0].member) is not None:
            return member.what
        return self.rows[0].tower if self._is_of_series else LAYER

    def named(self, row: Row) -> str:
        """`layer 12`, of a series `step.1000`."""
        return row.label if self._is_of_series else f"{LAYER} {row.label}"

    def named_all(self, tower: str) -> str:
        """What its rows of a tower are together: `layers`, `vision layers`, of a series `step`."""
        return tower if self._is_of_series else f"{tower} {LAYER}s".strip()

    @property
    def _is_of_series(self) -> bool:
        return any(map(is_of_series, next(iter(self.cells.values()), ())))

    def row(self, row: Row) -> tuple[Projection, ...]:
        """All projections of a layer, in column order."""
        return tuple(chain.from_iterable(self.cells.get((row, column), ()) for column in self.counted))

    def column(self, column: Column) -> tuple[Projection, ...]:
        """All projections of a role, in layer order."""
        return tuple(p for row in self.rows for p in self.cells.get((row, column), ()))


def make_grid(projections: Iterable[Projection], further: Sequence[Projection] = (), *, shown: bool = False) -> Grid:
    """The grid of all projections in layers, rows and columns in model order. `further` matrices, which are made of
    several, have columns if `shown` is set or there are no others."""
    grid = _grid(projections)
    if not further:
        return grid
    beside = _grid(further)
    rows = {(row.tower, row.layer): row for row in (*grid.rows, *beside.rows)}
    columns = [*grid.columns, *(beside.columns if shown or not grid.columns else ())]
    order = sorted(rows.values(), key=lambda row: (row.tower, row.layer)) if len(rows) > len(grid.rows) else grid.rows
    cells = grid.cells | beside.cells
    return Grid(tuple(order), tuple(sorted(columns, key=_column_order)), cells, beside.columns)


def _grid(projections: Iterable[Projection]) -> Grid:
    found: dict[tuple[str, int, str, str], list[Projection]] = {}
    for p in projections:
        if p.layer is not None and p.rows:
            found.setdefault((p.tower or "", p.layer, p.block, p.role), []).append(p)
    cells = {
        (Row(tower, layer), Column(block, role)): members for (tower, layer, block, role), members in found.items()
    }
    rows = dict.fromkeys(row for row, _ in cells)
    columns = sorted(dict.fromkeys(column for _, column in cells), key=_column_order)
    return Grid(tuple(rows), tuple(columns), {place: tuple(members) for place, members in cells.items()})


def unfolded(grid: Grid, row: Row, block: str) -> Grid:
    """The experts or KV heads in one block of a layer: one per row, with one projection per cell."""
    here = {c: grid.cells.get((row, c), ()) for c in grid.columns if c.block == block}
    columns = tuple(c for c, members in here.items() if len(members) > 1 or any(map(member_of, members)))
    cells: dict[tuple[Row, Column], tuple[Projection, ...]] = {
        (replace(row, member=member), column): (p,) for column in columns for member, p in _numbered(here[column])
    }
    rows = sorted(dict.fromkeys(place for place, _ in cells), key=lambda at: at.member.number if at.member else 0)
    return Grid(tuple(rows), columns, cells)


def _numbered(members: tuple[Projection, ...]) -> Iterable[tuple[Member, Projection]]:
    """Number members by expert, head or layer, or by position if those numbers are ambiguous."""
    known = [member for p in members if (member := member_of(p)) is not None]
    if len(set(known)) < len(members):
        known = [Member(EXPERT, number) for number in range(len(members))]
    return zip(known, members, strict=True)


def is_of_series(p: Projection) -> bool:
    """Whether a projection belongs to a model of a series (series_model.py), which takes the place of a layer."""
    return isinstance(p, OfSeries)


def _column_order(column: Column) -> tuple[int, int, str]:
    known = column.role in ROLES
    return BLOCKS.index(column.block), ROLES.index(column.role) if known else len(ROLES), column.role


@dataclass(frozen=True, slots=True)
class Selection:
    """The selection that all panes share: a cell (row and column), a layer (row), a block of a layer (row and block), a
    role over all layers (column), one projection (`single`), or the model (nothing set)."""

    row: Row | None = None
    column: Column | None = None
    block: str | None = None
    single: Projection | None = None

    def projections(self, grid: Grid) -> tuple[Projection, ...]:
        """The selected projections, in model order."""
        if self.single is not None:
            return (self.single,)
        if self.row is not None and self.column is not None:
            return grid.cells.get((self.row, self.column), ())
        if self.row is not None:
            return tuple(p for p in grid.row(self.row) if self.block in (None, p.block))
        if self.column is not None:
            return grid.column(self.column)
        return tuple(chain.from_iterable(map(grid.row, grid.rows)))

    def holds(self, grid: Grid, row: Row, column: Column) -> bool:
        """Whether a cell of a grid, of layers or of a layer's experts, is selected or part of the selection."""
        if self.row is None or column in grid.derived:
            return self.column == column and self.row in (None, row)
        if (self.row.tower, self.row.layer) != (row.tower, row.layer):
            return False
        if self.column != column and (self.column is not None or self.block not in (None, column.block)):
            return False
        if row.member is None or self.single is None:
            return True
        return any(p.address == self.single.address for p in grid.cells.get((row, column), ()))

    def label(self, grid: Grid) -> str:
        """The selection as an address, "layers.3.attention" or "attention.key over 30 layers"."""
        found = self.projections(grid)
        if len(found) == 1:
            return found[0].address
        if self.row is None:
            what = f"{self.column.block}.{self.column.role}" if self.column else "all projections"
            rows = "models" if found and is_of_series(found[0]) else "layers"
            return f"{what} over {len(grid.rows)} {rows}" if grid.rows else "the model: no layers, see other"
        parts = [self.row.tower, "" if found and is_of_series(found[0]) else "layers", str(self.row.layer)]
        parts += [self.column.block, self.column.role] if self.column else [self.block or ""]
        return ".".join(filter(None, parts))

    def step_layer(self, grid: Grid, step: int) -> Selection:
        """The same selection `step` layers further, at most to the first or last one."""
        if not grid.rows:
            return self
        if self.row is None:
            return replace(self, row=grid.rows[0], single=None)
        index = grid.rows.index(self.row) if self.row in grid.rows else 0
        return self.in_row(grid, grid.rows[max(0, min(len(grid.rows) - 1, index + step))])

    def in_row(self, grid: Grid, row: Row) -> Selection:
        """The same selection in this layer; an expert or head keeps its number if the layer has it."""
        there = replace(self, row=row, single=None)
        if self.single is None:
            return there
        member = member_of(self.single)
        same = (p for p in there.projections(grid) if member_of(p) == member)
        return replace(there, single=next(same, None)) if self.column else there

    def step_role(self, grid: Grid, step: int) -> Selection:
        """The next or previous role, in the same layer or over all layers, at most to the first or last one."""
        if not grid.columns:
            return self
        if self.column is None or self.column not in grid.columns:
            return replace(self, column=grid.columns[0], block=None, single=None)
        index = max(0, min(len(grid.columns) - 1, grid.columns.index(self.column) + step))
        return replace(self, column=grid.columns[index], block=None, single=None)

    def step_cell(self, grid: Grid, step: int) -> Selection | None:
        """The cell `step` further, row by row and wrapping around; None if the grid has no cells."""
        cells = [Selection(r, c) for r in grid.rows for c in grid.columns if (r, c) in grid.cells]
        if not cells:
            return None
        here = replace(self, single=None)
        at = next((i for i, cell in enumerate(cells) if cell == here), None)
        if at is None:  # between cells: count from the first of this layer
            at = next((i for i, cell in enumerate(cells) if cell.row == here.row), 0) - (step > 0)
        return cells[(at + step) % len(cells)]

    def found_in(self, projections: Mapping[str, Projection]) -> Selection:
        """The same selection among other states of the projections, given by address."""
        return self if self.single is None else replace(self, single=projections.get(self.single.address))

    def in_columns(self, grid: Grid) -> Selection:
        """The same selection in a grid with other columns: in the fixed gauge the products replace value and output,
        and value replaces them again outside it. If the column has no equivalent, its layer, or the model."""
        column = self.column
        if column is None or column in grid.columns:
            return self
        roles = _MULTIPLIED if column.role == GROUP_OV else (GROUP_OV,) if column.role in _MULTIPLIED else ()
        found = (Column(column.block, role) for role in roles)
        return Selection(self.row, next((c for c in found if c in grid.columns), None))

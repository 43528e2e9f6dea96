"""The CSV content of each view: functions that data/views names, all with the same signature."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rankscope.engine.derive.head_matrices import head_of, offset_of
from rankscope.engine.spectrum import Projection, Values

from . import records
from .comparison import Comparison
from .grid import Grid
from .lens import Lens
from .pair import Curve
from .table_rows import Field

if TYPE_CHECKING:
    from rankscope.engine.plan.plan_file import PlanRow

    from .delta_numbers import DeltaNumbers
    from .latent_ranks import Ranks


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a view: the lens at every threshold, the projections in the view's order, and their grid; further
    the columns of a table, the curves of a chart with the values of each, which may be read while they are written, the
    rows of a plan, ranks of latent attention by threshold, rows of heads, and numbers of differences by threshold."""

    lenses: Sequence[Lens]
    projections: Sequence[Projection]
    grid: Grid
    fields: Sequence[Field] = ()
    curves: Iterable[Curve] = ()
    ranks: Iterable[PlanRow] = ()
    values: Iterable[Values] = ()
    latent: Mapping[float, Sequence[Ranks]] = field(default_factory=dict)
    heads: Sequence[Projection] = ()
    changes: Mapping[float, Sequence[DeltaNumbers]] = field(default_factory=dict)


Records = Iterator[dict[str, object]]


def of_heatmap(content: Content) -> Records:
    """One record per projection. Reads files."""
    _load(content)
    return records.of_cells(content.lenses, content.projections)


def of_table(content: Content) -> Records:
    """One record per row, in the order of the table, with every column."""
    return records.of_rows(content.fields, content.projections)


def of_compare(content: Content) -> Records:
    """One record per column. Reads files."""
    comparison = Comparison(content.lenses[-1], content.projections)
    comparison.load()
    return comparison.records()


def of_plan(content: Content) -> Records:
    """One record per row of a plan, in its order."""
    return records.of_ranks(content.ranks)


def of_gauge(content: Content) -> Records:
    """One record per role and lens. Reads files."""
    for lens in content.lenses:
        yield from records.of_orders(lens, content.grid)


def of_directions(content: Content) -> Records:
    """One record per projection whose directions are stored. Reads files."""
    from .direction_facts import known_of
    from .direction_records import row  # numpy, which reading the table of views must not import

    return map(row, known_of(content.lenses[0].pair.first, content.projections))


def of_mla(content: Content) -> Records:
    """One record per layer and threshold."""
    from .latent_ranks import record  # not needed for the first screen

    return (record(r, threshold) for threshold, ranks in content.latent.items() for r in ranks)


def of_heads(content: Content) -> Records:
    """One record per head and kind. Reads files."""
    for lens in content.lenses:
        lens.load(content.heads)
    for p, record in zip(content.heads, records.of_cells(content.lenses, content.heads), strict=True):
        head = head_of(p)
        offset = offset_of(p)
        yield {"head": head and head.number, "offset": offset, **record, "problem": p.problem}


def of_delta(content: Content) -> Records:
    """One record per difference and threshold."""
    from .delta_numbers import columns_at, records_of  # not needed for the first screen

    for threshold, changes in content.changes.items():
        yield from records_of(changes, threshold, columns_at(threshold))


def of_layers_view(content: Content) -> Records:
    """One record per point. Reads files."""
    _load(content)
    return records.of_layers(content.lenses, content.grid)


def of_curves_view(content: Content) -> Records:
    """One record per singular value of every curve."""
    return records.of_curves(content.curves, content.values)


def _load(content: Content) -> None:
    for lens in content.lenses:
        lens.load(content.projections)

"""A model in the fixed gauge, and how similar the order of its layers is to that in the raw gauge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rankscope.engine.catalogue.attention import attentions
from rankscope.engine.derive.derived import is_state
from rankscope.engine.derive.head_matrices import GROUP_OV, heads_of
from rankscope.engine.errors import InputError
from rankscope.engine.spectrum import Projection

from .grid import Column, Grid
from .lens import Lens
from .model import Model
from .stored_gauge import FACTORS, StoredGauge
from .wording import told

if TYPE_CHECKING:
    from rankscope.engine.derive.fixing import Gauge
    from rankscope.engine.moment import Weighting

RAW = "raw"
"""The gauge of the weights as they are."""


def fixed(
    model: Model, root: Path, under: Weighting | None = None, wanted: Sequence[Projection] | None = None
) -> Model:
    """A model whose matrices, or only the `wanted` ones, are in the fixed gauge, and under a weighting if one is given.
    Reads the gains of its norms or, if its weights are not at hand, what is stored under `root`.

    Value and output are replaced by their products, one map per KV head, because any invertible matrix may stand
    between the two. The replaced ones become the model's `multiplied`.

    Raises:
        InputError: for none of them the gauge is known, or nothing is stored.
    """
    gauge = _gauge_of(model, root)
    shown = model.tree.projections if wanted is None else wanted
    made = {p.address: gauge.fixed(p, under) if p.rows else p for p in shown}
    every = [p for p in made.values() if p.rows]
    if every and all(p.problem for p in every):
        raise InputError(f"the gauge cannot be fixed: {told(every[0])}")
    instead = gauge.products(shown, under) if isinstance(gauge, StoredGauge) else _products(model, gauge, made, under)
    rows = {q.address: q for address, p in made.items() for q in instead.get(address, (p,))}
    multiplied = tuple(p for address, p in made.items() if address in instead)
    return replace(model, tree=replace(model.tree, projections=tuple(rows.values())), multiplied=multiplied)


def _products(
    model: Model, gauge: Gauge, made: Mapping[str, Projection], under: Weighting | None
) -> dict[str, tuple[Projection, ...]]:
    """What replaces each value and output in the fixed gauge, by address: the products that it is a factor of, or, if
    these are unknown, the projection itself with the sentence that says why."""
    assert model.checkpoint is not None
    found, unknown = attentions(model.checkpoint, model.tree.projections)
    instead: dict[str, tuple[Projection, ...]] = {}
    for a in found:
        factors = {a.value.address, a.output.address}
        if factors & made.keys():
            value = made.get(a.value.address) or gauge.fixed(a.value, under)
            instead |= dict.fromkeys(factors, tuple(heads_of(a, GROUP_OV, {value.address: value})))
    for address, p in made.items():
        reason = unknown.get(address.rpartition(".")[0])
        if reason and p.role in FACTORS:
            instead[address] = (replace(p, problem=p.problem or reason),)
    return instead


def _gauge_of(model: Model, root: Path) -> Gauge | StoredGauge:
    if model.checkpoint is None:
        return StoredGauge(model, root)
    from rankscope.engine.derive.fixing import Gauge  # imports numpy

    return Gauge(model.checkpoint, model.tree.projections)


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a role's layers by a number: `correlation` is Spearman's, raw against fixed, over the `layers` that
    have both, None if either is constant; `raw` and `fixed` are the medians over these."""

    column: Column
    layers: int
    raw: float | None
    fixed: float | None
    correlation: float | None


def orders(lens: Lens, grid: Grid) -> Iterator[Order]:
    """Compare, role by role, the numbers in the fixed gauge that the lens shows for its first model with those of the
    unmodified matrices. Products, which replace two matrices, are left out; experts of a layer count by their median.
    Reads files."""
    shown = [p for cell in grid.cells.values() for p in cell if is_state(p)]
    lens.load([q for p in shown for q in (p, p.parents[0])])
    session, measure = lens.pair.first, lens.measure
    for column in (c for c in grid.columns if any(map(is_state, grid.column(c)))):
        pairs = []
        for row in grid.rows:
            cell = grid.cells.get((row, column), ())
            both = [[measure.number(session, q, lens.threshold) for q in (p.parents[0], p)] for p in cell]
            found = [(a, b) for a, b in both if a is not None and b is not None]
            if found:
                pairs.append((median(a for a, _ in found), median(b for _, b in found)))
        ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
        yield Order(column, len(pairs), _middle(ours), _middle(theirs), spearman(ours, theirs))


def _middle(numbers: Sequence[float]) -> float | None:
    return median(numbers) if numbers else None


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The rank correlation of two rows of numbers, ties at their mean rank; None if one is constant."""
    import numpy as np

    ranks = []
    for numbers in (first, second):
        _, at, counts = np.unique(np.asarray(numbers, np.float64), return_inverse=True, return_counts=True)
        middles = np.cumsum(counts) - (counts - 1) / 2 if len(counts) else counts
        ranks.append(middles[at] - (len(numbers) + 1) / 2)
    a, b = ranks
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else None

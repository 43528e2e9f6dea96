"""The effect of keeping k components, as columns of the metric table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from rankscope.engine import metrics
from rankscope.engine.spectrum import Projection, Values

from .kept_ranks import KeptRanks
from .lens import Lens
from .measures import Measure
from .session import Session
from .table_rows import Field, field_of

ColumnNumbers = dict[str, tuple[float | None, ...]]
"""By content key, in the order of the columns; None if there is no such number."""
_BATCH = 256


def fields_at(lens: Lens, ranks: KeptRanks, projections: Iterable[Projection]) -> tuple[Field, ...]:
    """sigma_k, energy and relative error of the best approximation of rank k, and the size of its factors; with
    separate ranks for roles also k. Reads files in batches: the values of a whole model need not fit in memory."""
    known: ColumnNumbers = {}
    wanted = [(session, p) for q in projections for _, session, p in lens.pair.curves(q, lens.side)]
    for session in lens.pair.sessions:
        stored = {p.key: p for s, p in wanted if s is session and s.has(p)}
        keys = list(stored)
        for start in range(0, len(keys), _BATCH):
            for key, values in session.store.values(keys[start : start + _BATCH]).items():
                known[key] = _numbers(session, stored[key], values, ranks.of(stored[key]))
    return tuple(field_of(m.name, replace(lens, measure=m)) for m in _measures(ranks, known))


def _measures(ranks: KeptRanks, known: ColumnNumbers) -> list[Measure]:
    k = "k" if ranks.roles else str(ranks.common)
    rows = (
        (ranks.column("sigma"), f"sigma_{k}", "singular value {k}; none below the solver's noise floor", None),
        (ranks.column("energy"), f"energy({k}) %", "share of sum sigma^2 in the first {k}", 2),
        (
            ranks.column("relative_error"),
            "rel.error",
            "sqrt(1 - energy({k})), relative Frobenius error of rank {k}",
            None,
        ),
        (ranks.column("factors"), "factors", "{k} (m + n): parameters of two factors of rank {k}", 0),
        (f"{ranks.column('factors')}_percent", "factors %", "the same in % of m n", 1),
        *([("rank", "k", "the rank given to its role", 0)] if ranks.roles else []),
    )
    return [
        Measure(name, heading, formula.replace("{k}", k), digits, partial(_look_up, known, column))
        for column, (name, heading, formula, digits) in enumerate(rows)
    ]


def _look_up(known: ColumnNumbers, column: int, _: Session, p: Projection, __: float) -> float | None:
    return known[p.key][column] if p.key in known else None


def _numbers(session: Session, p: Projection, values: Values, k: int | None) -> tuple[float | None, ...]:
    entry = session.entry(p)
    if k is None or k > len(values) or entry is None:
        return (*(None,) * 5, k)
    sigma = float(values[k - 1])
    factors = metrics.factor_parameters(p.rows, p.cols, k)
    return (
        sigma if sigma > entry.provenance.noise_floor else None,
        100 * metrics.energy_at(values, k),
        metrics.relative_error(values, k),
        factors,
        100 * factors / (p.rows * p.cols),
        k,
    )

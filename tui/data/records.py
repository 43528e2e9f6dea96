"""The contents of views as flat records, for CSV: plain numbers, None for missing ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rankscope.engine.spectrum import Derived, Projection, Values

from .gauged_model import orders
from .grid import Grid, OfSeries, Row
from .lens import Lens
from .measures import FILE_MEASURES, SAID_MEASURES
from .pair import Side
from .spread import median_of
from .table_rows import Field
from .wording import percent

if TYPE_CHECKING:
    from rankscope.engine.plan.plan_file import PlanRow

    from .pair import Curve


def of_rows(fields: Sequence[Field], projections: Iterable[Projection]) -> Iterator[dict[str, object]]:
    """The metric table and FILE_MEASURES, one record per projection. Measures that depend on a threshold are at
    `threshold`; a number that is only a bound is marked, a ratio if either of its two numbers is one."""
    lens = next(field.lens for field in reversed(fields) if field.lens is not None)
    numbers = [field for field in fields if field.lens is not None]
    bounds = {f.name: f.lens for f in numbers if f.lens is not None and f.lens.measure.may_be_bound}
    extra = [replace(lens, measure=measure) for measure in FILE_MEASURES]
    for p in projections:
        _, there = lens.session(p)
        yield {
            **_place(lens, p),
            **{of.measure.name: _plain(of.number(p)) for of in extra},
            "threshold": lens.threshold,
            **({"rank": lens.ranks.of(p)} if lens.ranks is not None and lens.ranks.roles else {}),
            **{field.name: _plain(field.number(p)) for field in numbers},
            **{f"{name}_is_bound": of.is_bound(p) if there is not None else None for name, of in bounds.items()},
        }


def of_cells(lenses: Sequence[Lens], projections: Iterable[Projection]) -> Iterator[dict[str, object]]:
    """The heatmap, one record per projection with one number per lens, named `k90` or `k/k0_90` after its threshold;
    with the energy at a rank comes the rank."""
    for p in projections:
        numbers = {_name(lens): _plain(lens.number(p)) for lens in lenses}
        ranks = lenses[0].measure.ranks
        yield {**_place(lenses[0], p), **({"rank": ranks.of(p)} if ranks is not None else {}), **numbers}


def of_ranks(rows: Iterable[PlanRow]) -> Iterator[dict[str, object]]:
    """A plan, one record per projection, without a rank if it stays as it is."""
    for row in rows:
        yield {
            "address": row.address,
            "rows": row.shape[0],
            "cols": row.shape[1],
            "action": row.action,
            "rank": row.rank,
            "energy": row.energy,
            "parameters": row.parameters,
        }


def of_layers(lenses: Sequence[Lens], grid: Grid) -> Iterator[dict[str, object]]:
    """The layers view, one record per point, which is the median if there are several experts."""
    for lens in lenses:
        for column in grid.columns:
            for row in grid.rows:
                cell = grid.cells.get((row, column), ())
                found = [number for p in cell if (number := lens.number(p)) is not None]
                if found:
                    yield {
                        **_of_layer(row, cell),
                        "block": column.block,
                        "role": column.role,
                        **_model(lens),
                        "threshold": lens.threshold,
                        "unit": lens.measure.name,
                        **({"rank": ranks.of(cell[0])} if (ranks := lens.measure.ranks) is not None else {}),
                        **{name: _plain(float(of(found))) for name, of in _OF_EXPERTS.items()},
                        "projections": len(found),
                        **_said(lens, cell),
                        **_state_of(lens, cell[0]),
                    }


def of_orders(lens: Lens, grid: Grid) -> Iterator[dict[str, object]]:
    """How similar the order of the layers is in both gauges, one record per role. Reads files."""
    for order in orders(lens, grid):
        yield {
            "block": order.column.block,
            "role": order.column.role,
            "threshold": lens.threshold,
            "unit": lens.measure.name,
            "layers": order.layers,
            "raw_median": order.raw,
            "fixed_median": order.fixed,
            "spearman": order.correlation,
        }


def of_curves(curves: Iterable[Curve], values: Iterable[Values]) -> Iterator[dict[str, object]]:
    """Spectra and their energy, one record per singular value; `curve` is the label of its curve."""
    from rankscope.engine import metrics  # numpy: not needed for the explorer's first screen

    for (label, session, p), sigmas in zip(curves, values, strict=True):
        entry = session.entry(p)
        floor = entry.provenance.noise_floor if entry is not None else 0.0
        for k, (sigma, energy) in enumerate(zip(sigmas.tolist(), metrics.energy(sigmas).tolist(), strict=True), 1):
            yield {
                "curve": label,
                "address": p.address,
                "k": k,
                "sigma": sigma,
                "energy": energy,
                "is_below_noise_floor": sigma <= floor,
                **(_state(p.derived) if p.derived is not None else {}),
            }


_OF_EXPERTS: dict[str, Callable[[Sequence[float]], float]] = {"median": median_of, "min": min, "max": max}


def _place(lens: Lens, p: Projection) -> dict[str, object]:
    """The model, projection and place of a record."""
    session, there = lens.session(p)
    measured = p if lens.side is Side.RATIO else there or p  # for a ratio the first model's
    of_model, inside = _in_series(p)
    return {
        "address": p.address,
        **of_model,
        "tower": inside.tower,
        "layer": inside.layer,
        "block": p.block,
        "role": p.role,
        "expert": p.expert,
        "rows": measured.rows or None,
        "cols": measured.cols or None,
        "state": str(session.state(there)) if there is not None else None,
        **({"partner": q.address if (q := lens.pair.partner(p)) else None} if lens.pair.depths else {}),
        **_model(lens),
        **_state_of(lens, p),
        **({"shapes_differ": lens.pair.differs_in_shape(p)} if lens.side is Side.RATIO else {}),
    }


def _in_series(p: Projection) -> tuple[dict[str, object], Projection]:
    """Of a projection of a series the name and number of its model, and what it is there; of others it."""
    if not isinstance(p, OfSeries) or p.inside is None:
        return {}, p
    return {"model": f"{p.tower}.{p.layer}", "model_number": p.layer}, p.inside


def _of_layer(row: Row, cell: Sequence[Projection]) -> dict[str, object]:
    """Where a point of the layers view stands; of a series by which model, and the layer where it is of one alone."""
    of_model, inside = _in_series(cell[0])
    if not of_model:
        return {"tower": row.tower or None, "layer": row.layer}
    alone = len(cell) == 1
    return {**of_model, "tower": inside.tower if alone else None, "layer": inside.layer if alone else None}


def _said(lens: Lens, cell: Sequence[Projection]) -> dict[str, object]:
    """The facts that the file of the weighting has about the only projection of a cell; None for several."""
    of = [replace(lens, measure=measure) for measure in SAID_MEASURES if lens.pair.says(measure.said)]
    if lens.side is Side.RATIO:
        return {}
    return {one.measure.name: _plain(one.number(cell[0])) if len(cell) == 1 else None for one in of}


def _state_of(lens: Lens, p: Projection) -> dict[str, object]:
    """The state in which a projection is shown."""
    _, there = lens.session(p)
    return _state(there.derived) if there is not None and there.derived is not None else {}


def _state(made: Derived) -> dict[str, object]:
    """The weighting, the gauge, or both."""
    found: dict[str, object] = {"weighting": made.weighting} if made.weighting else {}
    return found | ({"gauge": made.gauge} if made.gauge else {})


def _model(lens: Lens) -> dict[str, object]:
    return {"model": str(lens.side)} if lens.pair.second is not None else {}


def _name(lens: Lens) -> str:
    measure = lens.measure
    if measure.name == "k":
        return lens.measure.titled(lens.threshold)
    if measure.ranks is not None:
        return measure.ranks.column(measure.name)
    return f"{measure.name}_{percent(lens.threshold)}" if measure.depends_on_threshold else measure.name


def _plain(number: float | None) -> float | None:
    """Whole numbers as int; None for what is not finite."""
    if number is None or not math.isfinite(number):
        return None
    return int(number) if float(number).is_integer() else number

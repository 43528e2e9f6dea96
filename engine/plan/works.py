"""The works of a plan: its rows matched with the projections and second moments of the model at hand."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import InputError, WeightsError, printable
from ..moment import Moment, Weighting, digest_of_moments
from ..spectrum import Projection
from .plan_file import Plan, PlanRow


@dataclass(frozen=True, slots=True)
class Work:
    """A projection that is to be replaced by two factors of `rank`.

    `moment` is that of its input, None for unweighted factors. `promised` is the relative error of the output that the
    plan states: sqrt(1 - energy).
    """

    projection: Projection
    rank: int
    moment: Moment | None
    promised: float


def works_of(plan: Plan, projections: Iterable[Projection], weighting: Weighting | None) -> list[Work]:
    """The works of a plan on these projections of a checkpoint: for each row that is factored, one for every projection
    that is stored in the same bytes.

    Raises:
        InputError: the plan was made for other matrices or under another weighting, or a matrix cannot be read.
    """
    held: dict[str, list[Projection]] = defaultdict(list)
    for p in projections:
        held[p.key].append(p)
    _check_contents(plan, held)
    planned = {row.key: _named(row, held[row.key]) for row in plan.rows}
    _check_weighting(plan, weighting, planned.values())
    found = []
    for row in plan.rows:
        if row.rank is not None:
            moment = _moment(weighting, planned[row.key])
            found += [Work(p, row.rank, moment, math.sqrt(max(1.0 - row.energy, 0.0))) for p in held[row.key]]
    return found


def _named(row: PlanRow, same: Sequence[Projection]) -> Projection:
    """The planned one of several projections that are stored in the same bytes: their inputs may differ."""
    return next((p for p in same if p.address == row.address), same[0])


def _check_contents(plan: Plan, held: dict[str, list[Projection]]) -> None:
    others = [row for row in plan.rows if row.key not in held]
    if others:
        raise InputError(
            f"{len(others)} of the {len(plan.rows)} matrices of the plan are not in this model with the same content, "
            f"e.g. {printable(others[0].address, 80)}: name the model that was planned, or plan this one"
        )
    for row in plan.rows:
        for p in held[row.key]:
            _check_row(row, p)


def _check_row(row: PlanRow, p: Projection) -> None:
    shown = printable(row.address, 80)
    if (p.rows, p.cols) != row.shape:
        shape = " x ".join(map(str, row.shape))
        raise InputError(f"{shown} is {p.rows} x {p.cols} and not {shape} as the plan says: make the plan again")
    if row.rank is not None and p.problem:
        raise InputError(f"{shown} cannot be read: {p.problem}: plan without it, by --filter")


def _check_weighting(plan: Plan, weighting: Weighting | None, planned: Iterable[Projection]) -> None:
    made = plan.weighting
    if made is None or weighting is None:
        return
    if digest_of_moments(weighting, planned) != made.digest:
        raise InputError(
            f"the plan was made under {printable(made.label)}, which has other second moments than "
            f"{printable(weighting.label)}: name the file that it was made with, or make it again"
        )


def _moment(weighting: Weighting | None, projection: Projection) -> Moment | None:
    if weighting is None:
        return None
    try:
        return weighting.moment(projection)
    except WeightsError as error:
        raise InputError(f"{printable(projection.address, 80)}: {error}") from None

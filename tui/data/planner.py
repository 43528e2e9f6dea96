"""Ranks for a budget of a model's projections, from what is stored of them: what a command and the explorer ask for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from rankscope.engine.calibration.pooled import PooledWeighting
from rankscope.engine.errors import InputError
from rankscope.engine.moment import digest_of_moments
from rankscope.engine.plan.allocate import Allocation, Allocator, TailCurve
from rankscope.engine.plan.hull import RankGrid, points_of, tails_of
from rankscope.engine.plan.plan_file import Action, Objective, Plan, PlanRow, PlanWeighting, Scope
from rankscope.engine.spectrum import Projection
from rankscope.engine.weights import WHOLE

from .chosen_weighting import weighed
from .known import Known
from .model import Model
from .wording import percent

if TYPE_CHECKING:
    from rankscope.engine.checkpoint.open import Checkpoint
    from rankscope.engine.moment import Weighting
    from rankscope.engine.spectrum import Values

_BATCH = 256
"""Spectra read together."""


def planned_of(projections: Iterable[Projection]) -> list[Projection]:
    """Which of these are planned: the first of all that share a tensor, which is stored once; and no whole numbers, as
    positions and masks are, or as other programs pack weights of shapes that are not known, and no products of factors.
    """
    found: dict[str, Projection] = {}
    for p in projections:
        if (p.dtype not in WHOLE or p.dequantisation) and not p.is_product:
            found.setdefault(p.key, p)
    return list(found.values())


def states_of(model: Model, weighting: Weighting | None, projections: Sequence[Projection]) -> list[Projection]:
    """These projections of a model under a weighting, None for none: what has to be computed for a plan.

    Raises:
        InputError: it has second moments of none of them.
    """
    if weighting is None:
        return list(projections)
    part = replace(model, tree=replace(model.tree, projections=tuple(projections)))
    return list(weighed(part, weighting).tree.projections)


def parameters_stored(checkpoint: Checkpoint) -> int:
    """How many parameters a checkpoint stores: of quantised matrices those that they stand for, tied tensors once,
    whole numbers and masks not at all."""
    counted = (t for t in checkpoint.tensors if t.scheme is not None or t.dtype not in WHOLE)
    return sum({(t.file, t.begin, t.end): math.prod(t.shape) for t in counted}.values())


@dataclass(frozen=True, slots=True)
class PlanSizes:
    """How many parameters projections have: as they are, in the smallest plan, where those that are `kept` stay as they
    are; and how many the model stores, None where its files are not at hand."""

    parameters: int
    smallest: int
    stored: int | None

    @classmethod
    def of(cls, model: Model, states: Iterable[Projection], grid: RankGrid, kept: Collection[str]) -> PlanSizes:
        """Of projections of a model; `kept` are addresses."""
        costs = [(points_of(p.rows, p.cols, grid).costs, p.address in kept) for p in states]
        smallest = sum(int(cost[-1 if is_kept else 0]) for cost, is_kept in costs)
        stored = None if model.checkpoint is None else parameters_stored(model.checkpoint)
        return cls(sum(int(cost[-1]) for cost, _ in costs), smallest, stored)

    def budget(self, cut: float, of: Scope) -> int:
        """How many parameters the projections may have, so that at least this share goes of theirs or of all stored.

        Raises:
            InputError: no plan is as small, or it is not known how many parameters are stored.
        """
        whole = self.parameters if of == "projections" else self.stored
        if whole is None:
            raise InputError("--of total needs the model's files, which are not at hand: leave it out")
        budget = self.parameters - math.ceil(Fraction(str(cut)) * whole)
        if budget < self.smallest:
            most = math.floor(1000 * (self.parameters - self.smallest) / whole) / 10
            if not most:
                raise InputError(
                    "no allowed rank is cheaper than any of these matrices: lower --min-rank and --multiple"
                )
            raise InputError(
                f"cut at most {most:g} % or lower --min-rank and --multiple: {percent(cut)} % leaves the projections "
                f"{max(budget, 0):,} parameters, and the smallest plan has {self.smallest:,}"
            )
        return budget


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it is held against: the mean energy that its projections keep, and that they would keep with
    the same share of parameters each. `refused` are those that stay as they are for want of a spectrum, with why."""

    plan: Plan
    energy: float
    uniform_energy: float
    sizes: PlanSizes
    refused: Mapping[str, str]


class Planner:
    """Plans of the same projections for any cut. Making one reads their spectra, once; a plan reads nothing.

    `states` are those of states_of under `weighting`, for what planned_of gives; `known` has spectra of them stored.
    Where it has none, `reasons` says why by key.
    """

    def __init__(
        self,
        known: Known,
        states: Sequence[Projection],
        weighting: Weighting | None,
        objective: Objective,
        grid: RankGrid,
        reasons: Mapping[str, str],
    ) -> None:
        self._model, self._states, self._weighting = known.raw, states, weighting
        self._objective, self._grid = objective, grid
        curves, energies = self._read(known)
        self.refused = {
            p.address: p.problem or reasons.get(p.key, "it is not computed") for p in states if p.address not in curves
        }
        if not curves:
            address, reason = next(iter(self.refused.items()))
            raise InputError(f"none of these projections can be planned: {address}: {reason}")
        weights = self._weights([p for p in states if p.address in curves], energies)
        if not math.isfinite(sum(weights.values())):
            raise InputError("their energies are too large to be added up: name another --objective")
        self._planned = {address: number for number, address in enumerate(curves)}
        self._allocator = Allocator([replace(c, weight=weights[a]) for a, c in curves.items()], grid)
        self._kept = sum(p.rows * p.cols for p in states if p.address in self.refused)
        self.sizes = PlanSizes.of(self._model, states, grid, self.refused.keys())
        self._said = self._weighting_said()

    def _read(self, known: Known) -> tuple[dict[str, TailCurve], dict[str, float]]:
        """The tails of all that is stored, and whole energies, by address."""
        curves: dict[str, TailCurve] = {}
        energies: dict[str, float] = {}
        stored = [p for p in self._states if p.problem is None and known.has(p)]
        for start in range(0, len(stored), _BATCH):
            batch = stored[start : start + _BATCH]
            values = known.read([p.key for p in batch])
            for p in batch:
                if p.key in values:
                    tails = tails_of(values[p.key], points_of(p.rows, p.cols, self._grid))
                    curves[p.address] = TailCurve(p.address, p.rows, p.cols, 0.0, tails)
                    energies[p.address] = _energy(values[p.key])
        return curves, energies

    def _weights(self, states: Sequence[Projection], energies: Mapping[str, float]) -> dict[str, float]:
        """What the tail of each counts, by address."""
        counts = {p.address: 1.0 if self._objective == "relative" else float(p.rows * p.cols) for p in states}
        if self._objective == "absolute":
            counts = {p.address: energies[p.address] for p in states}
        if not isinstance(self._weighting, PooledWeighting):
            return counts
        groups: dict[tuple[object, ...], list[tuple[str, float]]] = defaultdict(list)
        for p in (p for p in states if p.expert is not None):
            tokens = self._weighting.tokens(p.parents[0])
            seen = tokens if self._objective == "absolute" else tokens * energies[p.address]
            groups[p.tower, p.layer, p.block, p.role].append((p.address, seen))
        for group in groups.values():
            mean = sum(seen for _, seen in group) / len(group)
            for address, seen in group:
                counts[address] *= seen / mean if mean > 0 else 0.0
        return counts

    def _weighting_said(self) -> PlanWeighting | None:
        if self._weighting is None:
            return None
        is_pooled = isinstance(self._weighting, PooledWeighting)
        seen = digest_of_moments(self._weighting, (p.parents[0] for p in self._states))
        return PlanWeighting(self._weighting.name, self._weighting.label, seen, is_pooled)

    def plan(self, cut: float, of: Scope = "projections", uniform: bool = False) -> Planned:
        """The plan that cuts at least this share, 0 to 1, of the parameters of the projections or of all stored ones.

        Raises:
            InputError: see PlanSizes.budget.
        """
        budget = self.sizes.budget(cut, of)
        free = budget - self._kept
        even = self._allocator.uniform(free)
        found = even if uniform else self._allocator.plan(free)
        plan = Plan(
            self._model.name,
            (self._model.checkpoint.commit or None) if self._model.checkpoint else None,
            self._said,
            self._objective,
            self._grid.cost,
            uniform,
            cut,
            of,
            self._grid.min_rank,
            self._grid.multiple,
            budget,
            found.loss,
            min(found.bound, found.loss),
            tuple(self._rows(found)),
        )
        energy, uniform_energy = (float(np.mean(one.energies)) for one in (found, even))
        return Planned(plan, energy, uniform_energy, self.sizes, self.refused)

    def _rows(self, found: Allocation) -> Iterable[PlanRow]:
        """In the order of the model."""
        ranks, energies, parameters = found.ranks.tolist(), found.energies.tolist(), found.parameters.tolist()
        for p in self._states:
            raw, place = p.parents[0], self._planned.get(p.address)
            rank = ranks[place] or None if place is not None else None
            energy = 1.0 if place is None else min(max(energies[place], 0.0), 1.0)
            left = p.rows * p.cols if place is None else parameters[place]
            action: Action = "keep" if rank is None else "factor"
            yield PlanRow(p.address, raw.key, raw.tensor, raw.slice, (p.rows, p.cols), action, rank, energy, left)


def _energy(values: Values) -> float:
    """The sum of squares, infinite where that is too large for a float."""
    with np.errstate(over="ignore"):
        return float(values @ values)

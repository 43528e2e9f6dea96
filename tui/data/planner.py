"""Ranks for a parameter budget from the stored spectra of a model's projections, for the command and the explorer."""

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
    """The projections among these that can be planned: the first of those that share a tensor, which is stored once.
    Integer tensors are left out (positions and masks, or weights packed by other programs with unknown shapes), and
    products of factors."""
    found: dict[str, Projection] = {}
    for p in projections:
        if (p.dtype not in WHOLE or p.dequantisation) and not p.is_product:
            found.setdefault(p.key, p)
    return list(found.values())


def states_of(model: Model, weighting: Weighting | None, projections: Sequence[Projection]) -> list[Projection]:
    """These projections under a weighting (None: none), which have to be computed for a plan.

    Raises:
        InputError: it has second moments for none of them.
    """
    if weighting is None:
        return list(projections)
    part = replace(model, tree=replace(model.tree, projections=tuple(projections)))
    return list(weighed(part, weighting).tree.projections)


def parameters_stored(checkpoint: Checkpoint) -> int:
    """The number of parameters that a checkpoint stores: for quantised matrices those that they represent, tied tensors
    once, integers and masks not at all."""
    counted = (t for t in checkpoint.tensors if t.scheme is not None or t.dtype not in WHOLE)
    return sum({(t.file, t.begin, t.end): math.prod(t.shape) for t in counted}.values())


@dataclass(frozen=True, slots=True)
class PlanSizes:
    """The number of parameters of projections, as they are and in the smallest plan, in which those that are `kept`
    stay as they are; and of the whole model, None if its files are not at hand."""

    parameters: int
    smallest: int
    stored: int | None

    @classmethod
    def of(cls, model: Model, states: Iterable[Projection], grid: RankGrid, kept: Collection[str]) -> PlanSizes:
        """The sizes for projections of a model; `kept` are addresses."""
        costs = [(points_of(p.rows, p.cols, grid).costs, p.address in kept) for p in states]
        smallest = sum(int(cost[-1 if is_kept else 0]) for cost, is_kept in costs)
        stored = None if model.checkpoint is None else parameters_stored(model.checkpoint)
        return cls(sum(int(cost[-1]) for cost, _ in costs), smallest, stored)

    def budget(self, cut: float, of: Scope) -> int:
        """The number of parameters left to the projections after cutting this share of theirs, or of all stored ones.

        Raises:
            InputError: no plan is as small, or the number of stored parameters is unknown.
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
    """A plan, the mean energy that its projections keep, and for comparison the one that they would keep with the
    same share of parameters each. `refused` are those that stay as they are because they have no spectrum, with the
    reason."""

    plan: Plan
    energy: float
    uniform_energy: float
    sizes: PlanSizes
    refused: Mapping[str, str]


class Planner:
    """Plans for the same projections with any cut. The constructor reads their spectra; a plan reads nothing.

    `states` are those of states_of under `weighting`, for the projections of planned_of; `known` has their stored
    spectra. Where there is none, `reasons` tells why by key.
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
        self._plan_weighting = self._plan_weighting_of()

    def _read(self, known: Known) -> tuple[dict[str, TailCurve], dict[str, float]]:
        """The tails and the total energy of each stored spectrum, by address."""
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
        """The weight of each tail, by address."""
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

    def _plan_weighting_of(self) -> PlanWeighting | None:
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
            self._plan_weighting,
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
        """The rows of a plan in the order of the model."""
        ranks, energies, parameters = found.ranks.tolist(), found.energies.tolist(), found.parameters.tolist()
        for p in self._states:
            raw, place = p.parents[0], self._planned.get(p.address)
            rank = ranks[place] or None if place is not None else None
            energy = 1.0 if place is None else min(max(energies[place], 0.0), 1.0)
            left = p.rows * p.cols if place is None else parameters[place]
            action: Action = "keep" if rank is None else "factor"
            yield PlanRow(p.address, raw.key, raw.tensor, raw.slice, (p.rows, p.cols), action, rank, energy, left)


def _energy(values: Values) -> float:
    """The sum of squares; infinite if it is too large for a float."""
    with np.errstate(over="ignore"):
        return float(values @ values)

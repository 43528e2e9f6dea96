"""Ranks for a budget: parameters go where they reduce the loss most, along the convex hulls of the projections.

The loss is sum w tail / sum w over the projections, with tail = 1 - energy at the rank and w the projection's weight.
This is the multiple-choice knapsack, whose linear relaxation the walk over the hulls solves (Sinha & Zoltners 1979). At
the first step that does not fit, the loss minus the saving of the part that would fit is a lower bound for every plan
of this budget.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..spectrum import Values
from .hull import RankGrid, RankPoints, Whole, hulls_of, points_of

_TOGETHER = 1024
"""How many curves' hulls are computed at once."""
_WINDOW = 1 << 16
"""How many steps are looked at together, once one did not fit."""


@dataclass(frozen=True, slots=True)
class TailCurve:
    """What a projection loses at each rank: its `tails`, see hull.tails_of, and their `weight` >= 0 in the loss."""

    address: str
    rows: int
    cols: int
    weight: float
    tails: Values


@dataclass(frozen=True, slots=True)
class Allocation:
    """What each projection gets, as arrays of shape (projections,): `ranks`, 0 for one that stays as it is, `energies`
    kept and `parameters` left. `bound` is a lower bound on the `loss` of every plan with this budget."""

    ranks: Whole
    energies: Values
    parameters: Whole
    loss: float
    bound: float


@dataclass(frozen=True, slots=True, eq=False)
class _ShapeGroup:
    """The projections of one shape: their numbers, their points, and the part of the loss that each has at each point,
    shape (projections, points)."""

    members: NDArray[np.intp]
    points: RankPoints
    losses: Values

    @property
    def smallest(self) -> int:
        """The parameters of all of them at their smallest rank."""
        return int(self.points.costs[0]) * len(self.members)

    @property
    def largest(self) -> int:
        """The parameters of all of them as they are."""
        return int(self.points.costs[-1]) * len(self.members)


class Allocator:
    """Plans for the same projections and any budget. The hulls are computed and their steps sorted once; each plan then
    only looks at sums of these."""

    def __init__(self, curves: Sequence[TailCurve], grid: RankGrid) -> None:
        self._curves = curves
        total = sum(curve.weight for curve in curves)
        shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, curve in enumerate(curves):
            shapes[curve.rows, curve.cols].append(number)
        self._groups = []
        for shape, members in shapes.items():
            shares = np.array([curves[i].weight / total if total > 0 else 0.0 for i in members])
            losses = np.stack([curves[i].tails for i in members]) * shares[:, None]
            self._groups.append(_ShapeGroup(np.array(members), points_of(*shape, grid), losses))
        names = sorted(range(len(curves)), key=lambda i: curves[i].address)
        self._places = np.empty(len(curves), np.int64)
        """The place of each in the order of addresses, which decides between equal steps."""
        self._places[names] = np.arange(len(curves))
        self._group_of = np.empty(len(curves), np.intp)
        self._row_of = np.empty(len(curves), np.intp)
        for number, group in enumerate(self._groups):
            self._group_of[group.members] = number
            self._row_of[group.members] = np.arange(len(group.members))
        self._sort_steps()

    @property
    def smallest(self) -> int:
        """The parameters of the smallest plan: every projection at its smallest rank."""
        return sum(group.smallest for group in self._groups)

    @property
    def largest(self) -> int:
        """The parameters of all projections as they are."""
        return sum(group.largest for group in self._groups)

    def plan(self, budget: int) -> Allocation:
        """The ranks with the least loss that the walk finds, with at most `budget` parameters in all.

        Raises:
            ValueError: the budget is below `smallest`.
        """
        chosen, slack, bound = self._walk(budget)
        self._spend_slack(chosen, slack)
        return self._allocation(chosen, bound)

    def uniform(self, budget: int) -> Allocation:
        """Ranks at which every projection keeps the same share of its parameters, as far as whole ranks allow.

        A projection whose smallest point is larger than its share of the budget gets that point, and the others share
        what is left.

        Raises:
            ValueError: the budget is below `smallest`.
        """
        _, _, bound = self._walk(budget)
        chosen = np.zeros(len(self._curves), np.int64)
        sharing, left = self._groups, budget
        while sharing:
            whole = sum(group.largest for group in sharing)
            # The budget was rounded down to a whole number: a share may go up to, but not reach, that of left + 1.
            most = [((left + 1) * int(group.points.costs[-1]) - 1) // whole for group in sharing]
            held = [one for one, share in zip(sharing, most, strict=True) if share >= one.points.costs[0]]
            if len(held) == len(sharing):
                for group, share in zip(sharing, most, strict=True):
                    chosen[group.members] = np.searchsorted(group.points.costs, share, "right") - 1
                break
            left -= sum(group.smallest for group in sharing if group not in held)
            sharing = held
        return self._allocation(chosen, bound)

    def _sort_steps(self) -> None:
        """Sort the steps of all hulls: largest saving for each parameter first, then the cheaper, then by address."""
        curves, points, costs, slopes = [], [], [], []
        for group in self._groups:
            for start in range(0, len(group.members), _TOGETHER):
                rows = slice(start, start + _TOGETHER)
                hulls = hulls_of(group.points.costs, group.losses[rows])
                is_step = np.arange(group.losses.shape[1]) < hulls.sizes[:, None]
                is_step[:, 0] = False
                row, step = np.nonzero(is_step)
                ends, starts = hulls.vertices[row, step], hulls.vertices[row, step - 1]
                curves.append(group.members[rows][row].astype(np.int32))
                points.append(ends)
                costs.append(group.points.costs[ends] - group.points.costs[starts])
                slopes.append(hulls.slopes[row, step])
        cost, slope = np.concatenate([*costs, np.empty(0, np.int64)]), np.concatenate([*slopes, np.empty(0)])
        curve, point = (np.concatenate([*parts, np.empty(0, np.int32)]) for parts in (curves, points))
        order = np.argsort(-slope)
        is_same = slope[order[1:]] == slope[order[:-1]]
        tied = np.append(False, is_same) | np.append(is_same, False)
        if tied.any():  # sorting all by three keys takes seven times as long
            among = order[tied]
            order[tied] = among[np.lexsort((self._places[curve[among]], cost[among], -slope[among]))]
        self._curve, self._point, self._slope = curve[order], point[order], slope[order]
        self._before = np.cumsum(np.append(0, cost[order]))
        """The total parameters of the steps before each one; last, of all steps."""

    def _walk(self, budget: int) -> tuple[Whole, int, float]:
        """The points chosen along the hulls, what is left of the budget, and the bound on the loss.

        A step that does not fit closes its projection: a later step of it includes this one, and would overspend.
        """
        slack = budget - self.smallest
        if slack < 0:
            raise ValueError(f"the smallest plan has {self.smallest} parameters")
        taken = int(np.searchsorted(self._before, slack, "right")) - 1
        chosen = np.zeros(len(self._curves), np.int64)
        chosen[self._curve[:taken]] = self._point[:taken]  # the last step of each curve remains
        slack -= int(self._before[taken])
        bound = self._loss(chosen)
        if taken < len(self._slope):
            bound = max(0.0, bound - float(self._slope[taken]) * slack)
        ends = np.full(len(self._curves), len(self._slope))
        for start in range(taken, len(self._slope), _WINDOW):
            steps = np.arange(start, min(start + _WINDOW, len(self._slope)))
            slack = self._take_fitting(steps, chosen, ends, slack)
        return chosen, slack, bound

    def _take_fitting(self, steps: NDArray[np.intp], chosen: Whole, ends: NDArray[np.intp], slack: int) -> int:
        """Take the steps that fit, in their order, and return the rest of the slack. `ends` has, for each projection,
        the step that closed it."""
        while len(steps := steps[steps < ends[self._curve[steps]]]):
            costs = self._before[steps + 1] - self._before[steps]
            # The slack never grows: a step that is larger now will not fit later either.
            if (too_large := costs > slack).any():
                closing, first = np.unique(self._curve[steps[too_large]], return_index=True)
                ends[closing] = steps[too_large][first]
                continue
            fitting = int(np.searchsorted(np.cumsum(costs), slack, "right"))
            chosen[self._curve[steps[:fitting]]] = self._point[steps[:fitting]]
            slack -= int(costs[:fitting].sum())
            steps = steps[fitting:]
        return slack

    def _spend_slack(self, chosen: Whole, slack: int) -> None:
        """Move projections on to better points that fit, on the hull or not, the largest saving first."""
        best = [entry for i in self._movable(chosen, slack) if (entry := self._move(i, chosen, slack))]
        heapq.heapify(best)
        while best:
            _, cost, _, i, point = heapq.heappop(best)
            if cost <= slack:
                chosen[i] = point
                slack -= cost
            elif entry := self._move(i, chosen, slack):
                heapq.heappush(best, entry)

    def _movable(self, chosen: Whole, slack: int) -> NDArray[np.intp]:
        """The numbers of the projections whose next point fits."""
        found = []
        for group in self._groups:
            held = chosen[group.members]
            following = np.minimum(held + 1, len(group.points.costs) - 1)
            steps = group.points.costs[following] - group.points.costs[held]
            found.append(group.members[(steps > 0) & (steps <= slack)])
        return np.concatenate([*found, np.empty(0, np.intp)])

    def _move(self, i: int, chosen: Whole, slack: int) -> tuple[float, int, int, int, int] | None:
        """The best move of a projection: negative saving, cost, place, its number, the point; None if there is none."""
        group = self._groups[self._group_of[i]]
        costs, losses, held = group.points.costs, group.losses[self._row_of[i]], int(chosen[i])
        last = int(np.searchsorted(costs, costs[held] + slack, "right"))
        point = held + int(np.argmin(losses[held:last]))  # the cheapest of those that lose least
        saving = float(losses[held] - losses[point])
        return (-saving, int(costs[point] - costs[held]), int(self._places[i]), int(i), point) if saving > 0 else None

    def _loss(self, chosen: Whole) -> float:
        parts = (group.losses[np.arange(len(group.members)), chosen[group.members]] for group in self._groups)
        return float(sum(part.sum() for part in parts))

    def _allocation(self, chosen: Whole, bound: float) -> Allocation:
        ranks, parameters = np.zeros(len(chosen), np.int64), np.zeros(len(chosen), np.int64)
        for group in self._groups:
            held = chosen[group.members]
            ranks[group.members] = np.append(group.points.ranks, 0)[held]
            parameters[group.members] = group.points.costs[held]
        energies = np.array([1.0 - curve.tails[point] for curve, point in zip(self._curves, chosen, strict=True)])
        return Allocation(ranks, energies, parameters, self._loss(chosen), bound)

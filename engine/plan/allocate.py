"""Ranks for a budget: parameters go where they save most of the loss, along the convex hulls of the projections.

The loss is sum w tail / sum w over the projections: tail = 1 - energy at the rank, w what a projection counts. This is
the multiple-choice knapsack, whose linear relaxation the walk over the hulls solves (Sinha & Zoltners 1979): where the
first step does not fit, the loss less the part of the step that would is a bound below every plan of this budget.
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
"""Curves whose hulls are worked out together."""
_WINDOW = 1 << 16
"""Steps looked at together, once one did not fit."""


@dataclass(frozen=True, slots=True)
class TailCurve:
    """What a projection may become: `tails` of tails_of, and what its tail counts, `weight` >= 0."""

    address: str
    rows: int
    cols: int
    weight: float
    tails: Values


@dataclass(frozen=True, slots=True)
class Allocation:
    """What each projection gets, all of shape (projections,): `ranks`, 0 for one that stays as it is, `energies` kept
    and `parameters` left. `loss` is at least `bound`, as is that of every plan of the same budget."""

    ranks: Whole
    energies: Values
    parameters: Whole
    loss: float
    bound: float


@dataclass(frozen=True, slots=True, eq=False)
class _ShapeGroup:
    """The projections of one shape: which, their points, and their part of the loss at each, (projections, points)."""

    members: NDArray[np.intp]
    points: RankPoints
    losses: Values

    @property
    def smallest(self) -> int:
        """The parameters of all of them at their smallest."""
        return int(self.points.costs[0]) * len(self.members)

    @property
    def largest(self) -> int:
        """Of all of them as they are."""
        return int(self.points.costs[-1]) * len(self.members)


class Allocator:
    """Plans for the same projections and any budget. Making one takes the hulls and sorts their steps, once; a plan is
    a look at sums of these."""

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
        """Where each stands by address: what decides between steps that are alike."""
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
        """The ranks that lose least of what the walk finds, with at most `budget` parameters together.

        Raises:
            ValueError: the budget is below `smallest`.
        """
        chosen, slack, bound = self._walk(budget)
        self._go_on(chosen, slack)
        return self._allocation(chosen, bound)

    def uniform(self, budget: int) -> Allocation:
        """Every projection keeps the same share of its parameters, as far as whole ranks and the smallest allow.

        The share is that of the budget; a projection whose smallest point is larger than its share gets that, and the
        others share what is left.

        Raises:
            ValueError: the budget is below `smallest`.
        """
        _, _, bound = self._walk(budget)
        chosen = np.zeros(len(self._curves), np.int64)
        sharing, left = self._groups, budget
        while sharing:
            whole = sum(group.largest for group in sharing)
            # In whole numbers, and below the share of left + 1, of which the budget is the part that is whole.
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
        """The steps of all hulls, best saving for each parameter first; of equal ones the cheaper, then by address."""
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
        """The parameters of all steps before each, and of all."""

    def _walk(self, budget: int) -> tuple[Whole, int, float]:
        """The points chosen along the hulls, what is left of the budget, and the bound.

        A step that does not fit closes its projection: to skip it and take a later one would overspend.
        """
        slack = budget - self.smallest
        if slack < 0:
            raise ValueError(f"the smallest plan has {self.smallest} parameters")
        taken = int(np.searchsorted(self._before, slack, "right")) - 1
        chosen = np.zeros(len(self._curves), np.int64)
        chosen[self._curve[:taken]] = self._point[:taken]  # of several steps of a curve the last one stands
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
        """Take in their order those of the steps that fit; the rest of the slack. `ends` is for each projection the
        step that closed it."""
        while len(steps := steps[steps < ends[self._curve[steps]]]):
            costs = self._before[steps + 1] - self._before[steps]
            # The slack never grows: what is larger than it now will not fit when its turn comes.
            if (too_large := costs > slack).any():
                closing, first = np.unique(self._curve[steps[too_large]], return_index=True)
                ends[closing] = steps[too_large][first]
                continue
            fitting = int(np.searchsorted(np.cumsum(costs), slack, "right"))
            chosen[self._curve[steps[:fitting]]] = self._point[steps[:fitting]]
            slack -= int(costs[:fitting].sum())
            steps = steps[fitting:]
        return slack

    def _go_on(self, chosen: Whole, slack: int) -> None:
        """Each projection may move on to any better point that fits, hull or not, the largest saving first."""
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
        """The projections whose next point fits."""
        found = []
        for group in self._groups:
            held = chosen[group.members]
            following = np.minimum(held + 1, len(group.points.costs) - 1)
            steps = group.points.costs[following] - group.points.costs[held]
            found.append(group.members[(steps > 0) & (steps <= slack)])
        return np.concatenate([*found, np.empty(0, np.intp)])

    def _move(self, i: int, chosen: Whole, slack: int) -> tuple[float, int, int, int, int] | None:
        """The best move of a projection: saving (negative), cost, place, its number, the point; None for none."""
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

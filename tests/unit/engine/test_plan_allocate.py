"""Ranks for a budget: against all possible plans, and against the rules applied one step after the other."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscope.engine.plan.allocate import Allocation, Allocator, TailCurve
from rankscope.engine.plan.hull import RankGrid, hulls_of, points_of, tails_of
from rankscope.engine.plan.plan_file import Cost

SHAPES = ((6, 8), (8, 8), (4, 12), (1, 9), (5, 5), (9, 7), (16, 3))
GRIDS = (RankGrid(1, 1), RankGrid(1, 1, "pifa"), RankGrid(2, 1), RankGrid(1, 2, "pifa"))


def curve(
    rng: np.random.Generator, name: str, shape: tuple[int, int], weight: float, grid: RankGrid, spectrum: bool = True
) -> TailCurve:
    """A curve of 64ths, from a spectrum or any descending tails: the allocation must not depend on it."""
    points = points_of(*shape, grid)
    if spectrum:
        steps = np.sort(rng.integers(0, 9, min(shape)))[::-1].astype(float)
        left = np.append(steps[::-1].cumsum()[::-1], 0.0)
        tails = np.append(left[points.ranks], 0.0) / 64
    else:
        tails = np.append(np.sort(rng.integers(0, 65, len(points.ranks)))[::-1], 0) / 64
    return TailCurve(name, *shape, weight, tails)


def case(seed: int) -> tuple[list[TailCurve], RankGrid]:
    """Up to four projections, with weights that add up to a power of two: all sums and products are exact."""
    rng = np.random.default_rng([17, seed])
    grid, count = GRIDS[seed % len(GRIDS)], int(rng.integers(1, 5))
    weights = [int(w) for w in rng.integers(0, 9, count - 1)]
    names = rng.permutation([f"layers.{i}.mlp.up" for i in range(count)])
    return [
        curve(rng, str(name), SHAPES[rng.integers(len(SHAPES))], weight, grid, spectrum=bool(seed % 3))
        for name, weight in zip(names, [*weights, 32 - sum(weights)], strict=True)
    ], grid


def every_plan(curves: list[TailCurve], grid: RankGrid) -> list[tuple[int, Fraction]]:
    """Parameters and loss of each combination of points."""
    total = Fraction(sum(c.weight for c in curves))
    options = [
        [(int(cost), Fraction(c.weight) * Fraction(tail) / total) for cost, tail in zip(costs, c.tails, strict=True)]
        for c in curves
        for costs in [points_of(c.rows, c.cols, grid).costs]
    ]
    return [(sum(x for x, _ in chosen), sum((y for _, y in chosen), Fraction(0))) for chosen in product(*options)]


def test_bound_brute_force_and_plan_stand_in_this_order() -> None:
    compared = better = 0
    for seed in range(700):
        curves, grid = case(seed)
        plans = every_plan(curves, grid)
        allocator = Allocator(curves, grid)
        assert (allocator.smallest, allocator.largest) == (min(c for c, _ in plans), max(c for c, _ in plans))
        for budget in {plans[seed * 7 % len(plans)][0], plans[seed * 7 % len(plans)][0] + seed % 5}:
            found = allocator.plan(budget)
            best = float(min(loss for cost, loss in plans if cost <= budget))
            assert found.bound <= best + 1e-12
            assert best <= found.loss + 1e-12
            assert found.parameters.sum() <= budget
            uniform = allocator.uniform(budget)
            assert uniform.parameters.sum() <= budget
            assert best <= uniform.loss + 1e-12
            compared += 1
            better += found.loss <= best + 1e-12
    assert better > 0.7 * compared


def test_at_the_vertices_of_the_hulls_the_plan_is_the_best_there_is() -> None:
    for seed in range(0, 700, 5):
        curves, grid = case(seed)
        plans = every_plan(curves, grid)
        allocator = Allocator(curves, grid)
        for budget, _ in by_the_rules(curves, grid, 10**9)[1]:
            found = allocator.plan(budget)
            assert found.loss == pytest.approx(found.bound, abs=1e-12)
            assert found.loss == pytest.approx(float(min(loss for cost, loss in plans if cost <= budget)), abs=1e-12)


def lower_hull(points: list[tuple[int, Fraction]]) -> list[int]:
    """The vertices in exact numbers: from each the steepest descent, as far as it goes."""
    found = [0]
    while True:
        cost, loss = points[found[-1]]
        ways = [((loss - y) / (x - cost), x, k) for k, (x, y) in enumerate(points) if x > cost and y < loss]
        if not ways:
            return found
        found.append(max(ways)[2])


def by_the_rules(curves: list[TailCurve], grid: RankGrid, budget: int) -> tuple[list[int], list[tuple[int, Fraction]]]:
    """The points by the rules, one step at a time in exact numbers, and (parameters, loss) after each step."""
    total = Fraction(sum(c.weight for c in curves)) or Fraction(1)
    all_points = [
        [(int(x), Fraction(c.weight) * Fraction(y) / total) for x, y in zip(costs, c.tails, strict=True)]
        for c in curves
        for costs in [points_of(c.rows, c.cols, grid).costs]
    ]
    steps = []
    for i, points in enumerate(all_points):
        for start, end in pairwise(lower_hull(points)):
            cost, gain = points[end][0] - points[start][0], points[start][1] - points[end][1]
            steps.append((-gain / cost, cost, curves[i].address, i, end))
    chosen, closed = [0] * len(curves), set()
    slack = budget - sum(points[0][0] for points in all_points)
    loss = sum((points[0][1] for points in all_points), Fraction(0))
    passed = [(budget - slack, loss)]
    for slope, cost, _, i, end in sorted(steps):
        if i not in closed and cost <= slack:
            chosen[i], slack, loss = end, slack - cost, loss + slope * cost
            passed.append((budget - slack, loss))
        else:
            closed.add(i)
    while True:
        moves = []
        for i, points in enumerate(all_points):
            for k, (x, y) in enumerate(points):
                cost, gain = x - points[chosen[i]][0], points[chosen[i]][1] - y
                if 0 < cost <= slack and gain > 0:
                    moves.append((-gain, cost, curves[i].address, i, k))
        if not moves:
            return chosen, passed
        _, cost, _, i, k = min(moves)
        chosen[i], slack = k, slack - cost


def ranks_of(curves: list[TailCurve], grid: RankGrid, chosen: list[int]) -> list[int]:
    every = [[*map(int, points_of(c.rows, c.cols, grid).ranks), 0] for c in curves]
    return [ranks[k] for ranks, k in zip(every, chosen, strict=True)]


def many(seed: int, count: int) -> tuple[list[TailCurve], RankGrid]:
    """Like `case` with more projections, many of them alike."""
    rng = np.random.default_rng([18, seed])
    grid = GRIDS[seed % len(GRIDS)]
    kinds = [SHAPES[rng.integers(len(SHAPES))] for _ in range(3)]
    made = []
    for i in rng.permutation(count):
        own = np.random.default_rng([19, seed, int(rng.integers(3))])
        made.append(curve(own, f"layers.{i}.mlp.up", kinds[int(rng.integers(3))], 1.0, grid, spectrum=bool(seed % 2)))
    rest = 2 ** int(np.ceil(np.log2(count))) - count
    return [*made, TailCurve("other", 1, 9, rest, np.zeros(1))], grid


@pytest.mark.parametrize("window", [2, 1 << 16])
def test_the_walk_is_that_of_the_rules(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankscope.engine.plan.allocate._WINDOW", window)
    for seed in range(40):
        curves, grid = many(seed, 5 + seed % 20)
        allocator = Allocator(curves, grid)
        for share in (0.05, 0.3, 0.7, 0.95):
            budget = allocator.smallest + int(share * (allocator.largest - allocator.smallest))
            found = allocator.plan(budget)
            assert list(found.ranks) == ranks_of(curves, grid, by_the_rules(curves, grid, budget)[0]), (seed, share)


spectra = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=24)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_budget_is_ever_passed(data: st.DataObject) -> None:
    cost: Cost = data.draw(st.sampled_from(("factors", "pifa")))
    grid = RankGrid(data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5)), cost)
    curves = []
    for number in range(data.draw(st.integers(1, 8))):
        values = np.sort(data.draw(spectra))[::-1]
        shape = (len(values), len(values) + data.draw(st.integers(0, 20)))
        tails = tails_of(values, points_of(*shape, grid))
        curves.append(TailCurve(f"layers.{number}", *shape, data.draw(st.floats(0, 1e9)), tails))
    allocator = Allocator(curves, grid)
    budget = data.draw(st.integers(allocator.smallest, allocator.largest + 5))
    for found in (allocator.plan(budget), allocator.uniform(budget)):
        assert found.parameters.sum() <= budget
        assert 0 <= found.bound <= found.loss + 1e-12
        for c, rank, left in zip(curves, map(int, found.ranks), found.parameters, strict=True):
            factors = rank * (c.rows + c.cols - (rank if cost == "pifa" else 0))
            assert left == (factors if rank else c.rows * c.cols)
            assert left <= c.rows * c.cols
            assert not rank or (rank >= grid.min_rank and rank % grid.multiple == 0)
    assert allocator.plan(allocator.largest).loss == 0.0


def test_below_the_smallest_plan_there_is_none() -> None:
    curves, grid = case(4)
    allocator = Allocator(curves, grid)
    for make in (allocator.plan, allocator.uniform):
        assert make(allocator.smallest).parameters.sum() == allocator.smallest
        with pytest.raises(ValueError, match=str(allocator.smallest)):
            make(allocator.smallest - 1)


def two(first: str, second: str, tails: list[float]) -> Allocation:
    """One more rank for one of two equal projections."""
    grid = RankGrid(1, 1)
    curves = [TailCurve(name, 6, 8, 1.0, np.array(tails)) for name in (first, second)]
    return Allocator(curves, grid).plan(3 * 14)


def test_of_equal_gains_the_first_address_wins() -> None:
    assert list(two("layers.0", "layers.1", [0.5, 0.25, 0.125, 0]).ranks) == [2, 1]
    assert list(two("layers.1", "layers.0", [0.5, 0.25, 0.125, 0]).ranks) == [1, 2]


def test_of_equal_gains_the_smaller_cost_wins() -> None:
    """14 for (6, 8) and 16 for (8, 8), with equal gains for each parameter, and room for one of them."""
    small = TailCurve("z", 6, 8, 14.0, np.array([0.5, 0.25, 0.125, 0]))
    large = TailCurve("a", 8, 8, 16.0, np.array([0.5, 0.25, 0.125, 0]))
    assert list(Allocator([large, small], RankGrid(1, 1)).plan(30 + 16).ranks) == [1, 2]


def test_uniform_gives_the_rank_of_the_formula() -> None:
    rng = np.random.default_rng(5)
    shapes = [(64, 96), (128, 96), (200, 200), (96, 64)]
    grid = RankGrid(8, 8)
    curves = [
        TailCurve(str(i), *s, 1.0, tails_of(np.sort(rng.random(min(s)))[::-1], points_of(*s, grid)))
        for i, s in enumerate(shapes)
    ]
    allocator = Allocator(curves, grid)
    found = allocator.uniform(round(0.8 * allocator.largest))
    assert list(found.ranks) == [int(0.8 * m * n / (m + n)) // 8 * 8 for m, n in shapes]
    # A share that would give (64, 96) rank 0: it gets 8, and the others the rest.
    lower = allocator.uniform(allocator.smallest + 8 * 224)
    assert lower.ranks[0] == 8
    assert lower.parameters.sum() <= allocator.smallest + 8 * 224
    assert set(allocator.uniform(allocator.largest).ranks) == {0}


@pytest.mark.parametrize("cost", ["factors", "pifa"])
def test_ranks_are_multiples_that_cost_less_than_the_matrix(cost: Cost) -> None:
    points = points_of(96, 64, RankGrid(10, 8, cost))
    assert list(points.ranks) == list(range(16, 39, 8) if cost == "factors" else range(16, 64, 8))
    assert points.costs[-1] == 96 * 64
    assert (np.diff(points.costs) > 0).all()
    assert not points_of(12, 12, RankGrid(8, 8)).ranks.size
    assert not points_of(1, 4096, RankGrid(1, 1)).ranks.size


def test_tails_are_those_of_the_best_approximation() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((40, 60)) * np.exp(-np.arange(60) / 2)
    u, values, vt = scipy.linalg.svd(matrix, full_matrices=False)
    points = points_of(40, 60, RankGrid(4, 4))
    tails = tails_of(values, points)
    for rank, tail in zip(points.ranks, tails, strict=False):
        rest = (u[:, rank:] * values[rank:]) @ vt[rank:]
        assert tail == pytest.approx(np.sum(rest**2) / np.sum(values**2), rel=1e-10)
    assert 0 < tails[-2] < 1e-8
    assert tails[-1] == 0.0


def test_tails_of_any_size() -> None:
    points = points_of(6, 8, RankGrid(1, 1))
    for scale in (1e-200, 1.0, 1e200):
        np.testing.assert_allclose(tails_of(scale * np.array([2.0, 1, 1, 1, 1, 0]), points), [0.5, 0.375, 0.25, 0])
    assert list(tails_of(np.zeros(6), points)) == [0, 0, 0, 0]
    assert list(tails_of(np.array([5.0, 0, 0, 0, 0, 0]), points)) == [0, 0, 0, 0]


def test_a_straight_line_has_two_vertices() -> None:
    """Equal singular values: slopes that differ only by rounding must keep their order."""
    costs = np.arange(1, 12, dtype=np.int64) * 7
    losses = (np.full((3, 11), 0.1) * [[1.0], [1 / 3], [1e-9]])[:, ::-1].cumsum(axis=1)[:, ::-1]
    hulls = hulls_of(costs, losses)
    for row in range(3):
        slopes = hulls.slopes[row, 1 : hulls.sizes[row]]
        assert (np.diff(slopes) < 0).all()
        assert hulls.vertices[row, hulls.sizes[row] - 1] == 10


def test_nothing_to_lose_is_the_smallest_plan() -> None:
    curves = [
        TailCurve(name, 6, 8, weight, np.array([0.5, 0.25, 0.125, 0])) for name, weight in (("a", 0.0), ("b", 0.0))
    ]
    found = Allocator(curves, RankGrid(1, 1)).plan(90)
    assert (found.loss, found.bound, list(found.ranks)) == (0.0, 0.0, [1, 1])

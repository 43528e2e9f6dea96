"""The choices for a projection as points (parameters, tail), one for each rank, and their convex hull. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..spectrum import Values
from .plan_file import Cost, parameters_of

Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankGrid:
    """The ranks that a plan may give: multiples of `multiple` from `min_rank` on, as long as the factors have fewer
    parameters than the matrix. A min_rank that is no multiple is raised to the next one."""

    min_rank: int = 8
    multiple: int = 8
    cost: Cost = "factors"


class RankPoints(NamedTuple):
    """The choices for projections of one shape: `ranks`, shape (k,), ascending, or to stay as it is, which is the last
    point. `costs`, shape (k + 1,): the parameters at each point, ascending."""

    ranks: Whole
    costs: Whole


@lru_cache(maxsize=4096)
def points_of(rows: int, cols: int, grid: RankGrid) -> RankPoints:
    """The points of a shape; without ranks if none costs less than the matrix."""
    first = -(-grid.min_rank // grid.multiple) * grid.multiple
    ranks = np.arange(first, min(rows, cols) + 1, grid.multiple, dtype=np.int64)
    costs = np.array([parameters_of(rows, cols, int(rank), grid.cost) for rank in ranks], np.int64)
    cheaper = costs < rows * cols
    return RankPoints(ranks[cheaper], np.append(costs[cheaper], rows * cols))


def tails_of(values: Values, points: RankPoints) -> Values:
    """1 - energy at every point, shape (k + 1,), descending: the sum of squares left out over that of all. 0 at the
    last point, where the matrix stays as it is, and everywhere for a zero matrix.

    `values` are singular values, float64, shape (r,), descending. They are summed from the smallest on, as subtracting
    the kept energy from 1 would lose every tail below 1e-16.
    """
    top = values[0] if values.size else 0.0
    if not top > 0:
        return np.zeros(len(points.costs))
    left = np.cumsum(((values / top) ** 2)[::-1])[::-1]
    return np.append(np.append(left, 0.0)[points.ranks] / left[0], 0.0)


class Hulls(NamedTuple):
    """The lower convex hulls of several curves. `sizes` is how many vertices each has. `vertices`, shape (curves, k),
    are the numbers of their points; `slopes`, of the same shape, how much loss the step to a vertex saves for each
    parameter, strictly descending along a curve. The first vertex has no slope."""

    vertices: NDArray[np.int32]
    slopes: Values
    sizes: NDArray[np.intp]


def hulls_of(costs: Whole, losses: Values) -> Hulls:
    """The hulls of curves of one shape, by Andrew's monotone chain, for all curves at once, point after point.

    `costs`, shape (k,), ascend strictly; `losses`, shape (curves, k), never ascend. A point that saves nothing over the
    one before is no vertex, nor is one in the middle of a straight line.
    """
    curves = len(losses)
    vertices = np.zeros(losses.shape, np.int32)
    slopes = np.full(losses.shape, np.inf)
    sizes = np.ones(curves, np.intp)
    every = np.arange(curves)
    for point in range(1, len(costs)):
        slope = np.empty(curves)
        above = every
        while len(above):
            tops = vertices[above, sizes[above] - 1]
            slope[above] = (losses[above, tops] - losses[above, point]) / (costs[point] - costs[tops])
            # Slopes are sorted later: compared here to the last bit, so that no step sorts before the one it follows.
            above = above[slope[above] >= slopes[above, sizes[above] - 1]]
            sizes[above] -= 1
        saving = every[slope > 0]
        vertices[saving, sizes[saving]] = point
        slopes[saving, sizes[saving]] = slope[saving]
        sizes[saving] += 1
    return Hulls(vertices, slopes, sizes)

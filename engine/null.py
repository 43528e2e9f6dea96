"""What the same shape gives for noise, an iid Gaussian matrix (Marchenko-Pastur), and what stands out of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .metrics import energy
from .spectrum import Values

_POINTS = 4096


@lru_cache(maxsize=4096)
def null_rank(rows: int, cols: int, threshold: float) -> float:
    """k0(t): threshold rank that iid noise of shape (rows, cols) needs, as a real number of components.

    With beta = min / max, the squared singular values have the density
    sqrt((b - x)(x - a)) / (2 pi beta x) on [a, b] = [(1 - sqrt beta)^2, (1 + sqrt beta)^2]
    (Marchenko & Pastur 1967). k0 = min(rows, cols) * (share of x above x_t), where the x above x_t hold
    the share t of the total; .236 / .387 / .510 of a square matrix at 60 / 80 / 90 %, as sampled. A
    matrix that is drawn has a whole number of components, on average 0.4 more than this.
    """
    _, count, energy = _law(rows, cols)
    return float(min(rows, cols) * np.interp(threshold, energy, count))


def noise_values(rows: int, cols: int, scale: float) -> Values:
    """Expected singular values of a Gaussian matrix, descending, shape (r,), r = min(rows, cols).

    `scale`: the standard deviation of its entries, whose units the values have. They are the
    Marchenko-Pastur quantiles at (i - 1/2) / r.
    """
    return scale * _unit_values(rows, cols)


def noise_energy(rows: int, cols: int) -> Values:
    """Cumulative energy of noise, shape (r,): entry k-1 is the share of its k largest sigma^2 in their sum.

    The inverse of null_rank: it reaches t where k = null_rank(rows, cols, t).
    """
    _, count, energy = _law(rows, cols)
    small = min(rows, cols)
    return np.interp(np.arange(1, small + 1) / max(small, 1), count, energy)


def noise_scale(values: Values, rows: int, cols: int) -> float:
    """Standard deviation s of the noise in a matrix, in the units of its singular values `values`, shape (r,).

    Their median over that of noise with s = 1 (Gavish & Donoho, arXiv 1305.5870): a few large values, which
    inflate the standard deviation of the entries, do not move the median. 0 for a zero matrix.
    """
    return float(np.median(values) / np.median(_unit_values(rows, cols))) if values.size else 0.0


def noise_edge(rows: int, cols: int, scale: float) -> float:
    """s (sqrt m + sqrt n), in the units of s = `scale`: the Marchenko-Pastur edge.

    No singular value of large noise of that standard deviation lies beyond it.
    """
    return float(scale * (rows**0.5 + cols**0.5))


def spikes(values: Values, rows: int, cols: int) -> int:
    """#{sigma_i > edge}: directions that stand out of noise of scale noise_scale; 0 for a zero matrix.

    The largest value of noise alone passes its edge in about one matrix of five: one spike may be chance.
    """
    return int((values > noise_edge(rows, cols, noise_scale(values, rows, cols))).sum())


def null_rank_of(values: Values, threshold: float) -> float:
    """k0(t) of noise that was drawn, of its singular values `values`, shape (r,): as a real number of components.

    The running energy, linear between whole k from (0, 0) on, reaches t half a component before the k that it needs on
    average: that half is added. 0 for a zero matrix.
    """
    running = np.concatenate([[0.0], energy(values)])
    return float(np.interp(threshold, running, np.arange(len(running)))) + 0.5 if running[-1] > 0 else 0.0


@lru_cache(maxsize=64)
def _unit_values(rows: int, cols: int) -> Values:
    """noise_values at scale 1, read-only."""
    root, count, _ = _law(rows, cols)
    small = min(rows, cols)
    unit = np.interp((np.arange(small) + 0.5) / max(small, 1), count, root)
    values: Values = unit * max(rows, cols) ** 0.5
    values.flags.writeable = False
    return values


@lru_cache(maxsize=64)
def _law(rows: int, cols: int) -> tuple[Values, Values, Values]:
    """The Marchenko-Pastur law of a shape as a curve, from the largest x down.

    (sqrt x, share of the count above x, share of the sum above x), each of shape (_POINTS + 1,).
    x = middle + radius cos(theta) takes the square root out of the integrals: mass / x is then
    smooth, also at x = 0 of a square matrix.
    """
    small, large = sorted((rows, cols))
    beta = small / max(large, 1)
    middle, radius = 1.0 + beta, 2.0 * beta**0.5
    # Midpoint rule from theta = 0 on: the running sums stand at the edges between the midpoints.
    edges = np.linspace(0.0, np.pi, _POINTS + 1)
    theta = (edges[1:] + edges[:-1]) / 2
    mass = np.sin(theta) ** 2
    root = np.sqrt(np.maximum(middle + radius * np.cos(edges), 0.0))  # rounding below 0 at the end of a square
    return root, _shares(mass / (middle + radius * np.cos(theta))), _shares(mass)


def _shares(parts: Values) -> Values:
    """Running sums from 0 to 1."""
    running: Values = np.concatenate([[0.0], np.cumsum(parts)])
    running /= running[-1]
    return running

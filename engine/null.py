"""Spectra of noise (an iid Gaussian matrix, Marchenko-Pastur) of the same shape, and which values exceed noise.

`inner` is the size that the two factors of a product share, 0 for a plain matrix. With it, noise is the product of two
iid Gaussian factors, rows x inner and inner x cols, and r = min(rows, cols, inner).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .metrics import energy, numerical_rank
from .null_product import product_law
from .spectrum import Values

_POINTS = 4096


@lru_cache(maxsize=4096)
def null_rank(rows: int, cols: int, threshold: float, inner: int = 0) -> float:
    """k0(t): the mean number of components that a matrix of iid noise of shape (rows, cols) needs for the energy t.

    With beta = min / max, the squared singular values have the density
    sqrt((b - x)(x - a)) / (2 pi beta x) on [a, b] = [(1 - sqrt beta)^2, (1 + sqrt beta)^2]
    (Marchenko & Pastur 1967). The x above x_t that hold the share t of the total are a real number of
    components, min(rows, cols) * (their share of the count): for a square matrix .236 / .387 / .510 at 60 / 80 /
    90 %. The threshold rank of a matrix is the next whole number, on average half a component more; so k0 is
    that number + 1/2, at least 1 and at most min(rows, cols); 0 for an empty shape.

    The mean of k(t) over drawn matrices, from square to 1:4 and 80 to 95 %, is .97 to 1.01 times k0 from side 8
    on, and .99 to 1.01 times from side 32 on. For flatter shapes and at 60 % it is up to half a component off: the
    values of noise vary so little that most matrices need the same whole number.

    For a product the density is that of null_product.py, and k0 is as accurate.
    """
    _, count, energy = _law(rows, cols, inner)
    small = _count(rows, cols, inner)
    return float(np.clip(small * np.interp(threshold, energy, count) + 0.5, min(small, 1), small))


def noise_values(rows: int, cols: int, scale: float, inner: int = 0) -> Values:
    """Expected singular values of a Gaussian matrix, descending, shape (r,), r = min(rows, cols).

    `scale`: the standard deviation of its entries, in the units of the returned values, which are the
    Marchenko-Pastur quantiles at (i - 1/2) / r.
    """
    return scale * _unit_values(rows, cols, inner)


def noise_energy(rows: int, cols: int, inner: int = 0) -> Values:
    """The inverse of null_rank, shape (r,): entry k-1 is the threshold t with null_rank(rows, cols, t) = k; the last
    is 1. For reading a rank at a threshold; for the energy at a rank see mean_energy.
    """
    energy = _energy_at(np.arange(0.5, _count(rows, cols, inner)), rows, cols, inner)
    energy[-1:] = 1.0
    return energy


def mean_energy(rows: int, cols: int, inner: int = 0) -> Values:
    """Mean cumulative energy of noise, shape (r,): entry k-1 is the share of the k largest sigma^2 in their sum.

    For comparing the energy at a rank; noise_energy has the energy of half a component less.
    """
    return _energy_at(np.arange(1.0, _count(rows, cols, inner) + 1), rows, cols, inner)


def noise_scale(values: Values, rows: int, cols: int, inner: int = 0) -> float:
    """Standard deviation s of the noise in a matrix, in the units of its singular values `values`, shape (r,).

    The median of the values over that of noise with s = 1 (Gavish & Donoho, arXiv 1305.5870): a few large values raise
    the standard deviation of the entries, but hardly move the median. 0 for a zero matrix.
    """
    return _sorted_median(values) / _unit_median(rows, cols, inner) if values.size else 0.0


def noise_edge(rows: int, cols: int, scale: float, inner: int = 0) -> float:
    """s (sqrt m + sqrt n), in the units of s = `scale`: the Marchenko-Pastur edge, or the edge of a product's density.

    No singular value of large noise of that standard deviation lies beyond it.
    """
    if inner:
        return scale * float(_law(rows, cols, inner)[0][0])
    return float(scale * (rows**0.5 + cols**0.5))


def spikes(values: Values, rows: int, cols: int, noise_floor: float = 0.0, inner: int = 0) -> int:
    """#{sigma_i > edge}: the number of directions above noise of scale noise_scale; 0 for a zero matrix.

    Never more than the numerical rank: if most values are below the solver's `noise_floor`, so is the edge. Never more
    than half of the values, as the scale comes from their median: of 100 directions planted in a matrix with 192, it
    counts 26. In about one of five matrices of pure noise the largest value exceeds the edge: one spike may be chance.
    """
    scale = noise_scale(values, rows, cols, inner)
    above = int((values > noise_edge(rows, cols, scale, inner)).sum())
    return min(above, numerical_rank(values, rows, cols, noise_floor))


def null_rank_of(values: Values, threshold: float) -> float:
    """k0(t) of drawn noise, from its singular values `values`, shape (r,): a real number of components.

    The running energy, linear between whole k from (0, 0) on, reaches t on average half a component before the whole k
    that is needed. That half is added; as with null_rank, the result is at least 1 and at most r. 0 for a zero matrix.
    """
    running = np.concatenate([[0.0], energy(values)])
    if not running[-1] > 0:
        return 0.0
    return float(np.clip(np.interp(threshold, running, np.arange(len(running))) + 0.5, 1, len(values)))


def drawn_energy(values: Values) -> Values:
    """The inverse of null_rank_of, shape (r,): entry k-1 is the threshold t with null_rank_of(values, t) = k; the last
    is 1."""
    found: Values = np.interp(
        np.arange(0.5, len(values)), np.arange(len(values) + 1), np.concatenate([[0.0], energy(values)])
    )
    found[-1:] = 1.0
    return found


def _sorted_median(values: Values) -> float:
    """The median of sorted values. np.median would sort them again, which takes longer than everything else."""
    half = values.size // 2
    return float(values[half] if values.size % 2 else (values[half - 1] + values[half]) / 2)


def _count(rows: int, cols: int, inner: int) -> int:
    """The number of singular values."""
    return min(rows, cols, inner or cols)


@lru_cache(maxsize=4096)
def _unit_median(rows: int, cols: int, inner: int) -> float:
    return _sorted_median(_unit_values(rows, cols, inner))


@lru_cache(maxsize=64)
def _unit_values(rows: int, cols: int, inner: int) -> Values:
    """noise_values at scale 1, read-only."""
    root, count, _ = _law(rows, cols, inner)
    small = _count(rows, cols, inner)
    values: Values = np.interp((np.arange(small) + 0.5) / max(small, 1), count, root)
    values.flags.writeable = False
    return values


def _energy_at(ranks: Values, rows: int, cols: int, inner: int) -> Values:
    """The share of the energy in the largest `ranks` components of noise, which need not be whole numbers."""
    _, count, energy = _law(rows, cols, inner)
    return np.interp(ranks / max(_count(rows, cols, inner), 1), count, energy)


@lru_cache(maxsize=64)
def _law(rows: int, cols: int, inner: int) -> tuple[Values, Values, Values]:
    """The singular values of noise whose entries have standard deviation 1, as a curve from the largest down.

    (sigma, share of the count above it, share of the sum of squares above it), each of shape (_POINTS + 1,). The
    integrals are over an angle: the midpoint rule with _POINTS steps from 0, whose running sums belong to the edges.
    """
    edges = np.linspace(0.0, np.pi, _POINTS + 1)
    if inner:
        law = product_law((rows, cols, inner), edges)
        return law.values / inner**0.5, _shares(law.counts), _shares(law.energies)
    small, large = sorted((rows, cols))
    beta = small / max(large, 1)
    # x = middle + radius cos(theta) takes the square root out of the integrals: mass / x is then smooth, even at x = 0
    # of a square matrix.
    middle, radius = 1.0 + beta, 2.0 * beta**0.5
    theta = (edges[1:] + edges[:-1]) / 2
    mass = np.sin(theta) ** 2
    root = np.sqrt(np.maximum(middle + radius * np.cos(edges), 0.0))  # a square matrix ends at 0, rounded below it
    return root * large**0.5, _shares(mass / (middle + radius * np.cos(theta))), _shares(mass)


def _shares(parts: Values) -> Values:
    """Running sums, scaled to go from 0 to 1."""
    running: Values = np.concatenate([[0.0], np.cumsum(parts)])
    running /= running[-1]
    return running

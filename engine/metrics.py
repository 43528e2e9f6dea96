"""Numbers that summarise a spectrum. Pure functions of float64 singular values, numpy only.

Every function takes `values`: singular values sigma_1 >= ... >= sigma_r >= 0, float64, shape (r,).
Ratios of a zero matrix do not exist: they are None.
"""

from __future__ import annotations

import numpy as np

from .spectrum import Values

_EPS = float(np.finfo(np.float64).eps)


def energy(values: Values) -> Values:
    """Cumulative energy, shape (r,): energy[k-1] = sum of the k largest sigma^2 / sum of all.

    All zeros for a zero matrix. By Eckart-Young the relative Frobenius error of the best rank-k
    approximation is sqrt(1 - energy(k)).
    """
    squares = _normalised(values) ** 2
    total = squares.sum()
    return np.cumsum(squares) / total if total > 0 else np.zeros_like(squares)


def threshold_rank(values: Values, threshold: float) -> int:
    """Smallest k with energy(k) >= threshold, for 0 < threshold <= 1; 0 for a zero matrix.

    A tie that is exact in real numbers (6 of 10 equal values at 0.6) must not be lost to rounding:
    the comparison allows r * eps, the rounding of the running sum.

    Raises:
        ValueError: threshold is not in (0, 1].
    """
    return threshold_ranks(values, (threshold,))[0]


def threshold_ranks(values: Values, thresholds: tuple[float, ...]) -> tuple[int, ...]:
    """threshold_rank for several thresholds from one running sum."""
    for threshold in thresholds:
        if not 0.0 < threshold <= 1.0:
            raise ValueError(f"a threshold lies in (0, 1], not {threshold:g}")
    squares = _normalised(values) ** 2
    running = np.cumsum(squares)
    if not running.size or running[-1] <= 0:
        return (0,) * len(thresholds)
    # The last running sum, not a second summation: at threshold 1 the two must agree to the bit.
    slack = 1.0 - values.size * _EPS
    wanted = np.asarray(thresholds) * (running[-1] * slack)
    return tuple(int(k) + 1 for k in np.searchsorted(running, wanted, side="left"))


def effective_rank(values: Values) -> float | None:
    """exp(-sum p ln p) with p = sigma / sum sigma (Roy & Vetterli 2007)."""
    total = _normalised(values).sum()
    if not total > 0:
        return None
    p = _normalised(values) / total
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def stable_rank(values: Values) -> float | None:
    """sum sigma^2 / sigma_1^2 (Rudelson & Vershynin)."""
    squares = _normalised(values) ** 2
    return float(squares.sum()) if squares.size and squares[0] > 0 else None


def _normalised(values: Values) -> Values:
    """values / sigma_1, so that squares neither overflow nor vanish; unchanged if sigma_1 is 0."""
    top = values[0] if values.size else 0.0
    return values / top if top > 0 else values

"""Numbers that summarise a spectrum, and the size of low-rank factors of a shape. Pure functions, numpy only.

`values` are singular values sigma_1 >= ... >= sigma_r >= 0, float64, shape (r,) with r = min(m, n), in the
units of the weights; m = `rows`, n = `cols`. Ratios are None for a zero matrix.
"""

from __future__ import annotations

import math

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


def energy_at(values: Values, k: int) -> float:
    """energy(k) of one rank, 0 <= k <= r; energy(0) is 0.

    Raises:
        ValueError: k is not in 0 ... r.
    """
    _check_rank(values, k)
    return float(energy(values)[k - 1]) if k else 0.0


def relative_error(values: Values, k: int) -> float:
    """sqrt(1 - energy(k)), 0 <= k <= r: relative Frobenius error of the best rank-k approximation (Eckart-Young).

    Summed from the values left out: 1 - energy(k) would lose every error below 1e-8. 0 for a zero
    matrix, which is its own approximation.

    Raises:
        ValueError: k is not in 0 ... r.
    """
    _check_rank(values, k)
    parts = _normalised(values)
    whole = _norm(parts)
    return _norm(parts[k:]) / whole if whole > 0 else 0.0


def threshold_rank(values: Values, threshold: float) -> int:
    """Smallest k with energy(k) >= threshold, for 0 < threshold <= 1; 0 for a zero matrix.

    A tie that is exact in real numbers (6 of 10 equal values at 0.6) must not be lost to rounding, so
    the comparison allows r * eps, the rounding error of the running sum.

    Raises:
        ValueError: threshold is not in (0, 1].
    """
    return threshold_ranks(values, (threshold,))[0]


def threshold_ranks(values: Values, thresholds: tuple[float, ...]) -> tuple[int, ...]:
    """threshold_rank at several thresholds, from one running sum."""
    for threshold in thresholds:
        if not 0.0 < threshold <= 1.0:
            raise ValueError(f"a threshold must be above 0 and at most 1, not {threshold:g}")
    squares = _normalised(values) ** 2
    running = np.cumsum(squares)
    if not running.size or running[-1] <= 0:
        return (0,) * len(thresholds)
    # The last running sum, not a second summation: at threshold 1 the two must agree to the bit.
    slack = 1.0 - values.size * _EPS
    wanted = np.asarray(thresholds) * (running[-1] * slack)
    return tuple(int(k) + 1 for k in np.searchsorted(running, wanted, side="left"))


def rank_losing(values: Values, most: float) -> int:
    """Smallest k such that the sum of sigma^2 beyond the k largest is at most `most`, in the units of sigma^2.

    A tie that is exact in real numbers counts as reached, as in threshold_rank.
    """
    top = float(values[0]) if values.size else 0.0
    if top <= 0:
        return 0
    squares = _normalised(values) ** 2
    lost = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    allowed = most / top / top + values.size * _EPS * float(lost[0])
    return int(np.argmax(lost <= allowed))


def effective_rank(values: Values) -> float | None:
    """exp(-sum p ln p) with p = sigma / sum sigma (Roy & Vetterli 2007)."""
    return _perplexity(_normalised(values))


def entropy_rank(values: Values) -> float | None:
    """exp(-sum p ln p) with p = sigma^2 / sum sigma^2: Roy & Vetterli's formula on the energy."""
    return _perplexity(_normalised(values) ** 2)


def stable_rank(values: Values) -> float | None:
    """sum sigma^2 / sigma_1^2 (Rudelson & Vershynin)."""
    squares = _normalised(values) ** 2
    return float(squares.sum()) if squares.size and squares[0] > 0 else None


def participation_ratio(values: Values) -> float | None:
    """(sum sigma^2)^2 / sum sigma^4: the number of directions, if they all had the same energy."""
    squares = _normalised(values) ** 2
    total = float(squares.sum())
    return total**2 / float((squares**2).sum()) if total > 0 else None


def nuclear_ratio(values: Values) -> float | None:
    """sum sigma / sigma_1: nuclear norm over spectral norm."""
    total = float(_normalised(values).sum())
    return total if total > 0 else None


def numerical_rank(values: Values, rows: int, cols: int, noise_floor: float) -> int:
    """#{sigma_i > max(noise_floor, sigma_1 max(m, n) eps)}; 0 for a zero matrix.

    The second bound is LAPACK's backward error, as in numpy's matrix_rank. `noise_floor` is the solver's, from the
    Spectrum, in the units of the weights: without it a rank-8 matrix of 40 x 40 counts 24 by the Gram solver.
    """
    top = float(values[0]) if values.size else 0.0
    return int((values > max(noise_floor, top * max(rows, cols) * _EPS)).sum())


def rank_is_bound(values: Values, rows: int, cols: int, noise_floor: float) -> bool:
    """True if the numerical rank is only a lower bound: a value lies below a noise floor that is above rounding error,
    as that of a Gram matrix is. False for a zero matrix."""
    top, low = (float(values[0]), float(values[-1])) if values.size else (0.0, 0.0)
    return top > 0 and low <= noise_floor and noise_floor > top * max(rows, cols) * _EPS


def condition_number(values: Values, noise_floor: float) -> tuple[float, bool] | None:
    """(sigma_1 / sigma_r, False), or, if sigma_r is below the floor, (sigma_1 / noise_floor, True), a lower bound.

    (inf, True) if both sigma_r and the floor are 0; None for a zero matrix.
    """
    if not values.size or not values[0] > 0:
        return None
    top, low = float(values[0]), float(values[-1])
    if low > noise_floor:
        return top / low, False
    return (top / noise_floor if noise_floor > 0 else math.inf), True


def break_even_rank(rows: int, cols: int) -> int:
    """k*: the largest whole k with k (m + n) <= m n, the floor of m n / (m + n). From k* + 1 on the two factors hold
    more parameters than the matrix. 0 for an empty matrix, and for one with a single row or column."""
    return rows * cols // max(rows + cols, 1)


def factor_parameters(rows: int, cols: int, k: int) -> int:
    """k (m + n): parameters of the two factors, (m, k) and (k, n)."""
    return k * (rows + cols)


def _perplexity(weights: Values) -> float | None:
    """exp of the entropy of weights / sum, all weights >= 0; None if they are all 0."""
    total = weights.sum()
    if not total > 0:
        return None
    p = weights / total
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def _norm(values: Values) -> float:
    """sqrt(sum sigma^2), scaled first because the tail of a spectrum may be so small that its squares underflow."""
    top = float(values[0]) if values.size else 0.0
    return top * math.sqrt(float((_normalised(values) ** 2).sum()))


def _check_rank(values: Values, k: int) -> None:
    if not 0 <= k <= values.size:
        raise ValueError(f"a rank must be from 0 to {values.size}, not {k}")


def _normalised(values: Values) -> Values:
    """values / sigma_1, so that squares neither overflow nor vanish; unchanged if sigma_1 is 0."""
    top = values[0] if values.size else 0.0
    return values / top if top > 0 else values

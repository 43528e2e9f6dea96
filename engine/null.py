"""What the same shape gives for noise: threshold ranks of an iid Gaussian matrix (Marchenko-Pastur)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_POINTS = 4096


@lru_cache(maxsize=4096)
def null_rank(rows: int, cols: int, threshold: float) -> float:
    """k0(t): threshold rank that iid noise of shape (rows, cols) needs, as a real number of components.

    With beta = min / max, the squared singular values have the density
    sqrt((b - x)(x - a)) / (2 pi beta x) on [a, b] = [(1 - sqrt beta)^2, (1 + sqrt beta)^2]
    (Marchenko & Pastur 1967). k0 = min(rows, cols) * (share of x above x_t), where the x above x_t hold
    the share t of the total. x = middle + radius cos(theta) takes the square root out of the
    integrals; .236 / .387 / .510 of a square matrix at 60 / 80 / 90 %, as sampled.
    """
    small, large = sorted((rows, cols))
    beta = small / large
    middle, radius = 1.0 + beta, 2.0 * beta**0.5
    # Midpoints from theta = 0, the largest x, on: the running sums are the shares above x.
    theta = (np.arange(_POINTS) + 0.5) * (np.pi / _POINTS)
    mass = np.sin(theta) ** 2
    energy = np.cumsum(mass) / mass.sum()
    count = np.cumsum(mass / (middle + radius * np.cos(theta)))
    return float(small * np.interp(threshold, energy, count / count[-1]))

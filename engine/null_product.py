"""The distribution of the singular values of a product of two large, independent Gaussian factors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .spectrum import Values


class ProductLaw(NamedTuple):
    """`values`: singular values, descending, at k + 1 edges. `counts` and `energies`, shape (k,): number and sum of
    squares of the singular values between neighbouring edges, not normalised."""

    values: Values
    counts: Values
    energies: Values


def product_law(sizes: tuple[int, int, int], edges: Values) -> ProductLaw:
    """The law for factors m x k and k x n whose entries have standard deviation 1, at `edges`, angles from 0 to pi.

    `sizes` are m, n and k in any order, which does not matter (Ipsen & Kieburg, arXiv 1310.4154). Let s be the smallest
    size, lambda and mu its ratios to the others a and b. sigma^2 = a b x has the density Im w / (pi x), where w is the
    non-real root of x w = (1 + w) (1 + lambda w) (1 + mu w): the S-transforms of two Marchenko-Pastur laws,
    1 / (1 + lambda w) each, multiplied (Voiculescu 1987).
    """
    small, *others = sorted(sizes)
    if not small:
        return ProductLaw(np.zeros(len(edges)), np.ones(len(edges) - 1), np.ones(len(edges) - 1))
    lam, mu = (small / other for other in others)
    low, high = _support(lam, mu)

    def place(angles: Values) -> Values:
        # The density may grow like x^(-2/3) towards 0; the third power cancels that in the integral.
        return low + (high - low) * ((1 + np.cos(angles)) / 2) ** 3

    middle = (edges[1:] + edges[:-1]) / 2
    x = place(middle)
    step = ((1 + np.cos(middle)) / 2) ** 2 * np.sin(middle)
    mass = _imaginary(x, lam, mu) * step  # of the sum of squares; divided by x, of the count
    return ProductLaw(np.sqrt(place(edges) * others[0] * others[1]), mass / x, mass)


def _support(lam: float, mu: float) -> tuple[float, float]:
    """The smallest and the largest x: the turning points of x(w) on the real axis, for w > 0 and for w < -1."""
    turning = np.real(np.roots([2 * lam * mu, lam + mu + lam * mu, 0.0, -1.0]))
    ends = np.array([turning[turning < 0].max(), turning.max()])
    low, high = (1 + ends) * (1 + lam * ends) * (1 + mu * ends) / ends
    return max(float(low), 0.0), float(high)


def _imaginary(x: Values, lam: float, mu: float) -> Values:
    """Im w of the non-real root at each x, 0 where all roots are real."""
    lead = lam * mu
    companion = np.zeros((len(x), 3, 3))
    companion[:, 0, 0] = -(lam + mu + lead) / lead
    companion[:, 0, 1] = -(1 + lam + mu - x) / lead
    companion[:, 0, 2] = -1 / lead
    companion[:, 1, 0] = companion[:, 2, 1] = 1.0
    return np.asarray(np.linalg.eigvals(companion).imag.max(axis=1))

"""Summaries of many numbers: median, the number farthest from it, half of the interquartile range, and extent."""

from __future__ import annotations

import math

from rankscope.engine.spectrum import Values

SPREAD_LIMITS = 5
LEAST_SPREAD = 4
"""With fewer numbers a spread is meaningless."""


def known(numbers: Values) -> Values:
    """The known numbers, sorted."""
    import numpy as np  # not needed for the first screen

    return np.sort(numbers[~np.isnan(numbers)])


def middle_of(numbers: Values) -> float | None:
    """The median of sorted numbers, None if there are none."""
    half = len(numbers) // 2
    if not len(numbers):
        return None
    return float(numbers[half] if len(numbers) % 2 else (numbers[half - 1] + numbers[half]) / 2)


def farthest_of(numbers: Values) -> float | None:
    """The one of sorted numbers that is farthest from their median, the larger of two equally far; None if there are
    fewer than two, or all are equal."""
    middle = middle_of(numbers)
    if middle is None or numbers[0] == numbers[-1]:
        return None
    low, high = float(numbers[0]), float(numbers[-1])
    return high if high - middle >= middle - low else low


def half_range(numbers: Values) -> float | None:
    """Half of the interquartile range of sorted numbers; None if there are too few."""
    if len(numbers) < LEAST_SPREAD:
        return None
    return (_quarter(numbers, 3) - _quarter(numbers, 1)) / 2


def _quarter(numbers: Values, quarters: int) -> float:
    """A quartile of sorted numbers; 0 and 4 are the smallest and the largest (Hyndman & Fan 1996, definition 7)."""
    at, rest = divmod(quarters * (len(numbers) - 1), 4)
    after = numbers[min(at + 1, len(numbers) - 1)]
    return float(numbers[at] * (4 - rest) + after * rest) / 4


def extent(numbers: Values) -> tuple[float, float] | None:
    """The smallest and the largest number that have a logarithm."""
    found = numbers[(numbers > 0) & (numbers < math.inf)]
    return (float(found.min()), float(found.max())) if len(found) else None


def even_limits(extent: tuple[float, float] | None) -> tuple[float, ...]:
    """Limits between shades, evenly spaced in the logarithm."""
    if extent is None:
        return ()
    low, high = extent
    if low == high:
        return (low,)
    return tuple(low * (high / low) ** (step / (SPREAD_LIMITS + 1)) for step in range(1, SPREAD_LIMITS + 1))

"""Summaries of many numbers: median, the number farthest from it, half of the interquartile range, and extent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankscope.engine.spectrum import Values

SPREAD_LIMITS = 5
LEAST_SPREAD = 4
"""With fewer numbers a spread is meaningless."""
FAR_SHARE, FAR_RANKS = 0.1, 2
"""How far from their median a number must be for it not to represent them: a tenth of it, of ranks 2 or more."""


def known(numbers: Values) -> Values:
    """The known numbers, sorted."""
    import numpy as np  # not needed for the first screen

    return np.sort(numbers[~np.isnan(numbers)])


def middle_of(numbers: Values | Sequence[float]) -> float | None:
    """The median of sorted numbers, None if there are none."""
    half = len(numbers) // 2
    if not len(numbers):
        return None
    low, high = float(numbers[half if len(numbers) % 2 else half - 1]), float(numbers[half])
    return low if low == high else low + (high - low) / 2  # the sum of both may have no float


def median_of(numbers: Sequence[float]) -> float:
    """The median of at least one number, in any order."""
    middle = middle_of(sorted(numbers))
    assert middle is not None
    return middle


def far_of(numbers: Values, *, ranks: bool) -> float | None:
    """The one of sorted numbers that is farthest from their median, the larger of two equally far; None if none is
    FAR_SHARE of the median away, or for `ranks` FAR_RANKS."""
    middle = middle_of(numbers)
    if middle is None or numbers[0] == numbers[-1]:
        return None
    low, high = float(numbers[0]), float(numbers[-1])
    far = high if high - middle >= middle - low else low
    least = max(FAR_SHARE * abs(middle), FAR_RANKS if ranks else 0.0)
    return far if abs(far - middle) >= least else None


def half_range(numbers: Values) -> float | None:
    """Half of the interquartile range of sorted numbers; None if there are too few."""
    if len(numbers) < LEAST_SPREAD:
        return None
    return (_quarter(numbers, 3) - _quarter(numbers, 1)) / 2


def _quarter(numbers: Values, quarters: int) -> float:
    """A quartile of sorted numbers; 0 and 4 are the smallest and the largest (Hyndman & Fan 1996, definition 7)."""
    at, rest = divmod(quarters * (len(numbers) - 1), 4)
    after = numbers[min(at + 1, len(numbers) - 1)]
    return float(numbers[at] + (after - numbers[at]) * rest / 4)


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
    shares = (step / (SPREAD_LIMITS + 1) for step in range(1, SPREAD_LIMITS + 1))
    # The ratio of both may have no float; and of two that are next to each other rounding must not turn the order.
    return tuple(sorted(low ** (1 - share) * high**share for share in shares))

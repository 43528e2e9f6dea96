"""Round numbers for axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .figure import Axis, Span

_SHORT = -4, 6
"""Numbers with exponents in this range are written without one."""


def ticks(span: Span, log: bool, most: int, *, whole: bool = False) -> list[float]:
    """About `most` round numbers within the span; `whole`: for a count, only whole numbers."""
    return _log_ticks(*span, most, whole) if log else _linear_ticks(*span, most, whole)


def tick_text(value: float) -> str:
    """A tick as text: four digits, or one with an exponent."""
    if 1e-4 <= abs(value) < 1e6 or value == 0:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def axis_ticks(axis: Axis, span: Span, most: int, *, whole: bool = False) -> dict[float, str]:
    """About `most` round numbers within the span of an axis, each with its text."""
    found = _exponent_ticks(*span, most) if axis.exponents else ticks(span, axis.log, most, whole=whole)
    return {number: axis_text(axis, number) for number in found}


def axis_text(axis: Axis, number: float) -> str:
    """The text at a number of an axis."""
    if axis.exponents and not _SHORT[0] <= number < _SHORT[1]:
        tens = math.floor(number + 1e-9)
        return _with_exponent(10 ** (number - tens), 2, tens)
    if axis.tens and number:
        return _with_exponent(number, 4, axis.tens)
    return tick_text(10.0**number if axis.exponents else number) + axis.unit


def _exponent_ticks(low: float, high: float, most: int) -> list[float]:
    """Ticks as _log_ticks makes them, as exponents of ten, for numbers that may be beyond float64."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    fine = [found for decade in decades for digit in (1, 2, 5) if low <= (found := decade + math.log10(digit)) <= high]
    if len(fine) < 2:
        return [low, high]
    if len(fine) <= most or sum(found.is_integer() for found in fine) < 2:
        return fine
    return _linear_ticks(low, high, most, whole=True)


def _with_exponent(number: float, digits: int, tens: int) -> str:
    """`1.2e308`: a number times 10^tens, which may be beyond float64."""
    digit, _, exponent = f"{number:.{digits - 1}e}".partition("e")
    return f"{float(digit):g}e{tens + int(exponent)}"


def _linear_ticks(low: float, high: float, most: int, whole: bool) -> list[float]:
    step = _round_step((high - low) / most)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int, whole: bool) -> list[float]:
    """1 2 5 10 ..., else powers of ten, or every second, third ... of them; over less than a decade 1 1.5 2 3 5 7."""
    fine, tens = _between(low, high, (1, 2, 5)), _between(low, high, (1,))
    finer = _between(low, high, (1, 1.5, 2, 3, 5, 7)) if high < 10 * low else []
    finer = [value for value in finer if not whole or value == round(value)]
    if max(1, len(fine)) < len(finer) <= most:
        return finer
    if len(fine) < 2:
        return [low, high]
    if len(fine) <= most or len(tens) < 2:
        return fine
    return tens[:: -(-len(tens) // most)]


def _between(low: float, high: float, digits: Sequence[float]) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = (digit * 10.0**decade for decade in decades for digit in digits)
    return [value for value in found if low <= value * 1.000001 and value <= high * 1.000001]


def _round_step(raw: float) -> float:
    scale = 10.0 ** math.floor(math.log10(raw))
    return next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw * 0.999)

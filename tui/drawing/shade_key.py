"""The key of a heatmap: every shade, with the limits between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from ..data.contrast import Contrast
from ..data.grid import Column
from .cell import GREY_FILL, GREYED
from .cells import Look

_MOST_DIGITS = 6
"""The most digits of a limit between two shades."""
_MILLION = 1e6


def shade_key(look: Look, column: Column | None = None) -> Text:
    """The shades with the limits between them, for this role if roles have separate limits; empty without numbers to
    spread them over. Beyond the limit for grey cells only grey is shown."""
    above = look.lens.greyed_above
    limits = [limit for limit in look.limits(column) if above is None or limit <= above]
    text = Text()
    digits = 3 if look.lens.contrast is Contrast.FIXED else 2
    for limit, written in zip(limits, _distinct_texts(limits, digits), strict=True):
        _append_shade(text, *look.shaded(limit, column))
        text.append(written)
    if limits and above is None:
        _append_shade(text, *look.shaded(math.inf, column))
    elif limits:
        _append_shade(text, GREYED, 2 * GREY_FILL)
    return text


def _append_shade(text: Text, style: Style, level: str) -> None:
    text.append(level or "  ", style)


def _distinct_texts(limits: Sequence[float], digits: int) -> list[str]:
    """The ascending limits as texts of this many digits, or of more, up to _MOST_DIGITS, if texts would be equal. Of
    those that are still equal all but the first are "".
    """
    for most in range(digits, _MOST_DIGITS + 1):
        texts = [_limit(limit, most) for limit in limits]
        if len(set(texts)) == len(texts):
            return texts
    return ["" if text in texts[:at] else text for at, text in enumerate(texts)]


def _limit(value: float, digits: int) -> str:
    in_thousands = 1000 <= value < _MILLION
    number = value / 1000 if in_thousands else value
    text = f"{number:.{digits}g}"
    if "e+" in text and number < 1000:
        text = f"{number:.0f}"
    return f"{text.removeprefix('0')}{'k' * in_thousands}" or "0"

"""Colours of shades and curves, for terminals with 256 colours, 16, or none."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from rich.style import Style

LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
"""Bars of rising height: the shades of a terminal without colours."""

# Equal steps of CIE lightness, 13 to 18 each (viridis keeps only 12 of 20 steps in 256 colours, and one goes back).
SEQUENTIAL = (53, 24, 30, 36, 77, 191)
# From dark to light blue below 1, from light to dark red above: the farther from 1, the darker.
BELOW = (20, 25, 32, 74, 117, 195)
ABOVE = (224, 216, 203, 160)
SERIES = (33, 208, 71, 170, 178, 37, 160, 245)
"""Distinct in 256 colours; words in them can be read on dark backgrounds."""
SERIES_ON_LIGHT = (26, 166, 28, 127, 94, 30, 124, 240)
"""The same hues, dark enough for words on a light background: on that of textual-light their contrast is at least 2.6,
while that of SERIES is 1.5 to 2.5."""
DIM = 243
_CUBE = (0, 95, 135, 175, 215, 255)

# Fewer of the terminal's 16 colours rise in lightness in the usual schemes: the darkest ones share a step.
SEQUENTIAL_16 = (4, 5, 6, 10, 11, 15)
BELOW_16 = (4, 12, 6, 14, 15)
ABOVE_16 = (11, 3, 9, 1)
SERIES_16 = (12, 3, 2, 13, 6, 9, 11, 7)


class Depth(StrEnum):
    """How many colours there are."""

    MANY = "256"
    SIXTEEN = "16"
    MONO = "mono"


@dataclass(frozen=True, slots=True)
class Palette:
    """Colour numbers as in 256-colour terminals (the first 16 are set by the terminal's scheme)."""

    depth: Depth = Depth.MANY
    sequential: tuple[int, ...] = SEQUENTIAL
    below: tuple[int, ...] = BELOW
    above: tuple[int, ...] = ABOVE
    series: tuple[int, ...] = SERIES
    dim: int = DIM

    @property
    def dim_style(self) -> str:
        """The style of curves for comparison."""
        return "" if self.depth is Depth.MONO else f"color({self.dim})"

    def on_light(self) -> Palette:
        """The palette for a light background; the terminal's 16 colours are its user's choice and stay."""
        return replace(self, series=SERIES_ON_LIGHT) if self.depth is Depth.MANY else self

    def shade(self, value: float, limits: Sequence[float], diverges: bool) -> Style:
        """The style of a value, by which of the len(limits) + 1 steps it falls in. Empty without colours."""
        if self.depth is Depth.MONO:
            return Style.null()
        step = bisect_left(limits, value)
        if not diverges:
            return _on_background(self.sequential[_index_of_step(step, limits, len(self.sequential))])
        under = sum(limit <= 1 for limit in limits)  # steps below 1; the one next to 1 is the lightest
        if step < under:
            return _on_background(self.below[max(0, len(self.below) - under + step)])
        return _on_background(self.above[min(len(self.above) - 1, step - under)])

    def level(self, value: float, limits: Sequence[float]) -> str:
        """The shade as one character, for terminals without colours."""
        return LEVELS[_index_of_step(bisect_left(limits, value), limits, len(LEVELS))]


def palette(depth: Depth) -> Palette:
    """The default palette for a number of colours."""
    if depth is Depth.SIXTEEN:
        return Palette(depth, SEQUENTIAL_16, BELOW_16, ABOVE_16, SERIES_16, 8)
    return Palette(depth)


def _index_of_step(step: int, limits: Sequence[float], count: int) -> int:
    """The index of the one of `count` things that represents a step; the first and last represent the end steps."""
    return round(step * (count - 1) / max(1, len(limits)))


def _on_background(colour: int) -> Style:
    """A background colour, with a text colour that is readable on it."""
    dark, light = (0, 15) if colour < 16 else (16, 231)
    return Style(color=f"color({dark if _is_light(colour) else light})", bgcolor=f"color({colour})")


def _is_light(colour: int) -> bool:
    """Whether black has more contrast to the colour than white."""
    if colour < 16:  # as the terminal's scheme has them
        return colour in (2, 3, 6, 7, 9, 10, 11, 13, 14, 15)
    # Above a luminance of .179 black has the larger contrast ratio (WCAG 2).
    return luminance(colour) > 0.179


def luminance(colour: int) -> float:
    """Relative luminance of one of the colours 16 to 255, which are the same in every terminal."""
    if colour >= 232:
        levels = [8 + 10 * (colour - 232)] * 3
    else:
        levels = [_CUBE[(colour - 16) // step % 6] for step in (36, 6, 1)]
    red, green, blue = (((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in levels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue

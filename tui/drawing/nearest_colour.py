"""The nearest of 256 colours to the eye. Rich rounds red, green and blue separately: nord's dark grey becomes teal."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from rich.color import Color as RichColor
from rich.color import ColorType
from rich.color_triplet import ColorTriplet
from rich.segment import Segment
from rich.style import Style
from textual import constants
from textual.app import App
from textual.color import Color
from textual.filter import LineFilter


def use_nearest(app: App[Any]) -> None:
    """Send an app's colours as the nearest of 256, if the terminal has 256."""
    if constants.COLOR_SYSTEM == "256":
        app._filters.append(Nearest())


class Nearest(LineFilter):
    """Textual's last step before a line is written."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - the base class's
        """The segments in the nearest colours."""
        return [Segment(text, style and _style(style), control) for text, style, control in segments]


@lru_cache(4096)
def _style(style: Style) -> Style:
    return style + Style.from_color(_nearest(style.color), _nearest(style.bgcolor))


def _nearest(colour: RichColor | None) -> RichColor | None:
    if colour is None or colour.type is not ColorType.TRUECOLOR or colour.triplet is None:
        return colour
    return RichColor.from_ansi(_number(colour.triplet))


@cache
def _number(triplet: ColorTriplet) -> int:
    here = _oklab(triplet)
    return min(_table(), key=lambda n: sum((a - b) ** 2 for a, b in zip(here, _table()[n], strict=True)))


@cache
def _table() -> dict[int, tuple[float, float, float]]:
    """The colours that terminals do not let users change, which leaves out the first 16."""
    return {n: _oklab(RichColor.from_ansi(n).get_truecolor()) for n in range(16, 256)}


def _oklab(triplet: ColorTriplet) -> tuple[float, float, float]:
    """Lightness and two hue axes, in which equal distances look equal (Oklab, Ottosson 2020)."""
    r, g, b = (((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in triplet)
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    medium = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )

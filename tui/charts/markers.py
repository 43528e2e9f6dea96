"""Colours, markers and strokes that tell curves apart."""

from __future__ import annotations

from ..settings.palette import Depth, Palette
from .figure import Series, Sign, Stroke

MARKERS = ("braille", "+", "x", "o", "*", "#", "=", "%")
"""Markers that tell curves apart without colours."""


def marker_of(series: Series, palette: Palette) -> tuple[str, str]:
    """The character that a curve is drawn with, and its style."""
    is_mono = palette.depth is Depth.MONO
    if series.number is None:
        dim = "." if is_mono and series.stroke is Stroke.SOLID else "braille"
        return dim, palette.dim_style
    return MARKERS[_kind(series.number, palette) % len(MARKERS)], _colour(series.number, palette)


def _colour(number: int, palette: Palette) -> str:
    return "" if palette.depth is Depth.MONO else f"color({palette.series[number % len(palette.series)]})"


def _kind(number: int, palette: Palette) -> int:
    """The index of the marker: one for each curve without colours; with colours the next one each time they repeat."""
    return number if palette.depth is Depth.MONO else number // len(palette.series)


def sign_of(sign: Sign, palette: Palette) -> tuple[str, str]:
    """The mark before a legend's label, and its style."""
    if sign.number is None:
        dashes = {Stroke.SOLID: "\u2500\u2500", Stroke.DASHED: "\u254c\u254c", Stroke.DOTTED: "\u2508\u2508"}
        is_point = palette.depth is Depth.MONO and sign.stroke is Stroke.SOLID and not sign.is_level
        return ".." if is_point else dashes[sign.stroke], f"color({palette.dim})"
    kind = MARKERS[_kind(sign.number, palette) % len(MARKERS)]
    if kind == "braille" and palette.depth is not Depth.MONO:
        mark = {Stroke.SOLID: "\u2501\u2501", Stroke.DASHED: "\u254d\u254d", Stroke.DOTTED: "\u2509\u2509"}[sign.stroke]
    else:
        dot = "\u2812" if kind == "braille" else kind
        mark = 2 * dot if sign.stroke is Stroke.SOLID else f"{dot} {dot}"
    return mark, _colour(sign.number, palette)

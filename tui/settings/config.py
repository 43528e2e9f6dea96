"""The settings that a file and the command line may give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rankscope.engine.spectrum import THRESHOLDS

from ..data.contrast import Contrast
from ..data.reference_lines import MLA_LINES, ReferenceLine
from .palette import Depth, Palette

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Config:
    """The settings; the defaults hold without a file.

    `theme`: AUTO is Textual's default theme if there are 256 colours, else one made of the terminal's colours. `depth`:
    None for as many colours as the terminal has. `keymap`: binding id -> keys, for the changed bindings. `contrast`:
    what shades are spread over at the start. `suspend`: whether a key leaves the terminal to the shell until fg.
    `bell`: whether the terminal's bell rings at the end of a scan. `mouse`: whether the explorer gets clicks, and not
    the terminal for selecting text. `warnings`: sentences about unknown settings of the file.
    """

    theme: str = AUTO
    depth: Depth | None = None
    threshold: float = 0.9
    thresholds: tuple[float, ...] = THRESHOLDS
    lines: tuple[ReferenceLine, ...] = MLA_LINES
    keymap: Mapping[str, str] = field(default_factory=dict)
    contrast: Contrast = Contrast.FIXED
    suspend: bool = True
    bell: bool = True
    mouse: bool = False
    palette: Palette = field(default_factory=Palette)
    warnings: tuple[str, ...] = ()

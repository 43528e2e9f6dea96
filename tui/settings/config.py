"""What the settings file and the command line may say."""

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
    """The settings; the defaults hold where there is no file.

    `theme`: AUTO is Textual's own where there are 256 colours, else one of the terminal's colours. `depth`: None
    for as many colours as the terminal has. `keymap`: binding id -> keys, of the bindings that were changed.
    `contrast`: what shades are spread over, to start with.
    `suspend`: whether a key leaves the terminal to the shell until fg. `bell`: whether the terminal's bell rings when
    a scan is through. `mouse`: whether clicks come to the explorer, and not to the terminal for selecting text.
    `warnings`: sentences on what a file says that is no setting.
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

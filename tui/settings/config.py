"""What the settings file and the command line may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rankscope.engine.spectrum import THRESHOLDS

from .palette import Depth, Palette

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A rank drawn across the layers view; `role`: of which role ("query", ...), "" for no one."""

    name: str
    rank: float
    role: str = ""


MLA_LINES = (ReferenceLine("q_lora_rank", 1536, "query"), ReferenceLine("kv_lora_rank", 512))
"""The ranks that DeepSeek-V2 chose for its MLA (arXiv 2405.04434)."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings; the defaults hold where there is no file.

    `theme`: AUTO is Textual's own where there are 256 colours, else one of the terminal's colours. `depth`: None
    for as many colours as the terminal has. `keymap`: binding id -> keys, of the bindings that were changed.
    """

    theme: str = AUTO
    depth: Depth | None = None
    threshold: float = 0.9
    thresholds: tuple[float, ...] = THRESHOLDS
    lines: tuple[ReferenceLine, ...] = MLA_LINES
    keymap: Mapping[str, str] = field(default_factory=dict)
    palette: Palette = field(default_factory=Palette)

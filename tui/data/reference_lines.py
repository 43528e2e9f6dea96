"""Ranks to hold others against, drawn across the layers view."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A rank drawn across the layers view; `role`: of which role ("query", ...), "" for no one. Without that role the
    first of STANDS_FOR that is drawn has it."""

    name: str
    rank: float
    role: str = ""


KEY_VALUE = "key_value"
"""Keys and values as one matrix, of which MLA keeps one factor."""
STANDS_FOR = {KEY_VALUE: ("kv_a", "kv")}
"""Roles that are as good as another."""
MLA_LINES = (ReferenceLine("q_lora_rank", 1536, "query"), ReferenceLine("kv_lora_rank", 512, KEY_VALUE))
"""The ranks that DeepSeek-V2 chose for its MLA (arXiv 2405.04434)."""

"""Reference ranks, drawn as lines across the layers view."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A rank drawn across the layers view; `role` is the role that it belongs to ("query", ...), "" for none. If that
    role is not drawn, it belongs to the first of STANDS_FOR that is."""

    name: str
    rank: float
    role: str = ""


KEY_VALUE = "key_value"
"""Keys and values as one matrix; MLA caches the output of one of its factors."""
STANDS_FOR = {KEY_VALUE: ("kv_a", "kv")}
"""Roles that may replace another one."""
MLA_LINES = (ReferenceLine("q_lora_rank", 1536, "query"), ReferenceLine("kv_lora_rank", 512, KEY_VALUE))
"""The ranks that DeepSeek-V2 chose for its MLA (arXiv 2405.04434)."""

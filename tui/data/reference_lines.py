"""Ranks to hold others against, drawn across the layers view."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A rank drawn across the layers view; `role`: of which role ("query", ...), "" for no one."""

    name: str
    rank: float
    role: str = ""


MLA_LINES = (ReferenceLine("q_lora_rank", 1536, "query"), ReferenceLine("kv_lora_rank", 512))
"""The ranks that DeepSeek-V2 chose for its MLA (arXiv 2405.04434)."""

"""Lines of a terminal, and which part of a changed line to send."""

from __future__ import annotations

from itertools import takewhile

from textual.strip import Strip


def difference(old: Strip, new: Strip) -> tuple[int, int]:
    """Start and end of the columns in which two lines differ; the whole line if a character is wider than its
    column."""
    before, after = ([(c, s.style) for s in strip for c in s.text] for strip in (old, new))
    if not len(before) == len(after) == new.cell_length:
        return 0, new.cell_length
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=True)))
    rest = zip(before[:start:-1], after[:start:-1], strict=True)
    return start, len(after) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], rest))

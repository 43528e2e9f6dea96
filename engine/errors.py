"""The errors that a user caused and can mend."""

from __future__ import annotations


class InputError(Exception):
    """Wrong input: one sentence that says what is wrong and what to do. Exit code 2, no traceback."""


class WeightsError(Exception):
    """The weights of one projection cannot be used: one sentence. The others go on."""


def printable(text: str, limit: int = 200) -> str:
    """Untrusted text made safe for a terminal: control and invisible characters shown as escapes."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."

"""Whether the explorer was ever opened here: the first time it names keys to begin with, and the tour."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path

from rankscope.engine.atomic import write_atomically


def is_first_run() -> bool:
    """Whether there is no mark of an earlier run."""
    try:
        return not _marker().exists()
    except OSError:
        return False  # a folder that cannot be read would show the hint for ever


def mark_seen() -> None:
    """Leave the mark. Where that cannot be done the hint is shown again, and nothing else is wrong."""
    with suppress(OSError):
        _marker().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_marker(), b"")


def _marker() -> Path:
    return user_state_path("rankscope") / "seen"

"""Whether the explorer has run on this machine before: the first time it names some keys and the tour."""

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
        return False  # with an unreadable folder the hint would be shown at every start


def mark_seen() -> None:
    """Leave a mark. If that fails, the hint is shown again next time."""
    with suppress(OSError):
        _marker().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_marker(), b"")


def _marker() -> Path:
    return user_state_path("rankscope") / "seen"

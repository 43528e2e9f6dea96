"""Copying text to where the user can paste it, over SSH and inside tmux too."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from textual.app import App

_SECONDS = 1.0
"""After this many seconds tmux is taken to hang."""


def copy(app: App[Any], text: str) -> str:
    """Copy a text; return how: "by tmux", or "by OSC 52", which not every terminal obeys. Call it off the event loop.

    By default tmux drops OSC 52; its copy command passes the text to the terminal around it.
    """
    data = text.encode(errors="replace")  # a name may contain half a surrogate pair
    if os.environ.get("TMUX") and _to_tmux(data):
        return "by tmux"
    app.copy_to_clipboard(data.decode())
    return "by OSC 52"


def _to_tmux(data: bytes) -> bool:
    """Copy by tmux. Return whether it worked: -w needs tmux 3.2."""
    try:
        subprocess.run(
            ["tmux", "load-buffer", "-w", "-"],
            input=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True

"""Copying text to where the user can paste it, over SSH and inside tmux too."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from textual.app import App

_SECONDS = 1.0
"""After so long tmux is taken to hang."""


def copy(app: App[Any], text: str) -> str:
    """Copy; returns how: "by tmux", or "by OSC 52", which not every terminal obeys. To be called off the event loop.

    tmux drops OSC 52 by default; its own command hands the text to the terminal around it.
    """
    data = text.encode(errors="replace")  # a name may hold half a character
    if os.environ.get("TMUX") and _to_tmux(data):
        return "by tmux"
    app.copy_to_clipboard(data.decode())
    return "by OSC 52"


def _to_tmux(data: bytes) -> bool:
    """Whether tmux took it: -w needs tmux 3.2."""
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

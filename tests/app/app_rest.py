"""When an explorer under test is at rest: every message is answered, every change drawn."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import textual.app
import textual.pilot
from textual._context import active_app
from textual.app import App


def pilots_wait_for_rest() -> None:
    """Make all pilots of this process wait with `at_rest`: Textual's own wait would take most of the tests' time."""
    textual.app.wait_for_idle = textual.pilot.wait_for_idle = at_rest


async def at_rest(_min_sleep: float = 0, max_sleep: float = 1) -> None:
    """Wait until the event loop has nothing to run, the screen nothing to draw and the explorer's painter nothing to
    paint or to read, or until `max_sleep` seconds are over. A test waits by itself for what engines and timers bring.

    Replaces Textual's `wait_for_idle`, which sleeps until the process takes little CPU time: too short on a busy
    machine, where the process has to wait for its turn, and longer than needed on a quiet one.
    """
    loop: Any = asyncio.get_running_loop()
    app = active_app.get()
    end = time.monotonic() + max_sleep
    while True:
        await asyncio.sleep(0)
        if loop._ready:
            continue
        if time.monotonic() > end:
            return
        if _paints(app):
            await asyncio.sleep(0.001)
        elif not _draw(app):
            return


def _paints(app: App[Any]) -> bool:
    """Whether the app is an explorer whose painter thread has work."""
    explorer = getattr(app, "explorer", None)
    return explorer is not None and not explorer.painter.is_idle


def _draw(app: App[Any]) -> bool:
    """Resize and draw now, as Textual does with the next frame; return whether there was anything to do."""
    if app._resize_event is not None:
        app._check_resize()
        return True
    screen = app.screen_stack[-1] if app.screen_stack else None
    if screen is None or not screen._update_timer._active.is_set():
        return False
    screen._on_timer_update()
    return True

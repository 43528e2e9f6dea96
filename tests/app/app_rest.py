"""When an explorer under test is at rest: no message is unanswered, no change undrawn."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import textual.app
import textual.pilot
from textual._context import active_app
from textual.app import App


def pilots_wait_for_rest() -> None:
    """Have all pilots of this process wait by `at_rest`: Textual's own way is most of what these tests would take."""
    textual.app.wait_for_idle = textual.pilot.wait_for_idle = at_rest


async def at_rest(_min_sleep: float = 0, max_sleep: float = 1) -> None:
    """Until the event loop has nothing to run, the screen nothing to draw and the explorer's painter nothing to paint
    or to read, or `max_sleep` seconds are over. What engines and timers will bring, a test waits for itself.

    Stands in for Textual's `wait_for_idle`, which sleeps until the process takes little CPU time: too early on a busy
    machine, where it has to wait for its turn, and on a quiet one later than need be.
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
    """Whether the thread of an explorer, where the app is one, has work."""
    explorer = getattr(app, "explorer", None)
    return explorer is not None and not explorer.painter.is_idle


def _draw(app: App[Any]) -> bool:
    """Do now what Textual does with the next frame, resizing and drawing; whether there was anything."""
    if app._resize_event is not None:
        app._check_resize()
        return True
    screen = app.screen_stack[-1] if app.screen_stack else None
    if screen is None or not screen._update_timer._active.is_set():
        return False
    screen._on_timer_update()
    return True

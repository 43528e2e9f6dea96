"""An App that survives errors in our code: a failed key or view becomes a toast, and a traceback in the log.

Textual ends the program at the first exception in a handler, which would lose running scans and the screen's state.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, ClassVar

from textual.app import App, ReturnType
from textual.binding import BindingType
from textual.dom import DOMNode
from textual.events import Key
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.worker import WorkerFailed

from .error_log import report

MANY = 20
"""This many errors within a second are taken as a loop, and the program ends."""
SHOWN_SECONDS = 8.0
"""Seconds that a toast is shown; its sentence is not repeated meanwhile."""


class Surviving(App[ReturnType], inherit_bindings=False):
    """Errors before `is_up` end the program, which leaves `last_words` on the terminal."""

    BINDINGS: ClassVar[list[BindingType]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.is_up = False
        self.last_words = ""
        self._said: dict[str, float] = {}
        self._undrawn: set[tuple[str, str]] = set()
        self._failures: deque[float] = deque(maxlen=MANY)

    def failed(self, error: Exception, doing: str, *, of_user: bool = False) -> None:
        """Log an error and report it; end the program if nothing is on the screen yet, or if errors do not stop.

        Errors of the user's keys (`of_user`) always stop, even with a held key.
        """
        sentence = self._logged(error, doing)
        if self.is_up and (of_user or not self._is_loop()):
            self._say(sentence)
        else:
            self.last_words = self.last_words or sentence
            self._return_code = 1
            self._close_messages_no_wait()

    def _is_loop(self) -> bool:
        now = time.monotonic()
        is_loop = len(self._failures) == MANY and now - self._failures[0] < 1
        self._failures.append(now)
        return is_loop

    def _failed_handling(self, message: Message, error: Exception) -> None:
        key = message.key if isinstance(message, Key) else ""
        self.failed(error, f"the key {key}" if key else type(message).__qualname__, of_user=bool(key))

    def _failed_drawing(self, widget: Widget, error: Exception) -> None:
        """Report an error once, as its toast draws the screen again."""
        what = f"drawing the {widget.id or type(widget).__name__}"
        if (what, type(error).__name__) not in self._undrawn:
            self._undrawn.add((what, type(error).__name__))
            self._say(self._logged(error, what))

    def _logged(self, error: Exception, doing: str) -> str:
        if self._exception is None:  # a test's pilot raises it after the test
            self._exception = error
            self._exception_event.set()
        return report(error, doing)

    def _say(self, sentence: str) -> None:
        now = time.monotonic()
        if now - self._said.get(sentence, -SHOWN_SECONDS) >= SHOWN_SECONDS:
            self._said[sentence] = now
            self.notify(sentence, severity="error", markup=False, timeout=SHOWN_SECONDS)

    def _handle_exception(self, error: Exception) -> None:
        """Handle errors of timers, workers and layout, which no message has caused."""
        self.failed(error.error if isinstance(error, WorkerFailed) else error, "the explorer")  # type: ignore[arg-type]

    async def _dispatch_message(self, message: Message) -> None:
        # If an exception leaves this method, the message pump ends and its widget never reacts again.
        try:
            await super()._dispatch_message(message)
        except Exception as error:  # noqa: BLE001 - this is where errors end
            self._failed_handling(message, error)

    def _register_child(self, parent: DOMNode, child: Widget, before: int | None, after: int | None) -> None:
        self._guard(child)
        super()._register_child(parent, child, before, after)

    def _guard(self, widget: Widget) -> None:
        """Guard every widget, Textual's included. One that cannot be drawn stays empty; without this, Textual would
        draw nothing of the screen and try again sixty times a second."""
        dispatch, draw = widget._dispatch_message, widget.render_lines

        async def dispatch_guarded(message: Message) -> None:
            try:
                await dispatch(message)
            except Exception as error:  # noqa: BLE001 - this is where errors end
                self._failed_handling(message, error)

        def draw_guarded(crop: Region) -> list[Strip]:
            try:
                return draw(crop)
            except Exception as error:  # noqa: BLE001 - this is where errors end
                self._failed_drawing(widget, error)
                return [Strip.blank(crop.width)] * crop.height

        widget._dispatch_message = dispatch_guarded  # type: ignore[method-assign]
        widget.render_lines = draw_guarded  # type: ignore[method-assign]

"""The tour: a line that says what to press next, until its question is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...data.changes import Change
from ...widgets.line import Line
from ..dialogs import Reading
from .background import Background

if TYPE_CHECKING:
    from ...data.tour import Tour, TourStep


class Guide:
    """Leads through a screen. A step is done when the user has reached its goal; all keys work as usual."""

    def __init__(self, screen: Background) -> None:
        self._screen = screen
        self._tour: Tour | None = None
        self._steps: Sequence[TourStep] = ()
        self._at = 0

    def turn(self) -> None:
        """Begin the tour, or end it if it is on."""
        if self._tour is not None:
            self._end()
            self._screen.state.say("the tour is ended; :tour starts it again")
            return
        from ...data.tour import Tour  # not needed for the first screen

        self._tour = Tour.of(self._screen.state)
        if self._tour is None:
            self._screen.state.say("the tour needs a model with layers")
            return
        self._steps, self._at = self._tour.steps(self._screen.state), 0
        self._show(True)
        self.changed()

    def changed(self) -> None:
        """Go on to the first step that is not done."""
        if self._tour is None:
            return
        before = self._at
        while self._at < len(self._steps) and self._steps[self._at].is_done(self._screen.state):
            self._at += 1
        if self._at == len(self._steps):
            tour = self._tour
            self._end()
            self._screen.app.push_screen(Reading("the tour's answer", "\n".join(tour.answer(self._screen.state))))
        elif self._at != before or not self._at:
            step = self._steps[self._at]
            line = f" tour {self._at + 1}/{len(self._steps)}  {step.keys}:  {step.shows}"
            self._screen.query_one("#tour", Line).set(line)

    def _end(self) -> None:
        self._tour = None
        self._show(False)

    def _show(self, is_on: bool) -> None:
        self._screen.query_one("#tour", Line).display = is_on
        self._screen.state.changed(Change.LAYOUT)

"""What the first direction of the selected projection is: computed where it is not stored, and shown over the panes."""

from __future__ import annotations

from functools import partial

from rankscope.engine.compute.events import Event, Failed, Found, Saved
from rankscope.engine.derive.directions import directions_of
from rankscope.engine.derive.weighting import is_weighted
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from ...data.directions import Facts, facts, gains_of, lines, wanted_for
from ...data.session import Session
from ..dialogs import Reading
from ..messages import Done
from .background import Background

COMPUTING = "computing the leading directions of it and of its neighbours"


class Inspector:
    """Answers for one projection after the other; what is read of another one than is shown is thrown away."""

    def __init__(self, screen: Background) -> None:
        self._screen = screen
        self._shown: tuple[Session, Projection] | None = None
        self._open: Reading | None = None

    def open(self) -> None:
        """Show it of what is selected, and compute what it lacks."""
        state = self._screen.state
        found = [p for p in state.selected if p.count]
        if len(found) != 1:
            state.say("i is of one projection: select one")
            return
        session, projection = state.session, found[0]
        if projection.problem is not None and not is_weighted(projection):
            state.say(projection.problem)
            return
        raw = projection.parents[0]
        try:
            missing = [p for p in wanted_for(session, raw) if not session.has(p)]
            if missing and (session.model.checkpoint is not None or not session.has(directions_of(raw))):
                session.compute(missing, urgent=True)
        except InputError as error:
            state.say(str(error))
            return
        self._shown = session, projection
        self._open = Reading(printable(projection.label), COMPUTING if missing else "reading")
        self._screen.app.push_screen(self._open, self._closed)
        self._read()

    def take(self, session: Session, events: tuple[Event, ...]) -> None:
        """Read again where directions were computed, or could not be."""
        if self._shown is None or self._shown[0] is not session or self._open is None:
            return
        own = directions_of(self._shown[1].parents[0]).key
        for event in events:
            if isinstance(event, Failed) and event.projection.key == own:
                self._open.write([printable(event.reason, 1000)])
            elif (isinstance(event, Saved) and event.spectrum.projection.is_directions) or isinstance(event, Found):
                self._read()

    def _read(self) -> None:
        if self._shown is not None:
            self._screen.in_background(partial(self._load, *self._shown), "reading directions")

    def _load(self, session: Session, projection: Projection) -> None:
        """For a thread."""
        found = facts(session, projection, gains_of(session.raw))
        if found is not None:
            self._screen.post_message(Done(partial(self._write, projection, found)))

    def _write(self, projection: Projection, found: Facts) -> None:
        if self._open is not None and self._shown is not None and self._shown[1] is projection:
            self._open.write(list(lines(found))[1:])

    def _closed(self, _: None) -> None:
        self._shown = self._open = None

"""The first direction of the selected projection: computed if it is not stored, and shown over the panes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rankscope.engine.compute.events import AlreadyStored, Event, Failed, Saved
from rankscope.engine.derive.derived import AS_FACTORS
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import DIRECTIONS, Projection

from ...data.pair import Side
from ...data.session import Session
from ..dialogs import Reading
from ..messages import BackgroundDone
from .background import Background

if TYPE_CHECKING:
    from ...data.direction_facts import DirectionContext, Facts  # numpy, not imported for the first screen

READING = "reading what is stored"
TOKENS = "the tokens at its ends:  rankscope inspect MODEL ADDRESS --tokens"
COMPUTING = "computing the leading directions of it and of its neighbours"


def _is_own(projection: Projection, key: str) -> bool:
    """Whether these are the directions of the matrix with this key as it is, not in the fixed gauge."""
    made = projection.derived
    return made is not None and made.formula == DIRECTIONS and made.parents[0].key == key


class Inspector:
    """Shows the direction of one projection at a time; results for another one are dropped."""

    def __init__(self, screen: Background) -> None:
        self._screen = screen
        self._shown: tuple[Session, Projection] | None = None
        self._open: Reading | None = None
        self._context: DirectionContext | None = None

    def open(self) -> None:
        """Show the direction of the selected projection, and compute what it needs."""
        state = self._screen.state
        found = [p for p in state.selected if p.count]
        if len(found) != 1:
            state.say("i shows one projection: select one")
            return
        if state.session.model.against:
            state.say("i shows a projection of one model: d leaves the delta")
            return
        if found[0].derived is not None and found[0].derived.is_further:
            several = "i shows one projection, and this is made of several"
            state.say(f"i cannot show {found[0].address}: {AS_FACTORS}" if found[0].is_product else several)
            return
        side, session, projection = self._source_of(found[0])
        raw = projection.parents[0]
        if raw.problem is not None:
            state.say(raw.problem)
            return
        self._shown, self._context = (session, projection), None
        self._open = Reading(f"{printable(raw.address)}{side}", READING)
        self._screen.app.push_screen(self._open, self._closed)
        self._screen.in_background(partial(self._prepare, session, projection), "reading directions")

    def _source_of(self, projection: Projection) -> tuple[str, Session, Projection]:
        """Where the projection's numbers come from, for two models or a ratio: an addition to the title, the session,
        and the projection there. For a ratio it is the first model that has the projection."""
        pair, side = self._screen.state.pair, self._screen.state.lens.side
        name, session, there = pair.curves(projection, side)[0]
        of = f" of {name}: {printable(session.model.name)}" if name else ""
        is_other = side is Side.RATIO and len(pair.curves(projection, side)) > 1
        return f"{of}; d shows B" if is_other else of, session, there

    def _prepare(self, session: Session, projection: Projection) -> None:
        """Find what has to be computed. For a thread, as it fetches the gains of norms for a model on the Hub."""
        from ...data.direction_facts import context_of, wanted_for

        context = context_of(session.raw)
        wanted = wanted_for(session, projection.parents[0], context)
        self._screen.post_message(BackgroundDone(partial(self._compute, session, projection, context, wanted)))

    def _compute(
        self, session: Session, projection: Projection, context: DirectionContext | None, wanted: list[Projection]
    ) -> None:
        missing = [p for p in wanted if not session.has(p)]
        if self._open is None or self._shown != (session, projection):
            return
        self._context = context
        if missing and (session.model.checkpoint is not None or not session.has(wanted[0])):
            try:
                session.compute(missing, urgent=True)
            except InputError as error:
                self._open.write([printable(str(error), 1000)])
                return
            if not session.has(wanted[0]):
                self._open.write([COMPUTING])
        self._read()

    def take(self, session: Session, events: tuple[Event, ...]) -> None:
        """Read again after directions were computed, or have failed."""
        if self._shown is None or self._shown[0] is not session or self._open is None:
            return
        own = self._shown[1].parents[0].key
        for event in events:
            if isinstance(event, Failed) and _is_own(event.projection, own):
                self._open.write([printable(event.reason, 1000)])
            elif isinstance(event, Saved | AlreadyStored):
                self._read()

    def _read(self) -> None:
        if self._shown is not None:
            self._screen.in_background(partial(self._load, *self._shown, self._context), "reading directions")

    def _load(self, session: Session, projection: Projection, context: DirectionContext | None) -> None:
        """Read the facts about the direction. For a thread."""
        from ...data.direction_facts import facts

        found = facts(session, projection, context)
        if found is not None:
            self._screen.post_message(BackgroundDone(partial(self._write, projection, found)))

    def _write(self, projection: Projection, found: Facts) -> None:
        if self._open is not None and self._shown is not None and self._shown[1] is projection:
            from rankscope.engine.derive.directions import READS, WRITES

            from ...data.direction_words import lines

            hint = [] if found.projection.role not in READS + WRITES else ["", TOKENS]
            self._open.write([*list(lines(found))[1:], *hint])

    def _closed(self, _: None) -> None:
        self._shown = self._open = self._context = None

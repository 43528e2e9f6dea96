"""Computing what is not stored: the selection at once, or after a question all that the filter shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from rankscope.engine.derive.difference import compares_with_noise
from rankscope.engine.derive.weighting import can_be_made, is_noise
from rankscope.engine.errors import InputError
from rankscope.engine.spectrum import Projection

from ...data.filter import find
from ...data.pair import Side
from ...data.session import Session, State
from ...data.state import ExplorerState
from ...data.wording import duration, left_out, solved_again
from ..estimate import estimate

Missing: TypeAlias = dict[Session, list[Projection]]
Ask: TypeAlias = Callable[[list[str], Callable[[], None]], None]


class Scanner:
    """Gives the engines work. With two models the second waits until the first is done, as they may share a device.

    `ask` shows a question of some lines, and calls its second argument if the answer is yes; `clock` returns seconds.
    """

    def __init__(self, state: ExplorerState, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._ask = ask
        self._clock = clock
        self._waiting: Missing = {}
        self._scanned: Missing = {}
        self._began = 0.0
        self._after: Callable[[], None] | None = None

    def missing(self, projections: Iterable[Projection], side: Side) -> Missing:
        """Those of these projections that are not stored, on a side of the pair."""
        return self._missing((s, q) for p in projections for _, s, q in self._state.pair.curves(p, side))

    def compute(self, missing: Missing) -> None:
        """Compute these before anything that waits."""
        if missing:
            self._forget_notes()
            (session, projections), *rest = missing.items()
            self._wait(dict(rest))
            self._start(session, projections, urgent=True)

    def scan(self) -> None:
        """Ask, then compute all that the filter shows, in both models if there are two."""
        state = self._state
        wanted = [(state.session, p) for p in state.session.sampled(state.shown)]
        if second := state.pair.second:
            tree = second.model.tree
            theirs = find(tree.projections, state.pattern) if state.pattern else tree.scanned()
            wanted += [(second, p) for p in second.sampled(theirs)]
        every = self._missing(wanted)
        missing = {session: new for session, found in every.items() if (new := self._not_coming(session, found))}
        if every and not missing:
            state.say("all that is missing is queued already; x stops")
            return
        if not (missing or state.shown):
            state.say("enter computes matrices made of several others; a scan does not")
            return
        if not missing:
            rest = "" if state.pattern else left_out(state.session.model.tree)
            whole = f"everything is computed; {rest}: filter * adds them" if rest else "everything is computed"
            state.say("everything that the filter shows is computed" if state.pattern else whole)
            return
        lines = [line for session, found in missing.items() for line in estimate(session, found, state.pattern)]
        self._ask(lines, lambda: self._begin(missing))

    def scan_first(self, missing: Missing, after: Callable[[], None]) -> None:
        """Compute these, then call `after`, unless computing is stopped or cannot begin."""
        self._after = after
        self._begin(missing)
        if not self._scanned:  # no engine has taken them
            self._after = None

    def stop(self) -> None:
        """Stop after the running batch."""
        state = self._state
        self._after = None
        if not state.is_busy:
            state.say("nothing is being computed")
            return
        state.is_stopping = True
        self._waiting = {}
        self._scanned = {}
        for session in state.pair.opened:
            session.stop()
        state.say("stopping after the running projection; ctrl+c quits")

    def ended(self) -> bool:
        """React when nothing is queued or running any more: start the second model, or end. Return whether a scan is
        complete."""
        state = self._state
        if state.is_stopping:
            state.is_stopping = False
            state.note = "stopped; what is finished is saved"
            return False
        self._go_on()
        if self._scanned and not state.is_busy:
            state.note = self._summary()
            self._scanned = {}
            after, self._after = self._after, None
            if after is not None:
                after()
            return True
        return False

    def _summary(self) -> str:
        """The result of a scan: `210 computed in 14 s, 0 failed, saved`; and what was solved again."""
        every = [(session, p) for session, found in self._scanned.items() for p in found if not is_noise(p)]
        stored = sum(session.has(p) for session, p in every)
        failed = sum(p.key in session.failures for session, p in every)
        saved = ", saved" if stored else ""
        again = [session.progress.again for session in self._scanned if session.progress is not None]
        seconds = self._clock() - self._began - sum(a.seconds for a in again)
        second = "".join(f"; {solved_again(a)}" for a in again if a.found)
        return f"{stored} computed in {duration(seconds)}, {failed} failed{saved}{second}"

    def _not_coming(self, session: Session, projections: list[Projection]) -> list[Projection]:
        """Those of them that are neither running nor queued."""
        waiting = {p.key for p in self._waiting.get(session, ())}
        under_way = (State.QUEUED, State.RUNNING)
        return [p for p in projections if session.state(p) not in under_way and p.key not in waiting]

    def _missing(self, wanted: Iterable[tuple[Session, Projection]]) -> Missing:
        """Those of these that are not stored, each once, with the other spectra that their numbers need."""
        missing: dict[Session, dict[str, Projection]] = {}
        for session, p in wanted:
            for q in self._needed(session, p):
                if q.problem is None and not session.has(q) and can_be_made(q):
                    missing.setdefault(session, {})[q.key] = q
        return {session: list(found.values()) for session, found in missing.items()}

    def _needed(self, session: Session, p: Projection) -> Iterator[Projection]:
        """The projections whose spectra a projection's numbers need: itself, its noise under a weighting, and what the
        unit compares with."""
        yield p
        if not p.rows or p.problem is not None:
            return
        if compares_with_noise(p):
            yield session.null_ranks.noise(p)
        if (other := self._state.lens.measure.beside(p)) is not None:
            yield other

    def _begin(self, missing: Missing) -> None:
        """Compute all of these, one model after the other."""
        self._forget_notes()
        if not self._scanned:
            self._began = self._clock()
        for session, projections in missing.items():
            self._scanned[session] = [*self._scanned.get(session, ()), *projections]
        self._wait(missing)
        for session in self._state.pair.opened:
            if session.progress is not None and session.progress.busy and session in self._waiting:
                self._start(session, self._waiting.pop(session), urgent=False)
        self._go_on()

    def _forget_notes(self) -> None:
        self._state.is_stopping = False
        self._state.note = ""

    def _wait(self, missing: Missing) -> None:
        """Let these wait until the model that is being computed is done."""
        for session, projections in missing.items():
            self._waiting[session] = [*self._waiting.get(session, ()), *projections]

    def _go_on(self) -> None:
        """Start the next model, if none is being computed."""
        while self._waiting and not self._state.is_busy:
            session = next(iter(self._waiting))
            self._start(session, self._waiting.pop(session), urgent=False)

    def _start(self, session: Session, projections: list[Projection], urgent: bool) -> None:
        """Give projections to an engine."""
        state = self._state
        try:
            accepted = session.compute(projections, urgent=urgent)
        except InputError as error:
            accepted = []
            state.say(str(error))
        if not accepted:
            self._scanned.pop(session, None)
            return
        state.is_starting = not state.is_busy
        state.numbers_changed(state.known_as(session, {p.key for p in accepted}))

"""Computing what is not stored: the selection at once, or all that the filter leaves after a question."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from rankscope.engine.derive.flip import flipped
from rankscope.engine.errors import InputError
from rankscope.engine.spectrum import Projection

from ...data.filter import find
from ...data.pair import Side
from ...data.session import Session
from ...data.state import ExplorerState
from ...data.wording import left_out
from ..status_lines import estimate

Missing: TypeAlias = dict[Session, list[Projection]]
Ask: TypeAlias = Callable[[list[str], Callable[[], None]], None]


class Scanner:
    """Asks the engines. Of two models the second waits until the first is done: they may share a device.

    `ask` puts a question of some lines to the user, and calls what it is given where the answer is yes.
    """

    def __init__(self, state: ExplorerState, ask: Ask) -> None:
        self._state = state
        self._ask = ask
        self._waiting: Missing = {}

    def missing(self, projections: Iterable[Projection], side: Side) -> Missing:
        """What of these is not stored, on a side of the pair."""
        return self._missing((s, q) for p in projections for _, s, q in self._state.pair.curves(p, side))

    def compute(self, missing: Missing) -> None:
        """Compute these before whatever waits."""
        if missing:
            self._submit(missing, urgent=True)

    def scan(self) -> None:
        """Ask, then compute all that the filter leaves, in both models where there are two."""
        state = self._state
        wanted = [(state.session, p) for p in state.session.sampled(state.shown)]
        if second := state.pair.second:
            tree = second.model.tree
            theirs = find(tree.projections, state.pattern) if state.pattern else tree.scanned()
            wanted += [(second, p) for p in second.sampled(theirs)]
        missing = self._missing(wanted)
        if not missing:
            rest = "" if state.pattern else left_out(state.session.model.tree)
            whole = f"everything is computed; {rest}: the filter * takes them" if rest else "everything is computed"
            state.say("everything that the filter leaves is computed" if state.pattern else whole)
            return
        lines = [line for session, found in missing.items() for line in estimate(session, found, state.pattern)]
        self._ask(lines, lambda: self._submit(missing, urgent=False))

    def stop(self) -> None:
        """Stop after the running batch."""
        state = self._state
        if not state.is_busy:
            state.say("nothing is being computed")
            return
        state.is_stopping = True
        self._waiting = {}
        for session in state.pair.sessions:
            session.stop()
        state.say("stopping after the running projection; ctrl+c quits")

    def ended(self) -> None:
        """Nothing is queued or running any more: the second model's turn, or the end."""
        if self._waiting and not self._state.is_stopping:
            self._next(urgent=False)
        elif self._state.is_stopping:
            self._state.is_stopping = False
            self._state.note = "stopped; what is finished is saved"

    def _missing(self, wanted: Iterable[tuple[Session, Projection]]) -> Missing:
        """What of these is not stored, with random signs too where the unit needs them."""
        with_twins = self._state.lens.measure.needs_twin
        missing: Missing = {}
        for session, p in wanted:
            needed = [p, flipped(p)] if with_twins and p.rows else [p]
            found = [q for q in needed if q.problem is None and session.entry(q) is None]
            if found:
                missing.setdefault(session, []).extend(found)
        return missing

    def _submit(self, missing: Missing, urgent: bool) -> None:
        """Submit to one engine; what the other model lacks waits for its turn."""
        self._waiting = dict(missing)
        self._state.is_stopping = False
        self._state.note = ""
        self._next(urgent)

    def _next(self, urgent: bool) -> None:
        state = self._state
        session, projections = next(iter(self._waiting.items()))
        del self._waiting[session]
        try:
            accepted = session.compute(projections, urgent=urgent)
        except InputError as error:
            state.say(str(error))
            return
        state.is_starting = bool(accepted) and not state.is_busy
        state.numbers_changed(state.known_as(session, {p.key for p in accepted}))

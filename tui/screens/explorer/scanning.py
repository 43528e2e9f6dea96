"""Computing what is not stored: the selection at once, or all that the filter leaves after a question."""

from __future__ import annotations

from collections.abc import Iterable

from rankscope.engine.derive.flip import flipped
from rankscope.engine.errors import InputError
from rankscope.engine.spectrum import Projection

from ...data.filter import find
from ...data.grid import Selection
from ...data.pair import Side
from ...data.session import Session
from ..dialogs import Confirm
from ..status_lines import estimate
from .layout import COMPARE, HEATMAP, TABLE, TREE
from .selection import Choosing

Missing = dict[Session, list[Projection]]


class Computing(Choosing):
    """Asks the engines. Of two models the second waits until the first is done: they may share a device."""

    _waiting: Missing

    def on_mount(self) -> None:
        super().on_mount()
        self._waiting = {}

    def action_compute(self) -> None:
        """Compute the selection, before whatever waits; open what is computed."""
        if self._opens():
            return
        found = self.selection.projections(self.grid)
        wanted = self.session.sampled(found)
        missing = self._missing((s, q) for p in wanted for _, s, q in self.pair.curves(p, self._wanted_side()))
        refused = next((p.problem for p in found if p.problem), None)
        if missing and self.selection == Selection():
            self.action_scan()  # the whole model: not without a question
        elif missing:
            self._compute(missing, urgent=True)
        elif refused and all(p.problem for p in found):
            self.say(refused)
        elif self._pane == COMPARE and self.marks:
            self._compute_marks()
        elif self._pane in (TREE, HEATMAP, TABLE):
            self.action_pane(self.view)

    def _opens(self) -> bool:
        """Whether enter opened something: experts in the heatmap, a node of the tree that computes nothing."""
        if self._pane == HEATMAP and self.heatmap.unfold():
            self._arrange()
            return True
        node = self.tree_pane.cursor_node
        if self._pane != TREE or node is None or not node.allow_expand:
            return False
        is_group = node.data is None or node.data.selection is None
        found = self.selection.projections(self.grid)
        if is_group or all(self.session.entry(p) is not None or p.problem for p in found):
            self.tree_pane.action_toggle_node()
            return True
        return False

    def _compute_marks(self) -> None:
        missing = self._missing((s, q) for p in self.marks.values() for _, s, q in self.pair.curves(p, Side.RATIO))
        if missing:
            self._compute(missing, urgent=True)

    def _wanted_side(self) -> Side:
        return self.lens.side if self.pair.second is not None else Side.A

    def _missing(self, wanted: Iterable[tuple[Session, Projection]]) -> Missing:
        """What of these is not stored, with random signs too where the unit needs them."""
        missing: Missing = {}
        for session, p in wanted:
            needed = [p, flipped(p)] if self.lens.measure.name == "k/kf" and p.rows else [p]
            found = [q for q in needed if q.problem is None and session.entry(q) is None]
            if found:
                missing.setdefault(session, []).extend(found)
        return missing

    def action_scan(self) -> None:
        """Ask, then compute all that the filter leaves, in both models where there are two."""
        wanted = [(self.session, p) for p in self.session.sampled(self.shown)]
        if second := self.pair.second:
            tree = second.model.tree
            theirs = find(tree.projections, self.pattern) if self.pattern else tree.scanned()
            wanted += [(second, p) for p in second.sampled(theirs)]
        missing = self._missing(wanted)
        if not missing:
            self.say("everything that the filter leaves is computed" if self.pattern else "everything is computed")
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._compute(missing, urgent=False)

        lines = [line for session, found in missing.items() for line in estimate(session, found, self.pattern)]
        self.app.push_screen(Confirm("scan", lines), answered)

    def _compute(self, missing: Missing, urgent: bool) -> None:
        """Submit to one engine; what the other model lacks waits for its turn."""
        self._waiting = dict(missing)
        self.is_stopping = False
        self.note = ""
        self._next(urgent)

    def _next(self, urgent: bool) -> None:
        session, projections = next(iter(self._waiting.items()))
        del self._waiting[session]
        try:
            accepted = session.compute(projections, urgent=urgent)
        except InputError as error:
            self.say(str(error))
            return
        self._starting = bool(accepted) and not self.is_busy
        self._changed(self._known_as(session, {p.key for p in accepted}))

    def _ended(self) -> None:
        if self._waiting and not self.is_stopping:
            self._next(urgent=False)
        else:
            super()._ended()

    def action_stop(self) -> None:
        """Stop after the running batch."""
        if not self.is_busy:
            self.say("nothing is being computed")
            return
        self.is_stopping = True
        self._waiting = {}
        for session in self.pair.sessions:
            session.stop()
        self.say("stopping after the running projection; ctrl+c quits")

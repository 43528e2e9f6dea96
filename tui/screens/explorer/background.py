"""What threads bring: the stores' contents, numbers worked out from values, the engines' events, a second model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from textual import on

from rankscope.engine.errors import InputError
from rankscope.engine.spectrum import Projection

from ...data.grid import Selection
from ...data.session import Session
from ...data.table_rows import fields_of, load
from .. import error_log as log
from ..messages import BackgroundFailed, Done, EngineEvents, NumbersLoaded, StoreLoaded
from .charting import Charting
from .layout import COMPARE, LAYERS, TABLE

if TYPE_CHECKING:
    from rankscope.engine.compute.events import Event

_CHUNK = 512
"""Spectra whose numbers are worked out between two charts."""


class Loading(Charting):
    """Everything that is read or computed off the event loop comes in here."""

    def _in_background(self, work: Callable[[], None], doing: str = "reading the store") -> None:
        """Slow work in the painter's thread; what goes wrong there is said here."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the explorer goes on without the store
                self.post_message(BackgroundFailed(error, doing))

        self.painter.run(guarded)

    @on(Done)
    def _done(self, message: Done) -> None:
        message.then()

    @on(BackgroundFailed)
    def _background_failed(self, message: BackgroundFailed) -> None:
        if isinstance(message.error, InputError):
            self.say(str(message.error))
        else:
            self.say("")
            text = log.report(message.error, message.doing)
            self.notify(text, title="rankscope", severity="error", markup=False)

    # The store

    def _load_store(self) -> None:
        """What is stored, and numbers that the store's table does not keep."""
        try:
            for session in self.pair.sessions:
                session.load()
            self.lens.load(self.session.model.tree.projections)
        finally:
            self.post_message(StoreLoaded())
        for session in self.pair.sessions:
            session.tidy()

    @on(StoreLoaded)
    def _store_loaded(self) -> None:
        self.loaded = True
        self._changed()
        for path, reason in (found for s in self.pair.sessions for found in s.store.damaged[:1]):
            self.notify(f"{path.name}: {reason}", title="the store", severity="warning", markup=False)

    def _load_numbers(self, keys: set[str] | None = None) -> None:
        """The numbers on screen (of these keys, None: of all), a chunk at a time: charts come in between."""
        if self.top == COMPARE:
            self._in_background(self._load_marks)
        wanted = [p for p in self.shown if (keys is None or p.key in keys) and self._is_stored(p)]
        for start in range(0, len(wanted), _CHUNK):
            self._in_background(partial(self._load_chunk, wanted[start : start + _CHUNK]))

    def _is_stored(self, p: Projection) -> bool:
        """Whether there is a spectrum of it, in either model: of 45,000 experts there are often few."""
        second, partner = self.pair.second, self.pair.partner(p)
        there = second is not None and partner is not None and second.entry(partner) is not None
        return there or self.session.entry(p) is not None

    def _load_chunk(self, projections: list[Projection]) -> None:
        self.lens.load(projections)
        if self.top == TABLE:
            load(fields_of(self.lens, with_twins=True), projections)
        self.post_message(NumbersLoaded({p.key for p in projections}))

    def _load_marks(self) -> None:
        self.compare.load()
        self.post_message(NumbersLoaded(set(self.marks)))

    @on(NumbersLoaded)
    def _numbers_loaded(self, message: NumbersLoaded) -> None:
        self._changed(message.keys)

    # The engines

    @on(EngineEvents)
    def _engine_events(self, message: EngineEvents) -> None:
        from rankscope.engine.compute.events import Started

        changed = set(message.session.apply(message.events))
        self._starting = False
        for event in message.events:
            if isinstance(event, Started):
                self._solving = message.session, event.projection
        if not self.is_busy:
            self._ended()
        self._notices(message.events)
        if changed:
            changed = self._known_as(message.session, changed)
            self._changed(changed)
            if self._needs_values:
                self._load_numbers(changed)
        self._status()

    @property
    def _needs_values(self) -> bool:
        """Whether numbers on the screen have to be worked out from values."""
        from rankscope.engine.spectrum import THRESHOLDS

        measure = self.lens.measure
        return self.threshold not in THRESHOLDS or measure.from_values or self.top in (TABLE, COMPARE)

    def _known_as(self, session: Session, keys: set[str]) -> set[str]:
        """The keys, in the first model, of what changed in a session; a twin changes its projection."""
        found = self._twins(session, keys)
        if session is self.session:
            return found
        partners = ((p, self.pair.partner(p)) for p in self.shown)
        return {p.key for p, q in partners if q is not None and q.key in found} | found

    def _twins(self, session: Session, keys: set[str]) -> set[str]:
        if self.lens.measure.name != "k/kf":
            return keys
        from rankscope.engine.derive.flip import flipped

        return keys | {p.key for p in session.model.tree.projections if p.rows and flipped(p).key in keys}

    def _ended(self) -> None:
        """Nothing is queued or running any more."""
        if self.is_stopping:
            self.is_stopping = False
            self.note = "stopped; what is finished is saved"

    def _notices(self, events: tuple[Event, ...]) -> None:
        from rankscope.engine.compute.events import Notice

        for event in events:
            if isinstance(event, Notice):
                self.notify(event.text, severity="error" if event.fatal else "information", markup=False)

    def _changed(self, keys: set[str] | None = None) -> None:
        """States or numbers changed (of these keys, None: of any): draw what shows them."""
        self.look.forget(keys)
        self.heatmap.update_cells()
        if self.look.limits != self._shown_limits:  # shades are spread over what there is, and there is more now
            self._titles()
        self.tree_pane.update_marks()
        self.table.update(keys)
        self.compare.update()
        self._show_model()
        shown = [*self.selection.projections(self.grid), *self.marks.values()]
        if keys is None or self.view == LAYERS or any(p.key in keys for p in shown):
            self._version += 1
            self._want_chart()
        self._status()

    def _select_first(self) -> None:
        """Begin with the attention of the first layer, once the tree has its lines."""
        if self.grid.rows:
            self._select(Selection(self.grid.rows[0], block=self.grid.columns[0].block))
        elif self.others:
            self._select(Selection(single=self.others[0]))

    def _select(self, selection: Selection) -> None:
        """Every pane shows another selection; the tree, where it has not the focus, once the cursor has rested."""
        if self._pane == 0:
            self.tree_pane.follow(selection)
        self.origin = None
        self._show(selection)

    def _show(self, selection: Selection) -> None:
        """Every pane but the tree, where the user may be moving."""
        self.selection = selection
        self.note = ""
        self.heatmap.show_selection(selection)
        self.table.show_selection(selection)
        self._want_chart()
        self._status()

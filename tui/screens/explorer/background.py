"""What threads bring to the explorer: stored spectra, numbers computed from values, events of the engines."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from textual import on
from textual.message import Message

from rankscope.engine.errors import InputError, printable

from ...data.changes import Change
from ...data.pair import Pair
from ...data.session import Session
from ...data.views import BY_KEY
from ...settings import keys
from ...settings.config import Config
from .. import error_log
from ..dialogs import Confirm
from ..messages import (
    BackgroundDone,
    BackgroundFailed,
    EngineEvents,
    NumbersLoaded,
    SpectraLost,
    StoreChanged,
    StoreLoaded,
)
from .charting import Charting
from .heading import Header
from .loading import Loader
from .scanning import Scanner

if TYPE_CHECKING:
    from rankscope.engine.compute.events import Event
    from rankscope.store.spectra import Entry

LOOK_SECONDS = 3.0
"""Seconds between two looks at what other processes have stored; without changes a look only reads a folder's time."""
_MANY = 10_000
"""With more stored spectra than this, a garbage collection during a key press is noticeable: 0.3 s for 45,000. So
objects that were read are excluded from it."""
_VERIFIED = 128
"""Spectra that are checked for damage between two charts: about 7 MB."""


class Background(Charting):
    """Reads and computes off the event loop, and shows the results."""

    def __init__(self, pair: Pair, config: Config) -> None:
        super().__init__(pair, config)
        self.scanner = Scanner(self.state, self._ask_scan)
        self.header = Header(self, self.in_background)
        self.loader = Loader(self.state, self.in_background, self.post_message)
        for session in pair.sessions:
            self.hear_losses(session)

    def post_message(self, message: Message) -> bool:
        """See Textual; from any thread. False also if the explorer has ended since the thread began to post."""
        try:
            return super().post_message(message)
        except RuntimeError:  # the event loop is closed
            if self.is_running:
                raise
            return False

    def hear_losses(self, session: Session) -> None:
        """Be notified of a session's spectra that turn out to be damaged."""

        def lost(keys: set[str]) -> None:
            self.post_message(SpectraLost(session, keys))

        session.when_lost = lost

    def in_background(self, work: Callable[[], None], doing: str = "reading the store") -> None:
        """Run slow work in the painter's thread, and report its errors here."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the explorer goes on without the store
                self.post_message(BackgroundFailed(error, doing))

        self.painter.run(guarded)

    @on(BackgroundDone)
    def _done(self, message: BackgroundDone) -> None:
        message.then()

    @on(BackgroundFailed)
    def _background_failed(self, message: BackgroundFailed) -> None:
        if isinstance(message.error, InputError):
            self.refuse(message.error)
        else:
            self.state.say("")
            text = error_log.report(message.error, message.doing)
            self.notify(text, title="rankscope", severity="error", markup=False)

    def refuse(self, error: InputError) -> None:
        """Say in the last line why something is not done, and in a toast where the line would be cut off."""
        self.state.say(str(error))
        if len(self.state.note) >= self.size.width:
            self.notify(printable(str(error), 500), severity="warning", markup=False)

    def _ask_scan(self, lines: list[str], go: Callable[[], None]) -> None:
        self.ask("scan", "scan", lines, go)

    def ask(self, title: str, ident: str, lines: list[str], go: Callable[[], None]) -> None:
        """Ask a question that belongs to the key of the binding `ident`; call `go` if the answer is yes."""
        keymap = self.config.keymap
        again = keys.keys_of(keys.EXPLORER, ident, keymap)
        self.app.push_screen(Confirm(title, lines, again, keymap), lambda yes: go() if yes else None)

    # The store

    def load_store(self) -> None:
        """Load the stores' indexes, and numbers that the store's table does not keep. For a thread."""
        try:
            for session in self.pair.sessions:
                session.load()
            if self.state.lens.unread():
                self.state.lens.load(self.pair.first.model.every)
        finally:
            self.post_message(StoreLoaded())
        self.state.lens.look_up()
        if sum(len(session.stored_keys) for session in self.pair.sessions) > _MANY:
            gc.freeze()
        for session in self.pair.sessions:
            session.tidy()

    @on(StoreLoaded)
    def _store_loaded(self) -> None:
        self.state.loaded = True
        self.state.numbers_changed()
        if BY_KEY[self.state.top].from_values:  # it was shown before anything was loaded
            self.state.changed(Change.WANTED)
        for session in self.pair.sessions:
            self._say_damage(session)
            self.verify(session)
        self.in_background(self._warm, "making a GPU ready")

    def _warm(self) -> None:
        """Start the process of a GPU before its first work, if there is anything to compute."""
        for session in self.pair.sessions:
            session.warm(session.sampled(session.model.tree.scanned()))

    def verify(self, session: Session) -> None:
        """Check everything that is stored, a part between two charts, so that damage is reported before it matters."""
        keys = session.stored_keys
        self._verify_next(session, iter([keys[i : i + _VERIFIED] for i in range(0, len(keys), _VERIFIED)]))

    def _verify_next(self, session: Session, rest: Iterator[list[str]]) -> None:
        def verify() -> None:
            session.verify(chunk)
            self.post_message(BackgroundDone(partial(self._verify_next, session, rest)))

        if chunk := next(rest, []):
            self.in_background(verify)

    @on(SpectraLost)
    def _spectra_lost(self, message: SpectraLost) -> None:
        self.state.numbers_changed(self.state.known_as(message.session, message.keys))
        self._say_damage(message.session)

    def _say_damage(self, session: Session) -> None:
        """Report damage in the last line until the next move, and for some seconds as a toast with the whole
        sentence."""
        for path, reason in session.damage():
            self.state.say(f"{path.name}: {reason}")
            self.notify(f"{path.name}: {reason}", title="the store", severity="warning", markup=False)

    def look_at_store(self) -> None:
        """Look at what other processes have stored, off the event loop; not while the thread is busy."""
        if self.state.loaded and self.painter.is_idle:
            self.in_background(self._look_at_store)

    def _look_at_store(self) -> None:
        for session in self.pair.sessions:
            if found := session.look():
                self.post_message(StoreChanged(session, found))

    def catch_up(self) -> None:
        """Look now, before missing spectra are listed. The last look was seconds ago, so there is little to read."""
        if self.state.loaded:
            for session in self.pair.sessions:
                self._take(session, session.look())

    @on(StoreChanged)
    def _store_changed(self, message: StoreChanged) -> None:
        self._take(message.session, message.found)

    def _take(self, session: Session, found: Mapping[str, Entry | None]) -> None:
        if changed := session.take(found):
            self._changed_in(session, changed)

    def _changed_in(self, session: Session, keys: set[str]) -> None:
        """Show changed states or spectra of a session."""
        changed = self.state.known_as(session, keys)
        self.state.numbers_changed(changed)
        self.state.changed(Change.WANTED, changed)

    def load_numbers(self, keys: set[str] | None = None) -> None:
        """Load the numbers on screen with these content keys, or for None all."""
        self.loader.load(self.tops[self.state.top], keys)

    @on(NumbersLoaded)
    def _numbers_loaded(self, message: NumbersLoaded) -> None:
        if message.of_lens:
            self.state.numbers_changed(message.keys)
        else:
            self.state.changed(Change.LOADED, message.keys)

    # The engines

    @on(EngineEvents)
    def _engine_events(self, message: EngineEvents) -> None:
        from rankscope.engine.compute.events import Failed, Started

        state = self.state
        changed = set(message.session.apply(message.events))
        state.is_starting = False
        for event in message.events:
            if isinstance(event, Started):
                state.solving = message.session, event.projection
            elif isinstance(event, Failed) and not state.note and event.projection not in state.selected:
                state.note = printable(f"{event.projection.label}: {event.reason}")
        if not state.is_busy and self.scanner.ended() and self.config.bell:
            self.app.bell()
        self._notices(message.events)
        if changed:
            self._changed_in(message.session, changed)
        state.changed(Change.LINES)

    def _notices(self, events: tuple[Event, ...]) -> None:
        from rankscope.engine.compute.events import Notice

        for event in events:
            if isinstance(event, Notice):
                self.notify(event.text, severity="error" if event.fatal else "information", markup=False)

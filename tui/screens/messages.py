"""Messages that threads post to the event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from textual.message import Message

from rankscope.engine.compute.events import Event

from ..charts.request import Painting
from ..data.session import Session

if TYPE_CHECKING:
    from rankscope.store.spectra import Entry


class EngineEvents(Message):
    """A batch of events of one session's engine."""

    def __init__(self, session: Session, events: tuple[Event, ...]) -> None:
        super().__init__()
        self.session = session
        self.events = events


class StoreLoaded(Message):
    """The stores' indexes, and ranks at the current threshold, are in memory."""


class StoreChanged(Message):
    """What other processes have stored or removed of a session's model, by key."""

    def __init__(self, session: Session, found: Mapping[str, Entry | None]) -> None:
        super().__init__()
        self.session = session
        self.found = found


class SpectraLost(Message):
    """Stored spectra of one session turned out to be damaged, by their keys: they count as not computed."""

    def __init__(self, session: Session, keys: set[str]) -> None:
        super().__init__()
        self.session = session
        self.keys = keys


class NumbersLoaded(Message):
    """Numbers with these keys that the store's table does not keep are in memory: the lens's (`of_lens`), which every
    pane shows, or others that only the view above the chart shows."""

    def __init__(self, keys: set[str], of_lens: bool) -> None:
        super().__init__()
        self.keys = keys
        self.of_lens = of_lens


class BackgroundDone(Message):
    """Slow work has ended: `then` is called on the event loop."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.then = then


class BackgroundFailed(Message):
    """Slow work has failed; `doing` names it."""

    def __init__(self, error: Exception, doing: str) -> None:
        super().__init__()
        self.error = error
        self.doing = doing


class ChartReady(Message):
    """A chart was drawn."""

    def __init__(self, painting: Painting) -> None:
        super().__init__()
        self.painting = painting

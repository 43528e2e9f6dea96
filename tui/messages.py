"""What threads post to the event loop."""

from __future__ import annotations

from textual.message import Message

from rankscope.engine.events import Event

from .painter import Painting


class EngineEvents(Message):
    """A batch of the engine's events."""

    def __init__(self, events: tuple[Event, ...]) -> None:
        super().__init__()
        self.events = events


class StoreLoaded(Message):
    """The store's index, and ranks at the current threshold, are in memory."""


class RanksLoaded(Message):
    """Ranks at a threshold that the store does not keep are in memory (of these keys, None: of all)."""

    def __init__(self, keys: set[str] | None) -> None:
        super().__init__()
        self.keys = keys


class BackgroundFailed(Message):
    """Reading the store went wrong."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class ChartReady(Message):
    """A chart was drawn."""

    def __init__(self, painting: Painting) -> None:
        super().__init__()
        self.painting = painting

"""The explorer as a Textual application."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from rankscope.store.spectra import SpectraStore

from . import keys
from .messages import EngineEvents
from .screens.explorer import Explorer
from .session import Model, Session

CLOSE_SECONDS = 0.6
"""How long quitting waits for the running projection before it is left."""


class RankScopeApp(App[bool]):
    """One open model. `run` returns True where a thread is still inside a matrix."""

    TITLE = "rankscope"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = keys.APP

    def __init__(self, model: Model, store: SpectraStore, device: str, threads: int | None, threshold: float) -> None:
        super().__init__()
        from rankscope.engine.engine import Settings

        self.session = Session(model, store, self._listen, Settings(device, threads))
        self._threshold = threshold
        self._interrupted = False

    def on_mount(self) -> None:
        self.explorer = Explorer(self.session, self._threshold)
        self.push_screen(self.explorer)

    def _listen(self, events: tuple[object, ...]) -> None:
        """From a thread of the engine."""
        self.explorer.post_message(EngineEvents(events))  # type: ignore[arg-type]

    def action_interrupt(self) -> None:
        """ctrl+c: stop; with nothing to stop, or a second time, quit."""
        progress = self.session.progress
        if self._interrupted or progress is None or not progress.busy:
            self.exit(False)
            return
        self._interrupted = True
        self.session.engine.stop()
        self.explorer.say("stopping after the running projection; ctrl+c again quits")

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Every action of the explorer, and Textual's own."""
        yield from super().get_system_commands(screen)
        for binding in keys.EXPLORER:
            if isinstance(binding, Binding):
                help_text = f"{binding.tooltip} ({keys.shown_keys(binding)})"
                yield SystemCommand(binding.description, help_text, partial(self._run_binding, binding))

    def _run_binding(self, binding: Binding) -> None:
        self.call_later(self.explorer.run_action, binding.action)

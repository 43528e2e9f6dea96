"""The explorer as a Textual application."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.screen import Screen

from . import keys
from .messages import EngineEvents
from .screens.explorer import Explorer
from .session import Model, Session


class RankScopeApp(App[None], inherit_bindings=False):
    """One open model."""

    TITLE = "rankscope"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = keys.APP

    def __init__(self, model: Model, root: Path, device: str, threads: int | None, threshold: float) -> None:
        super().__init__()
        from rankscope.engine.engine import Settings

        self.session = Session(model, root, self._listen, Settings(device, threads))
        self._threshold = threshold

    def on_mount(self) -> None:
        self.explorer = Explorer(self.session, self._threshold)
        self.push_screen(self.explorer)

    def _listen(self, events: tuple[object, ...]) -> None:
        """From a thread of the engine."""
        self.explorer.post_message(EngineEvents(events))  # type: ignore[arg-type]

    def action_interrupt(self) -> None:
        """ctrl+c: stop; with nothing to stop, or while it is stopping already, quit."""
        if self.explorer.is_stopping or not self.explorer.is_busy:
            self.exit()
        else:
            self.explorer.action_stop()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Every key of the explorer and of the pane that has the focus, and those of Textual's that are not ours."""
        for command in super().get_system_commands(screen):
            if command.title not in ("Quit", "Keys"):
                yield command
        pane = self.explorer.focused_pane
        for prefix, owner, bindings in (
            ("", self.explorer, keys.EXPLORER),
            (f"{pane.id}: ", pane, keys.PANES[pane.id or "tree"]),
            ("", self, keys.APP),
        ):
            for binding in bindings:
                if isinstance(binding, Binding):
                    help_text = f"{binding.tooltip} ({keys.shown_keys(binding)})"
                    run = partial(self._run_binding, binding, owner)
                    yield SystemCommand(prefix + binding.description, help_text, run)

    def _run_binding(self, binding: Binding, owner: DOMNode) -> None:
        self.call_later(self.run_action, binding.action, owner)

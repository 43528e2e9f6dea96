"""The explorer as a Textual application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.screen import Screen

from ..data.chosen_weighting import Offer
from ..data.model import Model
from ..data.pair import Pair
from ..data.session import Session
from ..data.stacks import with_stacks
from ..drawing.nearest_colour import use_nearest
from ..settings import keys
from ..settings.config import Config
from .explorer.screen import Explorer
from .guard import Surviving
from .memory import Memory
from .messages import EngineEvents
from .terminal_driver import TerminalDriver, draw_after_fg, use_plain

if TYPE_CHECKING:
    from rankscope.engine.compute.engine import ComputeSettings
    from rankscope.engine.compute.events import Event


_PATIENCE = 1.0
"""The most seconds that a key waits for those before it."""


class RankScopeApp(Surviving[None], inherit_bindings=False):
    """Explores one open model, or two compared with each other."""

    TITLE = "rankscope"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = keys.APP

    def __init__(
        self,
        models: Sequence[Model],
        root: Path,
        settings: ComputeSettings,
        config: Config,
        experts: int | None = None,
        under: tuple[Offer, Sequence[Model]] | None = None,
        memory: Memory | None = None,
        *,
        by_depth: bool = True,
    ) -> None:
        """`under`: the weighting under which the models are shown at first, and the models in that state. `memory`:
        keeps how the first model is looked at; None keeps nothing. `by_depth`: how two models are matched, see Pair."""
        super().__init__(driver_class=TerminalDriver)
        use_nearest(self)
        use_plain(self)
        self._config = config
        self.pair = Pair(*(self._session(model, root, settings, experts) for model in models), by_depth=by_depth)
        if under is not None:
            for session, shown in zip(self.pair.sessions, under[1], strict=True):
                session.show(shown)
        self.explorer = Explorer(self.pair, config, None if under is None else under[0], memory)

    def _session(self, model: Model, root: Path, settings: ComputeSettings, experts: int | None) -> Session:
        def listen(events: tuple[Event, ...]) -> None:
            """Called from a thread of the engine."""
            self.explorer.post_message(EngineEvents(session, events))

        session = Session(model if model.parts else with_stacks(model, root), root, listen, settings, experts)
        return session

    async def on_mount(self) -> None:
        draw_after_fg(self)
        self.app_suspend_signal.subscribe(self, lambda _: self._pause(True), immediate=True)  # before the process stops
        self.app_resume_signal.subscribe(self, lambda _: self._pause(False))
        self.set_keymap(self._config.keymap)
        await self.push_screen(self.explorer)
        self.is_up = True

    async def on_key(self) -> None:
        """Before a key acts, wait until the selection has followed the keys before it. Keys that come in one piece, as
        over a slow line, acted on an earlier selection: `jjJ` went one layer on, and `j enter` computed the wrong one.
        """
        followed = asyncio.Event()
        self._pass_on(self.focused or self.screen, followed)
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await followed.wait()

    def _pass_on(self, node: DOMNode | None, followed: asyncio.Event) -> None:
        """Set the event once a node, and then those around it, have handled what they were sent so far: messages about
        moves take the same way."""
        if node is None or node is self or not node.call_later(self._pass_on, node.parent, followed):
            followed.set()

    def _pause(self, is_paused: bool) -> None:
        """Pause and resume worker processes together with the explorer (ctrl+z and fg)."""
        for session in self.pair.opened:
            session.pause(is_paused)

    def close(self, timeout: float) -> bool:
        """Save what is finished within `timeout` seconds; True if no thread is left running."""
        self.explorer.rememberer.keep()
        self.explorer.painter.close()
        deadline = time.monotonic() + timeout
        for session in self.pair.opened:
            session.stop()
        ended = [session.close(max(0.0, deadline - time.monotonic())) for session in self.pair.opened]
        return all(ended) & self.explorer.planning.close(max(0.0, deadline - time.monotonic()))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key works: the settings may forbid one."""
        if action == "suspend_process" and not self._config.suspend:
            return False
        return super().check_action(action, parameters)

    def action_interrupt(self) -> None:
        """ctrl+c: stop computing; if nothing runs, or it is stopping already, quit."""
        if self.explorer.state.is_stopping or not self.explorer.state.is_busy:
            self.exit()
        else:
            self.explorer.scanner.stop()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The keys of the explorer and of the focused pane, and Textual's commands that we do not replace."""
        for command in super().get_system_commands(screen):
            if command.title not in ("Quit", "Keys"):
                yield command
        yield SystemCommand("tour", "Two minutes, a step a line, to an answer (:tour)", self.explorer.guide.turn)
        pane, rows = self.explorer.focused_pane, self.explorer.state.grid.rows_are
        for prefix, owner, bindings in (
            ("", self.explorer, keys.EXPLORER),
            ("", self.explorer, keys.PLAN if self.explorer.state.shows_plan else []),
            (f"{pane.id}: ", pane, keys.pane_table(pane.id or "")),
            ("", self, keys.at_any_time(self._config.suspend)),
        ):
            for binding in keys.worded(bindings, rows):
                help_text = f"{binding.tooltip} ({keys.shown_keys(binding, self._config.keymap)})"
                run = partial(self._run_binding, binding, owner)
                yield SystemCommand(prefix + binding.description, help_text, run)

    def _run_binding(self, binding: Binding, owner: DOMNode) -> None:
        self.call_later(self.run_action, binding.action, owner)

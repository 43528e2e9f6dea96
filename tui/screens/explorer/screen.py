"""The explorer as a whole: its beginning, its command line, and a second model that joins."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual import on

from rankscope.engine.errors import InputError

from ...data.pair import Side
from ...data.session import Session, open_model
from ...widgets.prompt import Prompt
from ..command_line import parse_command
from ..first_run import is_first_run, mark_seen
from ..messages import Done, EngineEvents
from .exporting import Taking

if TYPE_CHECKING:
    from rankscope.engine.compute.events import Event

FIRST_KEYS = "five keys to begin with:  s scan   3 heatmap   / filter   u unit   ? help"


class Explorer(Taking):
    """Shows one or two models and does what the keys ask."""

    def on_mount(self) -> None:
        super().on_mount()
        self.call_after_refresh(self._select_first)
        # The tree stands before numpy and h5py are imported (0.25 s) to fill the heatmap.
        self.call_after_refresh(self._in_background, self._load_store)
        self.call_after_refresh(self._greet)

    def _greet(self) -> None:
        if is_first_run():
            self.say(FIRST_KEYS)
            mark_seen()

    # The command line

    def action_filter(self) -> None:
        """Ask for a filter."""
        self.query_one(Prompt).ask("/", self.pattern, "filter: key, layers.3, *.mlp.*, 3dwn; empty shows all")

    def action_command(self) -> None:
        """Ask for a command."""
        self.query_one(Prompt).ask(":", "", "12 goes to layer 12; t 97; k 512; unit k/k0; mark GLOB; against MODEL")

    @on(Prompt.Answered)
    async def _prompt_answered(self, answer: Prompt.Answered) -> None:
        self.set_focus(self.focused_pane)
        self._status()
        if answer.text is None:
            return
        if answer.kind == "/":
            self.set_filter(answer.text.strip())
            return
        try:
            command, argument = parse_command(answer.text)
            await self._run_command(command, argument)
        except InputError as error:
            self.say(str(error))

    async def _run_command(self, command: str, argument: str) -> None:
        match command:
            case "layer":
                self.go_to_layer(int(argument))
            case "threshold":
                self.set_threshold(float(argument))
            case "k":
                if self._has_ranks():
                    self.set_rank(int(argument))
            case "unit":
                self.set_unit(argument)
            case "filter":
                self.set_filter(argument)
            case "mark":
                self.mark_matching(argument)
            case "line":
                self.add_line(argument)
            case "export":
                self.export_to(argument)
            case "against":
                self.hold_against(argument)
            case _:
                await self.run_action(command)

    # A second model

    def hold_against(self, name: str) -> None:
        """Open a second model in the background, and hold it against the first."""
        self.say(f"opening {name}")
        self._in_background(partial(self._open_second, name), f"opening {name}")

    def _open_second(self, name: str) -> None:
        model = open_model(name, self.session.root)

        def listen(events: tuple[Event, ...]) -> None:
            self.post_message(EngineEvents(session, events))

        session = Session(model, self.session.root, listen, self.session.settings, self.session.experts)
        session.load()
        self.post_message(Done(partial(self._opened_second, session)))

    def _opened_second(self, session: Session) -> None:
        if self.pair.second is not None:
            self.pair.second.close(0)
        self.pair.hold(session)
        self.lens.side = Side.RATIO
        ours, theirs = self.pair.unmatched()
        self._show_grid()
        self._lens_changed()
        self.say(
            f"B is {session.model.name}: {len(ours)} addresses only in A, {len(theirs)} only in B; d shows A, B, B/A"
        )

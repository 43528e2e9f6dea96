"""The explorer as a whole: its start, its command line, and a second model that joins."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual import on

from rankscope.engine.errors import InputError

from ...data.changes import Change, Keys
from ...data.chosen_weighting import Offer
from ...data.contrast import Contrast
from ...data.depths import words_of
from ...data.model import open_model
from ...data.pair import Pair, Side
from ...data.session import Session
from ...data.stacks import with_stacks
from ...data.state import ONE_MODEL
from ...data.views import View
from ...settings.config import Config
from ...settings.values import kept_ranks, reference_line
from ...widgets.prompt import Prompt
from ..first_run import is_first_run, mark_seen
from ..memory import Commands, Memory
from ..messages import BackgroundDone, EngineEvents
from .asking import Asking
from .background import LOOK_SECONDS
from .exporting import Exporter
from .inspecting import Inspector
from .planning import Planning
from .remembering import Rememberer
from .repaint import repaint
from .selection import SelectionKeys
from .touring import Guide
from .weighing import Weigher

if TYPE_CHECKING:
    from rankscope.engine.compute.events import Event

FIRST_KEYS = "to begin with:  s scan  3 heatmap  b outlier  / filter  u unit  ? help  :tour"


class Explorer(SelectionKeys):
    """Shows one or two models and does what the keys say."""

    def __init__(self, pair: Pair, config: Config, given: Offer | None = None, memory: Memory | None = None) -> None:
        """`given`: the weighting under which the sessions show their models at first. `memory`: see RankScopeApp."""
        super().__init__(pair, config)
        self.guide = Guide(self)
        self.asking = Asking(self, Commands(kept=memory is not None))
        self.exporter = Exporter(self)
        self.weigher = Weigher(self, given)
        self.inspector = Inspector(self)
        self.planning = Planning(self, self.weigher)
        self.rememberer = Rememberer(self, self.weigher, memory)
        self.state.listen = self._state_changed

    def on_mount(self) -> None:
        super().on_mount()
        self.call_after_refresh(self.rememberer.restore)  # when the tree has lines to go to
        # The tree is shown before numpy and h5py are imported (0.25 s) to fill the heatmap.
        self.call_after_refresh(self.in_background, self.load_store)
        self.call_after_refresh(self._greet)
        self.set_interval(LOOK_SECONDS, self.look_at_store)
        self.app.theme_changed_signal.subscribe(self, lambda _: self.want_chart())  # for its colours

    def _state_changed(self, what: Change, keys: Keys) -> None:
        repaint(self, what, keys)
        self.rememberer.changed(what)
        self.guide.changed()

    def _greet(self) -> None:
        if self.pair.depths:
            self.state.say(words_of(self.pair.depths))
            return
        if is_first_run():
            self.state.say(self.state.note or FIRST_KEYS)
            mark_seen()

    def action_export(self) -> None:
        """Offer the kinds of file."""
        self.exporter.choose()

    def action_weight(self) -> None:
        """Offer the weightings."""
        self.weigher.choose()

    def action_inspect(self) -> None:
        """Show the first direction of the selected projection."""
        self.inspector.open()

    @on(EngineEvents)
    def _directions_computed(self, message: EngineEvents) -> None:
        self.inspector.take(message.session, message.events)

    def action_side(self) -> None:
        """Switch between A, B, B/A and the differences."""
        state = self.state
        if self.weigher.wants_delta or (self.pair.second is not None and state.lens.side is Side.RATIO):
            self.weigher.turn_delta()
        else:
            state.next_side()

    def action_pane(self, key: int) -> None:
        """Go to the view of a key; for the view of differences, show these."""
        super().action_pane(key)
        if key != View.DELTA or self.weigher.wants_delta:
            return
        if self.pair.other is None:
            self.state.say(ONE_MODEL)
        else:
            self.weigher.turn_delta()

    def action_gauge(self) -> None:
        """Show the fixed gauge, or again the weights as they are."""
        self.weigher.turn_gauge()

    def action_cut(self, steps: int) -> None:
        """Let the plan that is shown cut this many per cent more."""
        self.planning.step(steps)

    def action_yank(self) -> None:
        """Copy the number, or the line, under the cursor of the focused pane."""
        self.exporter.yank()

    def action_quit(self) -> None:
        """Quit, after a question if something is being computed."""
        if not self.state.is_busy or self.state.is_stopping:
            self.app.exit()
            return
        found = [session.progress for session in self.pair.opened if session.progress and session.progress.busy]
        done, total = sum(p.done for p in found), sum(p.total for p in found)
        lines = [f"{done} of {total} are computed and saved." if found else "The computation is starting."]
        lines.append("Quit now? What is saved stays; s goes on with the rest another time.")
        self.ask("quit", "quit", lines, self.app.exit)

    # The command line

    def action_filter(self) -> None:
        """Open the line for a filter."""
        self.asking.filter()

    def action_command(self) -> None:
        """Open the line for a command."""
        self.asking.command()

    @on(Prompt.Typed)
    def _prompt_typed(self, typed: Prompt.Typed) -> None:
        self.asking.typed(typed.kind, typed.text)

    @on(Prompt.Answered)
    async def _prompt_answered(self, answer: Prompt.Answered) -> None:
        from ..command_line import parse_command  # not needed for the first screen

        self.set_focus(self.focused_pane)
        self.state.changed(Change.LINES)
        text = self.asking.answered(answer.kind, answer.text)
        if not text:
            return
        try:
            command, argument = parse_command(text, self.state.grid.rows_are)
            await self._run_command(command, argument)
        except InputError as error:
            self.refuse(error)

    async def _run_command(self, command: str, argument: str) -> None:
        state = self.state
        match command:
            case "layer":
                state.go_to_layer(int(argument))
            case "threshold":
                state.set_threshold(float(argument))
            case "k":
                self.set_ranks(kept_ranks(argument))
            case "unit":
                state.set_unit(argument)
            case "contrast":
                state.set_contrast(Contrast(argument))
            case "filter":
                state.set_filter(argument)
            case "mark":
                state.mark_matching(argument)
            case "line":
                state.add_line(reference_line(argument))
            case "export":
                self.exporter.write(argument)
            case "weight":
                self.weigher.use_named(argument)
            case "plan":
                if state.session.model.parts:
                    raise InputError("a plan is for one model: open it alone")
                self.planning.make(argument)
            case "plan-save":
                self.planning.save(argument)
            case "offset":
                self.header.set_offset(int(argument))
            case "tour":
                self.guide.turn()
            case "against":
                self.hold_against(argument)
            case _:
                await self.run_action(command)

    # A second model

    def hold_against(self, name: str) -> None:
        """Open a second model in the background, and compare the first with it."""
        self.state.say(f"opening {name}")
        self.in_background(partial(self._open_second, name), f"opening {name}")

    def _open_second(self, name: str) -> None:
        first = self.pair.first
        model = with_stacks(open_model(name, first.root), first.root)
        shown = self.weigher.weighed(model)

        def listen(events: tuple[Event, ...]) -> None:
            self.post_message(EngineEvents(session, events))

        session = Session(model, first.root, listen, first.settings, first.experts)
        session.show(shown)
        session.load()
        self.hear_losses(session)
        self.post_message(BackgroundDone(partial(self._opened_second, session)))

    def _opened_second(self, session: Session) -> None:
        if (before := self.pair.other) is not None:
            before.close(0)
        self.pair.hold(session)
        self.state.lens.side = Side.RATIO
        if self.weigher.wants_delta:
            self.weigher.turn_delta()
        elif session.shown_as != self.pair.first.shown_as or session.weighting != self.pair.first.weighting:
            self.weigher.use_again()  # the weighting was changed meanwhile
        ours, theirs = self.pair.unmatched()
        differ = f": {len(ours)} addresses only in A, {len(theirs)} only in B"
        counted = "" if self.pair.first.model.against else differ
        self.state.changed(Change.ROWS)
        self.state.lens_changed()
        self.verify(session)
        depths = f"; {words_of(self.pair.depths)}" if self.pair.depths else ""
        self.state.say(f"B is {session.model.name}{counted}; d shows A, B, B/A, delta{depths}")

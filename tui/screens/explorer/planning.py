"""Plans: made off the event loop, moved a per cent at a time, and written to a file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.errors import InputError, printable
from rankscope.engine.plan.plan_file import write_plan
from rankscope.engine.spectrum import Projection

from ...data.plan_shown import Plannable, PlanWish, ShownPlan
from ...data.views import View
from ...settings.values import plan_wish
from ..estimate import estimate
from ..messages import BackgroundFailed, Done
from .background import Background
from .weighing import Weigher

if TYPE_CHECKING:
    from rankscope.engine.moment import Weighting

STEP = 0.01


class Planning:
    """Plans of the first model under the weighting that is shown. What comes late, of a plan that another has overtaken
    or under a weighting that is no longer shown, is thrown away.

    The work has a thread of its own: of 46,000 spectra the first plan takes a while, and charts are drawn meanwhile.
    """

    def __init__(self, screen: Background, weigher: Weigher) -> None:
        self._screen = screen
        self._state = screen.state
        self._weigher = weigher
        self._turn = 0
        self._plannable: Plannable | None = None
        """Of the plan that is shown."""
        self._cut = 0.0
        """What the keys have asked for last."""
        self._moves = False
        self._running = 0

    @property
    def is_running(self) -> bool:
        """Whether a thread of it runs."""
        return self._running > 0

    def make(self, text: str) -> None:
        """Make the plan that a user asks for, of what the filter leaves; compute what it lacks after a question."""
        wish, state = plan_wish(text, self._state.pattern), self._state
        if state.session.gauge:
            state.say("a plan is of the matrices as they are stored: v leaves the fixed gauge")
            return
        self._turn += 1
        state.say("planning")
        self._work(partial(self._prepare, wish, self._turn))

    def step(self, steps: int) -> None:
        """Cut so many per cent more; the map follows."""
        state = self._state
        if not state.shows_plan:
            return
        cut = round(self._cut + steps * STEP, 12)
        if not 0 < cut < 1:
            state.say("a cut lies above 0 and below 100 %")
            return
        self._cut = cut
        self._follow()

    def save(self, name: str) -> None:
        """Write the plan that is shown to a new file."""
        state, path = self._state, Path(name).expanduser()
        if state.plan is None:
            state.say("there is no plan yet: :plan 20% makes one")
        elif path.suffix != ".json":
            state.say(f"{name!r} would be a plan: name it FILE.json")
        elif path.exists():
            state.say(f"{path} is there already: name another file")
        else:
            self._work(partial(self._write, path, state.plan))

    # In the thread

    def _work(self, work: Callable[[], None]) -> None:
        """Do it in a thread; what goes wrong there is said on the screen."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the explorer goes on without a plan
                self._screen.post_message(BackgroundFailed(error, "planning"))
            finally:
                self._running -= 1

        self._running += 1
        threading.Thread(target=guarded, name="rankscope-plan", daemon=True).start()

    def _weigh(self, tell: Callable[[str], None]) -> Weighting | None:
        session = self._state.session
        return self._weigher.shown.weighting(session.raw, session.root, tell)

    def _prepare(self, wish: PlanWish, turn: int) -> None:
        plannable = Plannable(self._state.session, wish, self._weigh)
        self._screen.post_message(Done(partial(self._ask, plannable, plannable.missing, turn)))

    def _plan(self, plannable: Plannable, turn: int, *, goes_there: bool) -> None:
        plan = plannable.plan(plannable.wish.cut)
        self._screen.post_message(Done(partial(self._show_first, plannable, plan, turn, goes_there)))

    def _move(self, plannable: Plannable, cut: float) -> None:
        try:
            plan: ShownPlan | InputError = plannable.plan(cut)
        except InputError as error:
            plan = error
        self._screen.post_message(Done(partial(self._moved, plannable, plan)))

    def _write(self, path: Path, plan: ShownPlan) -> None:
        try:
            write_plan(path, plan.planned.plan)
        except OSError as error:
            raise InputError(f"cannot write {printable(str(path))}: {error.strerror or error}") from None
        self._screen.post_message(Done(partial(self._state.say, f"written: {path.absolute()}")))

    # Back on the event loop

    def _ask(self, plannable: Plannable, missing: list[Projection], turn: int) -> None:
        """Compute what is missing first, where the weights are at hand and the user says so."""
        session, state = plannable.session, self._state
        if turn != self._turn or session is not state.session:
            return
        for note in plannable.notes:
            self._screen.notify(note, title="plan", severity="warning", markup=False)
        if not missing or session.raw.checkpoint is None:
            self._work(partial(self._plan, plannable, turn, goes_there=True))
            return
        state.say("")
        lines = [*estimate(session, missing, plannable.wish.pattern), "A plan needs these spectra."]
        after = partial(self._work, partial(self._plan, plannable, turn, goes_there=False))
        scan = partial(self._screen.scanner.scan_first, {session: missing}, after)
        self._screen.ask("plan", "scan", lines, scan)

    def _show_first(self, plannable: Plannable, plan: ShownPlan, turn: int, goes_there: bool) -> None:
        """The plan that was asked for; after a scan nobody is taken away from where they are."""
        state = self._state
        if turn != self._turn or plannable.session is not state.session:
            return
        self._plannable, self._cut = plannable, plan.wish.cut
        state.show_plan(plan)
        if goes_there:
            state.say("")
            state.show(View.PLAN)
        elif state.top != View.PLAN:
            state.say("the plan is made: 9 shows it")

    def _follow(self) -> None:
        """Plan for the cut that was asked for last, as soon as the plan before is shown."""
        if not self._moves and self._plannable is not None:
            self._moves = True
            self._work(partial(self._move, self._plannable, self._cut))

    def _moved(self, plannable: Plannable, plan: ShownPlan | InputError) -> None:
        self._moves = False
        state = self._state
        if plannable is not self._plannable or state.plan is None:
            return
        if isinstance(plan, InputError):
            self._cut = state.plan.wish.cut
            state.say(str(plan))
            return
        state.note = ""
        state.show_plan(plan)
        if self._cut != plan.wish.cut:
            self._follow()

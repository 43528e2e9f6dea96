"""Plans: made off the event loop, changed by one per cent at a time, and written to a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rankscope.engine.errors import InputError, cannot_write
from rankscope.engine.spectrum import Projection

from ...data.model import Model
from ...data.plan_shown import Plannable, PlanWish, ShownPlan
from ...data.session import Session
from ...data.views import View
from ...settings.plan_words import plan_wish
from ..estimate import estimate
from ..messages import BackgroundDone, BackgroundFailed
from .background import Background
from .weighing import Weigher

STEP = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class _PlanRequest:
    """A plan that the user wants, with the session and the state of the model at that time."""

    wish: PlanWish
    session: Session
    model: Model


class Planning:
    """Makes plans of the first model under the weighting that is shown. A result is dropped if the user wants another
    plan or sees another weighting by then.

    The work has separate threads: the first plan of 46,000 spectra takes a while, and charts are drawn meanwhile.
    """

    def __init__(self, screen: Background, weigher: Weigher) -> None:
        self._screen = screen
        self._state = screen.state
        self._weigher = weigher
        self._latest: _PlanRequest | None = None
        self._plannable: Plannable | None = None
        """What the plan that is shown was made from."""
        self._cut = 0.0
        """The last cut chosen by keys."""
        self._is_moving = False
        self._threads: list[threading.Thread] = []

    def close(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for running work; True if no thread is left running."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def make(self, text: str) -> None:
        """Make the plan that the user describes, of what the filter shows; offer to compute what it needs."""
        wish, state = plan_wish(text, self._state.pattern), self._state
        if state.session.model.against:
            state.say("a plan is for one model: d leaves the delta")
            return
        if state.session.gauge:
            state.say("a plan is for the matrices as they are stored: v leaves the fixed gauge")
            return
        self._screen.catch_up()
        self._latest = _PlanRequest(wish, state.session, state.session.model)
        state.say("planning")
        self._work(partial(self._prepare, self._latest))

    def step(self, steps: int) -> None:
        """Cut this many per cent more; the map follows."""
        state = self._state
        if not state.shows_plan:
            return
        cut = round(self._cut + steps * STEP, 12)
        if not 0 < cut < 1:
            state.say("a cut must be above 0 and below 100 %")
            return
        self._cut = cut
        self._follow()

    def save(self, name: str) -> None:
        """Write the plan that is shown to a new file."""
        state, path = self._state, Path(name).expanduser()
        if state.plan is None:
            state.say("there is no plan yet: :plan 20% makes one")
        elif path.suffix != ".json":
            state.say(f"{name!r} does not end in .json: name the plan FILE.json")
        elif path.exists():
            state.say(f"{path} exists already: name another file")
        else:
            self._work(partial(self._write, path, state.plan))

    # In the thread

    def _work(self, work: Callable[[], None]) -> None:
        """Run work in a thread, and show its errors on the screen."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the explorer goes on without a plan
                self._screen.post_message(BackgroundFailed(error, "planning"))

        thread = threading.Thread(target=guarded, name="rankscope-plan", daemon=True)
        self._threads = [*(t for t in self._threads if t.is_alive()), thread]
        thread.start()

    def _prepare(self, request: _PlanRequest) -> None:
        session, offer = request.session, self._weigher.shown
        plannable = Plannable(session, request.wish, partial(offer.weighting, session.raw, session.root))
        self._screen.post_message(BackgroundDone(partial(self._ask, request, plannable, plannable.missing)))

    def _plan(self, request: _PlanRequest, plannable: Plannable, *, goes_there: bool) -> None:
        plan = plannable.plan(request.wish.cut)
        self._screen.post_message(
            BackgroundDone(partial(self._show_first, request, plannable, plan, goes_there=goes_there))
        )

    def _move(self, plannable: Plannable, cut: float) -> None:
        try:
            plan: ShownPlan | InputError = plannable.plan(cut)
        except InputError as error:
            plan = error
        self._screen.post_message(BackgroundDone(partial(self._moved, plannable, plan)))

    def _write(self, path: Path, plan: ShownPlan) -> None:
        from rankscope.engine.plan.plan_file import write_plan  # not needed for the first screen

        try:
            write_plan(path, plan.planned.plan)
        except OSError as error:
            raise cannot_write(path, error) from None
        self._screen.post_message(BackgroundDone(partial(self._state.say, f"written: {path.absolute()}")))

    # Back on the event loop

    def _is_wanted(self, request: _PlanRequest) -> bool:
        """Whether this is still the latest plan the user wants, and the same weighting is shown."""
        return request is self._latest and request.model is self._state.session.model

    def _ask(self, request: _PlanRequest, plannable: Plannable, missing: list[Projection]) -> None:
        """Offer to compute what is missing, if the weights are at hand; otherwise plan now."""
        session, state = request.session, self._state
        if not self._is_wanted(request):
            return
        for note in plannable.notes:
            self._screen.notify(note, title="plan", severity="warning", markup=False)
        if not missing or session.raw.checkpoint is None:
            self._work(partial(self._plan, request, plannable, goes_there=True))
            return
        state.say("")
        lines = [*estimate(session, missing, request.wish.pattern), "A plan needs these spectra."]
        after = partial(self._work, partial(self._plan, request, plannable, goes_there=False))
        scan = partial(self._screen.scanner.scan_first, {session: missing}, after)
        self._screen.ask("plan", "scan", lines, scan)

    def _show_first(self, request: _PlanRequest, plannable: Plannable, plan: ShownPlan, *, goes_there: bool) -> None:
        """Show the new plan; switch to its view only if no scan came before, in which the user may have gone
        elsewhere."""
        state = self._state
        if not self._is_wanted(request):
            return
        self._plannable, self._cut, self._is_moving = plannable, plan.wish.cut, False
        state.show_plan(plan)
        if goes_there:
            state.say("")
            state.show(View.PLAN)
        elif state.top != View.PLAN:
            state.say("the plan is made: 9 shows it")

    def _follow(self) -> None:
        """Plan for the latest cut, as soon as the plan before is shown."""
        if not self._is_moving and self._plannable is not None:
            self._is_moving = True
            self._work(partial(self._move, self._plannable, self._cut))

    def _moved(self, plannable: Plannable, plan: ShownPlan | InputError) -> None:
        self._is_moving = False
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

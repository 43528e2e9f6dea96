"""The weighting, gauge or differences that are shown: chosen, prepared in the background, and exchanged."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rankscope.engine.errors import InputError, printable

from ...data.chosen_weighting import NONE, Offer, offers
from ...data.deltas import deltas_shown, with_deltas
from ...data.model import Model
from ...data.pair import Side
from ...data.session import Session
from ..dialogs import Choice
from ..messages import BackgroundDone
from .background import Background

if TYPE_CHECKING:
    from ...data.deltas import WithoutDifference

EXCHANGE_SECONDS = 1.0
"""Seconds that the drawing thread waits for the event loop, which may be about to quit."""
LONGEST = 32
"""Characters of a file's name in the menu; of a longer name the end is shown."""


@dataclass(frozen=True, slots=True)
class _Made:
    """What each session shows for an offer, made while the sessions `opened` were open. `apart` are the tensors without
    a difference, None if no differences are shown."""

    models: Mapping[Session, Model]
    opened: Sequence[Session]
    apart: Sequence[WithoutDifference] | None = None


class Weigher:
    """Shows the models of a screen under a weighting or in the fixed gauge, or the differences of two in place of the
    first. `given` is shown at first."""

    def __init__(self, screen: Background, given: Offer | None = None) -> None:
        self._screen = screen
        self._state = screen.state
        self._shown = given or Offer(NONE, "")
        self._wanted = self._shown
        self._files: dict[str, str] = {}  # files that the user has named, and their labels
        self._know(self._shown)

    @property
    def shown(self) -> Offer:
        """What is shown now."""
        return self._shown

    def choose(self) -> None:
        """Offer the weightings, and show the chosen one."""
        found = offers(self._state.session, self._files)
        rows = [(_end_of(printable(offer.text, 1000)), printable(offer.about)) for offer in found]

        def chosen(number: int | None) -> None:
            if number is not None:
                self.use(replace(found[number], fixed=self._wanted.fixed, delta=self._wanted.delta))

        at = next((n for n, offer in enumerate(found) if self._is_shown(offer)), 0)
        self._screen.app.push_screen(Choice("weighting", rows, at), chosen)

    def use_named(self, text: str) -> None:
        """Show the weighting that the user names."""
        self.use(Offer(text, "", fixed=self._wanted.fixed, delta=self._wanted.delta))

    def turn_gauge(self) -> None:
        """Show the fixed gauge, or again the weights as they are, under the same weighting."""
        self.use(replace(self._wanted, fixed=not self._wanted.fixed))

    @property
    def wants_delta(self) -> bool:
        """Whether the differences of two models are shown, or are being made."""
        return self._wanted.delta

    def turn_delta(self) -> None:
        """Show the differences of the two models, or again the models, under the same weighting."""
        if self._wanted.fixed and not self._wanted.delta:
            self._leave_ratio()
            self._state.say(
                "differences are computed in the raw gauge: v leaves the fixed gauge, then d shows them again"
            )
            return
        if self._wanted.delta and not self._shown.delta:
            self._leave_ratio()  # the next key came before the differences were made
        self.use(replace(self._wanted, delta=not self._wanted.delta))

    def use_again(self) -> None:
        """Apply the latest choice to all models, as one has joined meanwhile."""
        self.use(self._wanted)

    def use(self, offer: Offer) -> None:
        """Show an offer once it has been read."""
        self._wanted = offer
        if offer.delta and offer.fixed:
            self._wanted = self._shown
            self._state.say("differences are computed in the raw gauge: d leaves them")
            return
        what = offer.text if offer.text != NONE else "the gains of the norms"
        what = what if offer.text != NONE or not offer.delta else "what differs"
        self._state.say("" if offer.text == NONE and not (offer.fixed or offer.delta) else f"reading {what}")
        self._screen.in_background(partial(self._make, offer), f"reading {what}")

    def weighed(self, model: Model, offer: Offer | None = None) -> Model:
        """A model under a weighting and in a gauge, by default those that are shown. Reads files.

        Raises:
            InputError: see Offer.shown.
        """
        used, said = offer or self._shown, list[str]()
        shown = used.shown(model, self._state.session.root, said.append)
        if said:
            self._screen.post_message(BackgroundDone(partial(self._warn, said)))
        return shown

    def _make(self, offer: Offer) -> None:
        """Make what an offer shows. For a thread."""
        try:
            made = self._made(offer)
        except InputError:
            self._screen.post_message(BackgroundDone(partial(self._give_up, offer)))
            raise
        for session, model in made.models.items():
            session.know(model)
        done = threading.Event()
        self._screen.post_message(BackgroundDone(partial(self._exchange, offer, made, done)))
        done.wait(EXCHANGE_SECONDS)  # otherwise a chart could mix the old and the new state

    def _made(self, offer: Offer) -> _Made:
        pair, root = self._state.pair, self._state.session.root
        first, other, opened = pair.first, pair.other, pair.opened
        if not offer.delta or other is None:
            return _Made({session: self.weighed(session.raw, offer) for session in opened}, opened)
        said = list[str]()
        found = deltas_shown(first, other, offer.weighting(first.raw, root, said.append))
        if said:
            self._screen.post_message(BackgroundDone(partial(self._warn, said)))
        shown = with_deltas(first.raw, found.deltas, other.raw.name)
        return _Made({first: shown}, opened, found.apart)

    def _give_up(self, offer: Offer) -> None:
        if offer is self._wanted:
            self._wanted = self._shown
            if offer.delta and not self._shown.delta:
                self._leave_ratio()

    def _leave_ratio(self) -> None:
        """Go on from B/A to A, if there are no differences to show."""
        self._state.lens.side = Side.A
        self._state.lens_changed()

    def _exchange(self, offer: Offer, made: _Made, done: threading.Event) -> None:
        try:
            self._show(offer, made)
        finally:
            done.set()

    def _show(self, offer: Offer, made: _Made) -> None:
        pair = self._state.pair
        if offer is not self._wanted:
            return
        if tuple(made.opened) != pair.opened:
            self.use_again()
            return
        if made.apart is not None or pair.aside is not None:
            other = pair.other
            assert other is not None
            pair.first.others = (other.raw.checkpoint,) if other.raw.checkpoint is not None else ()
            pair.set_aside(made.apart)
            self._state.lens.side = Side.A
        self._shown = offer
        self._state.show_under(made.models)
        self._know(offer)

    def _know(self, offer: Offer) -> None:
        """Remember a file for the next menu."""
        name, label = self._state.session.weighting
        if label and offer.stored is None and offer.text != name:
            self._files[offer.text] = label

    def _is_shown(self, offer: Offer) -> bool:
        return (offer.text, offer.stored) == (self._shown.text, self._shown.stored)

    def _warn(self, lines: list[str]) -> None:
        for line in lines:
            self._screen.notify(line, title="weighting", severity="warning", markup=False)


def _end_of(name: str) -> str:
    return name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}"

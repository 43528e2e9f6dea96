"""Which weighting and gauge are shown: asked for, made in the background, put in the place of what was shown."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

from rankscope.engine.errors import InputError, printable

from ...data.model import Model
from ...data.session import Session
from ...data.weighting import NONE, Offer, offers
from ..dialogs import Choice
from ..messages import Done
from .background import Background

EXCHANGE_SECONDS = 1.0
"""How long the thread that draws waits for the event loop, which may be about to quit."""
LONGEST = 32
"""Characters of the name of a file in the menu: of a longer one the end."""


class Weigher:
    """Puts the models of a screen under a weighting, or in the fixed gauge. `given` is what is shown at first."""

    def __init__(self, screen: Background, given: Offer | None = None) -> None:
        self._screen = screen
        self._state = screen.state
        self._shown = given or Offer(NONE, "")
        self._wanted = self._shown
        self._files: dict[str, str] = {}  # named by the user, and their labels
        self._know(self._shown)

    @property
    def shown(self) -> Offer:
        """What is shown."""
        return self._shown

    def choose(self) -> None:
        """Ask for one of those that there are."""
        found = offers(self._state.session, self._files)
        rows = [(_end_of(printable(offer.text, 1000)), printable(offer.about)) for offer in found]

        def chosen(number: int | None) -> None:
            if number is not None:
                self.use(replace(found[number], fixed=self._wanted.fixed))

        at = next((n for n, offer in enumerate(found) if self._is_shown(offer)), 0)
        self._screen.app.push_screen(Choice("weighting", rows, at), chosen)

    def use_named(self, text: str) -> None:
        """Show what a user names."""
        self.use(Offer(text, "", fixed=self._wanted.fixed))

    def turn_gauge(self) -> None:
        """Show the fixed gauge, or again the weights as they are, under the same weighting."""
        self.use(replace(self._wanted, fixed=not self._wanted.fixed))

    def use_again(self) -> None:
        """Show what was wanted last in all models: one has joined meanwhile."""
        self.use(self._wanted)

    def use(self, offer: Offer) -> None:
        """Show another weighting, once it has been read."""
        self._wanted = offer
        what = offer.text if offer.text != NONE else "the gains of the norms"
        self._state.say("" if offer.text == NONE and not offer.fixed else f"reading {what}")
        self._screen.in_background(partial(self._make, offer), f"reading {what}")

    def weighed(self, model: Model, offer: Offer | None = None) -> Model:
        """A model under a weighting and in a gauge, by default those that are shown. Reads files.

        Raises:
            InputError: see Offer.shown.
        """
        used, said = offer or self._shown, list[str]()
        shown = used.shown(model, self._state.session.root, said.append)
        if said:
            self._screen.post_message(Done(partial(self._warn, said)))
        return shown

    def _make(self, offer: Offer) -> None:
        """For a thread."""
        try:
            made = {session: self.weighed(session.raw, offer) for session in self._state.pair.sessions}
        except InputError:
            self._screen.post_message(Done(partial(self._give_up, offer)))
            raise
        for session, model in made.items():
            session.know(model)
        done = threading.Event()
        self._screen.post_message(Done(partial(self._exchange, offer, made, done)))
        done.wait(EXCHANGE_SECONDS)  # or a chart would be drawn half of this and half of what was shown before

    def _give_up(self, offer: Offer) -> None:
        if offer is self._wanted:
            self._wanted = self._shown

    def _exchange(self, offer: Offer, made: dict[Session, Model], done: threading.Event) -> None:
        try:
            self._show(offer, made)
        finally:
            done.set()

    def _show(self, offer: Offer, made: dict[Session, Model]) -> None:
        if offer is not self._wanted:
            return
        if set(made) != set(self._state.pair.sessions):
            self.use_again()
            return
        self._shown = offer
        self._state.show_under(made)
        self._know(offer)

    def _know(self, offer: Offer) -> None:
        """Remember a file, which the next menu offers."""
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

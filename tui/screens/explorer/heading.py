"""Single heads for view 7: found when it is first shown, off the event loop, and again when the model changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rankscope.engine.errors import InputError

from ...data.changes import Change
from ...data.head_rows import HeadRows, rows_of_session
from ...data.model import Model
from ...data.views import View
from ...widgets.head_map import HeadMap
from ..messages import BackgroundDone
from .charting import Charting


class Header:
    """Gives the pane of heads its rows: heads of the first model in the state shown, with queries `offset` tokens
    later."""

    def __init__(self, screen: Charting, in_background: Callable[[Callable[[], None], str], None]) -> None:
        """`in_background` runs slow work in a thread, and reports errors with its second argument."""
        self._screen, self._in_background = screen, in_background
        self._offset = 0
        self._made: tuple[Model, int] | None = None

    def want(self) -> None:
        """Find the heads, if the pane is shown and has those of another state."""
        state = self._screen.state
        wanted = state.session.model, self._offset
        if state.top != View.HEADS or (self._made and self._made[0] is wanted[0] and self._made[1] == wanted[1]):
            return
        self._made = wanted
        self._in_background(partial(self._make, wanted), "finding the heads")

    def set_offset(self, offset: int) -> None:
        """Show QK for queries this many tokens after their keys."""
        self._offset = offset
        self._screen.state.show(View.HEADS)

    def _make(self, wanted: tuple[Model, int]) -> None:
        """Find the heads. For a thread."""
        try:
            found = rows_of_session(self._screen.state.session, wanted[1])
        except InputError:
            self._offset = 0
            self._made = None
            raise
        self._screen.post_message(BackgroundDone(partial(self._show, wanted, found)))

    def _show(self, wanted: tuple[Model, int], found: HeadRows) -> None:
        if wanted is not self._made:
            return
        screen = self._screen
        screen.state.session.show_beside(found.every)
        screen.look.show(screen.state.grid)  # its groups hold places among the numbers, which have changed
        pane = screen.tops[View.HEADS]
        assert isinstance(pane, HeadMap)
        pane.show_heads(found)
        screen.state.changed(Change.LAYOUT)
        screen.state.changed(Change.TITLES)
        screen.state.changed(Change.WANTED)

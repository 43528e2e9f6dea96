"""The base class of views above the chart, with what the explorer needs of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual.scroll_view import ScrollView

from rankscope.engine.spectrum import Projection

from ..data.deltas import WithoutDifference
from ..data.grid import Grid, Selection
from ..drawing.cells import Look
from .one_style import OneStyle

if TYPE_CHECKING:
    from ..data.view_records import Content


class TopPane(OneStyle, ScrollView, can_focus=True, inherit_bindings=False):
    """A view above the chart; rows of data/views with the place TOP name a subclass. `look` gives the lens."""

    compares_marks = False
    """Whether it shows the marks instead of what the filter shows."""

    def __init__(self, look: Look, **kwargs: str) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._look = look

    @property
    def lines_needed(self) -> int:
        """Lines that show all of it, with border."""
        raise NotImplementedError

    def title(self) -> str:
        """The text in its upper border after its name."""
        return f"{self._look.lens.title} = {self._look.lens.formula}"

    def subtitle(self, room: int) -> Text:  # noqa: ARG002 - for subclasses with long texts
        """The text in its lower border before the filter, at most `room` columns."""
        return Text()

    def set_rows(self, projections: Sequence[Projection], grid: Grid) -> None:
        """Show other projections, in model order; `grid` gives their places."""

    def set_apart(self, apart: Sequence[WithoutDifference]) -> None:
        """Show tensors without a difference, if the projections are differences of two models."""

    def set_marks(self, marks: Sequence[Projection]) -> None:
        """Show other marks, in the order in which they were made."""

    def show_selection(self, selection: Selection) -> None:
        """Go to a selection, or to the first of several, without reporting it."""

    def update(self, keys: Iterable[str] | None = None) -> None:
        """Draw again after states, numbers or the lens have changed: what has these content keys, or for None all."""

    def load(self, projections: Sequence[Projection]) -> None:
        """Load into memory what it shows of these besides the lens's number. Reads files: call it in a thread."""

    def unread(self) -> set[str] | None:
        """Content keys, in the first model, for which `load` would read something; None if that is unknown. Call it in
        a thread."""
        return None

    def keys_in_view(self) -> tuple[str, ...]:
        """Content keys of what is in view, to be loaded first."""
        return ()

    def text_of_cell(self) -> str | None:
        """The text under the cursor, "" if there is no number; None if that is the selection."""
        return None

    def content(self, content: Content) -> Content:
        """What is written to a file, replaced by the rows of a view that has other rows."""
        return content

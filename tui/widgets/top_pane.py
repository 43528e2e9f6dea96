"""What stands over the chart: what the explorer asks of every such view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text
from textual.scroll_view import ScrollView

from rankscope.engine.spectrum import Projection

from ..data.deltas import WithoutDifference
from ..data.grid import Grid, Selection
from ..data.view_records import Content
from ..drawing.cells import Look


class TopPane(ScrollView, can_focus=True, inherit_bindings=False):
    """A view with the place TOP in data/views names a subclass. `look` gives the lens for its numbers."""

    compares_marks = False
    """Whether it shows the marks, not what the filter shows."""

    def __init__(self, look: Look, **kwargs: str) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._look = look

    @property
    def lines_needed(self) -> int:
        """Lines that show all of it, with border."""
        raise NotImplementedError

    def title(self) -> str:
        """What its border says behind its name."""
        return f"{self._look.lens.title} = {self._look.lens.formula}"

    def subtitle(self, room: int) -> Text:  # noqa: ARG002 - for those that have much to say
        """What its lower border says, before the filter, for which there are so many columns."""
        return Text()

    def set_rows(self, projections: Sequence[Projection], grid: Grid) -> None:
        """Show other projections, in model order; `grid` says where they stand."""

    def set_apart(self, apart: Sequence[WithoutDifference]) -> None:
        """Where the projections are differences of two models: what of these has none."""

    def set_marks(self, marks: Sequence[Projection]) -> None:
        """Other projections are marked, in the order in which they were."""

    def show_selection(self, selection: Selection) -> None:
        """Go to a selection, or to the first of several, without telling anyone."""

    def update(self, keys: Iterable[str] | None = None) -> None:
        """States, numbers or the lens changed: of these content keys, None: of any."""

    def load(self, projections: Sequence[Projection]) -> None:
        """Bring into memory what it shows of these beside the lens's number. Reads files: for a thread."""

    def unread(self) -> set[str] | None:
        """Content keys, in the first model, of what `load` has something to read for; None: perhaps of any. For a
        thread."""
        return None

    def keys_in_view(self) -> tuple[str, ...]:
        """Content keys of what stands in view, to be loaded first."""
        return ()

    def text_of_cell(self) -> str | None:
        """What the cursor stands on, "" where there is no number; None where that is what is selected."""
        return None

    def content(self, content: Content) -> Content:
        """What is written to a file; of a view with rows of its own, those."""
        return content

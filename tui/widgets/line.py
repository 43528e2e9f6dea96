"""A single line above or below the panes."""

from __future__ import annotations

from rich.text import Text
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from ..drawing.strips import difference


class Line(Widget):
    """One line: a text on the left that is cut if necessary, and one on the right that is not."""

    def __init__(self, **kwargs: str) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._left, self._right = Text(), Text()

    def set(self, left: Text | str, right: Text | str = "") -> None:
        """Show other texts; an unchanged part is not sent again (a line of blanks is 150 bytes a key)."""
        # A string is never markup, as it may contain names of models and tensors.
        texts = [Text(part) if isinstance(part, str) else part for part in (left, right)]
        if texts == [self._left, self._right]:
            return
        before, right = self.render_line(0), self._right
        self._left, self._right = texts
        start, end = difference(before, self.render_line(0))
        if right != self._right:  # sent whole: a count sent digit by digit is unreadable in a recording
            start, end = min(start, self.size.width - self._right.cell_len), self.size.width
        self.refresh(Region(start, 0, end - start, 1))

    def render_line(self, _: int) -> Strip:
        width = self.size.width
        right = self._right.copy()
        right.truncate(width)
        left = self._left.copy()
        left.truncate(max(0, width - right.cell_len - bool(right)), overflow="ellipsis")
        gap = Text(" " * (width - left.cell_len - right.cell_len))
        line = Text.assemble(left, gap, right, no_wrap=True, end="")
        return Strip(line.render(self.app.console)).adjust_cell_length(width).apply_style(self.rich_style)

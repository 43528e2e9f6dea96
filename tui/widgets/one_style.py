"""One style for all lines of a widget while it draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip

if TYPE_CHECKING:
    from textual.widget import Widget
else:
    # Textual takes default styles from the first base class that is a widget: it has to be Textual's own.
    Widget = object


class OneStyle(Widget):
    """Stands before a class of Textual whose lines are drawn one by one. Textual works out a widget's style from all
    widgets around it, and would do so again for each line: a tenth of the time that a key takes."""

    _style_of_lines: Style | None = None

    @property
    def rich_style(self) -> Style:
        """The style of the widget's text; the same one until all lines are drawn."""
        return super().rich_style if self._style_of_lines is None else self._style_of_lines

    def render_lines(self, crop: Region) -> list[Strip]:
        """Draw the lines of a part of the widget."""
        self._style_of_lines = super().rich_style
        try:
            return super().render_lines(crop)
        finally:
            self._style_of_lines = None

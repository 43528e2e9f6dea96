"""The kinds of change in the explorer, and the listeners that are notified of them."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import TypeAlias


class Change(Enum):
    """Something that has changed."""

    SELECTION = auto()
    TREE = auto()
    """The tree's cursor should move to the selection. If another pane has the focus, this waits until the user
    pauses."""
    ROWS = auto()
    """Other projections are shown: another filter, or a second model."""
    COLUMNS = auto()
    """The projections are the same, but other derived roles are shown beside them."""
    NUMBERS = auto()
    """States or numbers of the projections with these keys; None: of any."""
    LOADED = auto()
    """Numbers that were computed from stored values; nothing else has changed."""
    LENS = auto()
    """The number that is shown for every projection."""
    MARKS = auto()
    PANE = auto()
    """The view that is shown, or the one with the focus."""
    LAYOUT = auto()
    TITLES = auto()
    CHART = auto()
    """The content of the chart."""
    AXES = auto()
    """The axes of the chart, and so its title."""
    RANK = auto()
    LINES = auto()
    """The status lines about the job or for the user."""
    PLAN = auto()
    """The plan that is shown, or whether one is."""
    WANTED = auto()
    """Numbers on the screen have to be computed from values; for these keys, None: for all."""


Keys: TypeAlias = "set[str] | None"
ChangeListener: TypeAlias = Callable[[Change, Keys], None]

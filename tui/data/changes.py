"""What changes in the explorer: the kinds of change, and who is told of one."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import TypeAlias


class Change(Enum):
    """What is other than before."""

    SELECTION = auto()
    TREE = auto()
    """The tree's cursor should stand on what is selected: in other panes that waits until the user rests."""
    ROWS = auto()
    """Other projections are shown: another filter, or a second model."""
    COLUMNS = auto()
    """The same projections, and roles beside them."""
    NUMBERS = auto()
    """States or numbers of some projections, by their keys; None: of any."""
    LOADED = auto()
    """Numbers that were worked out from values; nothing else is known of what is computed."""
    LENS = auto()
    """Another number stands for every projection."""
    MARKS = auto()
    PANE = auto()
    """Another view is shown, or has the focus."""
    LAYOUT = auto()
    TITLES = auto()
    CHART = auto()
    """The chart would show something else."""
    AXES = auto()
    """So does its title."""
    RANK = auto()
    LINES = auto()
    """What the single lines say of the job, or to the user."""
    PLAN = auto()
    """Another plan is shown, or none."""
    WANTED = auto()
    """Numbers on the screen have to be worked out from values; of these keys, None: all."""


Keys: TypeAlias = "set[str] | None"
ChangeListener: TypeAlias = Callable[[Change, Keys], None]

"""What a cell shows: texts from the fullest to a mark, and its shade; and how many projections of a group are done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.style import Style

from ..data.lens import UNEQUAL
from ..data.session import State
from ..data.wording import MARKS, UNSEEN

PLAIN = Style.null()
GREYED, GREY_FILL = Style(dim=True), "\u2591"


@dataclass(frozen=True, slots=True)
class Count:
    """How many projections of a group are done, how many have failed, and how many there are."""

    done: int = 0
    failed: int = 0
    total: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.done + other.done, self.failed + other.failed, self.total + other.total)


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows. `forms` are its texts, the fullest first; for an unknown number, the mark of its state. `tone`
    is the number that gives the shade, `level` the shade as a character for terminals without colours.
    """

    forms: tuple[str, ...]
    style: Style = PLAIN
    number: float | None = None
    tone: float | None = None
    level: str = ""
    is_marked: bool = False
    is_greyed: bool = False
    has_failed: bool = False

    @property
    def text(self) -> str:
        """The fullest text."""
        return self.forms[0]

    @property
    def mark(self) -> str:
        """The mark of its state, "" if it has a number."""
        return self.forms[0] if self.number is None else ""

    @property
    def sign(self) -> str:
        """The cell in one character: marked, failed, of two shapes, or else its shade or state."""
        if self.is_marked or self.has_failed:
            return "+" if self.is_marked else "!"
        if self.forms[0].startswith(UNEQUAL) and not self.level:
            return UNEQUAL
        return self.fill if self.tone is not None else self.mark or MARKS[State.DONE]

    @property
    def fill(self) -> str:
        """The character that fills its background."""
        return GREY_FILL if self.is_greyed else self.level or " "

    def fitting(self, width: int) -> str:
        """The fullest text that fits: a number that does not fit is left out, not cut."""
        return next((form for form in self.forms if len(form) <= width), self.forms[-1])

    def standing(self, width: int, beside: int) -> tuple[str, str]:
        """The fullest text that fits, and blanks after it that align its number with those of other cells, which have
        `beside` characters after theirs, such as ` ^33`."""
        text = self.fitting(width)
        return text, " " * (min(width, len(text.partition(" ")[0]) + beside) - len(text))


def written_forms(text: str, number: float) -> tuple[str, ...]:
    """A number with fewer and fewer digits, and at last the mark for a number without digits."""
    return text, f"{number:.2g}", f"{number:.0e}", MARKS[State.DONE]


def signed(forms: tuple[str, ...], sign: str) -> tuple[str, ...]:
    """The texts with a sign before every number; states get none."""
    return tuple(f"{sign}{form}" if form[:1].isdigit() else form for form in forms)


def of_state(mark: str, is_marked: bool) -> Cell:
    """A cell whose number is unknown: the mark of its state."""
    style = (
        Style(color="red", bold=True) if mark == "!" else Style(dim=mark in f".-{UNSEEN}", underline=is_marked or None)
    )
    return Cell((mark,), style, is_marked=is_marked)


def most_telling(marks: Iterable[str]) -> str:
    """The state that is most worth showing among several; "-" if there are none."""
    found = set(marks)
    return next((mark for mark in f"*!:?{UNSEEN}.#" if mark in found), "-")

"""What a cell shows: texts from the fullest to a mark, its shade; and how many projections of a group are done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.style import Style

from ..data.pair import UNEQUAL
from ..data.session import State
from ..data.wording import MARKS, UNSEEN

PLAIN = Style.null()
GREYED, GREY_FILL = Style(dim=True), "\u2591"


@dataclass(frozen=True, slots=True)
class Count:
    """How many projections of a group are done, have failed, and are there in all."""

    done: int = 0
    failed: int = 0
    total: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.done + other.done, self.failed + other.failed, self.total + other.total)


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows. `forms` are its texts, the fullest first; of one whose number is not known, a mark for
    its state. `tone` is what the shade is of, `level` the shade as a character where there are no colours.
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
        """The state, "" of a number."""
        return self.forms[0] if self.number is None else ""

    @property
    def sign(self) -> str:
        """The cell in one character: mark, failure, state, whether it is of two shapes, else its shade."""
        if self.is_marked or self.has_failed:
            return "+" if self.is_marked else "!"
        if self.forms[0].startswith(UNEQUAL) and not self.level:
            return UNEQUAL
        return self.fill if self.tone is not None else self.mark or MARKS[State.DONE]

    @property
    def fill(self) -> str:
        """What its background is drawn with."""
        return GREY_FILL if self.is_greyed else self.level or " "

    def fitting(self, width: int) -> str:
        """The fullest text that fits: a number that does not is left out, not cut."""
        return next((form for form in self.forms if len(form) <= width), self.forms[-1])

    def standing(self, width: int, beside: int) -> tuple[str, str]:
        """The same, and the blanks behind a lone number where others have so many characters `beside` theirs, as
        ` ^33`: numbers stand below one another."""
        text = self.fitting(width)
        return text, " " * (min(width, len(text.partition(" ")[0]) + beside) - len(text))


def written_forms(text: str, number: float) -> tuple[str, ...]:
    """A number with ever fewer digits, and at last the mark that there is one."""
    return text, f"{number:.2g}", f"{number:.0e}", MARKS[State.DONE]


def signed(forms: tuple[str, ...], sign: str) -> tuple[str, ...]:
    """The same with a sign before every number; states have none."""
    return tuple(f"{sign}{form}" if form[:1].isdigit() else form for form in forms)


def of_state(mark: str, is_marked: bool) -> Cell:
    """A cell of which no number is known: the mark of its state."""
    style = (
        Style(color="red", bold=True) if mark == "!" else Style(dim=mark in f".-{UNSEEN}", underline=is_marked or None)
    )
    return Cell((mark,), style, is_marked=is_marked)


def most_telling(marks: Iterable[str]) -> str:
    """What is most worth knowing of several states; "-" without any."""
    found = set(marks)
    return next((mark for mark in f"*!:?{UNSEEN}.#" if mark in found), "-")

"""Errors of keys, messages, timers, workers and drawing: reported and logged, and the program goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.notifications import Notification
from textual.pilot import Pilot
from textual.screen import Screen
from textual.strip import Strip
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from rankscope.tui.screens import guard as surviving
from rankscope.tui.screens.error_log import log_path
from rankscope.tui.screens.guard import MANY, Surviving


class Asked(Message):
    """A message to the screen."""


class Odd(Widget, can_focus=True):
    """A widget that fails where it is told to."""

    BINDINGS: ClassVar[list[BindingType]] = [("b", "fail", ""), ("g", "go", "")]
    CSS = "Odd { height: 3; }"

    def __init__(self) -> None:
        super().__init__(id="odd")
        self.drawing: Callable[[], object] = int
        self.went = 0

    def render_line(self, y: int) -> Strip:  # noqa: ARG002 - the base class's
        self.drawing()
        return Strip.blank(self.size.width)

    def action_fail(self) -> None:
        fail("of a widget's key")

    def action_go(self) -> None:
        self.went += 1

    def on_asked(self) -> None:
        fail("of a widget's message")


class First(Screen[None]):
    """The first screen."""

    BINDINGS: ClassVar[list[BindingType]] = [("s", "fail", ""), ("p", "pop", "")]

    def __init__(self, on_mount: Callable[[], object]) -> None:
        super().__init__()
        self.odd = Odd()
        self._mounted = on_mount
        self.asked = 0

    def compose(self) -> ComposeResult:
        yield Static("a line of text")
        yield self.odd
        yield Input()

    def on_mount(self) -> None:
        self._mounted()
        self.odd.styles.height = 3
        self.odd.focus()

    def action_fail(self) -> None:
        fail("of the screen's key")

    def on_asked(self) -> None:
        self.asked += 1
        if self.asked == 1:
            fail("of the screen's message")


class Failing(Screen[None]):
    """A screen that cannot be composed."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "app.pop_screen", "")]

    def compose(self) -> ComposeResult:
        yield Static("half of it")
        fail("of compose")


class Tried(Surviving[None], inherit_bindings=False):
    """An app that survives errors as the explorer does."""

    def __init__(self, on_mount: Callable[[], object] = int) -> None:
        super().__init__()
        self.first = First(on_mount)

    async def on_mount(self) -> None:
        await self.push_screen(self.first)
        self.is_up = True

    @property
    def said(self) -> list[str]:
        return [note.message for note in self._notifications if isinstance(note, Notification)]


def fail(what: str = "again") -> None:
    """Raise."""
    raise ValueError(what)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the log."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@asynccontextmanager
async def trying(app: Tried) -> AsyncIterator[Pilot[None]]:
    """Run the app with its toasts shown, and check that it survived an error, which its pilot would raise."""
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        try:
            yield pilot
        finally:
            survived, app._exception = app._exception, None
    assert isinstance(survived, ValueError)


def _sentence(doing: str, why: str) -> str:
    return f"{doing} failed: ValueError: {why}; details in {log_path()}"


def _screen(app: Tried) -> str:
    return "\n".join("".join(s.text for s in strip) for strip in app.screen._compositor.render_strips())


async def _until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await pilot.pause(0.005)
    raise AssertionError(_screen(pilot.app))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "why"), [("s", "of the screen's key"), ("b", "of a widget's key")], ids=["screen", "widget"]
)
async def test_a_key_that_fails_is_a_toast_and_the_next_works(key: str, why: str) -> None:
    app = Tried()
    async with trying(app) as pilot:
        await pilot.press(key, "g", key, "g")
        assert app.first.odd.went == 2
        assert app.said == [_sentence(f"the key {key}", why)]  # not reported again while the toast is shown
        await _until(pilot, lambda: "failed: ValueError:" in _screen(app))
        assert "a line of text" in _screen(app)
    assert app.return_code in (None, 0)
    assert log_path().read_text().count("Traceback") == 2


async def test_a_message_that_fails_leaves_its_widget_answering() -> None:
    app = Tried()
    async with trying(app) as pilot:
        for _ in range(2):
            app.first.post_message(Asked())
        await _until(pilot, lambda: app.first.asked == 2)
        app.first.odd.post_message(Asked())
        await _until(pilot, lambda: len(app.said) == 2)
        await pilot.press("g")
        assert app.first.odd.went == 1
        assert app.said == [_sentence("Asked", "of the screen's message"), _sentence("Asked", "of a widget's message")]


async def test_timers_workers_and_callbacks_too() -> None:
    app = Tried()
    async with trying(app) as pilot:
        app.first.set_timer(0.001, lambda: fail("of a timer"))
        await _until(pilot, lambda: len(app.said) == 1)
        app.first.run_worker(lambda: fail("of a worker"), thread=True)
        await _until(pilot, lambda: len(app.said) == 2)
        app.first.call_later(fail, "of a callback")
        await _until(pilot, lambda: len(app.said) == 3)
        assert [text.partition("ValueError: ")[2].partition(";")[0] for text in app.said] == [
            "of a timer",
            "of a worker",
            "of a callback",
        ]


async def test_a_widget_that_cannot_be_drawn_stays_empty_and_the_rest_is_drawn() -> None:
    app = Tried()
    async with trying(app) as pilot:
        drawn = 0

        def draw() -> None:
            nonlocal drawn
            drawn += 1
            fail("of drawing")

        app.first.odd.drawing = draw
        app.first.odd.refresh()
        await _until(pilot, lambda: bool(drawn))
        await _until(pilot, lambda: "failed: ValueError:" in _screen(app))
        assert "a line of text" in _screen(app)
        for _ in range(5):
            app.first.refresh()
            await pilot.pause()
        seen = drawn
        for _ in range(20):
            await pilot.pause(0.005)
        assert drawn == seen  # at rest
        await pilot.press("g")
        assert app.first.odd.went == 1
        app.first.odd.drawing = int
        assert app.said == [_sentence("drawing the odd", "of drawing")]
    assert log_path().read_text().count("Traceback") == 1


async def test_a_dialog_that_cannot_be_made_can_be_left() -> None:
    app = Tried()
    async with trying(app) as pilot:
        await app.push_screen(Failing())
        await _until(pilot, lambda: len(app.said) == 1)
        await pilot.press("escape", "g")
        assert app.screen is app.first
        assert app.first.odd.went == 1


async def test_errors_without_end_end_the_program() -> None:
    app = Tried()
    async with trying(app) as pilot:
        timers: list[Timer] = [app.first.set_interval(0.001, fail)]
        await _until(pilot, lambda: not app.is_running)
        timers[0].stop()
    assert app.return_code == 1
    assert app.last_words == _sentence("the explorer", "again")
    assert log_path().read_text().count("Traceback") > MANY


async def test_a_held_key_that_fails_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surviving, "time", SimpleNamespace(monotonic=lambda: 0.0))  # all within one second
    app = Tried()
    async with trying(app) as pilot:
        await pilot.press(*["s", "b"] * MANY, "g")
        assert app.first.odd.went == 1
        assert app.last_words == ""


@pytest.mark.parametrize("made", [fail, lambda: fail("of mounting")])
async def test_an_error_before_the_first_screen_ends_it(
    made: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    app = Tried(made)
    async with trying(app):
        pass
    assert app.return_code == 1
    assert app.last_words.startswith("Mount failed: ValueError: ")
    assert capsys.readouterr() == ("", "")

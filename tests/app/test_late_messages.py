"""What a thread posts to a screen is dropped if the screen's event loop ends before it has arrived."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from app_looking import DEADLINE
from app_models import fill
from textual.message import Message

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.screens.messages import EngineEvents
from rankscope.tui.screens.picker import HeadersRead, Picker
from rankscope.tui.settings.config import Config


class Passing:
    """What a screen asks itself before it takes a message: a message of a `kind` waits there until `ended` is set."""

    def __init__(self, kind: type[Message]) -> None:
        self._kind = kind
        self.came, self.ended = threading.Event(), threading.Event()

    def __call__(self, message: Message) -> bool:
        if isinstance(message, self._kind):
            self.came.set()
            assert self.ended.wait(DEADLINE)
        return True


def test_of_an_engine(llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = RankScopeApp([fill(llama, root)], root, ComputeSettings("cpu", 1), Config())
    passing, posted = Passing(EngineEvents), []

    def post() -> None:
        try:
            posted.append(app.explorer.post_message(EngineEvents(app.pair.first, ())))
        except RuntimeError as error:
            posted.append(error)

    engine = threading.Thread(target=post)

    async def explore() -> None:
        async with app.run_test():
            monkeypatch.setattr(app.explorer, "check_message_enabled", passing)
            engine.start()
            assert passing.came.wait(DEADLINE)

    asyncio.run(explore())
    passing.ended.set()
    engine.join(DEADLINE)
    assert posted == [False]
    assert app.close(DEADLINE)


def test_of_the_headers_that_the_picker_reads(llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(llama, root)
    picker, passing, raised = Picker(root), Passing(HeadersRead), []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setattr(picker, "check_message_enabled", passing)

    async def choose() -> None:
        async with picker.run_test():
            assert passing.came.wait(DEADLINE)

    asyncio.run(choose())
    passing.ended.set()
    picker._reader.join(DEADLINE)
    assert raised == []

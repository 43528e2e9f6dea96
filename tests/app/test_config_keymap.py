"""The user's keys: which are refused, what Textual does with the others, and what is shown."""

from __future__ import annotations

from typing import ClassVar

import pytest
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from rankscope.engine.errors import InputError
from rankscope.tui.settings import keys
from rankscope.tui.settings.keymap import SECTIONS, bindings, checked, unknown


def test_every_binding_has_one_id_and_one_section() -> None:
    tables = [table for name, table in vars(keys).items() if name.isupper() and isinstance(table, list)]
    tables += keys.PANES.values()
    ids = [b.id for table in SECTIONS.values() for b in table if isinstance(b, Binding)]
    assert len(ids) == len(set(ids))
    assert None not in ids
    assert {b.id for table in tables for b in bindings(table)} == set(ids)


def test_the_defaults_spelled_out_clash_with_nothing() -> None:
    """Also where a pane takes a key of the explorer by design (enter)."""
    everything = {b.id or "": b.key for table in SECTIONS.values() for b in bindings(table)}
    assert checked(everything) == everything
    for ident, key in everything.items():
        assert checked({ident: f"{key},f12"}) == {ident: f"{key},f12"}


@pytest.mark.parametrize(
    ("keymap", "words"),
    [
        ({"scan": "x"}, "'scan': the key x is that of 'stop' already"),
        ({"scan": "S,x"}, "the key x is that of 'stop'"),
        ({"scan": "j"}, "the key j is that of 'tree.down'"),
        ({"heatmap.down": "s"}, "'heatmap.down': the key s is that of 'scan'"),
        ({"heatmap.down": "up"}, "the key up is that of 'heatmap.up'"),
        ({"scan": "f5", "stop": "f5"}, "the key f5 is that of"),
        ({"scan": "ctrl+p"}, "command palette"),
        ({"help.close": "ctrl+c"}, "the key ctrl+c is that of 'interrupt'"),
        ({"scan": ""}, "empty key"),
        ({"scan": "s,"}, "empty key"),
        ({"scan": ","}, "the comma is comma"),
        ({"scan": "contrl+x"}, "there is no key 'contrl+x'"),
        ({"scan": "spacebar"}, "there is no key 'spacebar'"),
        ({"scan": "\x1b"}, "there is no key '\\x1b'"),
    ],
    ids=str,
)
def test_a_wrong_keymap_is_one_sentence(keymap: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as error:
        checked(keymap)
    assert words in str(error.value)
    assert str(error.value).isprintable()


def test_what_no_binding_is_called_is_named_and_left_out() -> None:
    keymap = {"scna": "S", "stop": "s,f5", "zzzzzz": "", "scan": "x"}
    assert list(unknown(keymap)) == [
        "there is no key for 'scna': did you mean 'scan'?",
        "there is no key for 'zzzzzz': --print-config lists all",
    ]
    assert checked(keymap) == {"stop": "s,f5", "scan": "x"}


def test_keys_are_named_as_textual_names_them() -> None:
    assert checked({"help": "?,f1", "scan": "S, ctrl+y,S", "mark": "comma", "rank.previous": "<"}) == {
        "help": "question_mark,f1",
        "scan": "S,ctrl+y",
        "mark": "comma",
        "rank.previous": "less_than_sign",
    }


def test_keys_may_be_exchanged() -> None:
    assert checked({"scan": "x", "stop": "s"}) == {"scan": "x", "stop": "s"}


class Told(Screen[None]):
    """An app that notes which of its bindings ran."""

    BINDINGS: ClassVar[list[BindingType]] = [b for b in keys.EXPLORER if isinstance(b, Binding) and b.id != "quit"]

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def action_scan(self) -> None:
        self.ran.append("scan")

    def action_stop(self) -> None:
        self.ran.append("stop")

    def action_next_pane(self, step: int) -> None:
        self.ran.append(f"pane {step}")

    def action_back(self) -> None:
        self.ran.append("back")


async def test_textual_follows_the_keymap() -> None:
    """The keymap is set before the screen is pushed, as the app does in on_mount."""
    app: App[None] = App()
    async with app.run_test() as pilot:
        app.set_keymap(checked({"scan": "x", "stop": "s", "pane.next": "f6,tab", "back": "!"}))
        screen = Told()
        await app.push_screen(screen)
        await pilot.press("x", "s", "f6", "tab", "shift+tab", "escape", "!")
        assert screen.ran == ["scan", "stop", "pane 1", "pane 1", "pane -1", "back"]


def test_help_shows_the_changed_key() -> None:
    scan = next(b for b in bindings(keys.EXPLORER) if b.id == "scan")
    assert keys.shown_keys(scan, {}) == "s"
    assert keys.shown_keys(scan, checked({"scan": "?,f5", "help": "f1"})) == "? f5"

"""Every key has a name, an explanation and three places that show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from app_looking import SMALL, exploring
from rich.table import Table
from textual.binding import Binding, BindingType
from textual.events import Key
from textual.widgets import Input

from rankscope.tui.data.glossary import GLOSSARY
from rankscope.tui.screens.command_line import parse_command
from rankscope.tui.settings import keys

TABLES: dict[str, list[BindingType]] = {
    "explorer": keys.EXPLORER, "tree": keys.TREE, "heatmap": keys.HEATMAP, "chart": keys.CHART, "app": keys.APP,
    "table": keys.TABLE, "compare": keys.COMPARE, "choice": keys.CHOICE,
    "prompt": keys.PROMPT, "confirm": keys.CONFIRM, "help": keys.HELP, "picker": keys.PICKER,
}  # fmt: skip
FROM_DESIGN = {
    *"0123456JKLHtTuafszxdeynNMq",
    "space",
    "comma",
    "full_stop",
    "tab",
    "enter",
    "slash",
    "colon",
    "escape",
    "question_mark",
}
TAKEN = ("ctrl+b", "ctrl+a", "ctrl+s", "ctrl+j", "ctrl+o", "ctrl+i", "ctrl+m")
"""Keys that tmux, screen or the terminal take for themselves."""


def _bindings(*tables: str) -> list[Binding]:
    return [b for table in tables or TABLES for b in TABLES[table] if isinstance(b, Binding)]


def test_every_binding_has_id_description_and_tooltip() -> None:
    for table, bindings in TABLES.items():
        assert len(_bindings(table)) == len(bindings)
    for binding in _bindings():
        assert binding.id
        assert binding.description
        assert binding.tooltip
        assert not set(binding.key.split(",")) & set(TAKEN)
    ids = [binding.id for binding in _bindings()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("table", TABLES)
def test_no_key_stands_twice_in_a_table(table: str) -> None:
    found = [key for binding in _bindings(table) for key in binding.key.split(",")]
    assert len(found) == len(set(found))


def test_the_keys_of_the_design_are_there() -> None:
    assert {key for binding in _bindings("explorer") for key in binding.key.split(",")} >= FROM_DESIGN


def test_digits_are_never_counts() -> None:
    assert not [b for b in _bindings("tree", "heatmap", "chart") for key in b.key.split(",") if key.isdigit()]


@pytest.mark.parametrize("binding", _bindings("explorer"), ids=lambda b: b.id)
def test_every_action_can_be_typed(binding: Binding) -> None:
    assert parse_command(binding.id or "") == (binding.action, "")


@pytest.mark.parametrize(("key", "pane"), [("0", "tree"), ("3", "heatmap"), ("1", "chart")])
async def test_help_lists_every_key_of_the_pane_and_every_mark(llama: Path, root: Path, key: str, pane: str) -> None:
    async with exploring(llama, root, (100, 320)) as view:
        await view.press(key, "question_mark")
        lines = {" ".join(line.split()) for line in view.box}
        for binding in _bindings("explorer", "app", pane):
            assert " ".join(f"{keys.shown_keys(binding, {})} {binding.tooltip}".split()) in lines
        for mark in (". not computed", ": queued", "* running", "! failed", "? unsupported quantisation"):
            assert any(line.startswith(mark) for line in lines)
        for word, meaning in GLOSSARY:
            assert any(line.startswith(f"{word} {meaning[:30]}") for line in lines)
        await view.press("escape")
        assert view.app.screen is view.app.explorer


async def test_help_lays_its_two_tables_out_once(llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = []
    console = Table.__rich_console__

    def counted(table: Table, *given: Any) -> Any:
        laid_out.append(table.row_count)
        return console(table, *given)

    monkeypatch.setattr(Table, "__rich_console__", counted)
    async with exploring(llama, root, SMALL) as view:
        await view.press("question_mark", "ctrl+d", "G")
        assert len(laid_out) == len(set(laid_out)) == 2
        await view.press("escape")


async def test_help_can_be_read_to_its_end_on_a_small_screen(llama: Path, root: Path) -> None:
    async with exploring(llama, root, SMALL) as view:
        await view.press("question_mark", *["ctrl+d"] * 7)
        assert "there is no such matrix" in view.text
        await view.press("G")
        assert view.box[2].strip() == "words"
        await view.press(*["ctrl+d"] * 17)
        assert GLOSSARY[-1][1].split()[-1] in view.text
        await view.press("g")
        assert "in the tree" in view.text
        await view.press("q")
        assert view.app.screen is view.app.explorer


@pytest.mark.parametrize(("key", "pane"), [("0", "tree"), ("3", "heatmap"), ("1", "chart")])
async def test_the_palette_has_every_key(llama: Path, root: Path, key: str, pane: str) -> None:
    async with exploring(llama, root) as view:
        await view.press(key)
        commands = list(view.app.get_system_commands(view.app.explorer))
        titles = [command.title for command in commands]
        assert len(titles) == len(set(titles))
        for binding in _bindings("explorer", "app"):
            assert binding.description in titles
        for binding in _bindings(pane):
            assert f"{pane}: {binding.description}" in titles
        assert all(command.help for command in commands)


async def test_a_command_of_the_palette_acts(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("3", "ctrl+p")
        await view.type("heatmap: bottom")
        await view.until(lambda: view.selected == "layers.5.attention.query", "the last layer")
        await view.press("ctrl+p")
        await view.type("layers")
        await view.until(lambda: view.app.explorer.state.chart == 4, "the chart by layer")


async def test_the_footer_tells_the_main_keys_at_80_columns(llama: Path, root: Path) -> None:
    async with exploring(llama, root, SMALL) as view:
        assert view.lines[-1].rstrip() == (
            " 0-9 view  enter compute  s scan  / filter  t threshold  u unit  ? help  q quit"
        )


@pytest.mark.parametrize("key", ["q", "ctrl+q"])
async def test_q_quits(llama: Path, root: Path, key: str) -> None:
    async with exploring(llama, root) as view:
        await view.press("3", key)
        assert view.app._exit


@pytest.mark.parametrize("dialog", ["question_mark", "s", "u", "e", "colon"])
async def test_ctrl_q_quits_from_a_dialog_too(llama: Path, root: Path, dialog: str) -> None:
    async with exploring(llama, root) as view:
        await view.press(dialog, "ctrl+q")
        assert view.app._exit


async def test_keys_that_arrive_at_once_go_where_they_should(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        for key in (Key("3", "3"), Key("j", "j")):
            view.app.post_message(key)
        await view.until(lambda: view.selected == "layers.1.attention.query", "the next layer")
        for key in (Key("colon", ":"), Key("5", "5")):
            view.app.post_message(key)
        await view.until(lambda: view.app.explorer.query_one(Input).value == "5", "the typed number")
        await view.press("colon", "slash", "tab")  # characters in an open prompt, which they do not close
        assert view.app.explorer.query_one(Input).value == "5:/"

"""No MODEL given: the list of models to choose from, and finding one by typing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from app_looking import DEADLINE, SMALL
from app_models import LLAMA, fill, llama_weights, save_model
from textual.pilot import Pilot
from textual.widgets import OptionList

from rankscope.tui.data.at_hand import Headers, choices, headers
from rankscope.tui.data.model import open_model
from rankscope.tui.data.remembered import Remembered
from rankscope.tui.data.wording import ago
from rankscope.tui.screens.memory import Memory, last_used
from rankscope.tui.screens.picker import Picker


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state folder for this test's user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def other(root: Path, tmp_path: Path) -> Path:
    """A llama of two layers, five of whose spectra are stored."""
    folder = save_model(tmp_path / "here" / "other-llama", llama_weights(2), LLAMA)
    fill(folder, root, [p.address for p in open_model(str(folder), root).tree.scanned()[:5]])
    return folder


def _rows(picker: Picker) -> list[str]:
    options = picker.query_one(OptionList)
    return [str(options.get_option_at_index(row).prompt) for row in range(options.option_count)]


async def _reads(picker: Picker, pilot: Pilot[str | None]) -> list[str]:
    """The rows, once all headers have been read."""
    picker._reader.join(DEADLINE)
    await pilot.pause()
    return _rows(picker)


async def test_what_is_known_of_each_model_stands_in_its_row(llama: Path, other: Path, root: Path) -> None:
    fill(llama, root)
    Memory(model := open_model(str(other), root)).keep(Remembered())
    picker = Picker(root)
    async with picker.run_test(size=(120, 40)) as pilot:
        rows = await _reads(picker, pilot)
        *known, folder = rows[0].split()
        assert known == ["other-llama", "2", "5/14", *f"{_megabytes(model)} now".split()]
        assert str(other.parent).startswith(folder.rstrip("…"))
        assert rows[1].split()[:3] == ["tiny-llama", "6", "42/42"]
        assert rows[2].split()[:3] == ["demo", "30", "0/210"]
        await pilot.press("enter")
    assert picker.return_value == str(other)  # the one that was opened last


def _megabytes(model: object) -> str:
    return f"{model.checkpoint.bytes / 1e3:.1f} kB"  # type: ignore[attr-defined]


async def test_typing_leaves_what_has_all_words(llama: Path, other: Path, root: Path) -> None:
    fill(llama, root)
    picker = Picker(root)
    async with picker.run_test(size=SMALL) as pilot:
        await pilot.press(*"llama")
        assert sorted(row.split()[0] for row in _rows(picker)) == ["other-llama", "tiny-llama"]
        await pilot.press("down", "space", *"HERE")  # the folder's name counts, too
        assert [row.split()[0] for row in _rows(picker)] == ["other-llama"]
        await pilot.press(*"q")
        assert _rows(picker) == []
        await pilot.press("enter")
        assert picker.is_running
        await pilot.press("escape", *"tiny", "enter")
    assert picker.return_value == str(llama)
    picker = Picker(root)
    async with picker.run_test(size=SMALL) as pilot:
        await pilot.press("x", "ctrl+c")
        assert picker.is_running
        await pilot.press("ctrl+c")
    assert picker.return_value is None
    assert other.exists()


def test_headers_of_what_is_gone_of_a_url_and_of_nothing(other: Path, root: Path) -> None:
    size = open_model(str(other), root).checkpoint.bytes  # type: ignore[union-attr]
    assert headers(str(other), root) == Headers(2, 14, 5, size)
    other.rename(other.with_name("moved"))
    assert headers(str(other), root) == Headers(1, 5, 5, None)
    assert next(c for c in choices(root) if c.name == str(other)).where == f"gone from {other.parent}"
    assert headers("https://nowhere.invalid/model.safetensors", root) is None
    assert headers("org/nothing", root) is None


def test_when_a_model_was_looked_at_last(other: Path, root: Path) -> None:
    memory = Memory(model := open_model(str(other), root))
    memory.keep(Remembered())
    os.utime(memory._path, (1000, 1000))
    assert last_used() == {model.folder: 1000.0}
    names = [choice.name for choice in choices(root, {model.folder: 2.0})]
    assert names[0] == str(other)
    found = [ago(seconds) for seconds in (-5, 59, 60, 7199, 86_400, 40 * 86_400, 800 * 86_400)]
    assert found == ["now", "now", "1 min", "1 h", "1 d", "1 mo", "2 y"]

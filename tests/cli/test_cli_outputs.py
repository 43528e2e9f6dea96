"""An output that cannot be written is reported before anything is opened: the named models do not exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_process import Run

from rankscope.engine.atomic import why_no_file, why_no_folder

NOWHERE = "no-such-model"
FILES = {
    "mla": ("mla", NOWHERE, "-o", ".json"),
    "plan": ("plan", NOWHERE, "--cut", "20%", "-o", ".json"),
    "export": ("export", NOWHERE, "-o", ".h5"),
    "groups": ("export", NOWHERE, "--layout", "groups", "-o", ".h5"),
    "plot": ("plot", NOWHERE, "-o", ".png"),
    "delta": ("delta", NOWHERE, NOWHERE, "-o", ".json"),
    "moments": ("moments", NOWHERE, "--text", "builtin", "-o", ".safetensors"),
}
FOLDERS = {
    "apply": ("apply", "no-such-plan.json", "-o"),
    "extract": ("delta", NOWHERE, NOWHERE, "--extract"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a file and a folder with a file in it."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    return tmp_path


def _names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_written_is_said_first(cli: Run, name: str) -> None:
    *words, suffix = FILES[name]
    Path(f"folder{suffix}").mkdir()
    os.mkfifo(f"pipe{suffix}")
    for output, why in (
        (f"folder{suffix}", "it is a folder"),
        (f"pipe{suffix}", "it is a device or a pipe"),
        (f"none/a{suffix}", "there is no folder none"),
        (f"file/a{suffix}", "there is no folder file"),
        (f"/proc/a{suffix}", "in /proc: "),  # here not even root can make a file
        (f"{'a' * 300}{suffix}", "File name too long"),
    ):
        ran = cli(*words, output)
        assert (ran.code, ran.out) == (2, ""), ran.err
        assert f"cannot write {output}"[:60] in ran.error
        assert why in ran.error
        assert "name another with -o FILE" in ran.error
    ran = cli(*words, f"good{suffix}")
    assert (ran.code, "cannot write" in ran.err) == (2, False)
    assert _names() == ["file", f"folder{suffix}", "full", f"pipe{suffix}"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_made_is_said_first(cli: Run, here: Path, name: str) -> None:
    *words, option = FOLDERS[name]
    for output, why in (
        ("full", "it is not empty"),
        ("file", "it is a file"),
        ("none/a", f"there is no folder {here / 'none'}"),
        ("/proc/a", "in /proc: "),
        ("a" * 300, "File name too long"),
    ):
        ran = cli(*words, option, output)
        assert (ran.code, ran.out) == (2, ""), ran.err
        assert why in ran.error
        assert f"name a new folder with {option} DIR" in ran.error
    assert _names() == ["file", "full"]


def test_what_can_be_written_leaves_nothing_behind(here: Path) -> None:
    Path("empty").mkdir()
    assert [why_no_file(here / name) for name in ("file", "new")] == ["", ""]
    assert [why_no_folder(here / name) for name in ("empty", "new")] == ["", ""]
    assert _names() == ["empty", "file", "full"]
    assert Path("file").read_text() == "mine"

"""Copying: through tmux where it runs, through OSC 52 where it does not run or refuses."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from textual.app import App

from rankscope.tui.screens import clipboard

TEXT = "layers.0.\u00fc\t133\n"


@pytest.fixture
def tmux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of PATH for a fake tmux, and tmux's variable set."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMUX", "/tmp/tmux,1,0")
    return tmp_path / "tmux"


def _write(tmux: Path, script: str) -> None:
    tmux.write_text(f"#!/bin/sh\n{script}\n")
    tmux.chmod(0o755)


def test_tmux_gets_the_text(tmux: Path) -> None:
    _write(tmux, f'echo "$@" > {tmux}.args; cat > {tmux}.text')
    app: App[None] = App()
    assert clipboard.copy(app, TEXT) == "by tmux"
    assert Path(f"{tmux}.args").read_text() == "load-buffer -w -\n"
    assert Path(f"{tmux}.text").read_text(encoding="utf-8") == TEXT
    assert app.clipboard == ""


@pytest.mark.parametrize("script", ["exit 1", "exec 0<&-; exit 1", "exec cat > /dev/null & wait; exit 1", None])
def test_without_tmux_it_goes_to_the_terminal(tmux: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    if script is None:
        monkeypatch.setenv("PATH", str(tmux.parent))  # no tmux on the PATH
    else:
        _write(tmux, script)
    app: App[None] = App()
    assert clipboard.copy(app, TEXT) == "by OSC 52"
    assert app.clipboard == TEXT


def test_outside_tmux_it_is_not_asked(tmux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmux, f"touch {tmux}.asked")
    for value in ("", None):
        monkeypatch.setenv("TMUX", value) if value is not None else monkeypatch.delenv("TMUX")
        app: App[None] = App()
        assert clipboard.copy(app, TEXT) == "by OSC 52"
        assert app.clipboard == TEXT
    assert not Path(f"{tmux}.asked").exists()


def test_a_tmux_that_hangs_is_given_up(tmux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(f"{tmux}.fifo")
    _write(tmux, f"exec cat {tmux}.fifo")  # no one will ever write there
    monkeypatch.setattr(clipboard, "_SECONDS", 0.05)
    app: App[None] = App()
    assert clipboard.copy(app, TEXT) == "by OSC 52"
    assert app.clipboard == TEXT


async def test_from_a_thread_osc_52_reaches_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a surrogate pair, as file names may have, must not make it fail."""
    monkeypatch.delenv("TMUX", raising=False)
    app: App[None] = App()
    written: list[str] = []
    async with app.run_test():
        assert app._driver is not None
        monkeypatch.setattr(app._driver, "write", written.append)
        thread = threading.Thread(target=clipboard.copy, args=(app, "1\udcff33"))
        thread.start()
        thread.join()
    assert any("\x1b]52;c;MT8zMw==\x07" in text for text in written)

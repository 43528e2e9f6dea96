"""The explorer beside other processes: it sees what they store and remove, and draws nothing while they do nothing;
it reports a full disk and waits for room."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from app_gate import Gate
from app_looking import View, exploring
from app_models import fill

from rankscope.store import segments, writer
from rankscope.store.models import remove_model
from rankscope.tui.data.changes import Change
from rankscope.tui.screens.explorer import screen

NEVER = 10_000.0


@pytest.fixture(params=[0.02], autouse=True)
def interval(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds between two looks at the store."""
    monkeypatch.setattr(screen, "LOOK_SECONDS", request.param)


only_when_asked = pytest.mark.parametrize("interval", [NEVER], indirect=True)


def _roles(layer: int) -> list[str]:
    places = (
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "mlp.gate",
        "mlp.up",
        "mlp.down",
    )
    return [f"layers.{layer}.{place}" for place in places]


async def test_what_another_process_stores_appears_by_itself(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        assert "0/42 stored" in view.lines[0]
        fill(llama, root, _roles(0))
        await view.sees("7/42 stored")
        assert all(cell.isdigit() for cell in view.cells(0))
        await view.chart("4 of 4 computed")
        fill(llama, root, _roles(1))
        await view.sees("14/42 stored")
        assert not view.has_engine


async def test_what_another_process_removes_goes(llama: Path, root: Path) -> None:
    model = fill(llama, root)
    async with exploring(llama, root) as view:
        assert "42/42 stored" in view.lines[0]
        remove_model(root, model.folder)
        await view.sees("0/42 stored")
        assert view.cells(0) == ["."] * 7


async def test_where_nothing_changes_nothing_is_drawn(llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(llama, root, _roles(0))
    async with exploring(llama, root) as view:
        await view.rests()
        explorer = view.app.explorer
        changes: list[Change] = []
        written: list[Any] = []
        looks: list[bool] = []
        look = explorer.pair.first.look
        listen = explorer.state.listen
        explorer.state.listen = lambda what, keys: (changes.append(what), listen(what, keys))[1]
        monkeypatch.setattr(explorer.pair.first, "look", lambda: (looks.append(True), look())[1])
        monkeypatch.setattr(view.app._driver, "write", written.append)
        await view.until(lambda: len(looks) > 5, "some looks")
        await view.pilot.pause()
        assert (changes, written) == ([], [])


@only_when_asked
async def test_a_scan_asks_for_what_nobody_has_stored(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        fill(llama, root, [address for layer in range(4) for address in _roles(layer)])
        assert "0/42 stored" in view.lines[0]
        await view.press("s")
        assert "compute 14 projections" in " ".join(view.box)
        await view.answer("escape")
        assert "28/42 stored" in view.lines[0]
        fill(llama, root)
        await view.press("s")
        assert view.foot.startswith("everything is computed")
        assert not view.has_engine


@only_when_asked
async def test_enter_computes_nothing_that_another_process_has_stored(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        fill(llama, root)
        await view.press("enter")
        await view.sees("42/42 stored")
        assert not view.has_engine


@only_when_asked
async def test_a_running_scan_leaves_out_what_another_process_stores(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root) as view:
        await view.scan()
        await view.sees("0/42  0/s")
        fill(llama, root, [address for layer in range(1, 6) for address in _roles(layer)])
        gate.let(7)
        await view.sees("42/42 stored")
        await view.until(lambda: not view.app.explorer.state.is_busy, "the end of the scan")
        gate.let(1)  # for the matrix that is still being solved


async def _is_paused(view: View) -> None:
    await view.sees("full disk: ", "waiting for room")


@only_when_asked
async def test_a_full_disk_is_said_and_the_scan_goes_on_when_there_is_room(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.02)

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with exploring(llama, root) as view:
        with monkeypatch.context() as patch:
            patch.setattr(segments, "write", full)
            await view.scan()
            await _is_paused(view)
            assert str(root)[:60] in view.foot  # as much as fits
            assert "!" not in " ".join(view.cells(0))
            await view.press("j")
            await _is_paused(view)  # until there is room, whatever the user does
        await view.sees("42/42 stored")
        await view.until(lambda: "full disk" not in view.text, "the end of the pause")
        assert "waiting" not in view.job


@only_when_asked
async def test_a_save_that_fails_says_why(llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(segments, "write", broken)
    async with exploring(llama, root) as view:
        await view.press("enter")
        await view.sees("4 failed")
        for keys in ([], ["j", "k"]):
            await view.press(*keys)
            assert view.foot.startswith("layers.0.attention.query: cannot be saved: Input/output error")

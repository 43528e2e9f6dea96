"""Keys that arrive in one piece, as over a slow line, do what they do one by one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from app_looking import WIDE, View, exploring
from app_models import fill
from textual.events import Key

from rankscope.engine.spectrum import Projection
from rankscope.tui.data.session import Session


async def _arrive(view: View, keys: Iterable[str]) -> None:
    """Hand the app all keys before it handles the first."""
    for key in keys:
        view.app.post_message(Key(key, key))
    await view.pilot.pause()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("3jjJ", "layers.3.attention.query"),
        ("3jlJ", "layers.2.attention.key"),
        ("3jj1J", "layers.3.attention.query"),
        ("0gjjjJ", "layers.1.attention"),
        ("0gjjJ1", "layers.1"),
        ("5jjjL", "layers.0.mlp.gate"),
    ],
)
async def test_a_key_acts_on_what_those_before_it_have_selected(
    llama: Path, root: Path, keys: str, expected: str
) -> None:
    async with exploring(fill(llama, root), root, WIDE) as view:
        await view.press("G" if "3" in keys else "J")
        await view.press("3", "g")
        await _arrive(view, keys)
        at_once = view.selected
    async with exploring(fill(llama, root), root, WIDE) as view:
        await view.press("G" if "3" in keys else "J")
        await view.press("3", "g", *keys)
        assert (at_once, view.selected) == (expected, expected)


async def test_enter_computes_what_the_key_before_it_has_selected(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []

    def compute(_session: Session, projections: Iterable[Projection], **_options: bool) -> list[Projection]:
        wanted.extend(p.address for p in projections)
        return []

    monkeypatch.setattr(Session, "compute", compute)
    async with exploring(llama, root, WIDE) as view:
        await view.press("3", "g")
        await _arrive(view, ["j", "enter"])
        assert wanted == ["layers.1.attention.query"]

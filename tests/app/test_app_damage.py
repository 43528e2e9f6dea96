"""A damaged store in the explorer: reported, counted, and computed again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from app_looking import SMALL, WIDE, exploring
from app_models import fill

from rankscope.store import segments
from rankscope.store.spectra import SpectraStore
from rankscope.tui.data.at_hand import choices

BAD = "layers.1.attention.query"


def damage(root: Path, folder: str, kind: str) -> Path:
    """Flip a bit in the values of BAD in a file of this kind; return what the damage is then called."""
    path = root / folder
    if kind == segments.VOLUME:
        segments.merge(path, segments.names(path))
    store = SpectraStore(root, folder)
    (key,) = (e.projection.key for e in store.entries() if e.projection.address == BAD)
    values = store.get(key).values.tobytes()
    (file,) = (path / name for name in segments.names(path) if values in (path / name).read_bytes())
    data = bytearray(file.read_bytes())
    data[data.index(values) + 77] ^= 16
    file.write_bytes(data)
    return file.with_name(f"{file.name}.damaged")


@pytest.mark.parametrize("size", [SMALL, WIDE])
@pytest.mark.parametrize("kind", [segments.SEGMENT, segments.VOLUME])
async def test_damage_is_said_and_computed_again(llama: Path, root: Path, kind: str, size: tuple[int, int]) -> None:
    model = fill(llama, root)
    aside = damage(root, model.folder, kind)
    async with exploring(model, root, size) as view:
        await view.sees("41/42 stored")
        await view.until(lambda: view.foot.startswith(f"{aside.name}: {BAD}"[: size[0] - 3]), "file and address")
        toasts = view.app._notifications
        await view.until(
            lambda: [f"{aside.name}: {BAD} is damaged" in n.message for n in toasts] == [True], "the toast"
        )
        await view.press("J", "L")
        assert view.selected == BAD
        await view.until(lambda: "what was stored of it is damaged" in view.foot, "the selection's state")
        await view.scan()
        await view.sees("42/42 stored")
        assert "damaged" not in view.foot
    session = SpectraStore(root, model.folder)
    assert len(session.entries()) == 42
    assert session.lost() == []


async def test_the_second_model_is_read_too(llama: Path, root: Path, tmp_path: Path) -> None:
    other = shutil.copytree(llama, tmp_path / "other")
    first, second = fill(llama, root), fill(other, root)
    aside = damage(root, second.folder, segments.VOLUME)
    async with exploring(first, root, WIDE) as view:
        await view.press("colon")
        await view.type(f"against {other}")
        await view.until(lambda: view.foot.startswith(f"{aside.name}: {BAD}"), "file and address")
        await view.sees("A 42/42 stored", "B 41/42")


def test_the_picker_says_that_a_model_has_damage(llama: Path, root: Path) -> None:
    model = fill(llama, root)
    damage(root, model.folder, segments.SEGMENT)
    for _ in range(2):  # found now; and set aside earlier
        kinds = {found.name: found.kind for found in choices(root)}
        assert kinds[str(llama)] == "41 spectra stored, 1 damaged or unread file: see  rankscope ls"

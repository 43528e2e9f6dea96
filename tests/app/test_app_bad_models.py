"""Models that are broken, hostile, tiny or of an unknown kind: shown without a crash, and without obeying them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_looking import SMALL, WIDE, View, exploring
from app_models import LLAMA, fill, llama_weights, matrix, numpy_rank, save_model, save_named
from textual.widgets import Static

from rankscope.engine.errors import InputError
from rankscope.tui.cli import launch
from rankscope.tui.data.at_hand import choices
from rankscope.tui.data.model import open_model
from rankscope.tui.screens.picker import Picker
from rankscope.tui.settings.config import Config

HOSTILE = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "[red]markup[/red]", "[/]", "[link=file:///]x[/link]", "a\nb\tc\r",
    "\u202egnp.exe", "\x9b2J", "{{x}} $(id) `id`", "[@click=app.quit]click[/]",
)  # fmt: skip


def _is_clean(view: View) -> bool:
    return all(c == "\n" or c.isprintable() for c in view.text)


async def test_a_failed_projection_shows_why_and_the_others_go_on(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(2)
    weights["model.layers.1.self_attn.k_proj.weight"][0, 0] = np.nan
    folder = save_model(tmp_path / "nan", weights, LLAMA)
    async with exploring(folder, root, WIDE) as view:
        await view.scan()
        await view.sees("13/14 stored", "1 failed")
        await view.press("3", "j", "l")
        assert view.cells(1)[1] == "!"
        assert "NaN" in view.foot
        assert view.job.startswith("layers.1.attention.key  24x48  failed")
        await view.chart("24x48  the weights hold NaN")
        assert "! key      24x48" in view.labels
        assert any(label.startswith("v 1  6 of 7 !") for label in view.labels)
        await view.press("j", "k", "l")
        assert "NaN" not in view.foot


async def test_a_part_of_a_cut_matrix_says_so_until_it_is_left(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(2)
    query = "model.layers.0.self_attn.q_proj.weight"
    rows, cols = weights[query].shape
    weights[query] = weights[query][: rows // 2]
    async with exploring(save_model(tmp_path / "cut", weights, LLAMA), root, WIDE) as view:
        await view.press("3", "g")
        assert view.job.startswith("layers.0.attention.query  24x48  not computed")
        assert view.foot == f"half of the {rows} x {cols} that config.json says: a part of a cut model"
        await view.press("L")
        assert "a part of a cut model" not in view.foot


async def test_packed_integers_are_a_question_mark(tmp_path: Path, root: Path) -> None:
    weights: dict[str, np.ndarray] = dict(llama_weights(1))
    weights["model.layers.0.self_attn.k_proj.weight"] = np.ones((24, 6), np.int32)
    folder = save_model(tmp_path / "packed", weights, LLAMA)
    async with exploring(folder, root, WIDE) as view:
        await view.press("3", "l")
        assert view.cells(0)[1] == "?"
        assert view.foot == "I32 holds packed integers, not weights: unsupported quantisation"
        await view.press("enter")
        assert not view.has_engine
        await view.press("s")
        await view.sees("compute 6 projections")
        await view.answer("y")
        await view.sees("6/7 stored")
        assert "failed" not in view.job


async def test_names_are_shown_and_never_interpreted(tmp_path: Path, root: Path) -> None:
    tensors = {name: matrix((6, 6), n) for n, name in enumerate(HOSTILE)}
    tensors |= {f"model.layers.0.{name}.weight": matrix((6, 6), n) for n, name in enumerate(HOSTILE)}
    file = save_named(tmp_path / "[bold]evil[bold] \x1b[7m" / "model.safetensors", tensors)
    async with exploring(file.parent, root, (160, 50)) as view:
        assert "[bold]evil[bold] \\x1b[7m" in view.lines[0]
        await view.press("g", "j", "h", "j", "l", "j", "j")
        shown = {label for label in view.labels if "..." not in label}
        for name in ("[red]markup[/red]", "\\x1b[31mred\\x1b[0m", "a\\nb\\tc\\r", "\\u202egnp.exe", "[/]"):
            assert any(name in label for label in shown), name
        for keys in ("3", "llllllllll", "1", "4", "0jjjj"):
            await view.press(*keys)
            assert _is_clean(view)
        await view.press("3", "h", "enter")
        await view.until(lambda: "1/10" in view.lines[0], "one computed")
        await view.press("1")
        await view.chart("other.model.layers.0.", "k90")
        assert _is_clean(view)
        assert view.app._exit is False


async def test_a_filter_of_markup_is_a_filter(llama: Path, root: Path) -> None:
    async with exploring(llama, root) as view:
        await view.press("slash")
        view.app.explorer.query_one("#prompt Input").value = "[red]x[/red]"  # type: ignore[attr-defined]
        await view.press("enter")
        assert view.foot == "no address matches '[red]x[/red]'"


async def test_a_single_odd_tensor_can_be_computed(tmp_path: Path, root: Path) -> None:
    values = matrix((9, 14), 3)
    file = save_named(tmp_path / "odd.safetensors", {"thing": values})
    async with exploring(file, root, SMALL) as view:
        assert view.job.startswith("other.thing  9x14  not computed")
        for keys in ("3jklhgGnNJKHL", "1jk", "2", "4", "0jjkkl"):
            await view.press(*keys)
        await view.press("colon")
        await view.type("3")
        assert view.foot == "there is no layer 3 here"
        await view.press("0", "G", "enter")
        await view.sees("1/1 stored", f"9x14{' ' * 7}")
        await view.press("1")
        await view.chart(f"k90 {numpy_rank(values, 0.9)}")


async def test_a_model_of_one_layer(tmp_path: Path, root: Path) -> None:
    folder = save_model(tmp_path / "one", llama_weights(1), LLAMA)
    async with exploring(fill(folder, root), root, SMALL) as view:
        assert "1 layer  " in view.lines[0]
        await view.press("4")
        await view.chart("layer 0: query ")
        await view.press(*"JKHL3jkhlgG")
        assert view.cells(0)[0].isdigit()


async def test_an_unknown_family_shows_its_own_names(tmp_path: Path, root: Path) -> None:
    weights = {f"net.blocks.{n}.{name}.weight": matrix((10, 10), n) for n in range(3) for name in ("mixer", "out")}
    folder = save_model(tmp_path / "new", weights, {"model_type": "never_heard_of"})
    async with exploring(folder, root, WIDE) as view:
        assert view.pane("heatmap")[1].split() == ["layer", "mixer", "out"]
        await view.press("s")
        await view.sees("compute 6 projections")
        await view.answer("y")
        await view.sees("6/6 stored")
        assert view.cells(2) == [str(numpy_rank(weights["net.blocks.2.mixer.weight"], 0.9))] * 2


async def test_a_matrix_of_zeros_and_one_of_rank_one(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(1)
    weights["model.layers.0.self_attn.q_proj.weight"][:] = 0
    weights["model.layers.0.self_attn.k_proj.weight"][:] = 1
    folder = save_model(tmp_path / "zeros", weights, LLAMA)
    async with exploring(folder, root, WIDE) as view:
        await view.press("enter")
        await view.sees("4/7 stored")
        await view.press("n")
        await view.chart("layers.0.attention.query", "all values are 0")
        await view.press("L")
        await view.chart("layers.0.attention.key", "k90 1 ")
        for key in "aaa2aa4":
            await view.press(key)
            assert "cannot be drawn" not in view.text


async def test_a_store_that_cannot_be_read_is_said_and_the_model_still_opens(llama: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.write_text("not a folder")
    async with exploring(llama, root) as view:
        await view.until(lambda: bool(view.app._notifications), "a sentence about the store")
        await view.press("3", "j")
        assert view.selected == "layers.1.attention.query"


async def test_a_damaged_store_is_said_and_the_rest_is_shown(llama: Path, root: Path) -> None:
    model = fill(llama, root, ["layers.0.attention.query"])
    segment = next((root / model.folder).iterdir())
    segment.write_bytes(segment.read_bytes()[:-100])
    async with exploring(model, root) as view:
        await view.until(lambda: bool(view.app._notifications), "a sentence about the store")
        assert "0/42 stored" in view.lines[0]


async def test_the_picker_offers_what_is_stored_and_the_demo(llama: Path, root: Path) -> None:
    fill(llama, root)
    names = [found.name for found in choices(root)]
    assert names[-1] == "demo"
    assert open_model(names[0], root).tree.scanned()
    picker = Picker(root)
    async with picker.run_test(size=SMALL) as pilot:
        await pilot.press("down", "down", "up", "enter")
        assert picker.return_value in names
    picker = Picker(root)
    async with picker.run_test(size=SMALL) as pilot:
        await pilot.press("escape")
        assert picker.return_value is None


async def test_the_picker_marks_what_is_not_whole(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("whole", "gone"):
        snapshot = tmp_path / f"models--org--{name}" / "snapshots" / ("c" * 40)
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("c" * 40)
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/{name}")
    (tmp_path / "models--org--whole" / "blobs").mkdir()
    (tmp_path / "models--org--whole" / "blobs" / "whole").touch()
    kinds = {found.name: found.kind for found in choices(root)}
    assert (kinds["org/whole"], kinds["org/gone"]) == ("in the Hub cache", "in the Hub cache, incomplete")


async def test_a_choice_that_does_not_open_is_said_and_another_is_made(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(llama, root)
    good = choices(root)[0].name
    chosen, said = iter(["org/gone", good]), []

    def run(picker: Picker, **_: Any) -> str:
        said.append(picker._said)
        return next(chosen)

    def opened(name: str) -> list[Any]:
        if name == "org/gone":
            raise InputError("shard x is missing: fetch it again")
        return [open_model(name, root)]

    monkeypatch.setattr(Picker, "run", run)
    (model,) = launch._picked(root, Config(), opened)
    assert model.tree.scanned()
    assert said == ["", "shard x is missing: fetch it again"]
    picker = Picker(root, said[1])
    async with picker.run_test(size=SMALL):
        assert str(picker.query_one("#said", Static).render()) == said[1]


@pytest.mark.parametrize("size", [(1, 1), (10, 3), (20, 8), (300, 100)])
async def test_no_size_is_an_error(llama: Path, root: Path, size: tuple[int, int]) -> None:
    async with exploring(fill(llama, root), root, size) as view:
        for key in ("3", "j", "1", "2", "4", "0", "question_mark", "escape", "slash", "escape"):
            await view.press(key)

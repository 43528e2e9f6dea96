"""Marked projections side by side: differences, headings, keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from app_models import llama_weights, matrix, rank_in
from app_sheets import Sheets, find, lines, press, session_of, words, written
from textual.pilot import Pilot

from rankscope.tui.data.comparison import Comparison, difference, headings_of
from rankscope.tui.data.lens import Lens
from rankscope.tui.data.measures import BY_NAME, from_values
from rankscope.tui.data.pair import Pair
from rankscope.tui.data.view_records import of_compare

MARKS = ("layers.2.attention.key", "layers.3.attention.key", "layers.0.mlp.gate")


@asynccontextmanager
async def compared(pair: Pair, size: tuple[int, int] = (120, 70)) -> AsyncIterator[tuple[Sheets, Pilot[None]]]:
    app = Sheets(pair)
    async with app.run_test(size=size) as pilot:
        app.compare.focus()
        app.compare.set_marks(find(pair.first, *MARKS))
        await pilot.pause()
        yield app, pilot


@pytest.fixture
def pair(llama: Path, root: Path) -> Pair:
    session = session_of(llama, root)
    session.load_facts(session.model.tree.scanned(), from_values())
    return Pair(session)


def row(app: Sheets, title: str) -> list[str]:
    """The words of a line, without the cursor and the line's title."""
    (line,) = [line for line in lines(app.compare) if line[2:].startswith(f"{title}  ")]
    return line[2 + len(title) :].split()


# Text


@pytest.mark.parametrize(
    ("name", "number", "base", "text"),
    [
        ("k", 107, 95, "+12"),
        ("k", 95, 107, "-12"),
        ("k", 95, 95, "+0"),
        ("numerical_rank", 24, 0, "+24"),
        ("percent", 33.3, 31.2, "+2.1"),
        ("k/k0", 0.81, 0.75, "+8.0 %"),
        ("k/k0", 0.75, 0.5, "+50 %"),
        ("stable_rank", 4.99999, 5.0, "+0.0 %"),
        ("stable_rank", 4.5, 5.0, "-10 %"),
        ("condition_number", 1e6, 4e4, "x 25"),
        ("condition_number", 4e4, 1e6, "x 0.04"),
        ("stable_rank", 4.5, 0.0, ""),
    ],
)
def test_a_difference_is_a_count_or_a_share(pair: Pair, name: str, number: float, base: float, text: str) -> None:
    assert difference(number, base, Lens(pair, 0.9, BY_NAME[name])) == text


def test_a_heading_is_what_tells_a_mark_from_the_others(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(2)
    for expert in range(2):
        weights[f"model.layers.1.mlp.experts.{expert}.gate_proj.weight"] = matrix((8, 8), expert)
    session = session_of(tmp_path / "m", root, weights)

    def headings(*addresses: str) -> list[str]:
        return headings_of(find(session, *addresses))

    assert headings("layers.0.attention.key", "layers.1.attention.key") == ["0 key", "1 key"]
    assert headings("layers.0.attention.key", "layers.0.attention.value") == ["key", "value"]
    assert headings("layers.1.expert.0.gate", "layers.1.expert.1.gate") == ["e0 gate", "e1 gate"]
    assert headings("layers.1.mlp.gate", "layers.1.expert.1.gate") == ["mlp.gate", "e1 expert.gate"]
    assert headings("layers.1.mlp.gate") == ["gate"]


def test_of_a_bound_no_difference_is_known(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(1)
    weights["model.layers.0.self_attn.k_proj.weight"][5:] = 0
    session = session_of(tmp_path / "m", root, weights)
    marks = find(session, "layers.0.attention.key", "layers.0.attention.value", "layers.0.attention.query")
    for order in (marks, marks[::-1]):
        comparison = Comparison(Lens(Pair(session), 0.9), order)
        comparison.load()
        at = [field.name for field in comparison.fields].index("condition_number")
        bounded = [p is marks[0] for p in order]
        assert [comparison.value(at, column).startswith("> ") for column in range(3)] == bounded
        empty = [comparison.difference(at, column) == "" for column in range(3)]
        assert empty == [True, *(one or bounded[0] for one in bounded[1:])]


# On the screen


async def test_counts_and_ratios_against_the_first_mark(pair: Pair, llama: Path) -> None:
    async with compared(pair) as (app, _):
        k = [rank_in(llama, 2, "key", 0.9), rank_in(llama, 3, "key", 0.9), rank_in(llama, 0, "gate", 0.9)]
        assert words(app.compare)[0] == ["2", "key", "3", "key", "0", "gate"]
        assert row(app, "k90") == [str(k[0]), str(k[1]), f"{k[1] - k[0]:+d}", str(k[2]), f"{k[2] - k[0]:+d}"]
        assert row(app, "shape") == ["24x48", "24x48", "80x48"]
        # For two projections of one shape k/k0 differs as k does; the share is written to 2 digits.
        ratio = k[1] / k[0]
        found = row(app, "k90/k0")
        assert float(found[1]) / float(found[0]) == pytest.approx(ratio, abs=0.02)
        assert float(found[2]) == pytest.approx(100 * (ratio - 1), abs=0.51)
        assert found[3] == "%"


async def test_keys_walk_over_metrics_and_marks(pair: Pair) -> None:
    async with compared(pair) as (app, pilot):
        foot = lines(app.compare)[-1]
        assert foot == " 2 key: layers.2.attention.key   shape: output x input features"
        await press(pilot, "l", "j", "j", "h", "l", "l", "l")
        assert lines(app.compare)[-1].startswith(" 0 gate: layers.0.mlp.gate   k80: fewest singular values")
        assert app.compare.text_of_cell() == row(app, "k80")[-2]
        await press(pilot, "G", "h", "h", "h")
        assert lines(app.compare)[-1].startswith(" 2 key: layers.2.attention.key   k*: m n / (m + n)")
        await press(pilot, "g")
        assert app.compare.text_of_cell() == "24x48"


async def test_names_stay_when_marks_scroll(pair: Pair) -> None:
    async with compared(pair, (50, 70)) as (app, pilot):
        names = [line[:10] for line in lines(app.compare)[1:20]]
        assert "0 gate" not in lines(app.compare)[0]
        await press(pilot, "l", "l")
        assert lines(app.compare)[0].endswith("0 gate")
        assert [line[:10] for line in lines(app.compare)[1:20]] == names


async def test_of_two_models_each_mark_has_two_columns(pair: Pair, llama: Path, tmp_path: Path, root: Path) -> None:
    weights = llama_weights(4)
    weights["model.layers.2.self_attn.k_proj.weight"] = np.eye(24, 48, dtype=np.float32)
    del weights["model.layers.0.mlp.gate_proj.weight"]
    second = session_of(tmp_path / "b", root, weights)
    async with compared(Pair(pair.first, second, by_depth=False)) as (app, _):
        assert " ".join(words(app.compare)[0]) == "2 key A 2 key B 3 key A 3 key B 0 gate A 0 gate B"
        k = [rank_in(llama, 2, "key", 0.9), rank_in(llama, 3, "key", 0.9), rank_in(llama, 0, "gate", 0.9)]
        assert row(app, "k90") == [
            *(str(k[0]), "22", f"{22 - k[0]:+d}"),  # 22 of 24 equal values
            *(str(k[1]), f"{k[1] - k[0]:+d}", str(k[1]), "+0"),
            *(str(k[2]), f"{k[2] - k[0]:+d}", "-"),
        ]
        found = list(of_compare(written(app.compare)))
        assert [(r["address"], r["model"], r["k90"]) for r in found[:2]] == [(MARKS[0], "A", k[0]), (MARKS[0], "B", 22)]


async def test_numbers_come_when_they_are_loaded(llama: Path, root: Path) -> None:
    session = session_of(llama, root, addresses=MARKS[:2])
    async with compared(Pair(session)) as (app, pilot):
        assert row(app, "spikes") == [".", ".", "."]
        assert row(app, "k90")[-1] == "."
        app.compare.load(())
        app.compare.update()
        await pilot.pause()
        assert all(word.lstrip("+-").isdecimal() for word in row(app, "spikes")[:3])
        assert row(app, "spikes")[-1] == "."  # not computed


async def test_without_marks_it_says_how_to_mark(pair: Pair) -> None:
    async with compared(pair) as (app, pilot):
        app.compare.set_marks(())
        await press(pilot, "j", "l", "G", "ctrl+d")
        assert lines(app.compare)[0] == " nothing marked: space marks the selection, M clears"
        assert not any(lines(app.compare)[1:])
        assert (app.compare.text_of_cell(), list(of_compare(written(app.compare)))) == ("", [])

"""`:plan` and view 9: ranks for a budget, moved by `+` and `-`, written as the command line writes them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from app_gate import Gate
from app_looking import HUGE, SMALL, WIDE, View, exploring
from app_models import LLAMA, fill, llama_weights, matrix, save_model
from odd_model import save_odd_model
from safetensors.numpy import save_file
from textual.widgets import Input

from rankscope.engine.errors import InputError
from rankscope.tui.cli.main import main as rankscope
from rankscope.tui.data.plan_shown import Plannable, PlanWish, ShownPlan
from rankscope.tui.screens.command_line import parse_command
from rankscope.tui.settings.plan_words import plan_wish

MOE = {"model_type": "qwen3_moe", "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4}
WORST = "worst first"
LAST = "ranks from weights and second moments, no training; check with perplexity"


async def command(view: View, text: str) -> None:
    await view.press("colon")
    view.app.explorer.query_one("#prompt Input", Input).value = text  # pressing each key would be most of the time
    await view.press("enter")


async def plan(view: View, text: str = "20%") -> None:
    """Make a plan, and wait for it."""
    await command(view, f"plan {text}")
    await view.sees(WORST)


def by_hand(folder: Path, root: Path, target: Path, *words: str) -> dict[str, Any]:
    """The plan of the command line."""
    assert rankscope(["plan", str(folder), "--store", str(root), "-o", str(target), *words]) == 0
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def ranks(made: dict[str, Any], layer: int) -> list[str]:
    """What the map shows of a layer, by a plan.json."""
    rows = [row for row in made["rows"] if row["address"].startswith(f"layers.{layer}.")]
    return ["dense" if row["rank"] is None else str(row["rank"]) for row in rows]


def cells(view: View, layer: int) -> list[str]:
    """What the map shows of a layer."""
    line = next(line for line in view.pane("plan")[2:] if re.match(rf"[> ] +{layer} ", line))
    return [word.strip("[]") for word in line.lstrip(" >").split()[1:]]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gate, list[float]]]:
    """A gate before every plan that is made, and the cuts that have come to it."""
    gate, cuts, make = Gate(), list[float](), Plannable.plan

    def wait_and_make(plannable: Plannable, cut: float) -> ShownPlan:
        cuts.append(cut)
        gate.wait()
        return make(plannable, cut)

    monkeypatch.setattr(Plannable, "plan", wait_and_make)
    yield gate, cuts
    gate.open()


async def test_the_map_is_the_plan_of_the_command_line_and_is_written_as_that(
    llama: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(llama, root)
    monkeypatch.chdir(tmp_path)
    made = by_hand(llama, root, tmp_path / "cli.json", "--cut", "20%")
    async with exploring(llama, root, HUGE) as view:
        await plan(view)
        assert [cells(view, layer) for layer in range(6)] == [ranks(made, layer) for layer in range(6)]
        row = next(row for row in made["rows"] if row["action"] == "factor")
        await view.press("slash")
        await view.type(row["address"])
        await view.press("n")
        squares = np.linalg.svd(llama_weights(6)[row["tensor"]].astype(float))[1] ** 2
        kept = 100 * squares[: row["rank"]].sum() / squares.sum()
        await view.sees(f"rank {row['rank']}, {kept:.2f} % kept")
        await view.press("escape", "9")
        before = sum(row["shape"][0] * row["shape"][1] for row in made["rows"])
        after = sum(row["parameters"] for row in made["rows"])
        whole = before + 100 * 48 + 6 * 48
        assert after <= 0.8 * before
        await view.sees(f"{before:,} -> {after:,} parameters", f"{whole:,} -> {whole - before + after:,} parameters")
        await view.sees("weights only: at this cut the model is likely to break", LAST)
        await command(view, "plan-save shown.json")
        await view.sees(f"written: {tmp_path / 'shown.json'}")
        assert (tmp_path / "shown.json").read_bytes() == (tmp_path / "cli.json").read_bytes()
        await command(view, "export rows.csv")
        await view.sees("written: ")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert {row["address"]: row["rank"] for row in rows} == {
        row["address"]: str(row["rank"] or "") for row in made["rows"]
    }
    assert [float(row["energy"]) for row in rows] == sorted(row["energy"] for row in made["rows"])


async def test_the_options_are_those_of_the_command_line(llama: Path, root: Path, tmp_path: Path) -> None:
    fill(llama, root)
    words = ("--cut", "10%", "--of", "total", "--uniform", "--min-rank", "4", "--multiple", "2")
    words = (*words, "--objective", "relative", "--cost", "pifa", "--filter", "*.mlp.*")
    made = by_hand(llama, root, tmp_path / "cli.json", *words)
    async with exploring(llama, root, HUGE) as view:
        await plan(view, "10% of=total uniform min-rank=4 multiple=2 objective=relative cost=pifa filter=*.mlp.*")
        await view.sees("10 % of all parameters stored, uniform, filter *.mlp.*, relative, pifa")
        assert cells(view, 2) == ["-"] * 4 + ranks(made, 2)
        await command(view, f"plan-save {tmp_path / 'shown.json'}")
        await view.sees("written: ")
    assert json.loads((tmp_path / "shown.json").read_text()) == made


async def test_a_filter_that_is_set_is_that_of_the_plan(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, SMALL) as view:
        await view.press("slash")
        await view.type("attention")
        await plan(view)
        await view.sees("filter attention")
        assert view.app.explorer.state.plan is not None
        assert len(view.app.explorer.state.plan.worst) == 24


async def test_plus_and_minus_move_the_cut_by_one_per_cent(llama: Path, root: Path, tmp_path: Path) -> None:
    fill(llama, root)
    made = by_hand(llama, root, tmp_path / "cli.json", "--cut", "23%")
    async with exploring(llama, root, HUGE) as view:
        await plan(view)
        before = [cells(view, layer) for layer in range(6)]
        await view.press("plus", "plus", "plus", "plus", "minus")
        await view.sees("at a cut of 23 %")
        found = [cells(view, layer) for layer in range(6)]
        assert found == [ranks(made, layer) for layer in range(6)] != before
        await view.press("0", "minus")  # from the tree too: the map is beside it
        await view.sees("at a cut of 22 %")


async def test_their_keys_are_there_while_a_plan_shows(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, HUGE) as view:
        await view.press("9")
        await view.sees("none yet: :plan 20% makes one")
        assert "cut more" not in view.foot
        await plan(view)
        assert view.foot.startswith("+ cut more  - cut less")
        await view.pilot.click("#keys", offset=(3, 0))
        await view.sees("at a cut of 21 %")
        await view.press("ctrl+p")
        await view.type("cut less")
        await view.sees("at a cut of 20 %")
        await view.press("question_mark")
        await view.sees("The plan cuts one per cent less")
        await view.press("escape", "3")
        assert "cut more" not in view.foot
        await view.press("plus")
        await view.press("question_mark")
        assert "The plan cuts" not in view.text
        await view.press("escape", "9")
        await view.sees("at a cut of 20 %")


async def test_the_map_follows_off_the_event_loop_and_leaves_out_what_was_overtaken(
    llama: Path, root: Path, held: tuple[Gate, list[float]]
) -> None:
    """Five keys while one plan is made come to one more plan, and other keys are answered meanwhile."""
    gate, cuts = held
    fill(llama, root)
    async with exploring(llama, root, HUGE) as view:
        gate.let(1)
        await plan(view)
        await view.press(*["plus"] * 5)
        await view.press("j", "j")
        await view.sees("layers.2.")
        await view.sees("at a cut of 20 %")
        gate.open()
        await view.sees("at a cut of 25 %")
        assert cuts == [0.2, 0.21, 0.25]


async def test_a_plan_under_a_weighting_that_is_not_shown_any_more_is_thrown_away(
    llama: Path, root: Path, held: tuple[Gate, list[float]]
) -> None:
    gate, cuts = held
    fill(llama, root)
    async with exploring(llama, root, HUGE) as view:
        gate.let(1)
        await plan(view)
        await command(view, "plan 30%")
        await view.until(lambda: len(cuts) == 2, "the second plan")
        await command(view, "weight norm")
        await view.sees("weighted by norm gains")
        await view.sees("none yet: :plan 20% makes one")
        gate.open()
        await view.until(lambda: view.app.explorer.planning.close(0.0), "the end of the second plan")
        await view.pilot.pause()
        await view.sees("none yet: :plan 20% makes one")
        assert WORST not in view.text


async def test_what_is_not_computed_is_asked_for_and_then_scanned(llama: Path, root: Path) -> None:
    fill(llama, root, ["layers.0.attention.key"])
    async with exploring(llama, root, SMALL) as view:
        await command(view, "plan 20%")
        await view.sees("compute 41 projections", "A plan needs these spectra.")
        await view.press("n")
        assert not view.has_engine
        assert view.app.explorer.state.plan is None
        await command(view, "plan 20%")
        await view.sees("compute 41 projections")
        await view.answer("y")
        await view.sees("the plan is made: 9 shows it")
        await view.press("9")
        await view.sees(WORST, "42/42")


async def test_a_scan_for_a_plan_that_is_stopped_makes_none(llama: Path, root: Path, gate: Gate) -> None:
    async with exploring(llama, root, SMALL) as view:
        await command(view, "plan 20%")
        await view.sees("compute 42 projections")
        await view.answer("y")
        await view.press("x")
        gate.open()
        await view.until(lambda: not view.app.explorer.state.is_busy, "the end")
        await view.scan()
        await view.sees("42/42")
        await view.until(lambda: view.app.explorer.planning.close(0.0), "the end")
        assert view.app.explorer.state.plan is None


async def test_what_cannot_be_is_one_line_and_the_plan_stays(llama: Path, root: Path, tmp_path: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, (200, 30)) as view:
        await command(view, "plan-save x.json")
        await view.sees("there is no plan yet")
        await command(view, "plan 90%")
        await view.sees("cut at most ")
        most = re.search(r"cut at most (\d+)", view.foot)
        assert most is not None
        await plan(view, f"{most[1]}%")
        await view.press("plus")
        await view.sees(f"cut at most {most[1]}")
        assert f"at a cut of {most[1]} %" in view.text
        for words, said in (
            ("plan 20% filter=nothing", "no matrix of weights matches 'nothing'"),
            ("plan-save plan.txt", "name the plan FILE.json"),
            (f"plan-save {tmp_path / 'no' / 'p.json'}", "cannot write"),
        ):
            await command(view, words)
            await view.sees(said)
            assert f"at a cut of {most[1]} %" in view.text
        there = tmp_path / "there.json"
        there.write_text("mine")
        await command(view, f"plan-save {there}")
        await view.sees("exists already: name another file")
        assert there.read_text() == "mine"
        await command(view, "gauge")
        await view.sees("none yet")
        await command(view, "plan 20%")
        await view.sees("v leaves the fixed gauge")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plan a lot", "'a' is not a share of the parameters: write 20% or 0.2"),
        ("plan 120%", "it must be above 0 and below 100 %"),
        ("plan 20% of=all", "a plan has no option 'of=all': of=projections|total, uniform"),
        ("plan 20% uniform=yes", "a plan has no option 'uniform=yes'"),
        ("plan 20% of", "a plan has no option 'of'"),
        ("plan 20% filter=", "a plan has no option 'filter='"),
        ("plan 20% \x1b[2J", "x1b[2J'"),
        ("plan 20% min-rank=0", "'0' is not a whole number above zero"),
        ("plan-save", ":plan-save needs an argument: :plan-save plan.json"),
    ],
)
def test_words_that_are_no_plan(words: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_command(words)
    assert said in str(raised.value)


def test_the_words_of_a_plan() -> None:
    assert parse_command("plan") == ("pane(9)", "")
    words = "0.2 --of=total --uniform --filter=*.mlp.* --min-rank=4 --multiple=2 --objective=absolute --cost=pifa"
    assert parse_command(f"plan {words}") == ("plan", words)
    assert plan_wish(words, "key") == PlanWish(0.2, "total", True, "*.mlp.*", "absolute", "pifa", 4, 2)
    assert plan_wish("20%", "key") == PlanWish(0.2, pattern="key")


async def test_where_the_weights_are_gone_what_is_stored_is_planned(llama: Path, root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "gone"))
    addresses = [f"layers.{layer}.mlp.{role}" for layer in range(6) for role in ("gate", "up", "down")]
    fill(folder, root, addresses)
    shutil.rmtree(folder)
    async with exploring(folder, root, WIDE) as view:
        await plan(view)
        assert view.app.explorer.state.plan is not None
        assert {row.address for row in view.app.explorer.state.plan.worst} == set(addresses)
        assert "of all stored" not in view.text


async def test_of_two_models_it_is_the_first(llama: Path, root: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", llama_weights(4), LLAMA)
    fill(llama, root)
    fill(other, root)
    made = by_hand(llama, root, tmp_path / "cli.json", "--cut", "20%")
    async with exploring(llama, root, HUGE, against=other) as view:
        await view.press("d", "d")
        await plan(view)
        assert [cells(view, layer) for layer in range(6)] == [ranks(made, layer) for layer in range(6)]


async def test_a_failed_expert_stays_as_it_is_and_every_tower_is_planned(root: Path, tmp_path: Path) -> None:
    model = save_odd_model(tmp_path / "odd")
    async with exploring(model, root, HUGE) as view:
        await command(view, "plan 10% min-rank=2 multiple=1")
        await view.sees("A plan needs these spectra.")
        await view.answer("y")
        await view.sees("the plan is made: 9 shows it")
        await view.press("9")
        await view.sees(
            "1 stay as they are: layers.0.expert.2.gate: the weights hold NaN", " vision.0 ", " 52/53 stored"
        )


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of five experts, of which tokens reached four, and moments of its inputs beside it."""
    shapes = {f"self_attn.{name}_proj": (24, 24) for name in "qkvo"}
    for expert in range(5):
        shapes |= {f"mlp.experts.{expert}.{name}_proj": (20, 24) for name in ("gate", "up")}
        shapes |= {f"mlp.experts.{expert}.down_proj": (24, 20)}
    weights = {f"model.layers.0.{name}.weight": matrix(shape, n) for n, (name, shape) in enumerate(shapes.items())}
    folder = save_model(tmp_path_factory.mktemp("models") / "moe", weights, MOE)
    held: dict[str, Any] = {}
    for number, (name, values) in enumerate(weights.items()):
        count = 0.0 if "experts.4" in name else 10.0 + number
        held[f"{name}.x2"] = count * np.logspace(0, -2, values.shape[1]) * (number % 3 + 1)
        held[f"{name}.count"] = np.array([count])
    save_file(held, folder / "wiki.moments", {"datasets": "wiki"})
    return folder


async def test_experts_under_a_file_are_planned_by_their_pooled_moments(moe: Path, root: Path, tmp_path: Path) -> None:
    file = str(moe / "wiki.moments")
    words = ("--cut", "30%", "--weight", file, "--min-rank", "2", "--multiple", "1")
    made = by_hand(moe, root, tmp_path / "cli.json", *words)
    async with exploring(moe, root, HUGE, weight=file) as view:
        await plan(view, "30% min-rank=2 multiple=1")
        kept = [
            [row["rank"] or min(row["shape"]) for row in made["rows"] if row["address"].endswith(f".{role}")]
            for role in ("gate", "up", "down")
        ]
        assert [cell.split("~")[0] for cell in cells(view, 0)[-3:]] == [f"{median(ranked):.0f}" for ranked in kept]
        await command(view, f"plan-save {tmp_path / 'shown.json'}")
        await view.sees("written: ")
        assert "weights only" not in view.text
        await view.press("l", "l", "l", "l", "enter")
        await view.sees("expert.0.gate", " e4 ")
        await view.press("escape")
        await view.sees(WORST)
    shown = json.loads((tmp_path / "shown.json").read_text())
    assert shown == made
    assert shown["weighting"]["pooled"]

"""The energy that rank k would keep, in the explorer: for all roles or for each, stepped, shown in every view."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from app_looking import SMALL, WIDE, exploring
from app_models import TENSORS, fill
from safetensors.numpy import load_file

from rankscope.engine.errors import InputError
from rankscope.tui.data.kept_ranks import KeptRanks
from rankscope.tui.data.kept_sum import KeptSum
from rankscope.tui.data.measures import BY_NAME
from rankscope.tui.settings.values import kept_ranks

ROLES = tuple(TENSORS)


def written(kept: float, is_all: bool) -> str:
    """An energy as a cell shows it: near 100 with two digits, never rounded up to 100."""
    if is_all:
        return "100.0"
    return f"{min(99.99, kept):.2f}" if kept >= 98.95 else f"{kept:.1f}"


def energies(folder: Path, layer: int, ranks: dict[str, int]) -> list[str]:
    """The energy that each role's rank keeps in a layer, by LAPACK, as cells show it; a dash without a rank."""
    weights, found = load_file(folder / "model.safetensors"), []
    for role in ROLES:
        values = np.linalg.svd(
            weights[f"model.layers.{layer}.{TENSORS[role]}.weight"].astype(np.float64), compute_uv=False
        )
        k = min(ranks.get(role, 0), len(values))
        kept = 100 * (values[:k] ** 2).sum() / (values**2).sum()
        found.append(written(kept, k == len(values)) if role in ranks else "-")
    return found


async def test_the_unit_follows_the_rank_in_every_view(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, WIDE) as view:
        await view.press("3")
        await view.rests()
        await view.press("colon")
        await view.type("k 20")
        await view.press("colon")
        await view.type("unit energy")
        await view.until(lambda: view.cells(1) == energies(llama, 1, dict.fromkeys(ROLES, 20)), "energies at rank 20")
        title = str(view.app.explorer.heatmap.border_title)
        assert re.match(r"3 heatmap  E\(20\) %: \d+ % of parameters keep at least \d", title)
        assert " % (layer " in title
        await view.press("full_stop", "full_stop", "comma")
        await view.until(lambda: view.cells(1) == energies(llama, 1, dict.fromkeys(ROLES, 21)), "energies at rank 21")
        assert view.app.explorer.state.k == 21
        await view.press("5", "f")
        await view.until(lambda: energies(llama, 0, {"query": 21})[0] in view.pane("table")[1].split(), "the column")
        await view.press("f", "4")
        await view.chart("E(21) %")
        await view.press("7")  # ranks are set for whole projections
        await view.sees("7 heads  query: k90 = ")


async def test_roles_have_ranks_of_their_own_and_move_together(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, WIDE) as view:
        await view.press("3", "colon")
        await view.type("k q=40 kv=10")
        await view.sees("ranks query 40, key 10, value 10: u or :unit energy")
        await view.press("u", "enter")  # the menu opens on it
        asked = {"query": 40, "key": 10, "value": 10}
        await view.until(lambda: view.cells(2) == energies(llama, 2, asked), "energies at these ranks")
        await view.press("comma", "comma")  # a twentieth less: 38, and 9.5, rounded to even
        asked = {"query": 38, "key": 10, "value": 10}
        await view.until(lambda: view.cells(2) == energies(llama, 2, asked), "energies two steps below")
        assert view.app.explorer.state.k is None
        await view.press("colon")
        await view.type("k 5")
        await view.until(lambda: view.cells(2) == energies(llama, 2, dict.fromkeys(ROLES, 5)), "one rank again")
        await view.press("u", "k", "enter", "u", "enter")  # once another unit was chosen, the menu opens on that
        assert view.app.explorer.state.lens.measure.name == "k/k*"
        await view.press("colon")
        await view.type("k embed=5")
        await view.sees("no role 'embed' here: query key value output gate up down")


async def test_without_a_rank_it_begins_at_that_of_the_selection(llama: Path, root: Path) -> None:
    fill(llama, root)
    async with exploring(llama, root, SMALL) as view:
        await view.press("3", "colon")
        await view.sees(": 12: layer 12; k 512; k q=96 kv=64; ", "; up: before")
        await view.type("unit energy")
        ranks = view.app.explorer.state.lens.ranks
        assert ranks is not None
        await view.sees(f"E({ranks.text}) %", ":k 512 or :k q=96 kv=64 sets k")
        kept = {
            (layer, role): float(energy)
            for layer in range(6)
            for role, energy in zip(ROLES, energies(llama, layer, dict.fromkeys(ROLES, ranks.common or 0)), strict=True)
        }
        (layer, role), least = min(kept.items(), key=lambda place: place[1])
        said = f" % of parameters keep at least {least} % (layer {layer} {role}) \u2500"
        await view.until(lambda: said in view.lines[1], "what it keeps")


@pytest.mark.parametrize(
    ("share", "said"),
    [(97.849, "97.8"), (98.94, "98.9"), (98.97, "98.97"), (99.926, "99.93"), (99.9999, "99.99"), (100.0, "100.0")],
)
def test_near_all_of_the_energy_two_digits_say_how_near(share: float, said: str) -> None:
    assert BY_NAME["energy"].written(share) == said


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (100, "125 % of the parameters keep 99.91 to 99.95 % of the energy, least in layer 2 key_value"),
        (75, "125 % of the parameters keep 99.91 to 99.95 %, least in layer 2 key_value"),
        (62, "125 % of parameters keep at least 99.91 % (layer 2 key_value)"),
        (58, "125 % of parameters keep >= 99.91 % (layer 2 key_value)"),
        (50, "125 % of parameters keep 99.91 to 99.95 %"),
        (30, "keeps 99.91 to 99.95 %"),
    ],
)
def test_the_sum_says_which_number_is_which_at_any_width(width: int, said: str) -> None:
    found = KeptSum(
        "k", 9, 125_000, 100_000, 9, 9, "99.91", "99.95", "layers.2.self.attention.key_value", "layer 2 key_value"
    )
    assert found.fitting(width) == said


def test_ranks_are_scaled_by_the_largest_and_stay_above_zero() -> None:
    ranks = kept_ranks("q=1000,kv=256")
    up = ranks.stepped(1, 4096)
    assert (dict(up.roles), up.lead, up.text) == ({"q": 1000, "kv": 256}, 1010, "q 1010, kv 259")
    assert up.stepped(-1, 4096).text == ranks.text
    assert ranks.stepped(-10_000, 4096).text == "q 1, kv 1"
    assert ranks.stepped(10_000, 4096).text == "q 4096, kv 1049"
    assert KeptRanks(512).stepped(1, 4096) == KeptRanks(517)
    assert KeptRanks(50).stepped(-1, 4096) == KeptRanks(49)


@pytest.mark.parametrize(
    ("roles", "meant"),
    [
        (("query", "key", "value", "key_value"), ("key_value",)),
        (("query_a", "kv_a", "key_b"), ("kv_a",)),
        (("query", "kv"), ("kv",)),
        (("query", "key", "value"), ("key", "value")),
    ],
)
def test_kv_is_what_a_model_has_of_it(roles: tuple[str, ...], meant: tuple[str, ...]) -> None:
    assert kept_ranks("kv=5 512").named(roles) == KeptRanks(512, tuple((role, 5) for role in meant))
    with pytest.raises(InputError, match="no role 'kv' here: up"):
        kept_ranks("kv=5").named(("up",))

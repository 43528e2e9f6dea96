"""A model with one of each oddity: its names in each pane, counts, and where the keys lead."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from app_looking import exploring
from app_models import numpy_rank
from odd_model import LAYERS, odd_weights, save_odd_model

from rankscope.tui.data.grid import make_grid
from rankscope.tui.data.model import open_model

ATTENTION = ("query", "key", "value", "output")
LINEAR = ("query", "key", "value", "z", "a", "b", "output")
EXPERT = ("gate", "up", "down")
WIDE_ENOUGH = (220, 60)


def _addresses() -> list[str]:
    """The addresses in model order."""
    found = []
    for layer in range(LAYERS):
        block, roles = ("linear_attention", LINEAR) if layer == 1 else ("attention", ATTENTION)
        found += [f"layers.{layer}.{block}.{role}" for role in roles]
        found += [f"layers.{layer}.expert.{expert}.{role}" for expert in range(3) for role in EXPERT]
    found.remove("layers.2.expert.1.up")
    for layer in range(2):
        found += [f"vision.layers.{layer}.attention.{role}" for role in ATTENTION]
        found += [f"vision.layers.{layer}.mlp.{role}" for role in ("up", "down")]
    return found


def _rank(tensor: str) -> int:
    return numpy_rank(odd_weights()[f"model.{tensor}.weight"], 0.9)


def test_addresses_rows_and_columns_stand_in_this_order(tmp_path: Path) -> None:
    tree = open_model(str(save_odd_model(tmp_path / "odd")), tmp_path).tree
    assert [p.address for p in tree.scanned()] == _addresses()
    assert [p.address for p in tree.projections] == [*_addresses(), "other.lm_head.weight"]
    grid = make_grid(tree.projections)
    assert [row.label for row in grid.rows] == ["0", "1", "2", "vision.0", "vision.1"]
    linear = [f"linear_attention.{role}" for role in LINEAR]
    experts = [f"expert.{role}" for role in EXPERT]
    assert [column.heading for column in grid.columns] == [*ATTENTION, *linear, "up", "down", *experts]


async def test_the_panes_name_towers_kinds_of_layers_and_experts(tmp_path: Path, root: Path) -> None:
    async with exploring(save_odd_model(tmp_path / "odd"), root, WIDE_ENOUGH) as view:
        assert view.lines[0].split() == ["odd", "5", "layers", "0/53", "stored"]
        assert view.labels == [
            "v odd", "v layers (3)", "v 0", "> attention", "> expert", "> 1", "> 2", "> vision layers (2)",
            "> roles (16)", "> other (1)",
        ]  # fmt: skip
        blocks, header, *rows = view.pane("heatmap")
        assert [word for word in blocks.split() if word.isidentifier()] == [
            "attention", "linear_attention", "mlp", "expert",
        ]  # fmt: skip
        assert header.split() == ["layer", *ATTENTION, *LINEAR, "up", "down", *EXPERT]
        assert [row.lstrip(" >").split()[0] for row in rows if row.strip()] == ["0", "1", "2", "vision.0", "vision.1"]
        assert view.cells(0) == [*"....", *"-------", *"--", *"..."]
        assert view.cells(1) == [*"----", *".......", *"--", *"..."]
        assert view.cells(4) == [*"....", *"-------", *"..", *"---"]
        await view.press("5")
        await view.sees("address ^")
        await view.press("G")
        await view.sees("> vision.layers.1.mlp.down            16x40")


async def test_one_that_fails_and_one_that_is_missing_are_counted_apart(tmp_path: Path, root: Path) -> None:
    async with exploring(save_odd_model(tmp_path / "odd"), root, WIDE_ENOUGH) as view:
        await view.press("s")
        await view.sees("compute 53 projections")
        await view.answer("y")
        await view.until(lambda: view.job.endswith("cpu  1 failed"), "the end of the scan")
        await view.sees("52/53 stored")
        assert view.labels[:7] == [
            "v odd  52 of 53 !", "v layers (3)", "v 0  12 of 13 !", "> attention #", "> expert  8 of 9 !",
            "> 1 #", "> 2 #",
        ]  # fmt: skip
        experts = {
            (layer, role): [
                _rank(f"language_model.layers.{layer}.mlp.experts.{e}.{role}_proj")
                for e in range(3)
                if (layer, e, role) not in ((0, 2, "gate"), (2, 1, "up"))
            ]
            for layer in range(3)
            for role in EXPERT
        }
        linear = _rank("language_model.layers.1.linear_attn.out_proj")
        assert view.cells(1)[10] == str(linear)
        # Too few experts give no median: of layer 0 two of three gates are known; layer 2 has only two `up`.
        shown = [word for word in view.pane("heatmap")[2].split() if not word.startswith("^")][-4:]
        assert shown[:2] == [f"{median(experts[0, 'gate']):.0f}", "2/3"]
        medians = [word for word in view.cells(2) if not word.startswith("^")]
        assert medians[-3:] == [f"{median(experts[2, role]):.0f}" for role in EXPERT]
        await view.press("3", "L", "L", "L", "L", "L", "L", "L", "L", "L", "L", "L", "L", "L", "L")
        assert view.job.startswith("layers.0.expert.gate  2/3 experts: median ^a tenth off")
        await view.press("enter", "G")
        assert view.job.startswith("layers.0.expert.2.gate  24x32  failed")
        assert view.foot == "the weights hold NaN or infinite values"


async def test_steps_pass_through_layers_of_another_kind_and_end_at_the_last_tower(tmp_path: Path, root: Path) -> None:
    async with exploring(save_odd_model(tmp_path / "odd"), root, WIDE_ENOUGH) as view:
        await view.press("3")
        seen = []
        for key in "lJJJJJKKKKKn":
            await view.press(key)
            seen.append(view.selected)
        up = [f"{place}.attention.key" for place in ("layers.1", "layers.2", "vision.layers.0", "vision.layers.1")]
        down = up[::-1][1:]
        last, first = up[-1], "layers.0.attention.key"
        assert seen == [first, *up, last, *down, first, first, "layers.0.attention.value"]
        await view.press("G")
        await view.press("colon")
        await view.type("0")
        assert view.selected == "vision.layers.0.attention.value"  # layer 0 of the same tower
        await view.press("colon")
        await view.type("2")
        assert view.foot == "there is no layer 2 here: there are 0 to 1"
        assert view.selected == "vision.layers.0.attention.value"
        await view.press("N", "N", "N")
        assert view.selected == "layers.2.expert.down"

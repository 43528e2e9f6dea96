"""Questions answered from the keyboard, the answers checked with numpy on the files themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from app_looking import HUGE, SMALL, View, exploring
from app_models import LLAMA, TENSORS, Weights, fill, llama_weights, matrix, numpy_rank, rank_in, save_model
from running_demo import read_gguf
from safetensors.numpy import load_file

from rankscope.engine.checkpoint.open import demo_file
from rankscope.engine.null import null_rank

ROLES = tuple(TENSORS)


@pytest.fixture
async def view(llama: Path, root: Path) -> AsyncIterator[View]:
    """A computed model on a huge screen: every pane is seen."""
    async with exploring(fill(llama, root), root, HUGE) as found:
        yield found


def weights_of(folder: Path, layer: int, role: str) -> np.ndarray:
    return load_file(folder / "model.safetensors")[f"model.layers.{layer}.{TENSORS[role]}.weight"]


def singular_values(folder: Path, layer: int, role: str) -> np.ndarray:
    return np.linalg.svd(weights_of(folder, layer, role).astype(np.float64), compute_uv=False)


def demo_ranks() -> dict[int, int]:
    """k90 of the value projection by layer, dequantised and solved apart from the engine."""
    tensors = {t.name: t for t in read_gguf(demo_file()).tensors}
    found = {}
    for layer in range(30):
        tensor = tensors[f"blk.{layer}.attn_v.weight"]
        found[layer] = numpy_rank(gguf.dequantize(tensor.data, tensor.tensor_type), 0.9)
    return found


async def test_which_value_projection_needs_most_components(root: Path) -> None:
    async with exploring("demo", root, SMALL) as view:
        await view.press("slash")
        await view.type("value")
        await view.scan()
        await view.sees("30/210 stored")
        await view.press("5", "l", "l", "l", "l")  # address, shape, k60, k80, k90
        await view.press("o", "g")
        expected = demo_ranks()
        most = max(expected, key=lambda layer: expected[layer])
        await view.sees(f"layers.{most}.attention.value")
        assert view.selected == f"layers.{most}.attention.value"
        assert view.job.startswith(f"layers.{most}.attention.value  192x576  k90 {expected[most]}")


async def test_every_unit_of_the_menu_is_its_formula(view: View, llama: Path) -> None:
    values = singular_values(llama, 0, "key")
    rank = rank_in(llama, 0, "key", 0.9)
    p = values / values.sum()
    expected = [
        f"{rank}", f"{100 * rank / 24:.1f}", f"{rank / null_rank(24, 48, 0.9):.2f}", "", f"{rank / 16:.2f}",
        f"{100 * (values[:rank] ** 2).sum() / (values**2).sum():.1f}",  # of the rank at the threshold
        f"{np.exp(-(p * np.log(p)).sum()):.1f}", f"{(values**2).sum() / values[0] ** 2:.2f}", f"{values[0]:#.4g}",
    ]  # fmt: skip
    await view.press("3", "l")
    for number, text in enumerate(expected):
        await view.press("u", *"j" * min(number, 1), "enter")  # the menu opens at the unit that is shown
        if text:
            await view.until(lambda t=text: view.cells(0)[1] == t, f"unit {number}: {text}")  # type: ignore[misc]
            assert view.job.rstrip().endswith(text)
        else:
            assert view.foot.startswith("kf is the rank of the same weights with random signs")


async def test_random_signs_are_computed_on_demand(llama: Path, root: Path) -> None:
    async with exploring(llama, root, HUGE) as view:
        await view.press("slash")
        await view.type("layers.0.attention.key")
        await view.press("colon")
        await view.type("unit k/kf")
        await view.press("s")
        assert "2 spectra, 1 of them with random signs" in " ".join(view.box)
        await view.answer("y")
        await view.until(lambda: view.cells(0)[0] not in ("*", ":", ".", "#"), "the ratio")
        ratio = float(view.cells(0)[0])
        # Its own spread over draws is a component or two: the twin keeps |w|, and with it the norm.
        assert 0.5 < ratio < 1.5
        explorer = view.app.explorer
        key = explorer.state.shown[0]
        twin = view.app.pair.first.twin(key)
        base, flipped = (view.app.pair.first.entry(p) for p in (key, twin))
        assert base is not None
        assert flipped is not None
        assert flipped.provenance.frobenius_norm == pytest.approx(base.provenance.frobenius_norm, rel=1e-12)
        assert ratio == pytest.approx(base.ranks[0.9] / flipped.ranks[0.9], abs=0.006)


async def test_the_rank_cursor_says_what_a_rank_would_buy(view: View, llama: Path) -> None:
    await view.press("n", "L", "1")  # layers.0.attention.key
    await view.chart("layers.0.attention.key")
    await view.press("colon")
    await view.type("k 10")
    squares = singular_values(llama, 0, "key") ** 2
    energy = squares[:10].sum() / squares.sum()
    line = (await view.chart("k 10"))[-1]
    for text in (
        f"sigma {np.sqrt(squares[9]):.3g}"[:9],
        f"energy {100 * energy:.1f} %",
        "factors 720 of 1.15k (62 %)",
        "break-even 16",
    ):
        assert text in line
    await view.press("full_stop", "full_stop", "comma")
    await view.chart("k 11")
    await view.press("l")
    assert view.app.explorer.state.k is not None
    assert view.app.explorer.state.k > 11
    await view.press("colon")
    await view.type("k 10")
    await view.press("J")  # the rank stays, the layer is the next
    squares = singular_values(llama, 1, "key") ** 2
    await view.chart(f"energy {100 * squares[:10].sum() / squares.sum():.1f} %")
    await view.press("escape")
    assert view.app.explorer.state.k is None
    assert "k60" in (await view.chart("k60"))[-1]


async def test_a_walk_leaves_its_beginning_in_the_chart(view: View) -> None:
    await view.press("n", "1", "J", "J")
    await view.chart("layers.2.attention.query", "from layers.0.attention.query")
    await view.press("3", "j")
    lines = await view.chart("layers.3.attention.query")
    assert not any("from" in line for line in lines[:2])


async def test_marks_are_compared_with_the_first(view: View, llama: Path) -> None:
    await view.press("3", "l", "space", "j", "space", "6")
    a, b = rank_in(llama, 0, "key", 0.9), rank_in(llama, 1, "key", 0.9)
    row = next(line for line in view.pane("compare") if "k90 " in line)
    assert row.split()[:4] == ["k90", str(a), str(b), f"{b - a:+d}"]
    await view.chart("2 marked  attention.key", "\u2501 0", "\u2501 1")
    assert len(view.colours()) == 2
    await view.press("M")
    await view.sees("nothing marked: space marks the selection")


async def test_more_marks_than_can_be_told_apart_are_refused(view: View) -> None:
    await view.press("g", "space")  # the whole model
    assert view.foot.startswith("8 marks at most: 0 are set, 42 selected")


async def test_facets_show_the_first_and_last_layers(view: View) -> None:
    await view.press("2", "z")
    lines = await view.chart("layer 0", "layer 5")
    assert {f"layer {n}" for n in range(6)} <= {f"layer {w}" for line in lines for w in line.split() if w.isdigit()}
    await view.press("escape")
    await view.chart("layers.0.attention  ")


async def test_the_overview_sums_up_each_role(view: View, llama: Path) -> None:
    await view.press("3", "z")
    for role in ROLES:
        ranks = [rank_in(llama, layer, role, 0.9) for layer in range(6)]
        shape = weights_of(llama, 0, role).shape
        line = next(line for line in view.pane("heatmap") if line.lstrip(" >").startswith(role))
        shown = line.split()[-4:]
        assert shown[0] == str(min(ranks))
        assert shown[2] == str(max(ranks))
        assert float(shown[1]) == pytest.approx(np.median(ranks), abs=0.5)
        assert float(shown[3]) == pytest.approx(np.median(ranks) / null_rank(*shape, 0.9), abs=0.02)


async def test_letters_of_an_address_filter(view: View) -> None:
    await view.press("slash")
    await view.type("3dwn")
    assert [p.address for p in view.app.explorer.state.shown] == ["layers.3.mlp.down"]
    assert view.app.explorer.heatmap.grid.rows[0].layer == 3


def other_weights() -> Weights:
    """The llama's, its layer 0 with other seeds, without its last layer and with one layer of another name."""
    weights = llama_weights(5)
    for number, (role, name) in enumerate(TENSORS.items()):
        shape = weights[f"model.layers.0.{name}.weight"].shape
        weights[f"model.layers.0.{name}.weight"] = matrix(shape, 100 + number + len(role) % 3)  # type: ignore[arg-type]
    weights["model.layers.6.self_attn.q_proj.weight"] = matrix((48, 48), 3)
    return weights


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return save_model(tmp_path / "other-llama", other_weights(), LLAMA)


async def test_a_ratio_of_two_shapes_is_marked_in_every_pane(llama: Path, root: Path, tmp_path: Path) -> None:
    weights = other_weights() | {"model.layers.0.self_attn.k_proj.weight": matrix((12, 48), 5)}
    narrow = save_model(tmp_path / "narrow", weights, LLAMA)
    fill(narrow, root)
    ratio = numpy_rank(matrix((12, 48), 5), 0.9) / rank_in(llama, 0, "key", 0.9)
    async with exploring(fill(llama, root), root, HUGE) as view:
        await view.press("colon")
        await view.type(f"against {narrow}")
        await view.until(lambda: view.cells(0)[1] == f"\u2260{ratio:.3f}", "the ratio")
        await view.press("3", "l")
        await view.rests()  # the tree follows then
        assert view.job.startswith(f"layers.0.attention.key  24x48 \u2260 12x48  k90 B/A \u2260{ratio:.3f}")
        assert any(label.startswith("# key") and label.endswith(f" \u2260{ratio:.3f}") for label in view.labels)
        await view.press("5")
        assert "24x48 \u2260 12x48" in view.pane("table")[2]


async def test_two_models_are_matched_by_address(llama: Path, other: Path, root: Path) -> None:
    first, second = fill(llama, root), fill(other, root)
    async with exploring(first, root, HUGE, against=second) as view:
        assert "A tiny-llama" in view.lines[0]
        assert "B other-llama" in view.lines[0]
        assert any("only in A (7)" in label for label in view.labels)
        assert any("only in B (1)" in label for label in view.labels)
        a, b = (rank_in(folder, 0, "query", 0.9) for folder in (llama, other))
        for side, text in (("B", str(b)), ("B/A", f"{b / a:.3f}"), ("delta", "."), ("A", str(a))):
            await view.press("d")
            await view.until(lambda t=text: view.cells(0)[0] == t, side)  # type: ignore[misc]
        await view.press("d")
        assert view.cells(5) == ["-"] * 7  # B has no such layer
        await view.press("d", "n", "1")
        legend = " ".join(await view.chart("\u2501\u2501 query A", "\u254d\u254d query B"))  # one role has one colour:
        assert legend.count("\u2501\u2501 query A") == legend.count("\u254d\u254d query B") == 1  # B is dashed
        assert len(view.colours()) == 1


async def test_a_second_model_joins_while_the_first_is_open(llama: Path, other: Path, root: Path) -> None:
    fill(llama, root)
    fill(other, root)
    async with exploring(llama, root, HUGE) as view:
        await view.press("d")
        assert view.foot.startswith("only one model is open")
        view.app.explorer.hold_against(str(other))
        await view.sees(
            "7 addresses only in A, 1 only in B", "A tiny-llama", "B other-llama", "A 42/42 stored  B 36/36"
        )
        await view.press("colon")
        await view.type("against nosuch")
        await view.sees("nosuch")
        assert view.app.pair.second is not None


async def test_both_models_are_scanned(llama: Path, other: Path, root: Path) -> None:
    async with exploring(llama, root, HUGE, against=other) as view:
        await view.press("slash")
        await view.type("*.0.attention.*")
        await view.press("s")
        assert sum("compute 4 projections" in line for line in view.box) == 2
        await view.answer("y")
        await view.sees("A 4/42 stored  B 4/36")

"""The lines under a chart, checked with numpy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_models import fill, llama_weights, rank_in
from chart_looking import ask, at, saved, select, session_of, sigma_of

from rankscope.tui.charts.painter import paint
from rankscope.tui.charts.readout import rank_readout
from rankscope.tui.charts.request import Painting
from rankscope.tui.data.pair import Pair, Side

WIDE = 400


@pytest.fixture(scope="module")
def pair(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A computed llama."""
    root = tmp_path_factory.mktemp("store")
    fill(llama, root)
    return Pair(session_of(llama, root))


def one(pair: Pair, layer: int, role: str, block: str = "attention", **more: object) -> Painting:
    return paint(pair, ask(pair, select(layer, block, role), **more))


def share(values: np.ndarray, k: int) -> str:
    return f"{100 * (values[:k] ** 2).sum() / (values**2).sum():.1f} %"


def test_a_rank_of_one_curve(pair: Pair) -> None:
    values = sigma_of(at(pair, 1, "key"))
    k = 9
    error = np.sqrt((values[k:] ** 2).sum() / (values**2).sum())
    assert rank_readout(one(pair, 1, "key"), k, WIDE).plain == "  ".join(
        [
            f"k {k}", f"sigma {values[k - 1]:.3g}", f"energy {share(values, k)}", f"rel.error .{100 * error:02.0f}",
            f"factors {k * (24 + 48)} of {24 * 48 / 1000:.3g}k ({100 * k * 72 / (24 * 48):.0f} %)", "break-even 16",
        ]
    )  # fmt: skip


@pytest.mark.parametrize(("k", "dearer"), [(15, False), (16, False), (17, True), (24, True)])
def test_above_break_even_factors_cost_more(pair: Pair, k: int, dearer: bool) -> None:
    assert (k * (24 + 48) > 24 * 48) == dearer
    line = rank_readout(one(pair, 1, "key"), k, WIDE).plain
    assert ("factors cost more: " in line) == dearer
    assert line.endswith("break-even 16")


def test_a_rank_beyond_the_last_is_the_last_and_says_so(pair: Pair) -> None:
    line = rank_readout(one(pair, 1, "key"), 40, WIDE).plain
    assert line.startswith("k 24 (r, not 40)  sigma ")
    assert "energy 100.0 %  rel.error 0  " in line


def test_a_value_below_the_floor_is_only_known_to_be_below(tmp_path: Path) -> None:
    weights = llama_weights(1)
    weights["model.layers.0.self_attn.k_proj.weight"][8:] = 0
    low = Pair(saved(tmp_path / "m", tmp_path / "store", weights, floor=2e-3))
    painting = one(low, 0, "key")
    assert "sigma <= 0.002" in rank_readout(painting, 9, WIDE).plain
    assert "sigma <=" not in rank_readout(painting, 8, WIDE).plain


def test_several_curves_have_their_energy_and_factors_where_shapes_agree(pair: Pair) -> None:
    painting = paint(pair, ask(pair, select(1, "attention"), 2))
    shares = [f"{role} {share(sigma_of(at(pair, 1, role)), 5)}" for role in ("query", "key", "value", "output")]
    assert rank_readout(painting, 5, WIDE).plain == "  ".join(["k 5  energy", *shares])
    marks = tuple(at(pair, n, "key") for n in (1, 2))
    line = rank_readout(paint(pair, ask(pair, select(1), compare=True, marks=marks)), 5, WIDE).plain
    assert line.endswith("  factors 360 of 1.15k (31 %)  break-even 16")


def test_curves_that_end_before_the_rank_say_so(pair: Pair) -> None:
    line = rank_readout(paint(pair, ask(pair, select(1, "attention"), 2)), 30, WIDE).plain
    assert "key 100.0 % (r 24)  value 100.0 % (r 24)" in line
    assert f"query {share(sigma_of(at(pair, 1, 'query')), 30)}  key" in line
    beyond = rank_readout(paint(pair, ask(pair, select(1, "attention"), 2)), 5000, WIDE).plain
    assert beyond.startswith("k 48 (r, not 5000)  energy  query 100.0 %  key 100.0 % (r 24)")


def test_what_does_not_fit_is_left_out_whole(pair: Pair) -> None:
    painting = paint(pair, ask(pair, select(1), 2))
    whole = rank_readout(painting, 12, WIDE).plain
    for width in range(12, len(whole) + 1):
        line = rank_readout(painting, 12, width).plain
        assert len(line) <= width
        assert whole == line or whole[len(line) :].startswith("  ")


def test_the_words_of_a_rank_are_shortened_before_a_part_is_left_out(pair: Pair) -> None:
    painting = one(pair, 1, "key")
    lines = [rank_readout(painting, 20, width).plain for width in range(12, 120)]
    assert all(len(line) <= width for width, line in enumerate(lines, 12))
    assert [len(line) for line in lines] == sorted(len(line) for line in lines)
    assert all(line.count("  ") == 5 for line in lines if "k* " in line or "break-even" in line)
    assert sum("k* 16" in line for line in lines) > 20
    assert lines[-1].endswith("factors cost more: 1.44k of 1.15k (125 %)  break-even 16")


def long_and_thin(pair: Pair) -> Painting:
    """A curve of a 14336 x 4096 matrix, whose values take the most digits."""
    painting = one(pair, 1, "key")
    ((name, session, p),) = painting.curves
    large = (name, session, replace(p, rows=14336, cols=4096))
    return replace(painting, curves=(large,), values=(np.geomspace(3.0, 2e-3, 4096),))


@pytest.mark.parametrize("width", [76, 116, 156])
@pytest.mark.parametrize(("k", "start"), [(1, "k 1  "), (3185, "k 3185  "), (3186, "k 3186  "), (5000, "k 4096 (")])
def test_all_that_a_rank_means_fits_a_small_screen(pair: Pair, width: int, k: int, start: str) -> None:
    line = rank_readout(long_and_thin(pair), k, width).plain
    assert len(line) <= width
    assert line.startswith(start)
    assert line.count("  ") == 5
    assert line.endswith(("  break-even 3185", "  k* 3185"))
    paid = re.search(r"factors.*?(\d+) %", line)
    assert paid
    assert int(paid[1]) == round(min(k, 4096) * (14336 + 4096) / (14336 * 4096) * 100)
    assert ("not 5000" in line) == (k == 5000)
    if width == 156:
        assert ("cost more" in line) == (k > 3185)


def test_many_curves_do_not_push_out_what_they_have_in_common(pair: Pair) -> None:
    marks = tuple(at(pair, n, "key") for n in range(6))
    painting = paint(pair, ask(pair, select(1), compare=True, marks=marks))
    for width in (60, 76, 116):
        line = rank_readout(painting, 20, width).plain
        assert len(line) <= width
        assert re.search(r"factors .*125 %.*  (k\*|break-even) 16$", line)


def test_energy_is_not_called_all_of_it_before_it_is(tmp_path: Path) -> None:
    weights = llama_weights(1)
    values = np.geomspace(1.0, 1e-5, 48).astype(np.float32)
    weights["model.layers.0.self_attn.q_proj.weight"] = np.diag(values)
    steep = Pair(saved(tmp_path / "m", tmp_path / "store", weights))
    error = np.linalg.norm(values[42:]) / np.linalg.norm(values)
    assert f"energy 99.9 %  rel.error {error:.0e}" in rank_readout(one(steep, 0, "query"), 42, WIDE).plain


def test_a_chart_without_curves_has_no_rank(pair: Pair) -> None:
    assert rank_readout(paint(pair, ask(pair, select(1), 4)), 3, WIDE).plain == ""


def test_one_projection(pair: Pair, llama: Path) -> None:
    line = one(pair, 1, "key", thresholds=(0.6, 0.8, 0.9), width=WIDE).readout.plain
    values = sigma_of(at(pair, 1, "key"))
    p = values / values.sum()
    ranks = [f"k{t:.0f} {rank_in(llama, 1, 'key', t / 100)}" for t in (60, 80, 90)]
    assert line.startswith(
        "  ".join(
            [
                "24x48", *ranks, f"effective rank {np.exp(-(p * np.log(p)).sum()):.1f}",
                f"stable rank {(values**2).sum() / values[0] ** 2:.2f}",
            ]
        )
    )  # fmt: skip
    assert " above the edge  " in line
    assert f"sigma_1 {values[0]:.4g}" in line


def test_a_threshold_that_is_not_stored_is_read_out_too(pair: Pair, llama: Path) -> None:
    line = one(pair, 2, "up", "mlp", threshold=0.77, thresholds=(0.77,), width=WIDE).readout.plain
    assert f"k77 {rank_in(llama, 2, 'up', 0.77)}  " in line


def test_one_projection_in_two_models(llama: Path, tmp_path: Path) -> None:
    weights = {n: w * w if w.ndim == 2 else w for n, w in llama_weights(6).items()}
    second = saved(tmp_path / "b", tmp_path / "store", weights)
    fill(llama, tmp_path / "store")
    two = Pair(session_of(llama, tmp_path / "store"), second)
    partner = two.partner(at(two, 3, "gate", "mlp"))
    assert partner is not None
    a, b = rank_in(llama, 3, "gate", 0.9), rank_in(Path(partner.source.repo), 3, "gate", 0.9)
    assert a != b
    line = one(two, 3, "gate", "mlp", side=Side.RATIO, width=WIDE).readout.plain
    assert line.startswith(f"k90  A {a}  B {b}  B/A {b / a:.3f}  A eff.rank ")
    assert line.endswith("  A 80x48  B 80x48")
    small = one(two, 3, "gate", "mlp", side=Side.RATIO, width=76).readout.plain
    assert line.startswith(small)
    assert "  B eff.rank " in small
    assert one(two, 3, "gate", "mlp", side=Side.B, width=WIDE).readout.plain.startswith("80x48  k60 ")
    assert f"k90 {b}  " in one(two, 3, "gate", "mlp", side=Side.B, width=WIDE).readout.plain


def test_marks_are_read_out_one_by_one(pair: Pair, llama: Path) -> None:
    marks = (at(pair, 2, "key"), at(pair, 5, "up", "mlp"))
    line = paint(pair, ask(pair, select(0), compare=True, marks=marks)).readout.plain
    assert line == f"k90  2 key {rank_in(llama, 2, 'key', 0.9)}  5 up {rank_in(llama, 5, 'up', 0.9)}"


def test_what_is_not_computed_says_how_to(llama: Path, tmp_path: Path) -> None:
    fill(llama, tmp_path, ["layers.0.mlp.up"])
    empty = Pair(session_of(llama, tmp_path))
    assert one(empty, 0, "key").readout.plain == "24x48  F32  not computed: enter computes it"
    assert paint(empty, ask(empty, select(0, "mlp"))).readout.plain.startswith("1 of 3 computed  k90 ")
    assert paint(empty, ask(empty, select(0, "attention"))).readout.plain == "0 of 4 computed"
    marks = (at(empty, 0, "key"), at(empty, 0, "up", "mlp"))
    assert paint(empty, ask(empty, select(0), compare=True, marks=marks)).readout.plain.startswith("k90  key .  up ")

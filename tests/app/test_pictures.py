"""Pictures for print: read back as SVG, PNG and PDF, and checked with numpy."""

from __future__ import annotations

import base64
import io
import re
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from app_models import fill, llama_weights, matrix, rank_in
from chart_looking import ask, at, grid_of, saved, select, session_of, sigma_of
from numpy.typing import NDArray
from PIL import Image
from rich.text import Text

from rankscope.engine.errors import InputError
from rankscope.engine.null import null_rank
from rankscope.tui.charts.painter import paint
from rankscope.tui.charts.picture import INKS, save_heatmap, save_picture, svg_of
from rankscope.tui.data.lens import Lens
from rankscope.tui.data.measures import BY_NAME
from rankscope.tui.data.pair import Pair, Side
from rankscope.tui.data.reference_lines import ReferenceLine

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def pair(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A computed llama."""
    root = tmp_path_factory.mktemp("store")
    fill(llama, root)
    return Pair(session_of(llama, root))


@pytest.fixture(scope="module")
def two(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("second")
    other = {n: w + 0.3 * matrix(w.shape, 4) if w.ndim == 2 else w for n, w in llama_weights(6).items()}
    fill(llama, folder / "store")
    return Pair(session_of(llama, folder / "store"), saved(folder / "b", folder / "store", other))


def written(path: Path) -> list[str]:
    """The texts of an SVG, which matplotlib writes as comments beside their outlines."""
    return [unescape(text).strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(), re.DOTALL)]


def line_of(path: Path, ink: str) -> NDArray[np.float64]:
    """The longest line of a colour, as points, y upwards."""
    found = []
    for element in ElementTree.parse(path).iter(f"{SVG}path"):
        drawn = element.get("d", "")
        if f"stroke: {ink}" in element.get("style", "") and set(re.findall("[A-Za-z]", drawn)) <= set("ML"):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", drawn)]
            found.append(np.array(numbers).reshape(-1, 2) * [1, -1])
    return max(found, key=len)


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".SVG", b"<?xml")])
def test_a_picture_is_whole_and_the_same_each_time(pair: Pair, tmp_path: Path, suffix: str, begins: bytes) -> None:
    target = tmp_path / f"picture{suffix}"
    target.write_text("what stood here")
    save_picture(pair, ask(pair, select(0, "attention")), target)
    first = target.read_bytes()
    assert first.startswith(begins)
    save_picture(pair, ask(pair, select(0, "attention"), width=31, height=9), target)  # independent of the terminal
    assert target.read_bytes() == first
    assert list(tmp_path.iterdir()) == [target]
    if suffix == ".png":
        width, height = Image.open(target).size
        assert width > 1000
        assert height > 600


@pytest.mark.parametrize("axes", [0, 1, 2])
def test_the_curve_is_the_spectrum(pair: Pair, tmp_path: Path, axes: int) -> None:
    save_picture(pair, ask(pair, select(2, "attention", "key"), axes=axes), tmp_path / "p.svg")
    points = line_of(tmp_path / "p.svg", INKS[1])
    values = sigma_of(at(pair, 2, "key"))[: len(points)]
    ranks = np.arange(1.0, len(points) + 1)
    assert len(points) >= 20
    x = np.log(ranks) if axes == 0 else ranks
    y = values if axes == 2 else np.log(values)
    assert np.corrcoef(points[:, 0], x)[0, 1] == pytest.approx(1, abs=1e-9)
    assert np.corrcoef(points[:, 1], y)[0, 1] == pytest.approx(1, abs=1e-9)


def test_axes_legend_and_levels_are_named(pair: Pair, tmp_path: Path) -> None:
    name = pair.first.model.name
    cases = [
        (ask(pair, select(0, "attention", "key")),
         [f"{name}   layers.0.attention.key", "index k", "singular value (unit of the weights)", "key", "noise",
          "edge"]),
        (ask(pair, select(0, "attention"), 2),
         ["components k", "cumulative energy (%)", "60 %", "80 %", "90 %", "query", "output", "noise"]),
        (ask(pair, select(0), 4, lines=(ReferenceLine("mine", 7), ReferenceLine("joint", 9, "key_value"))),
         ["layer", "components for 60 % of the energy", "components for 90 % of the energy", "k80 by layer", "mine 7",
          "joint 9", "gate", "7"]),
        (ask(pair, select(0), 1, facets=True, normalised=True),
         [*(f"layer {n}" for n in range(6)), "singular value / largest", f"{name}   attention, 6 of 6 layers"]),
        (ask(pair, select(3, "attention", "key"), origin=select(0, "attention", "key")),
         ["from layers.0.attention.key"]),
    ]  # fmt: skip
    for request, expected in cases:
        save_picture(pair, request, tmp_path / "p.svg")
        found = written(tmp_path / "p.svg")
        assert [text for text in expected if text not in found] == []


def test_a_name_with_dollars_is_no_formula(tmp_path: Path) -> None:
    odd = Pair(saved(tmp_path / "a$^$b", tmp_path / "store", llama_weights(1)))
    for view in (2, 3):
        save_picture(odd, ask(odd, select(0), view), tmp_path / "p.svg")
        assert any("a$^$b" in text for text in written(tmp_path / "p.svg"))


def test_a_style_of_the_user_changes_nothing(pair: Pair, tmp_path: Path) -> None:
    save_picture(pair, ask(pair, select(0)), tmp_path / "p.png")
    plain = (tmp_path / "p.png").read_bytes()
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black", "font.size": 30.0}):
        save_picture(pair, ask(pair, select(0)), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes() == plain


def test_two_models_are_both_named(two: Pair, tmp_path: Path) -> None:
    save_picture(two, ask(two, select(0, "mlp", "up"), 2, side=Side.RATIO), tmp_path / "p.svg")
    found = written(tmp_path / "p.svg")
    assert {"up A", "up B"} <= set(found)
    assert any(text.startswith("A: tiny-llama   B: b   ") for text in found)


def test_nothing_to_draw_another_suffix_and_no_folder_are_sentences(llama: Path, pair: Pair, tmp_path: Path) -> None:
    fill(llama, tmp_path / "store", ["layers.0.mlp.up"])
    empty = Pair(session_of(llama, tmp_path / "store"))
    with pytest.raises(InputError, match="nothing to draw: not computed"):
        save_picture(empty, ask(empty, select(0, "attention")), tmp_path / "p.png")
    with pytest.raises(InputError, match="nothing to draw"):
        save_heatmap(Lens(empty, 0.9, BY_NAME["k/kf"]), grid_of(empty), tmp_path / "p.png")
    for save in (
        lambda path: save_picture(pair, ask(pair, select(0)), path),
        lambda path: save_heatmap(Lens(pair, 0.9), grid_of(pair), path),
    ):
        with pytest.raises(InputError, match=r"\.png, \.pdf or \.svg"):
            save(tmp_path / "p.jpeg")
        with pytest.raises(InputError, match=r"cannot write .*: No such file"):
            save(tmp_path / "nowhere" / "p.png")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_without_matplotlib_the_sentence_says_how_to_get_it(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'rankscope-tui\[plots\]'"):
        save_picture(pair, ask(pair, select(0)), tmp_path / "p.png")
    with pytest.raises(InputError, match=r"pip install 'rankscope-tui\[plots\]'"):
        save_heatmap(Lens(pair, 0.9), grid_of(pair), tmp_path / "p.png")


# Heatmaps


def cells(path: Path, rows: int, columns: int) -> NDArray[np.float64]:
    """The colours of the cells of the largest image in an SVG, (rows, columns, 3)."""
    images = []
    for element in ElementTree.parse(path).iter(f"{SVG}image"):
        data = element.get("{http://www.w3.org/1999/xlink}href", "").partition("base64,")[2]
        images.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    image = max(images, key=lambda i: i.width)
    y = ((np.arange(rows) + 0.5) / rows * image.height).astype(int)
    x = ((np.arange(columns) + 0.5) / columns * image.width).astype(int)
    return np.asarray(image, np.float64)[y][::-1, x]  # matplotlib stores it upside down


def ratios(pair: Pair, llama: Path) -> NDArray[np.float64]:
    """k90 / k0 of every cell."""
    grid = grid_of(pair)
    return np.array([
        [rank_in(llama, r.layer, c.role, 0.9) / null_rank(p.rows, p.cols, 0.9)
         for c in grid.columns for p in grid.cells[r, c]]
        for r in grid.rows
    ])  # fmt: skip


def test_a_heatmap_has_the_ranks_as_numbers_and_the_noise_ratio_as_colour(
    pair: Pair, llama: Path, tmp_path: Path
) -> None:
    save_heatmap(Lens(pair, 0.9), grid_of(pair), tmp_path / "h.svg")
    found = written(tmp_path / "h.svg")
    columns = [c.heading for c in grid_of(pair).columns]
    assert [text for text in found if text in columns] == columns
    ranks = [str(rank_in(llama, layer, role, 0.9)) for layer in range(6) for role in columns]
    assert any(found[n : n + 42] == ranks for n in range(len(found)))
    assert "k90 / k0, k0: k90 of noise of this shape" in found
    assert "tiny-llama   k90: fewest singular values for 90 % of energy" in found
    colours = cells(tmp_path / "h.svg", 6, 7)
    warmth = colours[..., 0] - colours[..., 2]
    expected = ratios(pair, llama)
    assert (warmth[expected < 0.9] < 0).all()  # blue: fewer than noise
    order = np.argsort(expected.ravel())
    few, many = order[:10], order[-10:]
    assert warmth.ravel()[few].mean() < warmth.ravel()[many].mean()


def test_other_units_and_two_models_have_their_formula(pair: Pair, two: Pair, tmp_path: Path) -> None:
    save_picture(pair, ask(pair, select(0), 3), tmp_path / "h.svg")
    assert "k90 / k0, k0: k90 of noise of this shape" in written(tmp_path / "h.svg")
    lens = Lens(pair, 0.9, BY_NAME["effective_rank"])
    save_picture(pair, ask(pair, select(0), 3), tmp_path / "h.svg", lens)
    found = written(tmp_path / "h.svg")
    assert BY_NAME["effective_rank"].formula in found
    p = (v := sigma_of(at(pair, 0, "query"))) / v.sum()
    assert f"{np.exp(-(p * np.log(p)).sum()):.1f}" in found
    save_heatmap(Lens(two, 0.9, side=Side.RATIO), grid_of(two), tmp_path / "h.svg")
    found = written(tmp_path / "h.svg")
    assert "k90 of B / k90 of A" in found
    a, b = (sigma_of(q) for q in (at(two, 4, "up", "mlp"), two.partner(at(two, 4, "up", "mlp"))) if q is not None)
    rank_a, rank_b = (int(np.searchsorted(np.cumsum(v**2) / (v**2).sum(), 0.9)) + 1 for v in (a, b))
    assert f"{rank_b / rank_a:.3f}" in found


def test_above_break_even_a_cell_is_grey_and_below_it_blue(pair: Pair, llama: Path, tmp_path: Path) -> None:
    grid = grid_of(pair)
    save_heatmap(Lens(pair, 0.99, BY_NAME["k/k*"]), grid, tmp_path / "h.svg")
    colours = cells(tmp_path / "h.svg", 6, 7)
    for y, row in enumerate(grid.rows):
        for x, column in enumerate(grid.columns):
            (p,) = grid.cells[row, column]
            is_dear = rank_in(llama, row.layer, column.role, 0.99) > p.rows * p.cols / (p.rows + p.cols)
            red, _, blue = map(float, colours[y, x][:3])
            assert abs(red - blue) < 2 if is_dear else blue >= red - 2
            assert not is_dear or red == pytest.approx(0.75 * 255, abs=2)


def test_cells_that_are_not_computed_are_empty(llama: Path, tmp_path: Path) -> None:
    fill(llama, tmp_path / "store", [f"layers.{n}.attention.{r}" for n in range(6) for r in ("query", "key")])
    half = Pair(session_of(llama, tmp_path / "store"))
    save_heatmap(Lens(half, 0.9), grid_of(half), tmp_path / "h.svg")
    colours = cells(tmp_path / "h.svg", 6, 7)
    np.testing.assert_allclose(colours[:, 2:], 0.92 * 255, atol=1)


def test_many_layers_have_colours_without_numbers(tmp_path: Path) -> None:
    tall = Pair(saved(tmp_path / "m", tmp_path / "store", llama_weights(41)))
    save_heatmap(Lens(tall, 0.9), grid_of(tall), tmp_path / "h.svg")
    found = written(tmp_path / "h.svg")
    assert found.count(str(rank_in(tmp_path / "m", 40, "up", 0.9))) <= 1  # at most as many as a layer's number has
    assert "40" in found


# The look of a terminal


def test_an_svg_of_a_pane_has_its_lines_and_colours(pair: Pair) -> None:
    painting = paint(pair, ask(pair, select(0, "attention")))
    picture = svg_of([*painting.lines, painting.readout], 80, "tiny <llama>")
    tree = ElementTree.fromstring(picture)
    texts = "".join(tree.itertext()).replace("\xa0", " ")
    assert "tiny <llama>" in texts
    assert "layers.0.attention" in texts
    assert painting.readout.plain in texts
    assert "#ff8700" in picture  # 208 of the 256 colours: the second curve
    assert len(list(tree.iter(f"{SVG}clipPath"))) >= 21


def test_the_title_of_an_svg_is_whole_and_not_beside_the_buttons_of_its_window() -> None:
    title = "SmolLM2-135M-Instruct.Q4_1  3 heatmap  k90 = smallest k with energy(k) >= 90 %"
    tree = ElementTree.fromstring(svg_of([Text("a line")], 36, title))
    (below,) = (group for group in tree.iter(f"{SVG}g") if (group.get("class") or "").endswith("-matrix"))
    shown = "".join(below.itertext()).replace("\xa0", " ")
    assert "".join(shown.split()) == "".join(f"{title}a line".split())
    assert len(list(tree.iter(f"{SVG}text"))) == len(list(below.iter(f"{SVG}text")))


def test_an_svg_of_lines_that_are_too_long_is_cut_not_wrapped() -> None:
    picture = svg_of([Text("a" * 30), Text("b")], 10, "t")
    assert "a" * 10 in picture
    assert "a" * 11 not in picture


def test_a_request_for_paper_is_drawn_without_touching_the_original(pair: Pair, tmp_path: Path) -> None:
    request = ask(pair, select(0), 1, facets=True, width=30, height=9)
    before = replace(request)
    save_picture(pair, request, tmp_path / "p.svg")
    assert request == before
    assert sum(text.startswith("layer ") for text in written(tmp_path / "p.svg")) == 6

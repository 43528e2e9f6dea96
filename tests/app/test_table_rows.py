"""The metric table without a screen: its numbers checked with numpy, its order, its records."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from app_models import TENSORS, llama_weights, numpy_rank, spectrum_of
from app_sheets import find, ranked, session_of
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rankscope.engine.compute.events import Failed, Saved, Started
from rankscope.engine.derive.flip import flipped
from rankscope.store.export import csv_text
from rankscope.tui.data.grid import make_grid
from rankscope.tui.data.lens import Lens
from rankscope.tui.data.pair import Pair, Side
from rankscope.tui.data.records import of_cells, of_curves, of_layers, of_rows
from rankscope.tui.data.session import Session
from rankscope.tui.data.table_rows import Field, TableRows, fields_of, find_field, has_twins, load, sort_order

KEY = "layers.1.attention.key"


def matrix_of(folder: Path, address: str) -> NDArray[np.float64]:
    _, layer, _, role = address.split(".")
    name = f"model.layers.{layer}.{TENSORS[role]}.weight"
    weights: NDArray[np.float64] = load_file(folder / "model.safetensors")[name].astype(np.float64)
    return weights


def by_name(lens: Lens, **options: bool) -> dict[str, Field]:
    return {field.name: field for field in fields_of(lens, **options)}


def perplexity(shares: NDArray[np.float64]) -> float:
    return float(np.prod(shares**-shares))


def by_numpy(weights: NDArray[np.float64], threshold: float) -> dict[str, float]:
    """Every measure that numpy alone can compute."""
    sigma = np.linalg.svd(weights, compute_uv=False)
    rows, cols = weights.shape
    k = numpy_rank(weights, threshold)
    return {
        **{f"k{t}": numpy_rank(weights, t / 100) for t in (60, 80, 90, 95, 99)},
        "percent": 100 * k / min(rows, cols),
        "k/k*": k * (rows + cols) / (rows * cols),
        "effective_rank": perplexity(sigma / sigma.sum()),
        "entropy_rank": perplexity(sigma**2 / (sigma**2).sum()),
        "stable_rank": np.linalg.norm(weights) ** 2 / np.linalg.norm(weights, 2) ** 2,
        "participation_ratio": (sigma**2).sum() ** 2 / (sigma**4).sum(),
        "nuclear_ratio": np.linalg.norm(weights, "nuc") / np.linalg.norm(weights, 2),
        "condition_number": np.linalg.cond(weights),
        "numerical_rank": np.linalg.matrix_rank(weights),
        "sigma_1": np.linalg.norm(weights, 2),
        "k*": rows * cols / (rows + cols),
    }


@pytest.mark.parametrize("threshold", [0.9, 0.97])
def test_every_column_is_what_numpy_says(llama: Path, root: Path, threshold: float) -> None:
    session = session_of(llama, root)
    lens = Lens(Pair(session), threshold)
    wanted = session.model.tree.scanned()
    fields = fields_of(lens)
    load(fields, wanted)
    for p in wanted:
        expected = by_numpy(matrix_of(llama, p.address), threshold)
        found = {field.name: field.number(p) for field in fields}
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_noise_is_what_a_sampled_matrix_needs(llama: Path, root: Path) -> None:
    session = session_of(llama, root)
    (key,) = find(session, KEY)
    fields = by_name(Lens(Pair(session), 0.9))
    rng = np.random.default_rng(3)
    sampled = np.mean([numpy_rank(rng.standard_normal((key.rows, key.cols)), 0.9) for _ in range(20)])
    assert fields["k0"].number(key) == pytest.approx(sampled, abs=1)
    ratio = numpy_rank(matrix_of(llama, KEY), 0.9) / sampled
    assert fields["k/k0"].number(key) == pytest.approx(ratio, rel=0.06)


def test_break_even_is_a_whole_rank_and_a_vector_is_above_it(tmp_path: Path, root: Path) -> None:
    """7 x 48 breaks even at 6.1, a row of 48 below 1: even rank 1 costs more."""
    weights = {"model.layers.0.self_attn.q_proj.weight": np.eye(7, 48, dtype=np.float32)}
    weights["model.layers.0.self_attn.k_proj.weight"] = np.ones((1, 48), np.float32)
    session = session_of(tmp_path / "m", root, weights)
    wanted = find(session, "layers.0.attention.query", "layers.0.attention.key")
    fields = by_name(Lens(Pair(session), 0.9))
    load(fields.values(), wanted)
    assert [fields["k*"].number(p) for p in wanted] == [6, 0]
    assert [fields["k/k*"].number(p) for p in wanted] == [7 / 6, pytest.approx(49 / 48)]
    assert all(lens.is_greyed(p) for p in wanted if (lens := fields["k/k*"].lens) is not None)


def test_numbers_that_are_not_loaded_are_not_known(llama: Path, root: Path) -> None:
    session = session_of(llama, root)
    (key,) = find(session, KEY)
    fields = by_name(Lens(Pair(session), 0.97))
    assert {name for name, field in fields.items() if field.text(key) == "."} == {
        *("k97", "percent", "k/k0", "k/k*", "entropy_rank", "participation_ratio", "nuclear_ratio"),
        *("condition_number", "numerical_rank", "spikes"),
    }
    load(fields.values(), [key])
    assert not any(field.text(key) == "." for field in fields.values())


def test_marks_stand_for_what_there_is_not(llama: Path, root: Path) -> None:
    session = session_of(llama, root, addresses=[KEY])
    key, query, norm = find(session, KEY, "layers.1.attention.query", "other.model.layers.0.input_layernorm.weight")
    field = by_name(Lens(Pair(session), 0.9))["k90"]
    assert (field.text(query), field.text(norm)) == (".", "-")
    session.apply([Started(query, "cpu")])
    assert field.text(query) == "*"
    session.apply([Failed(query, "no")])
    assert field.text(query) == "!"
    session.apply([Started(key, "cpu")])
    assert field.text(key).isdecimal()


def test_a_zero_matrix_has_ranks_and_no_ratios(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(1)
    weights["model.layers.0.self_attn.k_proj.weight"][:] = 0
    session = session_of(tmp_path / "m", root, weights)
    (key,) = find(session, "layers.0.attention.key")
    fields = by_name(Lens(Pair(session), 0.9))
    load(fields.values(), [key])
    names = ("k90", "numerical_rank", "effective_rank", "stable_rank", "condition_number", "nuclear_ratio")
    assert [fields[name].text(key) for name in names] == ["0", "0", "-", "-", "-", "-"]


def test_a_condition_number_below_the_noise_is_a_bound(tmp_path: Path, root: Path) -> None:
    weights = llama_weights(1)
    weights["model.layers.0.self_attn.k_proj.weight"][5:] = 0
    session = session_of(tmp_path / "m", root, weights)
    singular, sound = find(session, "layers.0.attention.key", "layers.0.attention.query")
    fields = fields_of(Lens(Pair(session), 0.9))
    load(fields, [singular, sound])
    field = find_field(fields, "cond")
    assert field is not None
    assert field.text(singular).startswith("> ")
    assert field.text(sound)[0].isdecimal()
    bounded = [row["condition_number_is_bound"] for row in of_rows(fields, [singular, sound])]
    assert bounded == [True, False]


def test_the_twins_have_a_column_once_there_is_one(llama: Path, root: Path) -> None:
    session = session_of(llama, root)
    wanted = session.model.tree.scanned()
    lens = Lens(Pair(session), 0.9)
    rows = TableRows(lens)
    rows.show(wanted)
    assert not has_twins(lens, wanted)
    assert "k/kf" not in [field.name for field in rows.fields]
    twin = flipped(wanted[3])
    session.apply([Saved(spectrum_of(twin, np.eye(twin.rows, twin.cols)))])
    rows.forget({twin.key})
    field = find_field(rows.fields, "k/kf")
    assert field is not None
    # An identity needs all of its equal values, but for a tenth.
    kf = math.ceil(0.9 * twin.count)
    assert field.number(wanted[3]) == numpy_rank(matrix_of(llama, wanted[3].address), 0.9) / kf
    assert field.text(wanted[4]) == "."


# The order


def test_sorting_is_stable_and_unknown_stays_last() -> None:
    rng = np.random.default_rng(0)
    numbers = [None if n > 7 else float(n) for n in rng.integers(0, 10, 200)]
    places = [place for place, number in enumerate(numbers) if number is not None]
    known = [number for number in numbers if number is not None]
    unknown = [place for place, number in enumerate(numbers) if number is None]
    for descending in (True, False):
        wanted = [places[at] for at in ranked(known, descending)]
        assert sort_order(numbers, descending) == wanted + unknown


def test_nan_counts_as_unknown(llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(llama, root)
    wanted = session.model.tree.scanned()
    field = by_name(Lens(Pair(session), 0.9))["k90"]
    monkeypatch.setattr(Session, "rank", lambda *_: math.nan)
    assert [field.number(p) for p in wanted[:2]] == [None, None]


def test_rows_sort_by_any_column_and_back_to_model_order(llama: Path, root: Path) -> None:
    session = session_of(llama, root)
    wanted = session.model.tree.scanned()
    rows = TableRows(Lens(Pair(session), 0.9))
    rows.show(wanted)
    ranks = [numpy_rank(matrix_of(llama, p.address), 0.8) for p in wanted]
    sizes = [p.rows * p.cols for p in wanted]
    for name, numbers in (("k80", ranks), ("shape", sizes)):
        for descending in (True, False):
            rows.sort(name)
            assert [rows[place] for place in range(len(rows))] == [wanted[at] for at in ranked(numbers, descending)]
            assert [rows.place(p.address) for p in rows] == list(range(len(rows)))
    rows.sort("address")
    assert list(rows) == wanted
    rows.sort("address")
    assert list(rows) == wanted[::-1]


def test_a_new_number_moves_its_row_alone(llama: Path, root: Path) -> None:
    session = session_of(llama, root)
    wanted = session.model.tree.scanned()
    rows = TableRows(Lens(Pair(session), 0.9))
    rows.show(wanted)
    rows.sort("stable_rank")
    before = list(rows)
    last = before[-1]
    session.apply([Saved(spectrum_of(last, np.eye(last.rows, last.cols)))])
    assert list(rows) == before  # the rows are told below
    rows.forget({last.key})
    assert list(rows) == [last, *before[:-1]]


def test_a_column_that_goes_leaves_model_order(llama: Path, root: Path) -> None:
    session = session_of(llama, root)
    wanted = session.model.tree.scanned()
    lens = Lens(Pair(session), 0.97)
    session.load_ranks(wanted, 0.97)
    rows = TableRows(lens)
    rows.show(wanted)
    rows.sort("k97")
    assert list(rows) != wanted
    lens.threshold = 0.9
    rows.forget()
    assert (list(rows), rows.sorted_by) == (wanted, "address")


# Two models, and records


@pytest.fixture
def singular(tmp_path: Path, root: Path) -> Pair:
    """Two models; B's key is singular, A's value, the output in both, the query in neither."""
    sessions = []
    for name, short in (("a", "vo"), ("b", "ko")):
        weights = llama_weights(1)
        weights["model.layers.0.self_attn.q_proj.weight"] *= 1 if name == "a" else np.linspace(1, 2, 48)[:, None]
        for letter in short:
            weights[f"model.layers.0.self_attn.{letter}_proj.weight"][5:] = 0
        sessions.append(session_of(tmp_path / name, root, weights))
    return Pair(*sessions)


BOUNDS = {"query": "", "key": "> ", "value": "< ", "output": "-"}


def test_of_bounds_the_ratio_is_a_bound_or_nothing(singular: Pair, tmp_path: Path) -> None:
    """sigma_1 over the floor, 1e-12, is less than sigma_1 / sigma_r."""
    lens = Lens(singular, 0.9, side=Side.RATIO)
    field = by_name(lens)["condition_number"]
    wanted = find(singular.first, *(f"layers.0.attention.{role}" for role in BOUNDS))
    load(by_name(lens).values(), wanted)
    for p, (role, bound) in zip(wanted, BOUNDS.items(), strict=True):
        sigma = [np.linalg.svd(matrix_of(tmp_path / name, p.address), compute_uv=False) for name in "ab"]
        a, b = (s[0] / max(s[-1], 1e-12) for s in sigma)
        text = "-" if role == "output" else f"{bound}{b / a:.3f}" if role == "query" else f"{bound}{b / a:#.4g}"
        assert (role, field.text(p)) == (role, text)
        assert field.number(p) == (None if role == "output" else pytest.approx(b / a, rel=1e-6))
        assert len(text) + 2 <= field.width
        (row,) = csv.DictReader(io.StringIO(csv_text(of_rows(fields_of(lens), [p]))))
        assert row["condition_number_is_bound"] == str(bool(bound))
        assert (row["condition_number"] == "") is (role == "output")
        if bound:
            assert row["sigma_r"] == ""
        else:
            assert float(row["sigma_r"]) == pytest.approx(sigma[1][-1] / sigma[0][-1], rel=1e-6)
    for side, bounded in ((Side.A, "vo"), (Side.B, "ko")):
        shown = by_name(Lens(singular, 0.9, side=side))["condition_number"]
        assert [shown.text(p).startswith("> ") for p in wanted] == [p.role[0] in bounded for p in wanted]


def test_of_counts_that_are_bounds_the_least_is_shown(singular: Pair) -> None:
    wanted = find(singular.first, *(f"layers.0.attention.{role}" for role in BOUNDS))
    ranks = {"A": ["48", "24", ">= 5", ">= 5"], "B": ["48", ">= 5", "24", ">= 5"]}
    ratios = {"B/A": ["1.000", f">= {5 / 24:.3f}", f"<= {24 / 5:.3f}", "-"]}
    for side, shown in (ranks | ratios).items():
        fields = fields_of(Lens(singular, 0.9, side=Side(side)))
        load(fields, wanted)
        field = find_field(fields, "num.rank")
        assert field is not None
        assert [field.text(p) for p in wanted] == shown
        assert max(map(len, shown)) + 2 <= field.width
        flags = [row["numerical_rank_is_bound"] for row in of_rows(fields, wanted)]
        assert flags == ["=" in text or text == "-" for text in shown]


def test_a_bound_of_two_shapes_has_both_signs(singular: Pair, root: Path, tmp_path: Path) -> None:
    weights = llama_weights(1)
    weights["model.layers.0.self_attn.k_proj.weight"] = np.eye(12, 48, dtype=np.float32)
    weights["model.layers.0.self_attn.k_proj.weight"][5:] = 0
    lens = Lens(Pair(singular.first, session_of(tmp_path / "c", root, weights)), 0.9, side=Side.RATIO)
    field = by_name(lens)["condition_number"]
    wanted = find(singular.first, "layers.0.attention.key")
    load([field], wanted)
    sigma = np.linalg.svd(matrix_of(tmp_path / "a", wanted[0].address), compute_uv=False)
    text = field.text(wanted[0])
    assert text == f"\u2260> {1e12 * sigma[-1] / sigma[0]:#.4g}"
    assert len(text) + 2 <= field.width


def test_files_have_the_numbers_that_a_program_wants(singular: Pair, tmp_path: Path) -> None:
    """Each side has the numbers of its model, by numpy; none below the floor, and no edge from a median below it."""
    wanted = find(singular.first, "layers.0.attention.query", "layers.0.attention.key")
    for side, name in ((Side.A, "a"), (Side.B, "b")):
        fields = fields_of(Lens(singular, 0.9, side=side))
        load(fields, wanted)
        for p, row in zip(wanted, csv.DictReader(io.StringIO(csv_text(of_rows(fields, wanted)))), strict=True):
            weights = matrix_of(tmp_path / name, p.address)
            sigma = np.linalg.svd(weights, compute_uv=False)
            assert float(row["frobenius_norm"]) == pytest.approx(np.sqrt((weights**2).sum()), rel=1e-9)
            assert (row["error_bound"], row["noise_floor"]) == ("1e-12", "1e-12")
            if (name, p.role) == ("b", "key"):
                assert (row["sigma_r"], row["edge"], row["spikes"]) == ("", "", "5")
                continue
            assert float(row["sigma_r"]) == pytest.approx(sigma[-1], rel=1e-9)
            rng = np.random.default_rng(1)
            noise = [np.median(np.linalg.svd(rng.standard_normal(weights.shape), compute_uv=False)) for _ in range(40)]
            edge = np.median(sigma) / np.mean(noise) * (48**0.5 + p.rows**0.5)
            assert float(row["edge"]) == pytest.approx(edge, rel=0.02)
            assert int(row["spikes"]) == (sigma > float(row["edge"])).sum()


@pytest.fixture
def pair(llama: Path, tmp_path: Path, root: Path) -> Pair:
    """A llama, and one of other weights with a layer less, whose key is not stored."""
    other = llama_weights(12)
    moved = {name.replace("layers.6.", "layers.0."): w for name, w in other.items() if "layers.6." in name}
    kept = {name: other[name] for name in other if any(f"layers.{n}." in name for n in range(1, 5))}
    second = session_of(tmp_path / "second", root, moved | kept)
    second._entries.pop(find(second, KEY)[0].key)
    return Pair(session_of(llama, root), second, by_depth=False)


def test_the_side_decides_whose_numbers_they_are(pair: Pair, llama: Path, tmp_path: Path) -> None:
    query, key, lost = find(pair.first, "layers.0.attention.query", KEY, "layers.5.attention.query")
    ours = numpy_rank(matrix_of(llama, query.address), 0.9)
    theirs = numpy_rank(matrix_of(tmp_path / "second", query.address), 0.9)
    assert ours != theirs
    shown = {}
    for side in Side:
        field = by_name(Lens(pair, 0.9, side=side))["k90"]
        shown[side] = [field.text(p) for p in (query, key, lost)]
        assert field.number(query) == pytest.approx({"A": ours, "B": theirs, "B/A": theirs / ours}[side])
    assert shown[Side.A][1:] == [str(numpy_rank(matrix_of(llama, p.address), 0.9)) for p in (key, lost)]
    assert shown[Side.B] == [str(theirs), ".", "-"]
    assert shown[Side.RATIO] == [f"{theirs / ours:.3f}", ".", "-"]


def test_records_hold_raw_numbers(llama: Path, root: Path) -> None:
    session = session_of(llama, root, addresses=[KEY])
    key, query = find(session, KEY, "layers.1.attention.query")
    fields = fields_of(Lens(Pair(session), 0.9))
    load(fields, [key])
    first, second = csv.DictReader(io.StringIO(csv_text(of_rows(fields, [key, query]))))
    expected = by_numpy(matrix_of(llama, KEY), 0.9)
    assert {name: float(first[name]) for name in expected} == pytest.approx(expected, rel=1e-6)
    assert first["k90"] == str(expected["k90"])
    assert (first["address"], first["rows"], first["cols"], first["threshold"]) == (KEY, "24", "48", "0.9")
    assert (first["state"], second["state"], second["k90"]) == ("stored", "not computed", "")
    assert float(second["k*"]) == 24


def test_a_tower_named_like_a_formula_is_no_formula(tmp_path: Path, root: Path) -> None:
    weights = {
        f"{tower}.layers.0.self_attn.q_proj.weight": np.eye(6, dtype=np.float32) for tower in ("=one()", "@two()")
    }
    session = session_of(tmp_path / "m", root, weights)
    wanted = session.model.tree.scanned()
    assert {p.address[0] for p in wanted} == {"=", "@"}
    rows = list(csv.DictReader(io.StringIO(csv_text(of_rows(fields_of(Lens(Pair(session), 0.9)), wanted)))))
    assert {row["address"][:2] for row in rows} == {"'=", "'@"}


def test_cells_and_layers_as_records(pair: Pair, llama: Path) -> None:
    wanted = find(pair.first, "layers.0.attention.key", KEY)
    lenses = [Lens(pair, threshold) for threshold in (0.6, 0.9)]
    for row, p in zip(of_cells(lenses, wanted), wanted, strict=True):
        ranks = {f"k{t}": numpy_rank(matrix_of(llama, p.address), t / 100) for t in (60, 90)}
        assert {name: row[name] for name in ("address", "layer", "model", *ranks)} == {
            "address": p.address, "layer": p.layer, "model": "A", **ranks,
        }  # fmt: skip
    points = list(of_layers(lenses, make_grid(wanted)))
    assert [(point["threshold"], point["layer"], point["median"]) for point in points] == [
        (t, p.layer, numpy_rank(matrix_of(llama, p.address), t)) for t in (0.6, 0.9) for p in wanted
    ]


def test_curves_as_records(llama: Path, root: Path) -> None:
    session = session_of(llama, root)
    wanted = find(session, "layers.0.attention.key", KEY)
    session.load_values(wanted)
    values = [found for p in wanted if (found := session.values(p)) is not None]
    rows = list(of_curves([(p.address[:8], session, p) for p in wanted], values))
    for p in wanted:
        sigma = np.linalg.svd(matrix_of(llama, p.address), compute_uv=False)
        mine = [row for row in rows if row["address"] == p.address]
        assert [row["k"] for row in mine] == list(range(1, 25))
        np.testing.assert_allclose([row["sigma"] for row in mine], sigma, rtol=1e-12)
        np.testing.assert_allclose([row["energy"] for row in mine], np.cumsum(sigma**2) / (sigma**2).sum())
        assert {row["curve"] for row in mine} == {p.address[:8]}
    assert not any(row["is_below_noise_floor"] for row in rows)

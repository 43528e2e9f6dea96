"""Arrays of numbers for a whole model: equal to single numbers, updated after changes, rebuilt no more often."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from app_models import LLAMA, fill, llama_weights, numpy_rank, save_model, spectrum_of
from app_sheets import find, session_of

from rankscope.engine.compute.events import Failed, Saved
from rankscope.engine.derive.flip import flipped
from rankscope.engine.spectrum import Projection, Values
from rankscope.tui.data.lens import Lens
from rankscope.tui.data.measures import BY_NAME, MEASURES, from_values
from rankscope.tui.data.number_columns import NumberColumns
from rankscope.tui.data.pair import Pair, Side
from rankscope.tui.data.spread import half_range, known, middle_of

KEY, QUERY, DOWN = "layers.0.attention.key", "layers.2.attention.query", "layers.3.mlp.down"


@pytest.fixture
def pair(tmp_path: Path, root: Path) -> Pair:
    """A of five layers: one of its matrices is zero, one is not stored, one has failed. B of four other layers: one
    is not stored. One matrix is singular in both, so its condition number is a bound in A and in B. Both have some
    facts, some ranks at 97 % and a twin with random signs."""
    weights = llama_weights(5)
    weights["model.layers.1.mlp.up_proj.weight"][:] = 0
    others = llama_weights(9)
    for found, layer in ((weights, 0), (others, 5)):
        query = found[f"model.layers.{layer}.self_attn.q_proj.weight"]
        query[:] = np.diag(np.arange(len(query)))  # its smallest singular value is 0 to the bit
    shifted = {name.replace(f"layers.{n + 5}.", f"layers.{n}."): w for name, w in others.items() for n in range(4)}
    sessions = []
    for name, found, lacking in (("a", weights, QUERY), ("b", shifted, DOWN)):
        kept = {n: w for n, w in found.items() if not any(f"layers.{layer}." in n for layer in range(5, 9))}
        folder = save_model(tmp_path / name, kept, LLAMA)
        there = [p.address for p in fill(folder, root, ()).tree.scanned() if p.address != lacking]
        session = session_of(folder, root, addresses=there)
        shown = session.model.tree.scanned()
        session.load_ranks(shown[::2], 0.97)
        session.load_facts(shown[::3], from_values())
        (key,) = find(session, KEY)
        session.apply([Saved(spectrum_of(flipped(key), np.eye(key.rows, key.cols))), Failed(shown[-1], "no")])
        sessions.append(session)
    return Pair(*sessions)


def one_by_one(lens: Lens, shown: tuple[Projection, ...]) -> list[float]:
    return [np.nan if (number := lens.number(p)) is None else number for p in shown]


@pytest.mark.parametrize("side", list(Side))
def test_all_projections_have_the_numbers_that_each_has(pair: Pair, side: Side) -> None:
    shown = pair.first.model.tree.scanned()
    group = pair.group(shown)
    for threshold in (0.9, 0.97):
        for measure in MEASURES:
            lens = Lens(pair, threshold, measure, side)
            np.testing.assert_array_equal(lens.numbers(group), one_by_one(lens, shown), measure.name)
    assert not np.isnan(Lens(pair, 0.9, BY_NAME["k/kf"], side).numbers(group)).all()


def test_arrays_follow_what_is_saved_lost_and_read(pair: Pair) -> None:
    session = pair.first
    shown = session.model.tree.scanned()
    group = pair.group(shown)
    lenses = [
        Lens(pair, t, BY_NAME[name]) for t in (0.9, 0.97) for name in ("k", "k/k0", "k/kf", "stable_rank", "spikes")
    ]

    def check() -> None:
        for lens in lenses:
            np.testing.assert_array_equal(lens.numbers(group), one_by_one(lens, shown), lens.measure.name)

    check()
    query, key, down = find(session, QUERY, KEY, DOWN)
    session.apply([Saved(spectrum_of(query, np.diag(np.arange(1.0, 49))))])
    check()
    squares = np.arange(48, 0, -1.0) ** 2
    rank = int(np.searchsorted(np.cumsum(squares) / squares.sum(), 0.9) + 1)
    assert lenses[0].numbers(pair.group([query])).tolist() == [rank]
    session.apply([Saved(spectrum_of(flipped(down), np.eye(48, 80)))])
    check()
    session.take({key.key: None})
    check()
    session.load_ranks(shown, 0.97)
    session.load_facts(shown, from_values())
    check()


def test_what_is_read_already_is_not_read_again(pair: Pair) -> None:
    session = pair.first
    shown = session.model.tree.scanned()
    assert not Lens(pair, 0.9).unread()
    lens = Lens(pair, 0.97, BY_NAME["spikes"])
    assert {p.key for p in shown if p.key in lens.unread()} == {p.key for n, p in enumerate(shown) if n % 6}
    lens.load(shown)
    assert not lens.unread()


class Made:
    """An array that counts how often it was made, and notes which rows were updated."""

    def __init__(self, columns: NumberColumns) -> None:
        self._columns = columns
        self.whole = 0
        self.rows: list[str] = []

    def ask(self, twins: bool = False) -> Values:
        return self._columns.kept("it", self._every, self._one, twins=twins)

    def _every(self) -> Values:
        self.whole += 1
        return self._columns.of_keys({})

    def _one(self, p: Projection) -> float | None:
        self.rows.append(p.address)
        return 7.0


@pytest.fixture
def made(llama: Path, root: Path) -> tuple[NumberColumns, tuple[Projection, ...], Made]:
    session = session_of(llama, root, addresses=())
    return session.columns, session.model.tree.projections, Made(session.columns)


def test_an_array_is_made_once_and_put_right_where_something_changed(
    made: tuple[NumberColumns, tuple[Projection, ...], Made],
) -> None:
    columns, projections, array = made
    first, second = projections[3], projections[5]
    assert np.isnan(array.ask()).all()
    columns.changed((first.key,))
    columns.changed((second.key, first.key))
    found = array.ask()
    assert found[columns.rows_of([first, second])].tolist() == [7.0, 7.0]
    assert np.isnan(found).sum() == len(columns.rows) - 1  # and the last row, for projections that are in no row
    array.ask()
    assert (array.whole, sorted(array.rows)) == (1, sorted((first.address, second.address)))


def test_an_array_is_made_anew_where_most_of_it_is_another_or_nobody_remembers(
    made: tuple[NumberColumns, tuple[Projection, ...], Made],
) -> None:
    columns, projections, array = made
    array.ask()
    columns.changed(None)
    array.ask()
    columns.changed([p.key for p in projections])
    array.ask()
    columns.changed(("a twin's",))
    array.ask()
    assert (array.whole, array.rows) == (3, [])
    columns.changed(("a twin's",))
    array.ask(twins=True)
    assert array.whole == 4
    for _ in range(2000):
        columns.changed((projections[0].key,))
    array.ask()
    assert (array.whole, array.rows) == (5, [])


def test_medians_and_quartiles_are_those_of_the_standard_library() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4, 5, 7, 8, 256):
        numbers = rng.integers(0, 50, count) / 4
        found = known(np.append(numbers, np.nan))
        assert middle_of(found) == statistics.median(numbers.tolist())
        if count < 4:
            assert half_range(found) is None
        else:
            low, _, high = statistics.quantiles(numbers.tolist(), n=4, method="inclusive")
            assert half_range(found) == (high - low) / 2
    assert middle_of(known(np.array([np.nan]))) is None


def test_ranks_of_a_threshold_are_those_of_lapack(llama: Path, root: Path) -> None:
    from safetensors.numpy import load_file

    session = session_of(llama, root)
    shown = session.model.tree.scanned()
    weights = load_file(llama / "model.safetensors")
    pair = Pair(session)
    for threshold in (0.6, 0.95):
        wanted = [numpy_rank(weights[p.tensor], threshold) for p in shown]
        assert Lens(pair, threshold).numbers(pair.group(shown)).tolist() == wanted

"""Numbers through the lens, checked with numpy: one model in every unit, two models on every side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_models import LLAMA, TENSORS, fill, llama_weights, save_model
from safetensors.numpy import load_file

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.null import null_rank
from rankscope.engine.spectrum import Projection
from rankscope.tui.data.lens import Lens
from rankscope.tui.data.measures import BY_NAME, from_values
from rankscope.tui.data.model import open_model
from rankscope.tui.data.pair import Pair, Side
from rankscope.tui.data.session import Session

THRESHOLD = 0.9


def session_of(folder: Path, root: Path) -> Session:
    session = Session(open_model(str(folder), root), root, lambda _: None, ComputeSettings())
    session.load()
    return session


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A with three layers and B with two, whose weights are A's with the seeds of the next layer."""
    folder = tmp_path_factory.mktemp("pair")
    weights = llama_weights(3)
    save_model(folder / "a", weights, LLAMA)
    shifted = {name.replace("layers.1", "layers.0"): w for name, w in weights.items() if "layers.1" in name}
    save_model(folder / "b", {**llama_weights(2), **shifted}, LLAMA)
    for name in "ab":
        fill(folder / name, folder / "store")
    both = session_of(folder / "a", folder / "store"), session_of(folder / "b", folder / "store")
    return Pair(*both, by_depth=False)


def sigma(session: Session, layer: int, role: str) -> np.ndarray:
    weights = load_file(Path(session.model.tree.projections[0].source.repo) / "model.safetensors")
    return np.linalg.svd(weights[f"model.layers.{layer}.{TENSORS[role]}.weight"].astype(np.float64), compute_uv=False)


def rank_of(values: np.ndarray, threshold: float = THRESHOLD) -> int:
    squares = values**2
    return int(np.searchsorted(np.cumsum(squares) / squares.sum(), threshold) + 1)


def projection(session: Session, address: str) -> Projection:
    return next(p for p in session.model.tree.projections if p.address == address)


def number(pair: Pair, name: str, side: Side = Side.A, address: str = "layers.1.attention.key") -> float | None:
    lens = Lens(pair, THRESHOLD, BY_NAME[name], side)
    found = projection(pair.first, address)
    lens.load([found])
    pair.first.load_facts([found], from_values())
    return lens.number(found)


def test_units_of_one_model(pair: Pair) -> None:
    values = sigma(pair.first, 1, "key")
    rank = rank_of(values)
    p = values / values.sum()
    alone = Pair(pair.first)
    expected = {
        "k": rank,
        "percent": 100 * rank / 24,
        "k/k0": rank / null_rank(24, 48, THRESHOLD),
        "k/k*": rank / (24 * 48 / (24 + 48)),
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "stable_rank": (values**2).sum() / values[0] ** 2,
        "sigma_1": values[0],
        "participation_ratio": (values**2).sum() ** 2 / (values**4).sum(),
        "nuclear_ratio": values.sum() / values[0],
        "condition_number": values[0] / values[-1],
        "numerical_rank": 24,
        "k*": 16,
    }
    for name, value in expected.items():
        assert number(alone, name) == pytest.approx(value, rel=1e-6), name


def test_sides_of_two_models(pair: Pair) -> None:
    address = "layers.0.attention.key"
    a, b = rank_of(sigma(pair.first, 0, "key")), rank_of(sigma(pair.first, 1, "key"))
    assert (number(pair, "k", Side.A, address), number(pair, "k", Side.B, address)) == (a, b)
    assert number(pair, "k", Side.RATIO, address) == pytest.approx(b / a)


def test_what_only_one_model_has(pair: Pair) -> None:
    ours, theirs = pair.unmatched()
    assert {p.layer for p in ours} == {2}
    assert len(ours) == 7
    assert theirs == []
    assert number(pair, "k", Side.B, "layers.2.attention.key") is None
    assert number(pair, "k", Side.RATIO, "layers.2.attention.key") is None
    only = projection(pair.first, "layers.2.attention.key")
    assert [letter for letter, _, _ in pair.curves(only, Side.B)] == ["A"]


def test_a_flipped_twin_is_the_null_of_its_unit(pair: Pair) -> None:
    alone = Pair(pair.first)
    assert number(alone, "k/kf") is None  # no twin with random signs is stored


def test_factoring_that_saves_nothing_is_greyed(pair: Pair) -> None:
    lens = Lens(Pair(pair.first), 0.999, BY_NAME["k/k*"])
    p = projection(pair.first, "layers.1.attention.key")
    lens.load([p])
    assert rank_of(sigma(pair.first, 1, "key"), 0.999) > 16
    assert lens.is_greyed(p)
    lens.threshold = 0.6
    assert rank_of(sigma(pair.first, 1, "key"), 0.6) < 16
    assert not lens.is_greyed(p)

"""Experts that few tokens reached: their second moments are drawn towards those of their layer."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from calibration_files import legacy, stats, write_gguf, write_moments
from numpy.typing import NDArray
from weighted_examples import projection

from rankscope.engine.calibration.file_weighting import FileWeighting, open_weighting
from rankscope.engine.calibration.pooled import PooledWeighting
from rankscope.engine.derive.weighting import is_unseen, weighted
from rankscope.engine.errors import UnseenError, WeightsError
from rankscope.engine.moment import Moment, digest_of_moments
from rankscope.engine.spectrum import Projection, Slice

COLS, COUNTS = 12, (512 * 40, 0, 300, 3)
GATE, QUERY = "blk.1.ffn_gate_exps.weight", "blk.1.attn_q.weight"
ROUTED = stats(COLS, COUNTS)
RNG = np.random.default_rng(8)
INPUTS = [RNG.standard_normal((count, COLS)) * RNG.uniform(0.1, 3, COLS) for count in (50, 0, 7)]


def expert(number: int, **changes: Any) -> Projection:
    made: dict[str, Any] = {"address": f"layers.1.expert.{number}.gate", "layer": 1, "block": "expert", "role": "gate"}
    made |= {"tensor": GATE, "slice": Slice(0, 1, 0, 8, number), "expert": number, "key": f"gate {number}"}
    return projection(8, COLS, **made | changes)


def apart(number: int) -> Projection:
    return expert(number, tensor=f"model.layers.1.mlp.experts.{number}.gate_proj.weight", slice=None)


def of_file(file: Path) -> FileWeighting:
    return open_weighting(str(file), "model", {})


def imatrix(folder: Path, **held: Any) -> FileWeighting:
    file = Path(mkdtemp(dir=folder)) / "imatrix.gguf"
    return of_file(write_gguf(file, {GATE: ROUTED, QUERY: stats(COLS), **held}))


def matrices(folder: Path) -> FileWeighting:
    sums: dict[str, Any] = {}
    for number, x in enumerate(INPUTS):
        name = apart(number).tensor
        sums |= {f"{name}.xx": x.T @ x, f"{name}.x": x.sum(0), f"{name}.count": np.array([len(x)], np.int64)}
    return of_file(write_moments(Path(mkdtemp(dir=folder)) / "moments.safetensors", sums))


def numbers(moment: Moment) -> NDArray[np.float64]:
    (operand,) = moment.operands
    assert operand.load is not None
    return operand.load()


def test_each_is_drawn_towards_all_tokens_of_the_layer(tmp_path: Path) -> None:
    experts = [expert(e) for e in range(4)]
    found = PooledWeighting(imatrix(tmp_path), experts)
    sums = ROUTED.sums.astype(np.float64)
    layer = sums[[0, 2, 3]].sum(0) / sum(
        COUNTS
    )  # sums of squares over tokens: expert 1 has none, whatever stands there
    for e, count in enumerate(COUNTS):
        expected = ((sums[e] if count else 0) + COLS * layer) / (count + COLS)
        np.testing.assert_allclose(numbers(found.moment(experts[e])), expected, rtol=1e-6)
        assert found.tokens(experts[e]) == count
    assert (found.name, found.label) == ("imatrix", f"{imatrix(tmp_path).label}, pooled")


def test_matrices_are_pooled_as_matrices(tmp_path: Path) -> None:
    experts = [apart(e) for e in range(3)]
    found = PooledWeighting(matrices(tmp_path), experts)
    every = np.concatenate(INPUTS)
    layer = np.einsum("ti,tj->ij", every, every) / len(every)
    for e, x in enumerate(INPUTS):
        moment = found.moment(experts[e])
        assert moment.form == "full"
        expected = (np.einsum("ti,tj->ij", x, x) + COLS * layer) / (len(x) + COLS)
        np.testing.assert_allclose(numbers(moment), expected, atol=1e-12)


@pytest.mark.parametrize("make", [imatrix, matrices])
def test_it_is_a_weighting_of_its_own(tmp_path: Path, make: Any) -> None:
    place = expert if make is imatrix else apart
    experts = [place(0), place(2)]
    plain = make(tmp_path)
    pooled = PooledWeighting(plain, experts)
    for p in experts:
        assert weighted(p, pooled).key != weighted(p, plain).key
        assert weighted(p, pooled).key == weighted(p, PooledWeighting(make(tmp_path), experts)).key
    assert digest_of_moments(pooled, experts) != digest_of_moments(plain, experts)
    # One expert more in the layer is another pool.
    if make is imatrix:
        assert digest_of_moments(PooledWeighting(plain, [*experts, expert(3)]), experts) != digest_of_moments(
            pooled, experts
        )


def test_the_digest_is_of_numbers_not_of_files(tmp_path: Path) -> None:
    experts = [expert(e) for e in range(4)]
    other = write_gguf(tmp_path / "b.gguf", {GATE: ROUTED}, data_sets=["another"])
    changed = ROUTED._replace(sums=ROUTED.sums * np.float32(1.001))
    third = write_gguf(tmp_path / "c.gguf", {GATE: changed})
    found = [digest_of_moments(PooledWeighting(w, experts), experts)
             for w in (imatrix(tmp_path), of_file(other), of_file(third))]  # fmt: skip
    assert found[0] == found[1] != found[2]
    plain = PooledWeighting(imatrix(tmp_path), experts)
    assert digest_of_moments(plain, experts[::-1]) == found[0]
    assert digest_of_moments(plain, experts[1:]) != found[0]


def test_what_is_no_expert_has_what_the_file_says(tmp_path: Path) -> None:
    plain = imatrix(tmp_path)
    query = projection(8, COLS, address="layers.1.attention.query", layer=1, tensor=QUERY)
    assert PooledWeighting(plain, [query, expert(0)]).moment(query) == plain.moment(query)


def test_a_layer_that_no_token_reached_is_unseen(tmp_path: Path) -> None:
    found = PooledWeighting(imatrix(tmp_path), [expert(1)])
    with pytest.raises(UnseenError, match=r"layers\.1\.expert\.1\.gate is unseen"):
        found.moment(expert(1))
    assert is_unseen(weighted(expert(1), found))


def test_layers_roles_and_towers_do_not_mix(tmp_path: Path) -> None:
    far = "blk.2.ffn_gate_exps.weight"
    other = stats(COLS, COUNTS, seed=3)
    elsewhere = [expert(e, address=f"layers.2.expert.{e}.gate", layer=2, tensor=far) for e in range(4)]
    found = PooledWeighting(imatrix(tmp_path, **{far: other}), [*(expert(e) for e in range(4)), *elsewhere])
    alone = PooledWeighting(imatrix(tmp_path), [expert(e) for e in range(4)])
    assert found.moment(expert(2)).digest == alone.moment(expert(2)).digest
    assert found.moment(elsewhere[2]).digest != alone.moment(expert(2)).digest


def test_a_file_without_tokens_by_expert_is_refused(tmp_path: Path) -> None:
    (tmp_path / "imatrix.dat").write_bytes(legacy({GATE: ROUTED, QUERY: stats(COLS)}))
    plain = of_file(tmp_path / "imatrix.dat")
    found = PooledWeighting(plain, [expert(e) for e in range(4)])
    with pytest.raises(WeightsError, match=r"no token count of its own in the file: make it again"):
        found.moment(expert(0))
    query = projection(8, COLS, address="layers.1.attention.query", layer=1, tensor=QUERY)
    assert found.moment(query) == plain.moment(query)

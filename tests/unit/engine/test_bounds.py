"""Stated error bounds and noise floors against 80-bit singular values: a part of tests/benchmarks/bounds.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from bounds_cases import Array, Case, all_cases
from extended_reference import Extended, assert_bounds_hold, singular_values
from lapack_reference import jacobi

from rankscope.engine import bounds
from rankscope.engine.solvers import gram, svd
from rankscope.engine.solvers.batch import solve_batch
from rankscope.engine.solvers.ladder import Rung, Solution, solve

HARD = (
    ("dct", "3 8", "4 3", "4 10", "4 64"),
    ("orthogonal", "6x12", "20x40"),
    ("constant", "0.1 24x384", "0.333 6x96", "0.333 96x96"),
    ("two values", "64x256"),
    ("three values", "24x96"),
    ("blocks", "2 0.001 4x60", "5 1e-05 4x60"),
    ("triangle", "0.1 32"),
    ("long, constant", "0.1 8x100000", "0.123 4x1000000"),
    ("gaussian", "5x20", "6x6", "48x48"),
    ("gaussian 256x1024", "0"),
    ("bfloat16", "32x128"),
    ("hilbert", "12"),
    ("kahan", "1.2 5", "0.8 24"),
    ("clustered", "0e+00 40x60", "1e-12 16x16"),
    ("geometric", "3 16x16", "6 16x16", "8 40x60", "12 16x16"),
    ("low rank", "13 40x60"),
    ("kronecker", "4 x 5"),
    ("small and large", "1e-310 20x30", "1e-318 20x30", "1e200 3x4"),
    ("demo", "layers.27.attention.value"),
)
"""The cases nearest to their bound, and some of every kind."""
CHOSEN = {(family, name) for family, *names in HARD for name in names}
SLOW = 128
"""Above this side the two-stage solver, without its kernels, takes most of a second; its errors are far below its
bound there."""
CASES = [case for case in all_cases(demo=True) if (case.family, case.name) in CHOSEN]


def _by(solver: Any, routine: Callable[[Any, float], Any]) -> Callable[[Array], Solution]:
    rung = Rung(solver.NAME, solver.VERSION, "cpu", routine, math.inf, solver.accuracy)
    return lambda matrix: solve(matrix, [rung])


def _by_two_stage(matrix: Array) -> Solution:
    (outcome,) = solve_batch([torch.from_numpy(matrix)], 1, min(matrix.shape), "cpu", print)
    assert isinstance(outcome, Solution)
    return outcome


ROUTINES = {
    "gram": _by(gram, gram.singular_values),
    "gram in torch": _by(gram, lambda matrix, scale: gram.singular_values(torch.from_numpy(matrix), scale)),
    "two-stage": _by_two_stage,
    "svd": _by(svd, svd.singular_values),
}


def test_every_case_is_there() -> None:
    assert {(case.family, case.name) for case in CASES} == CHOSEN


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family} {case.name}")
def test_no_routine_is_worse_than_it_says(case: Case) -> None:
    matrix = np.ascontiguousarray(case.make())
    exact = case.exact() if case.exact else singular_values(matrix)
    for name, routine in ROUTINES.items():
        if name != "two-stage" or min(matrix.shape) <= SLOW:
            assert_bounds_hold(routine(matrix), matrix, exact)


@pytest.mark.parametrize("rows", [1, 16, 200, 1024, 4096])
def test_what_is_stated_of_weights_is_of_use(rows: int) -> None:
    """A matrix whose smallest value is known to four digits, and whose first value has half of the energy."""
    for solver in (bounds.GRAM, bounds.TWO_STAGE):
        values = np.geomspace(1, 1e-4, rows)
        bound, floor = bounds.of(solver, (rows, 4 * rows), values)
        assert bound <= 1e-16 * (60 + rows) / values[-1]
        assert floor <= 1e-6


def test_a_value_of_a_denormal_has_an_error() -> None:
    """5e-324 is the spacing of floats there: no value is known better."""
    matrix = np.array([[3, 1, 0], [0, 2, 5], [1, 1, 1]]) * 5e-324
    for routine in ROUTINES.values():
        solution = routine(matrix)
        assert solution.provenance.error_bound >= 5e-324
        assert solution.provenance.noise_floor >= 5e-324
        assert_bounds_hold(solution, matrix)


@pytest.mark.parametrize("solver", list(bounds.HOLD_SINCE))
def test_what_an_old_solver_stated_is_worked_out_anew(solver: str) -> None:
    """From a spectrum's ends and norm: the bound from all values if the smallest is above the floor, else no less."""
    for shape, low in (((9, 40), 0.2), ((40, 3000), 1e-3), ((40, 60), 1e-12)):
        values = 1e-3 * np.geomspace(1, low, min(shape))
        of_all = bounds.of(solver, shape, values)
        ends, norm = (float(values[0]), float(values[-1])), float(np.linalg.norm(values))
        bound, floor = bounds.anew(solver, 1, shape, ends, norm) or (0.0, 0.0)
        assert bound >= of_all[0] * 0.999
        assert floor >= of_all[1] * 0.999
        assert bound <= max(1.1 * of_all[0], floor / 18)
        assert floor <= 1.3 * of_all[1]
        assert bounds.anew(solver, bounds.HOLD_SINCE[solver], shape, ends, norm) is None
    assert bounds.anew(solver, 1, (3, 4), (0.0, 0.0), 0.0) == (0.0, 0.0)
    assert bounds.anew(solver, 1, (0, 4), (math.nan, math.nan), 0.0) == (0.0, 0.0)
    assert min(bounds.anew(solver, 1, (3, 4), (2e-318, 1e-320), 2e-318) or ()) >= 5e-324
    assert bounds.anew("another", 1, (3, 4), (1.0, 0.5), 1.2) is None


def _closed(*values: Any) -> Extended:
    return np.array(sorted((np.longdouble(mpmath.nstr(value, 25)) for value in values), reverse=True))


def test_the_reference_knows_closed_forms() -> None:
    n = 150
    with mpmath.workdps(30):
        by_minimum = _closed(
            *(1 / (4 * mpmath.sin((2 * k - 1) * mpmath.pi / (4 * n + 2)) ** 2) for k in range(1, n + 1))
        )
        by_second = _closed(*(4 * mpmath.sin(k * mpmath.pi / (2 * n + 2)) ** 2 for k in range(1, n + 1)))
    minimum = np.minimum.outer(np.arange(1.0, n + 1), np.arange(1.0, n + 1))
    second = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    flat = np.full(64, np.longdouble(8))
    for matrix, exact in ((minimum, by_minimum), (second, by_second), (scipy.linalg.hadamard(64) * 1.0, flat)):
        assert np.abs(singular_values(matrix) - exact).max() <= 1e-18 * exact[0]
    matrix = np.random.default_rng(1).standard_normal((9, 13))
    assert np.abs(singular_values(matrix) - jacobi(matrix)).max() <= 2e-18 * jacobi(matrix)[0]

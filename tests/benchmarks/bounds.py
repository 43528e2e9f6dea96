"""Check that stated error bounds and noise floors hold, and how loose they are, against 80-bit singular values.

    python tests/benchmarks/bounds.py [--device cuda] [--families dct demo] [--jobs 8] [--out rows.jsonl]

The matrices are those of tests/unit/engine/bounds_cases.py, 1,232 with the demo's; the references those of
extended_reference.py beside it, or known ones. For each routine: violations, the largest error / bound, and the median
bound / error of a matrix. Half an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1] / "unit" / "engine"))

from bounds_cases import Array, Case, all_cases
from extended_reference import singular_values

from rankscope.engine.errors import WeightsError
from rankscope.engine.solvers import gram, svd
from rankscope.engine.solvers.batch import solve_batch
from rankscope.engine.solvers.ladder import Rung, Solution, solve

Row = dict[str, Any]
TITLES = {"ratio": "stated", "before": "by version 1"}
WELL = 10
"""The condition number up to which matrices are reported apart: small values of others are often more accurate than
required."""


def routines(device: str) -> dict[str, Callable[[Array], Solution | None]]:
    """The routines that compute singular values: matrix -> solution, or None where a routine proves none."""

    def rung(solver: Any, routine: Callable[[Any, float], Any]) -> Callable[[Array], Solution | None]:
        one = Rung(solver.NAME, solver.VERSION, device, routine, math.inf, solver.accuracy)
        return lambda matrix: solve(matrix, [one])

    def by_torch(solver: Any) -> Callable[[Array], Solution | None]:
        return rung(solver, lambda matrix, scale: solver.singular_values(torch.as_tensor(matrix), scale))

    found = {"gram": by_torch(gram), "svd": by_torch(svd), "two-stage": partial(_in_a_batch, device)}
    if device == "cpu":
        found |= {"gram, numpy": rung(gram, gram.singular_values), "svd, numpy": rung(svd, svd.singular_values)}
    return found


def _in_a_batch(device: str, matrix: Array) -> Solution | None:
    (outcome,) = solve_batch([torch.from_numpy(matrix)], 1, min(matrix.shape), device, print)
    if isinstance(outcome, WeightsError):
        raise outcome
    return outcome


def examine(device: str, case: Case) -> list[Row]:
    """The results of all routines for one case, one row a routine."""
    torch.set_num_threads(1)
    matrix = np.ascontiguousarray(case.make())
    exact = case.exact() if case.exact else singular_values(matrix)
    solutions = {name: routine(matrix) for name, routine in routines(device).items()}
    return [_row(case, name, matrix, found, exact) for name, found in solutions.items() if found is not None]


def _before(solver: str, values: Array) -> float:
    """The error bound that version 1 of a solver stated for the Gram matrix's values."""
    top, side = float(values[0]), math.sqrt(len(values))
    d = 1e-15 * max(1.0, side / 16) if solver == gram.NAME else 4e-16 * max(10.0, side)
    return d * top / (2 * float(values[values > math.sqrt(10 * d) * top][-1]) / top)


def _row(case: Case, name: str, matrix: Array, found: Solution, exact: Any) -> Row:
    made, values = found.provenance, found.values
    above = values > made.noise_floor
    error = np.abs(values - exact)[above].max(initial=0)
    before = made.error_bound if made.solver == svd.NAME else _before(made.solver, values)
    return {
        "family": case.family,
        "name": case.name,
        "shape": matrix.shape,
        "routine": name,
        "ratio": float(error / np.longdouble(made.error_bound)),
        "before": float(error / np.longdouble(before)) if before else math.inf,
        "below": float(exact[~above].max(initial=0) / np.longdouble(made.noise_floor)),
        "condition": float(exact[0] / max(exact[-1], exact[0] * 1e-18)),
        "error": float(error / exact[0]),
    }


def report(rows: Iterable[Row]) -> None:
    """Print a line a routine, one for its version 1's bounds on the same values, and what is nearest to its bound."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["routine"]].append(row)
    for name, group in groups.items():
        print(f"\n{name}, {len(group)} matrices")
        for which, below in (("ratio", 1.05), ("before", math.inf)):
            violated = sum(row[which] > 1 or row["below"] > below for row in group)
            well = [row for row in group if row["condition"] < WELL]
            worst = max(row[which] for row in group if row[which] < math.inf)
            loose, looser = (float(np.median([1 / max(row[which], 1e-9) for row in some])) for some in (well, group))
            print(
                f"  {TITLES[which]}: {violated} violations, by up to {worst:.2f}; median looseness {loose:.1f}, ",
                end="",
            )
            print(f"of ill-conditioned ones too {looser:.1f}")
        for row in sorted(group, key=lambda row: -float(row["ratio"]))[:5]:
            print(f"  {row['ratio']:.3f}  {row['family']} {row['name']}, error {row['error']:.1e} sigma_1")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--families", nargs="+", default=[], help="by their names; default: all")
    parser.add_argument("--no-demo", action="store_true", help="where the demo's wheel is not installed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write every row there, as JSON lines")
    args = parser.parse_args()
    cases = [c for c in all_cases(not args.no_demo) if not args.families or c.family in args.families]
    rows: list[Row] = []
    with get_context("spawn").Pool(args.jobs) as pool, open(args.out or "/dev/null", "w") as out:
        for found in pool.imap_unordered(partial(examine, args.device), cases):
            rows += found
            out.writelines(json.dumps(row) + "\n" for row in found)
            out.flush()
    report(rows)


if __name__ == "__main__":
    main()

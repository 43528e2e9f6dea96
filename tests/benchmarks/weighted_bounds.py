"""Errors of weighted spectra against references of 80 bits, and how loose the stated bounds are.

    python tests/benchmarks/weighted_bounds.py [--sizes 24x24 16x256 ...]

Every kind of matrix under every kind of full second moment, of tests/unit/engine/weighted_examples.py. `c` is the
largest error of the squared singular values of W S as it was formed, over n eps |W|^2 |C|: weigh.C must exceed it. A
violation is a value of the solver above the noise floor whose error exceeds the error bound, or one below the floor
whose true value lies above.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "engine"))

from weighted_examples import MATRICES, MOMENTS, Given, projection, reference, root

from rankscope.engine import moment
from rankscope.engine.derive.weigh import weigh
from rankscope.engine.derive.weighting import weighted
from rankscope.engine.solvers.ladder import choose, solve

SIZES = ("24x24", "8x64", "64x8", "1x33", "33x1", "32x64", "64x32", "80x80", "16x128")
EPS = float(np.finfo(np.float64).eps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    sizes = parser.parse_args().sizes
    rungs = [replace(choose("cpu")[0], reach=math.inf)]
    constants, looseness, violations, count = [], [], 0, 0
    for size in sizes:
        m, n = map(int, size.split("x"))
        for under, make in MOMENTS.items():
            rng = np.random.default_rng([m, n])
            c = make(rng, n)
            factor = root(c)
            for kind, matrix_of in MATRICES.items():
                w = matrix_of(rng, m, c)
                made = weigh(weighted(projection(m, n), Given(moment.full(c))), [w])
                found = solve(made.matrix, rungs)
                proven = made.check.proven(found.values, found.provenance)
                true = reference(w, factor)
                off = np.abs(found.values - true)
                reach = np.linalg.norm(w, 2) * np.sqrt(np.linalg.norm(c, 2))
                formed = reference(np.asarray(made.matrix) / (reach or 1.0), np.eye(n, dtype=np.longdouble))
                squares = np.abs(formed**2 - (true / (reach or 1.0)) ** 2)
                known = found.values > proven.noise_floor
                wrong = (off > proven.error_bound) & known | (true > proven.noise_floor + proven.error_bound) & ~known
                constants.append((float(squares.max()) / (n * EPS), size, under, kind))
                if known.any() and off[known].max() > 0:
                    looseness.append(proven.error_bound / float(off[known].max()))
                violations += bool(wrong.any())
                count += 1
                if wrong.any():
                    print("violated:", size, under, kind)
        print(f"{size}: c {max(constants)[0]:.3f} so far", flush=True)
    constants.sort(reverse=True)
    for constant, *what in constants[:8]:
        print(f"c {constant:.3f}", *what)
    print(f"{count} spectra, {violations} violated, bound / error: median {np.median(looseness):.0f}")


if __name__ == "__main__":
    main()

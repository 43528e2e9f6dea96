"""k / k0 of pure noise, which has to be 1: the table of docs/DEFINITIONS.md.   python tests/benchmarks/noise_ranks.py

Means over 250 to 4,000 drawn Gaussian matrices, in a few seconds. The last column divides k90 by the real number of
components of the Marchenko-Pastur law, without the half that k0 has more.
"""

from __future__ import annotations

import numpy as np

from rankscope.engine.null import null_rank

SIDES, FLAT, THRESHOLDS = (8, 16, 32, 128), (1, 2, 4, 16), (0.6, 0.8, 0.9, 0.95)


def mean_ranks(rows: int, cols: int, draws: int) -> list[float]:
    """Mean threshold ranks of drawn matrices of noise, by LAPACK."""
    noise = np.random.default_rng([rows, cols]).standard_normal((draws, rows, cols))
    squares = np.linalg.eigvalsh(noise @ noise.transpose(0, 2, 1))[:, ::-1]
    shares = np.cumsum(squares, axis=1) / squares.sum(axis=1, keepdims=True)
    return [float((shares < t).sum(axis=1).mean()) + 1 for t in THRESHOLDS]


def main() -> None:
    heads = ["shape", *(f"k{100 * t:g}/k0" for t in THRESHOLDS), "k90 by the law"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for rows, cols in ((side, flat * side) for flat in FLAT for side in SIDES):
        found = mean_ranks(rows, cols, 32_000 // rows)
        k0 = [null_rank(rows, cols, t) for t in THRESHOLDS]
        ratios = [k / n for k, n in zip([*found, found[2]], [*k0, k0[2] - 0.5], strict=True)]
        print(f"| {rows} x {cols} | {' | '.join(f'{ratio:.3f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()

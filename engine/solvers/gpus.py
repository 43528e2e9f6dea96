"""How many matrices a GPU solves together, and how fast it is in float64. Imports no torch."""

from __future__ import annotations

_COUNTS = ((2048, 32), (4096, 16), (8192, 8))

FLOAT64 = {(7, 0): 7.8, (8, 0): 19.5, (9, 0): 67.0, (10, 0): 40.0}
"""10^12 float64 operations a second by NVIDIA's data sheets (V100, A100, H100, B200), by compute capability: those that
have half as many as in float32."""

_OTHERS = 1.4  # others have 1/32 or 1/64 as many as in float32: an RTX 4090, an L40S
_H100_COSTS = 1.6e13  # measured: 224 projections of Llama-3-8B in 2.7 s, by tests/benchmarks/gpu_scan.py --layers 32


def batch_of(small: int) -> int:
    """How many matrices with this smaller side make a batch, if there is memory. A batch takes an H100 at most 0.1 s up
    to 2048, 0.2 s up to 4096 and 0.5 s up to 8192."""
    return next((count for side, count in _COUNTS if small <= side), 1)


def costs_a_second(capability: tuple[int, int]) -> float:
    """The Projection.cost that a GPU of this compute capability solves in a second: that measured on an H100, in
    proportion to float64 operations."""
    return _H100_COSTS * FLOAT64.get(capability, _OTHERS) / FLOAT64[9, 0]

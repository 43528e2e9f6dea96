"""What is known of GPUs without torch: how many matrices they solve together, and how fast they are in float64."""

from __future__ import annotations

_COUNTS = ((2048, 32), (4096, 16), (8192, 8))

FLOAT64 = {(7, 0): 7.8, (8, 0): 19.5, (9, 0): 67.0, (10, 0): 40.0}
"""Compute capabilities with half as many float64 operations a second as float32 ones, and how many 10^12 these are by
NVIDIA's data sheets (V100, A100, H100, B200)."""

_OTHERS = 1.4  # they have 1/32 or 1/64 as many: an RTX 4090, an L40S
_H100_COSTS = 1.6e13  # measured: 224 projections of Llama-3-8B in 2.7 s, by tests/benchmarks/gpu_scan.py --layers 32


def batch_of(small: int) -> int:
    """How many matrices of a smaller side are a batch, where there is memory: on an H100 at most 0.1 s up to 2048,
    0.2 s up to 4096 and 0.5 s up to 8192."""
    return next((count for side, count in _COUNTS if small <= side), 1)


def costs_a_second(capability: tuple[int, int]) -> float:
    """Projection.cost that a GPU of this compute capability solves in a second: as an H100 was measured, in proportion
    to float64 operations."""
    return _H100_COSTS * FLOAT64.get(capability, _OTHERS) / FLOAT64[9, 0]

"""Spectra of several matrices at once, by the two-stage eigensolver, checked as the ladder checks its own."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from ..errors import WeightsError
from . import gram, two_stage
from .ladder import Solution, fault_of, place, readable, solution

Outcome = Solution | WeightsError | None


def solve_batch(matrices: list[Tensor], device: str) -> list[Outcome]:
    """For each 2-D float matrix, on the CPU or on the device, its spectrum, or why its weights cannot be used.

    Their smaller sides must be equal. None where nothing is proven: then ladder.solve has to be asked, for
    all of them where the device has no room for the batch. The device holds 8 n (n + 8 width) bytes for each
    matrix, and one of them at a time.
    """
    start = time.perf_counter()
    small, *others = {min(matrix.shape) for matrix in matrices}
    if others:
        raise ValueError("a batch needs matrices of one smaller side")
    try:
        grams = torch.zeros(len(matrices), small, small, dtype=torch.float64, device=device)
        scales = [_add(matrix, one) for matrix, one in zip(matrices, grams, strict=True)]
        values, passed = two_stage.eigenvalues(grams)
        sigma = values.flip(1).clamp_(min=0).sqrt_()
        host = torch.cat([sigma, passed.unsqueeze(1)], 1).cpu()  # once for all
    except Exception:  # noqa: BLE001 - out of memory, a lost device, kernels that do not compile there
        return [None] * len(matrices)
    seconds = (time.perf_counter() - start) / len(matrices)
    return [_outcome(row, scale, device, seconds) for row, scale in zip(host, scales, strict=True)]


def _add(matrix: Tensor, out: Tensor) -> tuple[float, float] | WeightsError:
    """The Gram matrix into `out`; the scale and the norm it was taken at."""
    try:
        placed, scale, norm = place(readable(matrix), str(out.device))
    except WeightsError as error:
        return error
    gram.add_gram(placed, scale, out)
    return scale, norm


def _outcome(row: Tensor, scaled: tuple[float, float] | WeightsError, device: str, seconds: float) -> Outcome:
    """A row of the values and whether they passed, checked."""
    if isinstance(scaled, WeightsError):
        return scaled
    scale, norm = scaled
    sigma, passed = row[:-1], bool(row[-1])
    accuracy = two_stage.accuracy(len(sigma), sigma)
    if not passed or fault_of(sigma, norm, accuracy, math.inf):
        return None
    try:
        return solution(sigma, scale, norm, accuracy, (two_stage.NAME, two_stage.VERSION, device), seconds)
    except WeightsError as error:
        return error

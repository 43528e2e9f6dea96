"""Spectra of several matrices at once by the two-stage eigensolver, with the checks of the ladder."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..errors import WeightsError
from ..weights import Weights
from . import gram as grams_of
from . import two_stage
from .gpus import FLOAT64, batch_of
from .ladder import NOT_FINITE, Solution, SolvedBy, fault_of, moved, solution

Outcome = Solution | WeightsError | None

_FASTER: dict[tuple[str, int], bool] = {}

_TURNS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""A lock for each device, held while the kernels of a batch are launched: two threads that launch in turns would both
be late. Kernels go on running while the next batch is launched: a chase leaves most of a GPU to its matrix products."""


def limits(device: str) -> Callable[[int], int]:
    """A function from a smaller side to the number of matrices in a batch: 1 if the two-stage solver cannot run.

    The matrices of a batch take at most a quarter of the device memory that is free now.
    """
    try:
        free = torch.cuda.mem_get_info(device)[0] if two_stage.available(device) else 0
    except RuntimeError:  # a driver that does not answer: the ladder falls back to the CPU
        free = 0

    def limit_of(small: int) -> int:
        return max(1, min(batch_of(small), free // 4 // two_stage.room(max(1, small))))

    return limit_of


def faster_together(device: str, small: int) -> bool:
    """Return whether the two-stage solver is faster than the library on a device, for matrices with this smaller side.

    It is on devices with fast float64 (H100 at 4096: 9 ms instead of 117). Other devices are measured before the first
    batch, once for each power of two.
    """
    side = min(4096, 1 << (small - 1).bit_length())
    if torch.cuda.get_device_capability(device) in FLOAT64:
        return True
    with _TURNS[device]:
        if (device, side) not in _FASTER:
            _FASTER[device, side] = _is_faster(device, side, limits(device)(side))
        return _FASTER[device, side]


def _is_faster(device: str, side: int, count: int) -> bool:
    grams = torch.randn(count, side, side, dtype=torch.float64, device=device)
    grams += grams.mT.clone()
    together = _seconds(lambda: two_stage.eigenvalues(grams.clone())[0])
    return together < count * _seconds(lambda: torch.linalg.eigvalsh(grams[0]))


def _seconds(run: Callable[[], Tensor]) -> float:
    """The seconds of a second run; the first one compiles."""
    run().cpu()
    start = time.perf_counter()
    run().cpu()
    return time.perf_counter() - start


def solve_batch(
    matrices: Iterable[Weights], count: int, small: int, device: str, tell: Callable[[str], None]
) -> list[Outcome]:
    """The spectrum of each of `count` 2-D float matrices, on the CPU or the device, or the error why it has none.

    `small` is the smaller side of all; each matrix is freed before the next is taken. A result is None if it is not
    proven, and ladder.solve has to be called; all are if the device has no room or a matrix cannot be read. The device
    holds one matrix at a time, and two_stage.room for each. Nothing waits for the device before all results are copied
    back. `tell` is called with any other error.
    """
    start = time.perf_counter()
    try:
        grams = torch.zeros(count, small, small, dtype=torch.float64, device=device)
        taken = iter(matrices)
        shapes: list[tuple[int, ...]] = []
        sizes = torch.stack([_add(next(taken), gram, shapes) for gram in grams])
        grams.masked_fill_(~sizes[:, 0].isfinite().view(-1, 1, 1), 0.0)
        seconds = time.perf_counter() - start
        with _TURNS[device]:
            start = time.perf_counter()
            values, passed = two_stage.eigenvalues(grams)
        sigma = values.flip(1).clamp_(min=0).sqrt_()
        host = torch.cat([sizes, passed.unsqueeze(1), sigma], 1).cpu()  # waits for this stream only, once for all
        seconds += time.perf_counter() - start
    except (torch.OutOfMemoryError, MemoryError, WeightsError):
        return [None] * count
    except Exception as error:  # noqa: BLE001 - a lost device, kernels that do not compile there
        tell(str(error) or type(error).__name__)
        return [None] * count
    return [_outcome(row, shape, device, seconds / count) for row, shape in zip(host, shapes, strict=True)]


def _add(matrix: Weights, gram: Tensor, shapes: list[tuple[int, ...]]) -> Tensor:
    """Add the Gram matrix of a matrix to `gram` and its shape to `shapes`.

    Return its largest absolute entry, scale and scaled norm, float64, shape (3,), on the device.
    """
    shapes.append(tuple(matrix.shape))
    placed = torch.as_tensor(moved(matrix, str(gram.device)))
    low, high = torch.aminmax(placed)
    top = torch.maximum(-low, high).to(torch.float64)
    scale = two_stage.scale_of(top)
    return torch.stack([top, scale, grams_of.add_gram(placed, scale, gram).sqrt()])


def _outcome(row: Tensor, shape: tuple[int, ...], device: str, seconds: float) -> Outcome:
    """The checked result of one matrix. `row` has the three numbers of _add, whether it passed, and the values."""
    top, scale, norm, passed = row[:4].tolist()
    if not math.isfinite(top):
        return WeightsError(NOT_FINITE)
    sigma = row[4:].numpy()
    accuracy = two_stage.accuracy(shape, sigma)
    if not passed or fault_of(sigma, norm, accuracy[1], math.inf):
        return None
    try:
        by = SolvedBy(two_stage.NAME, two_stage.VERSION, device)
        return solution(sigma, scale, norm, accuracy, by, seconds)
    except WeightsError as error:
        return error

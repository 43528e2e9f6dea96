"""Spectra of several matrices at once, by the two-stage eigensolver, checked as the ladder checks its own."""

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
"""By device, held while the kernels of a batch are launched: two threads that launch in turns would both be late. What
was launched goes on while the next batch is: a chase leaves most of a GPU to its matrix products."""


def limits(device: str) -> Callable[[int], int]:
    """How many matrices of a smaller side make a batch there: 1 where the two-stage solver cannot run.

    The matrices of a batch take at most a quarter of the device's memory that is free now.
    """
    try:
        free = torch.cuda.mem_get_info(device)[0] if two_stage.available(device) else 0
    except RuntimeError:  # a driver that does not answer: the ladder finds the way to the CPU
        free = 0

    def limit_of(small: int) -> int:
        return max(1, min(batch_of(small), free // 4 // two_stage.room(max(1, small))))

    return limit_of


def faster_together(device: str, small: int) -> bool:
    """Whether the two-stage solver is faster there than the library at matrices of that smaller side.

    So it is where float64 is fast (an H100: 9 ms and 117 at 4096). Any other device is measured, once for each power
    of two, before its first batch.
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
    """Of a second run: the first compiles."""
    run().cpu()
    start = time.perf_counter()
    run().cpu()
    return time.perf_counter() - start


def solve_batch(
    matrices: Iterable[Weights], count: int, small: int, device: str, tell: Callable[[str], None]
) -> list[Outcome]:
    """For each of `count` 2-D float matrices, on the CPU or on the device, its spectrum, or why it has none.

    Each has `small` as its smaller side, and is let go before the next is taken. None where nothing is proven:
    then ladder.solve has to be asked, for all of them where the device has no room for the batch or a matrix
    cannot be had or taken. The device holds two_stage.room for each of them, and one of them at a time. Nothing waits
    for the device before the results of all are copied back. `tell` hears, but for want of room or of a matrix, what
    went wrong.
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
        host = torch.cat([sizes, passed.unsqueeze(1), sigma], 1).cpu()  # of this stream alone, once for all
        seconds += time.perf_counter() - start
    except (torch.OutOfMemoryError, MemoryError, WeightsError):
        return [None] * count
    except Exception as error:  # noqa: BLE001 - a lost device, kernels that do not compile there
        tell(str(error) or type(error).__name__)
        return [None] * count
    return [_outcome(row, shape, device, seconds / count) for row, shape in zip(host, shapes, strict=True)]


def _add(matrix: Weights, gram: Tensor, shapes: list[tuple[int, ...]]) -> Tensor:
    """Its Gram matrix into `gram`, its shape into `shapes`.

    Returns its largest entry, scale and scaled norm, float64, shape (3,), on the device.
    """
    shapes.append(tuple(matrix.shape))
    placed = torch.as_tensor(moved(matrix, str(gram.device)))
    low, high = torch.aminmax(placed)
    top = torch.maximum(-low, high).to(torch.float64)
    scale = two_stage.scale_of(top)
    return torch.stack([top, scale, grams_of.add_gram(placed, scale, gram).sqrt()])


def _outcome(row: Tensor, shape: tuple[int, ...], device: str, seconds: float) -> Outcome:
    """What came back of one matrix, checked: `row` is _add's three, whether it passed, and the values."""
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

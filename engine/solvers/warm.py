"""Making a GPU ready before its first matrix: load the kernels of the two-stage eigensolver and torch's libraries."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial

import torch

from . import two_stage
from .chase import to_tridiagonal
from .ladder import choose, solve
from .panel import TILE, reflect, tall_qr
from .sturm import tridiagonal_eigenvalues
from .two_stage import WIDTH

_LOCK = threading.Lock()
_LARGE = 2048


def load_kernels(device: str) -> None:
    """Load the kernels for a GPU, once in a process, and wait until they are loaded.

    They come from Triton's cache or are compiled, which takes seconds. They are compiled at once, each in a thread, as
    Triton compiles outside of the interpreter's lock. Nothing is done if they cannot run on the device; errors of the
    compiler are reported when a batch is solved.
    """
    with _LOCK:
        _load_once(device)


@lru_cache
def _load_once(device: str) -> None:
    if not two_stage.available(device):
        return
    with ThreadPoolExecutor(len(PARTS)) as pool:
        for done in [pool.submit(_run, part, device) for part in PARTS]:
            with suppress(Exception):
                done.result()


def _run(part: Callable[[str], None], device: str) -> None:
    with torch.cuda.device(device):
        part(device)


def load_libraries(device: str) -> None:
    """Start the libraries for matrix products and eigenvalues on a device, and load what solves large matrices."""
    with suppress(Exception):
        solve(torch.rand(_LARGE, _LARGE, device=device), choose(device))


def _panel(rows: int, device: str) -> None:
    """Run the kernels that make a reflector of a panel with this many rows."""
    reflect(torch.zeros(1, WIDTH, rows, dtype=torch.float64, device=device).mT, True, WIDTH)


def _triangles(device: str) -> None:
    """Run the kernel for stacked triangles, as many as a tile takes."""
    panel = torch.zeros(1, WIDTH, 2 * TILE, dtype=torch.float64, device=device).mT
    tall_qr(panel, True, WIDTH, stacked=True)


def _chase(device: str) -> None:
    n = 2 * WIDTH
    to_tridiagonal(torch.zeros(1, n + 2 * WIDTH, 2 * WIDTH, dtype=torch.float64, device=device), n, True)


def _bisection(device: str) -> None:
    tridiagonal_eigenvalues(torch.zeros(1, 2, 64, dtype=torch.float64, device=device), True)


PARTS: tuple[Callable[[str], None], ...] = (
    _triangles,
    partial(_panel, TILE),
    _chase,
    partial(_panel, WIDTH),
    _bisection,
)
"""Functions that launch each kernel in each of its variants, the slowest to compile first."""

"""Where the bytes of stored tensors are read to: ordinary memory, or a GPU through a few page-locked chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, TypeAlias

from .weights import HostArray, Weights

if TYPE_CHECKING:
    import torch

CHUNK = 16 << 20
"""Bytes that are read, digested and copied at a time.

With 4 MiB, readers take the interpreter's lock so often that kernels are launched late: a scan on an H100 takes 10 %
longer.
"""

Fill: TypeAlias = Callable[[memoryview, int], None]
"""Fills the view with a tensor's bytes from an offset on. It is called with rising offsets, once for each byte."""


class Landing(Protocol):
    """A memory that takes the bytes of one tensor at a time."""

    def land(self, size: int, fill: Fill) -> Weights:
        """Read all `size` bytes: uint8, shape (size,), ready for use by any thread and stream.

        Raises:
            RuntimeError: the device has no room, or does not answer.
            Exception: whatever `fill` raises.
        """
        ...


class HostLanding:
    """Memory of this process. Safe to use from several threads."""

    def land(self, size: int, fill: Fill) -> HostArray:
        """See Landing."""
        import numpy as np

        # Not a bytearray, which zeroes its pages at 1.4 GB/s while it holds the interpreter's lock.
        data = np.empty(size, np.uint8)
        for at in range(0, size, CHUNK):
            fill(data[at : at + CHUNK].data, at)
        return data


class GpuLanding:
    """A GPU's memory, for use by one thread: while one chunk is copied, the next is filled.

    On the host of an H100, 8 threads read, digest and copy 16 to 22 GB/s with two reused page-locked chunks each
    (32 MiB). Page-locking a buffer for every tensor would cost 0.09 s for 117 MB.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._stream = _copying(device)
        chunks = (torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True) for _ in range(2))
        self._ring = [(chunk, torch.cuda.Event()) for chunk in chunks]  # type: ignore[no-untyped-call]

    def land(self, size: int, fill: Fill) -> torch.Tensor:
        """See Landing."""
        import torch

        with torch.cuda.stream(self._stream):
            data = torch.empty(size, dtype=torch.uint8, device=self._stream.device)
            for number, at in enumerate(range(0, size, CHUNK)):
                chunk, copied = self._ring[number % 2]
                copied.synchronize()
                part = chunk[: min(CHUNK, size - at)]
                fill(part.numpy().data, at)
                data[at : at + len(part)].copy_(part, non_blocking=True)
                copied.record(self._stream)
        for _, copied in self._ring:
            copied.synchronize()
        return data


HOST = HostLanding()


@lru_cache
def _copying(device: str) -> torch.cuda.Stream:
    """The one stream of all copies to a device: the link carries one copy at a time, and freed memory is reused."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

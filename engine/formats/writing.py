"""Writing safetensors: each tensor is only made when its bytes are written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..atomic import write_pieces
from ..weights import HostArray
from .safetensors import DTYPE_BITS


class TensorToWrite(NamedTuple):
    """A tensor to be written: `load` returns its numbers as they are stored, or their bytes, in row-major order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], HostArray]

    @property
    def bytes(self) -> int:
        """Size of the numbers in the file."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def write_safetensors(file: Path, entries: Sequence[TensorToWrite], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to a file in one step.

    Raises:
        OSError: it cannot be written; the file then keeps its old content.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        start, end = end, end + entry.bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_pieces(file, _pieces(text, entries))


def _pieces(text: bytes, entries: Sequence[TensorToWrite]) -> Iterator[bytes | memoryview]:
    yield len(text).to_bytes(8, "little")
    yield text
    for entry in entries:
        yield np.ascontiguousarray(entry.load()).reshape(-1).view(np.uint8).data

"""Writing safetensors: one tensor after the other is made when its bytes are written."""

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
    """A tensor to be written: `load` gives its numbers, or their bytes, in row-major order and as they are stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], HostArray]

    @property
    def bytes(self) -> int:
        """Of the numbers in the file."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def write_safetensors(file: Path, entries: Sequence[TensorToWrite], metadata: Mapping[str, str]) -> None:
    """Write tensors to a file in one step, and the metadata into its header.

    Raises:
        OSError: it cannot be written; what stood there stands there still.
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

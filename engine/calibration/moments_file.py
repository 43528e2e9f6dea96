"""Writing a file of moments; for its layout see moments_read.py and docs/MOMENTS.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..formats.writing import TensorToWrite, write_safetensors
from .running import Fed
from .said import Figures
from .sums import Sums


def write_moments(
    file: Path, seen: Mapping[Fed, Sums], said: Mapping[str, str], figures: Mapping[str, Figures]
) -> None:
    """Write all sums to a file in one step; `said` and the figures, by address, go into its metadata.

    Raises:
        OSError: it cannot be written; a file that was there is unchanged.
    """
    entries = [entry for fed, sums in seen.items() for entry in _entries(fed.names[0], sums)]
    inputs = {name: fed.names[0] for fed in seen for name in fed.names[1:]}
    numbers = {address: asdict(found) for address, found in figures.items()}
    metadata = {**said, "inputs": json.dumps(inputs), "figures": json.dumps(numbers)}
    write_safetensors(file, entries, metadata)


def _entries(name: str, sums: Sums) -> Iterator[TensorToWrite]:
    """Yield the sums over all tokens that are not held out, even if there are none; then, if there are any, those of
    position 0, and those of held-out tokens."""
    shape, kind = ((sums.cols, sums.cols), "xx") if sums.full else ((sums.cols,), "x2")
    rest, first, held = (sums.parts[part] for part in ("rest", "first", "held"))
    yield _count(f"{name}.count", sums.tokens)
    yield TensorToWrite(f"{name}.x", "F32", (sums.cols,), lambda: rest.first() + first.first())
    yield TensorToWrite(f"{name}.{kind}", "F32", shape, sums.whole)
    for label, part in (("first", first), ("held", held)):
        if part.count:
            yield _count(f"{name}.{label}.count", part.count)
            yield TensorToWrite(f"{name}.{label}.x", "F32", (sums.cols,), part.first)
            yield TensorToWrite(f"{name}.{label}.{kind}", "F32", shape, part.second)


def _count(name: str, count: int) -> TensorToWrite:
    return TensorToWrite(name, "I64", (1,), lambda: np.array([count], "<i8"))

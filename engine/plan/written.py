"""Writing a checkpoint with factors or their products, and checking what was written against the plan."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_atomically
from ..catalogue.rules import cut
from ..checkpoint.open import Checkpoint
from ..formats.format import Origin
from ..formats.safetensors import INDEX, SAFETENSORS
from ..formats.tensor import FileStamp, Tensor, read_plain
from ..formats.writing import TensorToWrite, write_safetensors
from ..landing import HOST
from ..quantised.effective import FORMULAS as OWN_FACTORS
from ..weights import HostArray, host_array
from .factors import weighted_error
from .rewritten import RewrittenCheckpoint, factor_name
from .side_files import config_bytes, is_config, side_files
from .works import Work

FACTORS = "factors.json"
"""The file that is written with factors, and says which matrix of which tensor they replace."""
_NUMBERED = re.compile(r"(.+)-\d+-of-\d+")


@dataclass(frozen=True, slots=True)
class WrittenProjection:
    """A projection as it was written: `error` is the relative error of its output, measured on the numbers read back,
    `promised` the one that the plan states. `dtype` is the type they were rounded to; `parameters` is how many numbers
    it has in the file."""

    address: str
    rank: int
    error: float
    promised: float
    dtype: str
    parameters: int


def bytes_of(entries: Mapping[Path, Sequence[TensorToWrite]], checkpoint: Checkpoint) -> int:
    """How many bytes will be written in all; for headers of files this is more than enough."""
    listed = [entry for found in entries.values() for entry in found]
    beside = sum(path.stat().st_size for path in side_files(checkpoint))
    return sum(entry.bytes + 2 * len(entry.name) + 256 for entry in listed) + beside


def write(layout: RewrittenCheckpoint, entries: Mapping[Path, Sequence[TensorToWrite]], folder: Path) -> None:
    """Write a checkpoint to an empty folder.

    Raises:
        OSError: the disk is full or fails.
        InputError, WeightsError: a tensor cannot be read, or its numbers do not fit the type.
    """
    names = _file_names(layout, [file for file, found in entries.items() if found])
    for file, name in names.items():
        write_safetensors(folder / name, entries[file], {"format": "pt"})
    if len(names) > 1:
        _write_index(names, entries, folder)
    if not layout.merge:
        _write_json(folder / FACTORS, _described(layout))
    _copy_side_files(layout, folder)


def _write_index(names: Mapping[Path, str], entries: Mapping[Path, Sequence[TensorToWrite]], folder: Path) -> None:
    """Write the file that says which of several files holds which tensor."""
    numbered = _NUMBERED.match(next(iter(names.values())))
    index = INDEX.replace("model", numbered[1] if numbered else "model", 1)
    placed = {entry.name: name for file, name in names.items() for entry in entries[file]}
    size = sum(entry.bytes for file in names for entry in entries[file])
    _write_json(folder / index, {"metadata": {"total_size": size}, "weight_map": placed})


def _copy_side_files(layout: RewrittenCheckpoint, folder: Path) -> None:
    """Copy the files beside the weights, with config.json as the written numbers need it."""
    schemes = [t.scheme for t in layout.checkpoint.tensors if t.scheme is not None]
    is_dequantised = any(scheme.formula not in OWN_FACTORS for scheme in schemes)
    dtype = layout.dtype or (layout.floats if is_dequantised else None)
    for path in side_files(layout.checkpoint):
        data = config_bytes(path, dtype, is_dequantised) if is_config(path) else path.read_bytes()
        write_atomically(folder / path.name, data)


def _file_names(layout: RewrittenCheckpoint, files: Sequence[Path]) -> dict[Path, str]:
    """The new names of the files: the old ones if they were safetensors and tensors keep their names; else those that
    transformers would use, or `factored...`, which it does not take for a model."""
    own = [file.name for file in files]
    if layout.merge and layout.checkpoint.format is SAFETENSORS and len(set(own)) == len(own):
        return dict(zip(files, own, strict=True))
    (suffix,), stem = SAFETENSORS.suffixes, "model" if layout.merge else "factored"
    if len(files) == 1:
        return {files[0]: f"{stem}{suffix}"}
    return {file: f"{stem}-{n:05d}-of-{len(files):05d}{suffix}" for n, file in enumerate(files, 1)}


def _described(layout: RewrittenCheckpoint) -> dict[str, Any]:
    """The content of factors.json; see docs/PLAN.md."""
    tensors: dict[str, Any] = {}
    shapes = {tensor.name: tensor.shape for tensor in layout.checkpoint.tensors}
    for work in layout.works:
        p = work.projection
        held = tensors.setdefault(p.tensor, {"shape": shapes[p.tensor], "factors": []})
        part = None if p.slice is None else astuple(p.slice)
        named = {"name": factor_name(work), "address": p.address, "rank": work.rank}
        held["factors"].append(named | {"slice": part, "transposed": p.transposed})
    return {"format": "rankscope factors", "version": 1, "tensors": tensors}


def _write_json(path: Path, found: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(found, indent=1).encode() + b"\n")


class WrittenTensors:
    """The tensors of a written folder, read back from its files."""

    def __init__(self, folder: Path) -> None:
        self._found: dict[str, tuple[Tensor, FileStamp]] = {}
        self._last: tuple[str, HostArray] | None = None
        for file in sorted(folder.iterdir()):
            if file.name.endswith(SAFETENSORS.suffixes):
                listing = SAFETENSORS.list_tensors(file, Origin(str(folder), ""))
                self._found |= {tensor.name: (tensor, listing.stamp) for tensor in listing.tensors}

    @property
    def numbers(self) -> int:
        """How many numbers all tensors hold."""
        return sum(math.prod(tensor.shape) for tensor, _ in self._found.values())

    def check(self, layout: RewrittenCheckpoint) -> list[WrittenProjection]:
        """Measure the error of each written projection against its matrix.

        Raises:
            WeightsError: one cannot be read.
        """
        by_tensor = sorted(layout.works, key=lambda work: work.projection.tensor)  # a stack is read once
        done = {work.projection.address: self._checked(work, layout) for work in by_tensor}
        return [done[work.projection.address] for work in layout.works]

    def _checked(self, work: Work, layout: RewrittenCheckpoint) -> WrittenProjection:
        p = work.projection
        matrix = layout.place(layout.source.matrix(p))
        if layout.merge:
            made, dtype = self._read(p.tensor)
            made = made if p.slice is None else cut(made, p.slice)
            made, count = made.T if p.transposed else made, p.rows * p.cols
        else:
            (a, dtype), (b, _) = (self._read(f"{factor_name(work)}.{side}") for side in "AB")
            made, count = a.astype(np.float64) @ b.astype(np.float64), a.size + b.size
        error = weighted_error(matrix, _beside(made, matrix), work.moment)
        return WrittenProjection(p.address, work.rank, error, work.promised, dtype, count)

    def _read(self, name: str) -> tuple[HostArray, str]:
        tensor, stamp = self._found[name]
        if self._last is None or self._last[0] != name:
            self._last = name, host_array(read_plain(tensor, stamp, HOST)[0])
        return self._last[1], tensor.dtype


def _beside(made: HostArray, matrix: Any) -> Any:
    """A matrix of the host, moved to the device of another one."""
    if isinstance(matrix, np.ndarray):
        return made
    import torch

    return torch.as_tensor(made, device=matrix.device)

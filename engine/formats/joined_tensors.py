"""Matrices whose parts are in several files: the stored parts -> the matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError
from ..landing import Landing
from ..spectrum import digest
from ..weights import settled
from .format import Format
from .tensor import FileAccess, Tensor

if TYPE_CHECKING:
    from ..weights import Weights

AXES = ("rows", "columns")
"""The parts of a joined tensor are called `rows 0` or `columns 0` and so on; parts of equal name are copies."""


def is_joined(tensor: Tensor) -> bool:
    """True if a tensor is made of parts that are only concatenated."""
    return bool(tensor.parts) and tensor.scheme is None and not tensor.problem


def read_joined(
    tensor: Tensor, kind: Format, stored: Mapping[Path, FileAccess], landing: Landing
) -> tuple[Weights, str]:
    """The whole matrix where its parts land, and the digest of all their bytes.

    Raises:
        WeightsError: a file changed or cannot be read, parts that should be copies differ, or parts that should differ
            are copies.
    """
    pieces: dict[str, Any] = {}
    seen = []
    for label, part in tensor.parts:
        weights, read = kind.read_matrix(part, stored[part.file], landing)
        seen.append(read)
        if not _same(pieces.setdefault(label, weights), weights):
            raise WeightsError(f"{part.file.name} holds other numbers than the part that it should repeat")
    different = list(pieces.values())
    if len(different) > 1 and different[0].any() and _same(*different[:2]):
        raise WeightsError("its parts are copies of one another, where each should hold a part")
    axis = AXES.index(tensor.parts[0][0].partition(" ")[0])
    return _concatenated(different, axis), digest(*seen) if any(seen) else ""


def bytes_on(device: str, tensor: Tensor, kind: Format) -> int:
    """Memory that a joined matrix takes on a device: its parts beside the whole."""
    return 2 * sum(kind.bytes_on(device, part) for _, part in tensor.parts)


def _same(one: Any, other: Any) -> bool:
    """True if two matrices of one shape hold the same bytes, so that a NaN equals itself."""
    import numpy as np

    if one is other:
        return True
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one.view(np.uint8), other.view(np.uint8)))
    import torch

    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _concatenated(pieces: list[Any], axis: int) -> Weights:
    import numpy as np

    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces, axis)
    import torch

    return settled(torch.cat(pieces, axis))

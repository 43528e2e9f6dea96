"""A GGUF file converted to a checkpoint of transformers, to which a plan for the file is applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..calibration.converting import convert
from ..catalogue.tree import Tree, build_tree
from ..checkpoint.open import Checkpoint, open_checkpoint
from ..errors import InputError, printable
from .matrices import Matrices, Reordered
from .works import Work

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def type_for(checkpoint: Checkpoint) -> str:
    """The type in which a GGUF file's numbers are written: float16 if it is quantised, else that of most of them."""
    if checkpoint.quantisation:
        return "F16"
    held: dict[str, int] = {}
    for tensor in checkpoint.tensors:
        held[tensor.dtype] = held.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return max((dtype for dtype in held if dtype in _BYTES), key=held.__getitem__, default="F16")


def bytes_for(checkpoint: Checkpoint, dtype: str) -> int:
    """How many bytes the model takes as transformers writes it."""
    return _BYTES[dtype] * checkpoint.numbers


@dataclass(frozen=True, slots=True)
class Converted:
    """A GGUF file as transformers writes it: the checkpoint, the works on its projections, `own`, which reads its
    matrices, and `exact`, which reads those of the file with rows in the order of the checkpoint's."""

    checkpoint: Checkpoint
    works: list[Work]
    own: Matrices
    exact: Reordered


def converted(checkpoint: Checkpoint, works: Sequence[Work], tree: Tree, folder: Path, dtype: str) -> Converted:
    """Convert a GGUF file to a checkpoint in a folder, and the works on the projections of its `tree` to works on that.

    Raises:
        InputError: transformers cannot load it, or has no matrix where the file has a projection.
    """
    convert(checkpoint, folder, dtype)
    made = open_checkpoint(str(folder))
    own = {p.address: p for p in build_tree(made).projections}
    moved = []
    for work in works:
        p = own.get(work.projection.address)
        if p is None or (p.rows, p.cols) != (work.projection.rows, work.projection.cols):
            shown = printable(work.projection.address, 80)
            raise InputError(
                f"transformers has no matrix of its own for {shown} of {printable(checkpoint.name)}: plan without it, "
                "by --filter"
            )
        moved.append(replace(work, projection=p))
    matrices = Matrices(made)
    of = {p.address: p for p in tree.projections}
    return Converted(made, moved, matrices, Reordered(Matrices(checkpoint), of, matrices, dtype))

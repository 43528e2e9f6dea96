"""The gains of norms as operands of a formula: identified by where they lie in the file, read when they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ..catalogue.norms import Norms
from ..catalogue.tree import content_key
from ..errors import WeightsError, printable
from ..formats.format import Format
from ..formats.tensor import Tensor
from ..spectrum import Operand, Projection, digest

if TYPE_CHECKING:
    from ..checkpoint.open import Checkpoint
    from ..spectrum import Values
    from .norm_weighting import NormWeighting


@dataclass(frozen=True, slots=True)
class _Vectors:
    """The part of a checkpoint that Norms needs: of 91,000 tensors a few hundred are vectors."""

    config: Mapping[str, Any]
    adapter: Mapping[str, Any]
    format: Format
    tensors: tuple[Tensor, ...]


class Gains:
    """The gains of a checkpoint's norms. Until one is loaded only names are read, and numpy is not imported."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def before(self, projection: Projection) -> Operand:
        """The gain of the norm before a projection; it loads as float64, shape (cols,).

        Raises:
            WeightsError: it is not known which norm feeds the projection, or it is a LayerNorm, which also subtracts
                the mean.
        """
        norm = self._norms.feeding(projection)
        if norm is not None and norm.centred:
            raise WeightsError(
                f"{projection.address}: {printable(norm.path)} is a LayerNorm, which is more than a gain"
            )
        lies = "" if norm is None or norm.gain is None else content_key(norm.gain)
        is_plus_one = norm is not None and norm.plus_one
        return Operand(digest("gain", lies, is_plus_one, projection.cols), partial(self._load, projection))

    def _load(self, projection: Projection) -> Values:
        import numpy as np

        folded: Values = self._weighting.folded(projection, np.ones((projection.cols, 1)))
        return np.ascontiguousarray(folded[:, 0])

    @cached_property
    def _norms(self) -> Norms:
        held = self._checkpoint
        return Norms(
            _Vectors(held.config, held.adapter, held.format, tuple(t for t in held.tensors if len(t.shape) == 1))
        )

    @cached_property
    def _weighting(self) -> NormWeighting:
        from .norm_weighting import NormWeighting

        return NormWeighting(self._checkpoint)

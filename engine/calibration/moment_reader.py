"""What a file of second moments answers, whatever its layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..moment import Moment
from ..spectrum import Values
from ..weights import HostArray
from .said import Figures

FeatureOrder: TypeAlias = NDArray[np.intp]
"""For each input feature of the model's matrix, where the file has it."""


class StackedMatrix(NamedTuple):
    """One matrix of a stack, by its number, of as many as the model has: `of`, 0 where that is not known."""

    number: int
    of: int = 0


class MomentReader(Protocol):
    """Second moments by the names of tensors, as they lie in a file."""

    @property
    def kind(self) -> str:
        """ "imatrix" or "moments"."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors whose inputs it has moments of."""
        ...

    @property
    def about(self) -> str:
        """Data sets, tokens or chunks, "" where the file does not say."""
        ...

    @property
    def said(self) -> tuple[str, str]:
        """Architecture and name of the model as they stand in the file, each "" where they do not."""
        ...

    @property
    def figures(self) -> Mapping[str, Figures]:
        """What the file says of projections beside their moments, by address."""
        ...

    @property
    def is_split(self) -> bool:
        """Whether it has sums of position 0 apart."""
        ...

    @property
    def tokens_read(self) -> frozenset[str] | None:
        """Digests of all that was read, held out or not (see tokens_read.py), None where the file does not say."""
        ...

    def tokens_of(self, name: str, matrix: StackedMatrix | None) -> float | None:
        """How many tokens reached the input of a tensor, or of one `matrix` of a stack; 0 where none did, None
        where it is not known."""
        ...

    def moment(self, name: str, cols: int, matrix: StackedMatrix | None, order: FeatureOrder | None) -> Moment:
        """That of the input of a tensor of `cols` input features, or of one `matrix` of a stack, in an `order`.

        Raises:
            UnseenError: no token reached it.
            WeightsError: there is none, or it cannot be used; the sentence names the tensor.
        """
        ...

    def mean(self, name: str, cols: int, matrix: StackedMatrix | None, order: FeatureOrder | None) -> Values:
        """E[x] of the same input, shape (cols,).

        Raises:
            UnseenError: no token reached it.
            WeightsError: the file has no sums of x, or they cannot be used; the sentence names the tensor.
        """
        ...


def mean_of(sums: HostArray, count: float) -> Values:
    """Sums over so many tokens -> means in float64, without a word on what is not finite: it is refused by name."""
    with np.errstate(all="ignore"):
        means: Values = sums.astype(np.float64)
        means /= count
    return means

"""The interface of a file of second moments, whatever its layout."""

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
"""For each input feature of the model's matrix, its place in the file."""


class StackedMatrix(NamedTuple):
    """One matrix of a stack by its number; `of` is how many the model has, 0 if not known."""

    number: int
    of: int = 0


class MomentReader(Protocol):
    """Second moments in a file, by the names of tensors."""

    @property
    def kind(self) -> str:
        """ "imatrix" or "moments"."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors for whose inputs it has moments."""
        ...

    @property
    def about(self) -> str:
        """Data sets, tokens or chunks in words, "" if the file does not tell."""
        ...

    @property
    def said(self) -> tuple[str, str]:
        """Architecture and name of the model by the file, each "" if missing."""
        ...

    @property
    def figures(self) -> Mapping[str, Figures]:
        """Further figures of projections in the file, by address."""
        ...

    @property
    def is_split(self) -> bool:
        """Whether it has separate sums of position 0."""
        ...

    @property
    def tokens_read(self) -> frozenset[str] | None:
        """Digests of all text that was read, held out or not (see tokens_read.py), None if the file has none."""
        ...

    def tokens_of(self, name: str, matrix: StackedMatrix | None) -> float | None:
        """How many tokens reached the input of a tensor, or of one `matrix` of a stack; None if it is not known."""
        ...

    def moment(self, name: str, cols: int, matrix: StackedMatrix | None, order: FeatureOrder | None) -> Moment:
        """The moment of the input of a tensor, or of one `matrix` of a stack, with `cols` features in this `order`.

        Raises:
            UnseenError: no token reached it.
            WeightsError: there is none, or it cannot be used; the message names the tensor.
        """
        ...

    def mean(self, name: str, cols: int, matrix: StackedMatrix | None, order: FeatureOrder | None) -> Values:
        """E[x] of the same input, shape (cols,).

        Raises:
            UnseenError: no token reached it.
            WeightsError: the file has no sums of x, or they cannot be used; the message names the tensor.
        """
        ...


def mean_of(sums: HostArray, count: float) -> Values:
    """Sums over `count` tokens -> means in float64. No warning for values that are not finite: callers refuse them."""
    with np.errstate(all="ignore"):
        means: Values = sums.astype(np.float64)
        means /= count
    return means

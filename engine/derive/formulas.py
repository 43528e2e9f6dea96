"""The formulas by name: what makes a derived matrix of the matrices of its parents. One row and one file a formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..spectrum import FLIPPED, Projection
from ..weights import Weights
from .signs import flip
from .weigh import Weighed, noise, weigh
from .weighting import NOISE, WEIGHED

Formula: TypeAlias = "Callable[[Projection, Sequence[Weights]], Weights | Weighed]"
"""Takes the derived projection and its parents' matrices, each of shape (rows, cols) as its parent says, or, where
`derived` names no parents, the one matrix as it is stored. It returns a new matrix of any float type, on any device.

Raises:
    WeightsError: there is no such matrix; the sentence is the user's.
"""

FORMULAS: dict[str, Formula] = {
    FLIPPED.formula: flip,
    **{WEIGHED + form: weigh for form in ("diagonal", "full", "layer_norm")},
    **{NOISE + form: noise for form in ("diagonal", "full", "layer_norm")},
}

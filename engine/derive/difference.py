"""The difference W_B - W_A of two checkpoints: its projection, and the facts that are noted when it is computed.

Imports neither torch nor numpy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import WeightsError
from ..spectrum import Derived, Projection
from .derived import derive
from .latent import shared_moment
from .weighting import REFUSED, WEIGHED, is_weighted

if TYPE_CHECKING:
    from ..moment import Weighting

DELTA = "delta"
"""The name of the formula; under a weighting it is followed by `_`, WEIGHED and the form of the moment."""
MODULE = "module"
"""The role of the difference of a whole module that holds several projections."""
_VERSION = 1
_NOTE = re.compile(r"\|A\| (\S+), (\d+) unchanged, edge (\S+), of two roundings (\S+)$")


@dataclass(frozen=True, slots=True)
class DifferenceFacts:
    """What is noted when a difference is computed.

    `norm` is the Frobenius norm of A's matrix. `unchanged` is the number of entries that are equal in A and B. `edge`
    bounds the spectral norm of what rounding to B's type adds to the difference; `edge_of_two` bounds it for two
    checkpoints that were rounded separately. Norm and edges are under the weighting, if there is one.
    """

    norm: float
    unchanged: int
    edge: float
    edge_of_two: float

    @property
    def text(self) -> str:
        """The facts as text at the end of a label, from which noted_of reads them."""
        edges = f"edge {self.edge!r}, of two roundings {self.edge_of_two!r}"
        return f"|A| {self.norm!r}, {self.unchanged} unchanged, {edges}"


def delta_of(ours: Projection, theirs: Projection, under: Weighting | None = None) -> Projection:
    """The difference B - A as a further row at A's address, weighted by the second moments of A's input.

    If the weighting has no moment for A's projection, the row's `problem` says so.
    """
    return _made(ours, (ours,), (theirs,), under)


def joint_delta_of(
    address: str, ours: Sequence[Projection], theirs: Sequence[Projection], under: Weighting | None = None
) -> Projection:
    """The difference of a module that holds several matrices with one input, stacked by rows. Their order does not
    matter: it changes no singular value."""
    first = ours[0]
    rows = sum(p.rows for p in ours)
    beside = replace(first, address=address, tensor="", slice=None, role=MODULE, rows=rows, note="", problem=None)
    return _made(beside, tuple(ours), tuple(theirs), under)


def _made(
    beside: Projection, ours: tuple[Projection, ...], theirs: tuple[Projection, ...], under: Weighting | None
) -> Projection:
    parents = (*ours, *theirs)
    if under is None:
        return derive(beside, Derived(DELTA, _VERSION, DELTA, True, parents))
    label = f"{DELTA} under {under.label}"
    try:
        moment = shared_moment(ours, beside.cols, under)
    except WeightsError as error:
        refused = derive(beside, Derived(REFUSED, _VERSION, label, True, parents, (), under.name))
        return replace(refused, problem=refused.problem or str(error))
    formula = f"{DELTA}_{WEIGHED}{moment.form}"
    return derive(beside, Derived(formula, _VERSION, label, True, parents, moment.operands, under.name))


def pairs_of(projection: Projection) -> list[tuple[Projection, Projection]]:
    """The matrices from which a difference is made: each of A with that of B."""
    half = len(projection.parents) // 2
    return list(zip(projection.parents[:half], projection.parents[half:], strict=True))


def is_delta(projection: Projection) -> bool:
    """Return whether it is a difference that can be computed."""
    return projection.derived is not None and projection.derived.formula.partition("_")[0] == DELTA


def compares_with_noise(projection: Projection) -> bool:
    """Whether noise_of says what its numbers compare with: it is under a weighting, or a difference under one."""
    made = projection.derived
    return is_weighted(projection) or (is_delta(projection) and made is not None and bool(made.weighting))


def noted_of(projection: Projection) -> DifferenceFacts | None:
    """The facts in the label of a stored difference, None for any other row."""
    found = _NOTE.search(projection.derived.label) if projection.derived is not None else None
    return None if found is None else DifferenceFacts(float(found[1]), int(found[2]), float(found[3]), float(found[4]))


def quantised_of(projection: Projection) -> str:
    """How the weights of a parent are quantised, "" if neither is; no rank is advised for differences of these."""
    return next((p.dequantisation for p in projection.parents if p.dequantisation), "")

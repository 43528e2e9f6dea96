"""Projections under a weighting, and the noise that they compare with: what these are called and known by.

Under a weighting the energy of W is that of W C W^T, C the second moment of the input: the spectrum is that of W C^1/2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import UnseenError, WeightsError
from ..spectrum import Derived, Projection, digest
from .derived import AS_FACTORS, derive

if TYPE_CHECKING:
    from ..moment import Weighting

NORM, NORM_LABEL = "norm", "norm gains"
"""Name and label of the weighting by the gains of the norms."""
CENTRED_NAME = "centred"
"""Name of every weighting by moments about the mean, of whatever file: what stands in titles, exports and the store."""
WEIGHED, NOISE = "weigh_", "noise_"
"""What the names of the formulas begin with; the form of the moment follows."""
REFUSED, UNSEEN = "refused", "unseen"
"""What stands there of a projection that the weighting has no moment for: UNSEEN where no token of the calibration
reached it."""
_OPERANDS = {"layer_norm": 2}
"""How many operands a moment of this form has, 1 of the others."""
_VERSION = 1


def weighted(projection: Projection, weighting: Weighting) -> Projection:
    """A projection of a checkpoint under a weighting, with its address, and a key of its key and the moment's numbers.

    Where the weighting has no moment for it, its `problem` says why, and it takes no numbers.
    """
    try:
        if projection.is_product:
            raise WeightsError(AS_FACTORS)
        moment = weighting.moment(projection)
        if moment.cols != projection.cols:
            raise WeightsError(f"the second moments have {moment.cols} inputs, the matrix has {projection.cols}")
    except WeightsError as error:
        formula = UNSEEN if isinstance(error, UnseenError) and not projection.problem else REFUSED
        refused = Derived(formula, _VERSION, weighting.label, False, (projection,), (), weighting.name)
        return replace(derive(projection, refused), problem=projection.problem or str(error))
    formula = WEIGHED + moment.form
    made = Derived(formula, _VERSION, weighting.label, False, (projection,), moment.operands, weighting.name)
    return replace(derive(projection, made), problem=projection.problem)


def noise_of(projection: Projection) -> Projection:
    """Of a projection under a weighting Gaussian noise of its shape under the same: a further row at its address.

    Its key is that of the shape and the moment's numbers: projections that share these share it.
    """
    made = by_moment(projection).derived
    assert made is not None
    formula, operands = made.formula.replace(WEIGHED, NOISE), made.operands
    noise = Derived(formula, _VERSION, f"noise under {made.weighting}", True, (), operands, made.weighting)
    shape = projection.rows, projection.cols
    key = digest(formula, _VERSION, *shape, *(operand.digest for operand in operands))
    return replace(projection, derived=noise, key=key)


def by_moment(projection: Projection) -> Projection:
    """A projection under a weighting without what a gauge adds: what its moment alone makes of a matrix."""
    made = projection.derived
    assert made is not None
    form = made.formula.rpartition(WEIGHED)[2]
    operands = made.operands[-_OPERANDS.get(form, 1) :]
    return replace(projection, derived=replace(made, formula=WEIGHED + form, operands=operands))


def can_be_made(projection: Projection) -> bool:
    """Whether the numbers that it takes beside matrices are at hand, not only known by their digests."""
    if projection.derived is None or projection.is_product:
        return True
    return all(operand.load is not None for operand in projection.derived.operands)


def is_noise(projection: Projection) -> bool:
    """Whether it is what noise_of gives."""
    made = projection.derived
    return made is not None and made.formula.startswith(NOISE)


def is_unseen(projection: Projection) -> bool:
    """Whether its weighting has no moment for it because no token of the calibration reached it."""
    return projection.derived is not None and projection.derived.formula == UNSEEN


def is_under_weighting(projection: Projection) -> bool:
    """Whether a weighting is in it, of whatever it is made: noise of its shape alone is then no comparison."""
    return projection.derived is not None and bool(projection.derived.weighting)


def is_weighted(projection: Projection) -> bool:
    """Whether it is a projection under a weighting, and so compares with the noise of noise_of."""
    made = projection.derived
    return made is not None and bool(made.weighting) and not made.is_further

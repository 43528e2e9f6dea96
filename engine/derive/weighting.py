"""Projections under a weighting, and the noise that they are compared with: their names and keys.

Under a weighting the energy of W is tr(W C W^T), with C the second moment of the input: its spectrum is that of
W C^1/2.
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
"""Name of all weightings by moments about the mean, from whatever file, in titles, exports and the store."""
WEIGHED, NOISE = "weigh_", "noise_"
"""The beginnings of the names of the formulas; the form of the moment follows."""
REFUSED, UNSEEN = "refused", "unseen"
"""Formulas of a projection for which the weighting has no moment: UNSEEN if no token of the calibration reached it."""
_OPERANDS = {"layer_norm": 2}
"""How many operands a moment of this form has; the others have one."""
_VERSION = 1


def weighted(projection: Projection, weighting: Weighting) -> Projection:
    """A projection of a checkpoint under a weighting, at its address. Its key is made of the projection's key and the
    moment's numbers.

    If the weighting has no moment for it, its `problem` says why, and it has no operands.
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
    """Gaussian noise with the shape and the weighting of a weighted projection, as a further row at its address.

    Its key is made of the shape and the moment's numbers: projections that share these share it.
    """
    made = by_moment(projection).derived
    assert made is not None
    formula, operands = made.formula.replace(WEIGHED, NOISE), made.operands
    noise = Derived(formula, _VERSION, f"noise under {made.weighting}", True, (), operands, made.weighting)
    shape = projection.rows, projection.cols
    key = digest(formula, _VERSION, *shape, *(operand.digest for operand in operands))
    return replace(projection, derived=noise, key=key)


def by_moment(projection: Projection) -> Projection:
    """A weighted projection without the operands that a gauge adds: its formula weights a matrix and no more."""
    made = projection.derived
    assert made is not None
    form = made.formula.rpartition(WEIGHED)[2]
    operands = made.operands[-_OPERANDS.get(form, 1) :]
    return replace(projection, derived=replace(made, formula=WEIGHED + form, operands=operands))


def can_be_made(projection: Projection) -> bool:
    """Return whether the operands of its formula can be loaded, or are only known by their digests."""
    if projection.derived is None or projection.is_product:
        return True
    return all(operand.load is not None for operand in projection.derived.operands)


def is_noise(projection: Projection) -> bool:
    """Return whether it is noise that noise_of made."""
    made = projection.derived
    return made is not None and made.formula.startswith(NOISE)


def is_unseen(projection: Projection) -> bool:
    """Return whether its weighting has no moment for it because no token of the calibration reached it."""
    return projection.derived is not None and projection.derived.formula == UNSEEN


def is_under_weighting(projection: Projection) -> bool:
    """Return whether a weighting is in it, whatever it is made of: it cannot be compared with unweighted noise."""
    return projection.derived is not None and bool(projection.derived.weighting)


def is_weighted(projection: Projection) -> bool:
    """Return whether it is a projection under a weighting, and so is compared with the noise of noise_of."""
    made = projection.derived
    return made is not None and bool(made.weighting) and not made.is_further

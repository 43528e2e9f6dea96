"""Projections in the fixed gauge: which norm is folded into each, and which neurons are balanced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..catalogue.neurons import Mlp, Neurons
from ..errors import WeightsError
from ..spectrum import Derived, Operand, Projection
from .derived import AS_FACTORS, derive
from .gauge import AS_IT_IS, BALANCED, CENTRED, FIXED, LEFT, NOTHING, SCALED, WORDS
from .norm_weighting import NormWeighting
from .weighting import REFUSED, WEIGHED, weighted

if TYPE_CHECKING:
    from ..checkpoint.open import Checkpoint
    from ..moment import Weighting

_VERSION = 1


class Gauge:
    """Fixes the gauge of a checkpoint's projections. Reads the gains of a norm when they are needed."""

    def __init__(self, checkpoint: Checkpoint, projections: Iterable[Projection]) -> None:
        self._gains = NormWeighting(checkpoint)
        self._neurons = Neurons(checkpoint, self._gains.norms, projections)

    def fixed(self, projection: Projection, under: Weighting | None = None) -> Projection:
        """A projection of the checkpoint in the fixed gauge, at the same address; its label says what was fixed.

        It shares the key of a state with the same spectrum: the weighting `norm` if only an RMS norm is folded in, the
        projection itself if there is nothing to fix. Under a weighting, folding changes nothing, as the moments include
        the gain; nor does balancing down, as the moments of its input are scaled too. Both then have the key of the
        weighted projection. If it is not known what to fix, `problem` says why.
        """
        balanced, refusal = (None, "") if projection.is_product else self._scaled(projection)
        try:
            folding, operands = self._folding(balanced[0].up if balanced else projection)
        except WeightsError as error:
            made = Derived(REFUSED, _VERSION, str(error), False, (projection,), (), under.name if under else "", FIXED)
            return replace(derive(projection, made), problem=projection.problem or str(error))
        plain = self._folded(projection, folding, operands) if under is None else _in_gauge(weighted(projection, under))
        if balanced is None:
            return _relabelled(plain, refusal)
        if under is not None and (projection.role == "down" or plain.problem):
            return plain
        mlp, degree = balanced
        other = mlp.down if projection.role == "up" else mlp.up
        formula = f"{BALANCED}{projection.role}_{degree}_{folding}"
        label = "; ".join(filter(None, [WORDS[folding] if projection.role == "up" else "", SCALED]))
        weighting = ""
        if under is not None:
            moment = under.moment(projection)
            formula, operands = f"{formula}_{WEIGHED}{moment.form}", (*operands, *moment.operands)
            label, weighting = under.label, under.name
        made = Derived(formula, _VERSION, label, False, (projection, other), operands, weighting, FIXED)
        return derive(projection, made)

    def _scaled(self, projection: Projection) -> tuple[tuple[Mlp, int] | None, str]:
        """The MLP to balance with its Neurons.degree, None for a projection of no MLP; and why an MLP is left out."""
        try:
            mlp = self._neurons.mlp_of(projection)
            return (None, "") if mlp is None else ((mlp, self._neurons.degree(mlp)), "")
        except WeightsError as error:
            return None, str(error)

    def _folding(self, projection: Projection) -> tuple[str, tuple[Operand, ...]]:
        """What is folded into a projection: NOTHING, or the form of the norm's moment with the operand for it.

        Raises:
            WeightsError: it is not known which norm feeds it, or its numbers cannot be had.
        """
        if projection.is_product:
            raise WeightsError(AS_FACTORS)
        norm = self._gains.norms.feeding(projection)
        if norm is None or (norm.gain is None and not norm.centred):
            return NOTHING, ()
        moment = self._gains.moment(projection)
        return moment.form, moment.operands[:1]

    def _folded(self, projection: Projection, folding: str, operands: tuple[Operand, ...]) -> Projection:
        """The projection with the norm before it folded in."""
        if folding == NOTHING:
            made = Derived(AS_IT_IS, _VERSION, WORDS[NOTHING], False, (projection,), (), "", FIXED)
            return replace(projection, derived=made)
        if folding == "diagonal":
            under = weighted(projection, self._gains)
            assert under.derived is not None
            made = replace(under.derived, weighting="", gauge=FIXED, label=WORDS[folding])
            return replace(under, derived=made)
        made = Derived(CENTRED, _VERSION, WORDS[folding], False, (projection,), operands, "", FIXED)
        return replace(derive(projection, made), problem=projection.problem)


def _in_gauge(under: Projection) -> Projection:
    assert under.derived is not None
    return replace(under, derived=replace(under.derived, gauge=FIXED))


def _relabelled(plain: Projection, refusal: str) -> Projection:
    """The projection with the reason in its label why its MLP is not balanced, "" for none."""
    if not refusal or plain.derived is None:
        return plain
    return replace(plain, derived=replace(plain.derived, label=f"{plain.derived.label}{LEFT}{refusal}"))

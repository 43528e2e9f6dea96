"""The gauge of a projection: the same function of the model, written by weights of which a choice is taken away.

Gains of norms are folded into what they feed, and the neurons of an MLP are scaled so that the row of up and the column
of down that belong to each are of one length. Here is what such matrices are called and known by; balance makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..catalogue.neurons import Mlp, Neurons
from ..errors import WeightsError
from ..spectrum import Derived, Operand, Projection
from .derived import derive
from .norm_weighting import NormWeighting
from .weighting import REFUSED, WEIGHED, weighted

if TYPE_CHECKING:
    from ..checkpoint.open import Checkpoint
    from ..moment import Weighting

FIXED = "fixed"
"""What stands in `Derived.gauge`."""
CENTRED, BALANCED, AS_IT_IS = "fold_layer_norm", "balance_", "as_it_is"
"""Names of formulas. BALANCED is followed by `up_` or `down_`, the degree of Neurons.degree, `_` and what is folded
into up: `none`, or the form of the moment that a norm's gains give. Of an up under a weighting WEIGHED and its form
come last, and the operands of the moment behind those of the folding."""
NOTHING = "none"
_WORDS = {NOTHING: "as it is", "diagonal": "gains folded", "layer_norm": "gains and means folded"}
_SCALED = "neurons balanced"
_VERSION = 1


class Gauge:
    """Fixes the gauge of a checkpoint's projections. Reads the gains of its norms when they are asked for."""

    def __init__(self, checkpoint: Checkpoint, projections: Iterable[Projection]) -> None:
        self._gains = NormWeighting(checkpoint)
        self._neurons = Neurons(checkpoint, self._gains.norms, projections)

    def fixed(self, projection: Projection, under: Weighting | None = None) -> Projection:
        """A projection of the checkpoint in the fixed gauge, with its address; its label says what was fixed.

        Its key is that of what has to be computed: of the weighting `norm` behind an RMS norm, of the projection itself
        where there is nothing to fix. Under a weighting folding changes nothing, since its moments are of inputs behind
        the gain, nor does balancing change down, whose inputs' moments are scaled with it: their keys are those under
        the weighting. Where it is not known what is to be fixed, `problem` says why.
        """
        balanced, refusal = self._scaled(projection)
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
        label = "; ".join(filter(None, [_WORDS[folding] if projection.role == "up" else "", _SCALED]))
        weighting = ""
        if under is not None:
            moment = under.moment(projection)
            formula, operands = f"{formula}_{WEIGHED}{moment.form}", (*operands, *moment.operands)
            label, weighting = under.label, under.name
        made = Derived(formula, _VERSION, label, False, (projection, other), operands, weighting, FIXED)
        return derive(projection, made)

    def _scaled(self, projection: Projection) -> tuple[tuple[Mlp, int] | None, str]:
        """The MLP whose neurons are scaled and Neurons.degree, None of what is in none; and why its MLP is left."""
        try:
            mlp = self._neurons.mlp_of(projection)
            return (None, "") if mlp is None else ((mlp, self._neurons.degree(mlp)), "")
        except WeightsError as error:
            return None, str(error)

    def _folding(self, projection: Projection) -> tuple[str, tuple[Operand, ...]]:
        """What is folded into a projection: `none` or the form of the norm's moment, and the operand that says it.

        Raises:
            WeightsError: it is not known which norm feeds it, or its numbers cannot be had.
        """
        norm = self._gains.norms.feeding(projection)
        if norm is None or (norm.gain is None and not norm.centred):
            return NOTHING, ()
        moment = self._gains.moment(projection)
        return moment.form, moment.operands[:1]

    def _folded(self, projection: Projection, folding: str, operands: tuple[Operand, ...]) -> Projection:
        """With what the norm before it does."""
        if folding == NOTHING:
            made = Derived(AS_IT_IS, _VERSION, _WORDS[NOTHING], False, (projection,), (), "", FIXED)
            return replace(projection, derived=made)
        if folding == "diagonal":
            under = weighted(projection, self._gains)
            assert under.derived is not None
            made = replace(under.derived, weighting="", gauge=FIXED, label=_WORDS[folding])
            return replace(under, derived=made)
        made = Derived(CENTRED, _VERSION, _WORDS[folding], False, (projection,), operands, "", FIXED)
        return replace(derive(projection, made), problem=projection.problem)


def as_stored(projection: Projection) -> Projection:
    """The projection of the same key under the name by which its spectrum is computed and kept: of one in the fixed
    gauge that has the spectrum of another state, that state."""
    made = projection.derived
    if made is None or not made.gauge:
        return projection
    if made.formula == AS_IT_IS:
        return made.parents[0]
    if not made.formula.startswith(WEIGHED):
        return projection
    if made.weighting:
        return replace(projection, derived=replace(made, gauge=""))
    norm = replace(made, gauge="", weighting=NormWeighting.name, label=NormWeighting.label)
    return replace(projection, derived=norm)


def is_fixed(projection: Projection) -> bool:
    """Whether it is a projection in the fixed gauge."""
    return projection.derived is not None and projection.derived.gauge == FIXED and not projection.derived.is_further


def what_is_fixed(projections: Iterable[Projection]) -> str:
    """What was fixed in any of them, for titles: `gains folded, neurons balanced`; "" where nothing was."""
    found = {p.derived.formula for p in projections if p.derived is not None and is_fixed(p) and p.problem is None}
    parts = {
        _WORDS["diagonal"]: any(f.startswith(WEIGHED) or "_diagonal" in f for f in found),
        _WORDS["layer_norm"]: any(f == CENTRED or "_layer_norm" in f for f in found),
        _SCALED: any(f.startswith(BALANCED) for f in found),
    }
    return ", ".join(words for words, is_there in parts.items() if is_there)


def _in_gauge(under: Projection) -> Projection:
    assert under.derived is not None
    return replace(under, derived=replace(under.derived, gauge=FIXED))


def _relabelled(plain: Projection, refusal: str) -> Projection:
    """With the reason why the neurons of its MLP are not balanced, "" for none."""
    if not refusal or plain.derived is None:
        return plain
    return replace(plain, derived=replace(plain.derived, label=f"{plain.derived.label}; not balanced: {refusal}"))

"""The fixed gauge: among all weights that give the same model, one choice that is made by rule.

Gains of norms are folded into the projections that they feed, and each neuron of an MLP is scaled so that its row of up
and its column of down have one length. This file has the names and labels of such matrices; fixing.py makes the
projections, balance.py the matrices. Imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..spectrum import Derived, Projection
from .weighting import NORM, NORM_LABEL, WEIGHED

FIXED = "fixed"
"""The value of `Derived.gauge`."""
CENTRED, BALANCED, AS_IT_IS = "fold_layer_norm", "balance_", "as_it_is"
"""Names of formulas. BALANCED is followed by `up_` or `down_`, the degree of Neurons.degree, `_` and what is folded
into up: `none`, or the form of the moment that a norm's gains give. For an up under a weighting, WEIGHED and the form
of its moment come last, and the operands of that moment after those of the folding."""
NOTHING = "none"
WORDS = {NOTHING: "as it is", "diagonal": "gains folded", "layer_norm": "gains and means folded"}
SCALED, LEFT = "neurons balanced", "; not balanced: "
IN_FIXED = f", {FIXED} gauge"
"""The end of the label of a further row in the fixed gauge."""


def as_stored(projection: Projection) -> Projection:
    """The state under which a projection's spectrum is computed and stored. A projection in the fixed gauge may share
    the key of another state, see Gauge.fixed: then it is that state, else the projection."""
    made = projection.derived
    if made is None or not made.gauge:
        return projection
    if made.formula == AS_IT_IS:
        return made.parents[0]
    if made.is_further:
        return _further_as_stored(projection, made)
    if not made.formula.startswith(WEIGHED):
        return projection
    if made.weighting:
        return replace(projection, derived=replace(made, gauge=""))
    norm = replace(made, gauge="", weighting=NORM, label=NORM_LABEL)
    return replace(projection, derived=norm)


def _further_as_stored(projection: Projection, made: Derived) -> Projection:
    """A product or some rows of projections in the gauge, as made of projections under a weighting or the gains."""
    if WEIGHED not in made.formula:
        return projection
    label = made.label.removesuffix(IN_FIXED)
    if not made.weighting:
        made = replace(made, weighting=NORM)
        label = f"{label} under {NORM_LABEL}"
    return replace(projection, derived=replace(made, gauge="", label=label))


def is_fixed(projection: Projection) -> bool:
    """Return whether it is a projection in the fixed gauge."""
    return projection.derived is not None and projection.derived.gauge == FIXED and not projection.derived.is_further


def weighting_label(projection: Projection) -> str:
    """The label of the weighting of a projection, or of a product that replaces some in the gauge; "" for none."""
    made = projection.derived
    if made is None or not made.weighting or (made.is_further and not made.gauge):
        return ""
    return made.label.partition(" under ")[2].removesuffix(IN_FIXED) if made.is_further else made.label


def why_not_balanced(projection: Projection) -> str:
    """Why the MLP of a projection in the fixed gauge is not balanced; "" if it is, or needs no reason."""
    made = projection.derived
    return made.label.partition(LEFT)[2] if made is not None and is_fixed(projection) and not made.weighting else ""


def what_is_fixed(projections: Iterable[Projection]) -> str:
    """What was fixed in any of these, for titles: `gains folded, neurons balanced`; "" if nothing was."""
    made = (p.derived for p in projections if p.derived is not None and p.problem is None)
    found = {each.formula for each in made if each.gauge == FIXED}
    parts = {
        WORDS["diagonal"]: any(f.startswith(WEIGHED) or "_diagonal" in f for f in found),
        WORDS["layer_norm"]: any(f == CENTRED or "_layer_norm" in f for f in found),
        SCALED: any(f.startswith(BALANCED) for f in found),
    }
    return ", ".join(words for words, is_there in parts.items() if is_there)

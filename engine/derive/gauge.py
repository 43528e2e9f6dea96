"""The gauge of a projection: the same function of the model, written by weights of which a choice is taken away.

Gains of norms are folded into what they feed, and the neurons of an MLP are scaled so that the row of up and the column
of down that belong to each are of one length. Here is what such matrices are called: fixing names them, balance makes
them. Imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..spectrum import Derived, Projection
from .weighting import NORM, NORM_LABEL, WEIGHED

FIXED = "fixed"
"""What stands in `Derived.gauge`."""
CENTRED, BALANCED, AS_IT_IS = "fold_layer_norm", "balance_", "as_it_is"
"""Names of formulas. BALANCED is followed by `up_` or `down_`, the degree of Neurons.degree, `_` and what is folded
into up: `none`, or the form of the moment that a norm's gains give. Of an up under a weighting WEIGHED and its form
come last, and the operands of the moment behind those of the folding."""
NOTHING = "none"
WORDS = {NOTHING: "as it is", "diagonal": "gains folded", "layer_norm": "gains and means folded"}
SCALED, LEFT = "neurons balanced", "; not balanced: "
IN_FIXED = f", {FIXED} gauge"
"""What comes last in the label of a further row in it."""


def as_stored(projection: Projection) -> Projection:
    """The projection of the same key under the name by which its spectrum is computed and kept: of one in the fixed
    gauge that has the spectrum of another state, that state."""
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
    """A product, or some rows, of projections in the gauge: as of these under a weighting, or the gains."""
    if WEIGHED not in made.formula:
        return projection
    label = made.label.removesuffix(IN_FIXED)
    if not made.weighting:
        made = replace(made, weighting=NORM)
        label = f"{label} under {NORM_LABEL}"
    return replace(projection, derived=replace(made, gauge="", label=label))


def is_fixed(projection: Projection) -> bool:
    """Whether it is a projection in the fixed gauge."""
    return projection.derived is not None and projection.derived.gauge == FIXED and not projection.derived.is_further


def weighting_label(projection: Projection) -> str:
    """The label of the weighting that a projection is under, or a product of projections that stands in the gauge in
    their place; "" of none."""
    made = projection.derived
    if made is None or not made.weighting or (made.is_further and not made.gauge):
        return ""
    return made.label.partition(" under ")[2].removesuffix(IN_FIXED) if made.is_further else made.label


def why_not_balanced(projection: Projection) -> str:
    """Why the neurons of its MLP are as they are, of one in the fixed gauge; "" where there is no reason to say."""
    made = projection.derived
    return made.label.partition(LEFT)[2] if made is not None and is_fixed(projection) and not made.weighting else ""


def what_is_fixed(projections: Iterable[Projection]) -> str:
    """What was fixed in any of them, for titles: `gains folded, neurons balanced`; "" where nothing was."""
    made = (p.derived for p in projections if p.derived is not None and p.problem is None)
    found = {each.formula for each in made if each.gauge == FIXED}
    parts = {
        WORDS["diagonal"]: any(f.startswith(WEIGHED) or "_diagonal" in f for f in found),
        WORDS["layer_norm"]: any(f == CENTRED or "_layer_norm" in f for f in found),
        SCALED: any(f.startswith(BALANCED) for f in found),
    }
    return ", ".join(words for words, is_there in parts.items() if is_there)

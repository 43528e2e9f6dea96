"""The stored spectra of single heads, by the state in which a model is shown: for models whose weights are gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from rankscope.engine.derive.gauge import FIXED, IN_FIXED
from rankscope.engine.derive.head_matrices import head_of, is_as_it_is
from rankscope.engine.derive.weighting import NORM, NORM_LABEL, WEIGHED
from rankscope.engine.spectrum import Projection

if TYPE_CHECKING:
    from rankscope.store.stored import Stored


def stored_heads(stored: Stored, weighting: tuple[str, str], gauge: str) -> Iterator[Projection]:
    """The stored rows of heads under a weighting of this name and label ("" for none) and in a gauge ("" for none), the
    newest last. A spectrum may be stored under the name of another state with the same matrix."""
    for p in map(stored.projection, sorted(stored.derived(), key=stored.computed_at)):
        if head_of(p) is None:
            continue
        found = _under(p, weighting, gauge) if weighting[0] else _in_gauge(p) if gauge else _as_it_is(p)
        if found is not None:
            yield found


def _as_it_is(p: Projection) -> Projection | None:
    return _named(p, "", "") if is_as_it_is(p) else None


def _under(p: Projection, weighting: tuple[str, str], gauge: str) -> Projection | None:
    """A row under the weighting: the matrix is the same in either gauge, since folding changes nothing there."""
    made, (name, label) = p.derived, weighting
    assert made is not None
    return _named(p, name, gauge) if made.weighting == name and f" under {label}" in made.label else None


def _in_gauge(p: Projection) -> Projection | None:
    """A row in the fixed gauge. If gains are all that is folded, it is stored under the weighting `norm`, where heads
    without a norm have gains of 1."""
    made = p.derived
    assert made is not None
    if made.gauge == FIXED and not made.weighting:
        return p
    is_folded = made.weighting == NORM and made.formula.endswith(f"_{WEIGHED}diagonal")
    return _named(p, "", FIXED) if is_folded else None


def _named(p: Projection, weighting: str, gauge: str) -> Projection:
    """The same row, renamed for a state."""
    made = p.derived
    assert made is not None
    label = made.label.removesuffix(IN_FIXED)
    label = label if weighting else label.removesuffix(f" under {NORM_LABEL}")
    made = replace(made, weighting=weighting, gauge=gauge, label=f"{label}{IN_FIXED if gauge else ''}")
    return replace(p, derived=made)

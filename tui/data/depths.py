"""Matching the layers of two models that have different numbers of them by relative depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rankscope.engine.spectrum import Projection

from .model import Model

Depths = Mapping[str, tuple[int, int]]
"""The numbers of layers in the first and in the second model by tower, where they differ."""


def depths_of(first: Model, second: Model) -> Depths:
    """The numbers of layers of two models by tower. A model that only lacks some layers, or numbers as many
    differently, is not matched by depth; nor is one whose weights are gone, because only a part of it may be stored."""
    if first.checkpoint is None or second.checkpoint is None:
        return {}
    ours, theirs = _layers(first.tree.projections), _layers(second.tree.projections)
    return {
        tower: (1 + max(ours[tower]), 1 + max(theirs[tower]))
        for tower in ours
        if tower in theirs and len(ours[tower]) != len(theirs[tower]) and max(ours[tower]) != max(theirs[tower])
    }


def address_there(p: Projection, depths: Depths) -> str:
    """The address in the second model that corresponds to a projection of the first: layer round(i (LB - 1) / (LA - 1))
    for layer i, so first and last layers correspond."""
    if p.layer is None or (p.tower or "") not in depths:
        return p.address
    ours, theirs = depths[p.tower or ""]
    layer = round(p.layer * (theirs - 1) / (ours - 1)) if ours > 1 else 0
    return p.address.replace(f"layers.{p.layer}.", f"layers.{layer}.", 1)


def kind_of(p: Projection) -> str:
    """The address without the layer."""
    return p.address if p.layer is None else p.address.replace(f"layers.{p.layer}.", "layers.", 1)


def words_of(depths: Depths) -> str:
    """A line that tells the user of this matching; "" if none is needed."""
    parts = [
        f"A has {ours} layers{f' of {tower}' if tower else ''}, B {theirs}: layer i of A against "
        f"round(i {theirs - 1} / {max(1, ours - 1)}) of B"
        for tower, (ours, theirs) in depths.items()
    ]
    return f"{'; '.join(parts)}; --pair address turns it off" if parts else ""


def _layers(projections: Iterable[Projection]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for p in projections:
        if p.layer is not None and p.rows and p.block != "other":
            found.setdefault(p.tower or "", set()).add(p.layer)
    return found

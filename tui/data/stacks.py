"""Matrices for latent attention (MLA) beside a model's projections: stacks of keys and values, whose rank is the
kv_lora_rank that they would need, and products of the factors if the model has latent attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.catalogue.caches import caches
from rankscope.engine.catalogue.tree import model_order
from rankscope.engine.derive.gains import Gains
from rankscope.engine.derive.latent import LATENT, PRODUCT, PRODUCTS, Way, latent_of, products_of
from rankscope.engine.spectrum import Projection

from .model import Model

if TYPE_CHECKING:
    from rankscope.engine.moment import Weighting
    from rankscope.store.stored import Stored


def with_stacks(model: Model, root: Path, under: Weighting | None = None) -> Model:
    """A model with the stacks of its layers that own a cache, all keys rotated after expansion, or the products of
    their factors, under a weighting; only names and shapes are read. If its weights are not at hand, see
    with_stored."""
    if model.checkpoint is None:
        return with_stored(model, root, ("", "") if under is None else (under.name, under.label))
    found = caches(model.checkpoint, (q for p in model.tree.projections for q in p.parents))
    gain = Gains(model.checkpoint).before
    made = (products_of(c, gain, under) if c.is_latent else (latent_of(c, Way(), None, under),) for c in found)
    return replace(model, further=tuple(chain.from_iterable(made)))


def with_stored(model: Model, root: Path, weighting: tuple[str, str]) -> Model:
    """A model with its stored stacks and products of latent attention, under a weighting of this name and label ("" for
    none)."""
    from rankscope.store.spectra import SpectraStore

    found = stored_joints(SpectraStore(root, model.folder).stored(), Way(), weighting)
    newest = {p.address: p for p in found if p.role in PRODUCTS}
    return replace(model, further=tuple(sorted(newest.values(), key=model_order)))


def stored_joints(stored: Stored, chosen: Way, weighting: tuple[str, str]) -> Iterator[Projection]:
    """The stored stacks, made latent as chosen, and products of latent attention, under a weighting of this name and
    label ("" for none); the newest last."""
    name, label = weighting
    text = f"[K; V] {chosen.text}" + (f" under {label}" if name else "")
    for p in map(stored.projection, sorted(stored.derived(), key=stored.computed_at)):
        made = p.derived
        if made is None or made.weighting != name:
            continue
        is_stack = made.formula.startswith(LATENT) and made.label.rpartition("; |K| ")[0] == text
        is_product = made.formula.startswith(PRODUCT) and (not name or made.label.endswith(f" under {label}"))
        if is_stack or is_product:
            yield p

"""The fixed gauge of a model whose weights are gone, from its stored spectra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.derive.derived import derive
from rankscope.engine.derive.gauge import AS_IT_IS, BALANCED, FIXED, LEFT, NOTHING, WORDS, why_not_balanced
from rankscope.engine.derive.head_matrices import head_of, is_kv_ov
from rankscope.engine.derive.weighting import NORM, REFUSED, WEIGHED, by_moment, weighted
from rankscope.engine.errors import WeightsError
from rankscope.engine.spectrum import Derived, Operand, Projection

from .model import Model
from .stored_heads import stored_heads

if TYPE_CHECKING:
    from rankscope.engine.moment import Weighting

_FOLDED = f"{WEIGHED}diagonal"
"""The formula of gains alone, whose spectra are stored under the weighting `norm`."""
_VERSION = 1
_ATTENTIONS = ("attention", "cross_attention")
FACTORS = ("value", "value_b", "output")
"""Roles of an attention that its products replace."""
_UNSTORED = "it is not stored in the fixed gauge, and the weights are not at hand to compute it"


class StoredGauge:
    """What stored spectra prove about the fixed gauge. Its spectra can be shown, but no new ones computed.

    Most are stored under the name of another state, the weighting `norm` or unmodified weights, if the gauge fixes
    nothing else; whether that is so only the config tells. Without it `up` does: if its neurons are balanced, or a
    LayerNorm is folded into it, it has a spectrum of the gauge's own. In other MLPs, up and down are not known to be in
    the gauge.
    """

    def __init__(self, model: Model, root: Path) -> None:
        from rankscope.store.spectra import SpectraStore

        stored = self._stored = SpectraStore(root, model.folder).stored()
        self._keys = frozenset(stored)
        self._own: dict[str, list[Projection]] = {}  # in the gauge, by the key of the unmodified matrix
        self._gains: dict[str, Derived] = {}
        self._ups: dict[str, Projection] = {}  # by the address of their MLP
        self._layers: set[tuple[str | None, int | None]] = set()  # those of which an MLP is known
        for p in map(stored.projection, sorted(stored.derived(), key=stored.computed_at)):
            made = p.derived
            if made is None or made.is_further:
                continue
            if made.gauge:
                self._know(p)
            elif made.weighting == NORM and made.formula == _FOLDED:
                self._gains[p.parents[0].key] = made

    def fixed(self, projection: Projection, under: Weighting | None = None) -> Projection:
        """A matrix of the model in the fixed gauge, named as by Gauge.fixed; if it is not stored, or not known to be
        the stored one, its `problem` says so."""
        made = self._plain(projection) if under is None else self._weighted(projection, under)
        if made is not None:
            return made
        return _refused(projection, under)

    def products(
        self, projections: Iterable[Projection], under: Weighting | None = None
    ) -> dict[str, tuple[Projection, ...]]:
        """The stored products that each value or output is a factor of, by address and in the order of KV heads; if
        there are none, the projection itself, whose `problem` says so."""
        weighting = ("", "") if under is None else (under.name, under.label)
        found: dict[str, dict[str, Projection]] = {}
        for p in filter(is_kv_ov, stored_heads(self._stored, weighting, FIXED)):
            for factor in p.parents:
                found.setdefault(factor.key, {})[p.address] = p
        factors = (p for p in projections if p.role in FACTORS and p.block in _ATTENTIONS)
        return {p.address: _by_head(found[p.key]) if p.key in found else (_refused(p, under),) for p in factors}

    def _know(self, p: Projection) -> None:
        self._own.setdefault(p.parents[0].key, []).append(p)
        if p.role == "up":
            self._ups[_mlp_of(p)] = p
            self._layers.add((p.tower, p.layer))

    def _plain(self, p: Projection) -> Projection | None:
        own = [made for q in self._own.get(p.key, ()) if (made := q.derived) and not made.weighting]
        if own:
            return derive(p, own[-1])
        if p.role in ("up", "down"):
            return self._unbalanced_down(p) if p.role == "down" else None
        gains = self._gains.get(p.key)
        if gains is not None and gains.operands != _ones(p.cols):
            return derive(p, replace(gains, weighting="", gauge=FIXED, label=WORDS["diagonal"]))
        up = self._ups.get(_mlp_of(p))
        unfed = up is not None and _folding(up) == NOTHING  # the norm before up is that before gate
        return self._as_it_is(p) if gains is not None or unfed else None

    def _unbalanced_down(self, down: Projection) -> Projection | None:
        """Down in an MLP whose neurons are not balanced: unmodified."""
        up = self._ups.get(_mlp_of(down))
        reason = why_not_balanced(up) if up is not None else ""
        return self._as_it_is(down, f"{LEFT}{reason}") if reason else None

    def _as_it_is(self, p: Projection, left: str = "") -> Projection | None:
        made = Derived(AS_IT_IS, _VERSION, f"{WORDS[NOTHING]}{left}", False, (p,), (), "", FIXED)
        return replace(p, derived=made) if p.key in self._keys else None

    def _weighted(self, p: Projection, under: Weighting) -> Projection | None:
        """See Gauge.fixed: only `up` differs from its state under the weighting."""
        if p.role != "up":
            plain = weighted(p, under) if (p.tower, p.layer) in self._layers else None
        elif (up := self._ups.get(_mlp_of(p))) is not None and not _is_balanced(up):
            plain = weighted(p, under)
        else:
            return self._balanced_under(p, under)
        if plain is None or plain.derived is None:
            return None
        return replace(plain, derived=replace(plain.derived, gauge=FIXED))

    def _balanced_under(self, up: Projection, under: Weighting) -> Projection | None:
        try:
            operands = under.moment(up).operands
        except WeightsError:
            return None
        for q in reversed(self._own.get(up.key, ())):
            made = q.derived
            if made is not None and made.weighting == under.name and _moment_of(q) == operands:
                return derive(up, made)
        return None


def _refused(p: Projection, under: Weighting | None) -> Projection:
    made = Derived(REFUSED, _VERSION, _UNSTORED, False, (p,), (), under.name if under else "", FIXED)
    return replace(derive(p, made), problem=p.problem or _UNSTORED)


def _by_head(products: Mapping[str, Projection]) -> tuple[Projection, ...]:
    """Sort products by the number of their heads."""
    return tuple(sorted(products.values(), key=lambda p: head.number if (head := head_of(p)) else 0))


@lru_cache(maxsize=64)
def _ones(cols: int) -> tuple[Operand, ...]:
    """The factors of the weighting `norm` for a projection that no norm feeds."""
    import numpy as np

    from rankscope.engine.moment import diagonal

    return diagonal(np.ones(cols)).operands


def _mlp_of(p: Projection) -> str:
    return p.address.rpartition(".")[0]


def _is_balanced(up: Projection) -> bool:
    return up.derived is not None and up.derived.formula.startswith(BALANCED)


def _folding(up: Projection) -> str:
    """What is folded into a balanced `up`, "" for any other."""
    made = up.derived
    assert made is not None
    formula = made.formula.partition(f"_{WEIGHED}")[0]
    return formula.removeprefix(BALANCED).split("_", 2)[-1] if _is_balanced(up) else ""


def _moment_of(up: Projection) -> tuple[Operand, ...]:
    made = by_moment(up).derived
    assert made is not None
    return made.operands

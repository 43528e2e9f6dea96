"""The LoRA rank that each module of a model needs for what a fine-tune changed in it."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rankscope.engine.catalogue.tree import escape
from rankscope.engine.derive.difference import MODULE, joint_delta_of
from rankscope.engine.spectrum import Projection

from .delta_numbers import changes_of
from .model import Model
from .session import Session

if TYPE_CHECKING:
    from rankscope.engine.moment import Weighting
    from rankscope.engine.plan.lora_modules import LoraModule, LoraModules


@dataclass(frozen=True, slots=True)
class Wanted:
    """`rows` maps the name of each module to the differences that determine its rank: one, or one per expert."""

    found: LoraModules
    rows: Mapping[str, tuple[Projection, ...]]

    @property
    def joint(self) -> list[Projection]:
        """Differences of several projections together, which have to be computed additionally."""
        return [p for rows in self.rows.values() for p in rows if p.role == MODULE]

    def without(self, names: Container[str], reason: str) -> Wanted:
        """The same without the modules of these names, whose projections are left out for a reason."""
        gone = [m for m in self.found.modules if m.name in names]
        left = tuple((p, reason) for m in gone for held in m.matrices for p in held)
        kept = tuple(m for m in self.found.modules if m.name not in names)
        found = replace(self.found, modules=kept, left=(*self.found.left, *left))
        return Wanted(found, {m.name: self.rows[m.name] for m in kept})


def wanted_of(first: Model, deltas: Sequence[Projection], under: Weighting | None) -> Wanted:
    """The modules that hold these differences in the transformers model of A.

    Raises:
        InputError: see modules_of.
    """
    from rankscope.engine.plan.lora_modules import modules_of

    assert first.checkpoint is not None
    by_address = {p.address: p for p in deltas}
    found = modules_of(first.checkpoint, [p.parents[0] for p in deltas])
    rows = {
        module.name: tuple(_row(module, number, by_address, under) for number in range(len(module.matrices)))
        for module in found.modules
    }
    return Wanted(found, rows)


def _row(module: LoraModule, number: int, deltas: Mapping[str, Projection], under: Weighting | None) -> Projection:
    held = [deltas[p.address] for p in module.matrices[number]]
    if len(held) == 1:
        return held[0]
    expert = f".{number}" if module.is_parameter else ""
    ours, theirs = zip(*(p.parents for p in held), strict=True)
    return joint_delta_of(f"{MODULE}.{escape(module.name)}{expert}", ours, theirs, under)


def ranks_of(session: Session, wanted: Wanted, threshold: float, independent: bool) -> dict[str, int | None]:
    """The rank of each module by name, for experts the largest: the smaller of the threshold rank and the number of
    values above rounding. 0 if none is above it, None if unknown. Reads files."""
    every = [p for rows in wanted.rows.values() for p in rows]
    known = {c.delta.key: c.rank for c in changes_of(session, every, threshold, independent)}
    ranks = {name: [known[p.key] for p in rows] for name, rows in wanted.rows.items()}
    return {name: None if None in found else max(r or 0 for r in found) for name, found in ranks.items()}

"""The comparison of two checkpoints: which differences can be computed, and what else there is in either."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.catalogue.tree import matches, model_order
from rankscope.engine.derive.difference import MODULE, delta_of, is_delta
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from .model import Model

if TYPE_CHECKING:
    from rankscope.engine.moment import Weighting
    from rankscope.store.stored import Stored

    from .session import Session


class Apart(StrEnum):
    """Why there is no difference, with a spectrum to compute, for two tensors or for one without a partner."""

    SHAPE = "other shapes"
    FACTORS = "two factors"
    RENAMED = "renamed"
    ONLY_A = "only in A"
    ONLY_B = "only in B"
    VECTOR = "vectors"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class WithoutDifference:
    """A projection or tensor of A, of B, or of both, for which there is no difference."""

    why: Apart
    ours: Projection | None
    theirs: Projection | None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The projections of A and of B, as far as they exist."""
        return tuple(p for p in (self.ours, self.theirs) if p is not None)

    @property
    def address(self) -> str:
        """The address in A, or else in B."""
        return self.projections[0].address

    @property
    def text(self) -> str:
        """A text such as `layers.0.mlp.up: 40 x 24 in A, 48 x 24 in B`, `other.a.bias`, `a.b -> c.b`."""
        if self.ours is None or self.theirs is None:
            return self.address
        if self.why is Apart.SHAPE:
            return f"{self.address}: {_shape(self.ours)} in A, {_shape(self.theirs)} in B"
        return self.address if self.why is not Apart.RENAMED else f"{self.address} -> {self.theirs.address}"


@dataclass(frozen=True, slots=True)
class Matched:
    """`deltas` are the rows of delta_of in A's order; `apart` is everything else in either model that the filter
    matches."""

    deltas: tuple[Projection, ...]
    apart: tuple[WithoutDifference, ...]

    def why(self, kind: Apart) -> list[WithoutDifference]:
        """The entries of `apart` with this reason."""
        return [listed for listed in self.apart if listed.why is kind]


def matched(first: Model, second: Model, under: Weighting | None = None, pattern: str | None = None) -> Matched:
    """The differences of two models' projections, matched by address, and everything else in either that a filter
    matches.

    Without a filter the differences are those that a scan of A computes.

    Raises:
        InputError: there is nothing to compare.
    """
    theirs = {p.address: p for p in second.tree.projections}
    ours = {p.address: p for p in first.tree.projections}
    wanted = {p.address for p in first.tree.scanned(pattern)} | {p.address for p in second.tree.scanned(pattern)}
    deltas: list[Projection] = []
    apart: list[WithoutDifference] = []
    lone_a: list[Projection] = []
    for p in first.tree.projections:
        partner = theirs.get(p.address)
        if pattern and not _is_named(p, pattern):
            continue
        if partner is None:
            lone_a.append(p)
        elif (p.rows, p.cols) != (partner.rows, partner.cols):
            apart.append(WithoutDifference(Apart.SHAPE, p, partner))
        elif p.is_product or partner.is_product:
            apart.append(WithoutDifference(Apart.FACTORS, p, partner))
        elif not p.rows:
            apart.append(WithoutDifference(Apart.VECTOR, p, partner))
        elif p.address in wanted:
            deltas.append(delta_of(p, partner, under))
        else:
            apart.append(WithoutDifference(Apart.LEFT_OUT, p, partner))
    lone_b = [p for p in second.tree.projections if p.address not in ours and (not pattern or _is_named(p, pattern))]
    apart += _without_partner(lone_a, lone_b)
    if not deltas:
        raise InputError(_nothing(first, second, pattern, apart))
    return Matched(tuple(deltas), tuple(apart))


def with_deltas(model: Model, deltas: Sequence[Projection], against: str = "") -> Model:
    """A model whose projections are differences from another model named `against`, so that every view can show
    them."""
    tree = replace(model.tree, projections=tuple(deltas))
    return replace(model, tree=tree, said=None, further=(), against=against)


def deltas_shown(first: Session, second: Session, under: Weighting | None = None) -> Matched:
    """The differences of two open models, under a weighting: those that can be computed or, if the weights of either
    model are not at hand, those that are stored. Reads files.

    Raises:
        InputError: there are none.
    """
    if first.raw.checkpoint is not None and second.raw.checkpoint is not None:
        return matched(first.raw, second.raw, under)
    repos = {p.source.repo for p in second.raw.tree.projections}
    stored = first.store.stored()
    found = [p for repo in sorted(repos) for p in stored_deltas(stored, repo, under.name if under is not None else "")]
    if not found:
        gone = second if first.raw.checkpoint is not None else first
        raise InputError(
            f"no delta is stored, and the weights of {printable(gone.raw.name)} are not at hand: name a model here or "
            "on the Hub"
        )
    return Matched(tuple(found), ())


def stored_deltas(stored: Stored, second: str, weighting: str = "") -> list[Projection]:
    """The stored differences from a model of this name or folder, under a weighting of this name ("" for none); the
    newest for each address."""
    found: dict[str, Projection] = {}
    for p in map(stored.projection, sorted(stored.derived(), key=stored.computed_at)):
        if is_delta(p) and p.role != MODULE and _is_under(p, weighting) and _is_of(p, second):
            found[p.address] = p
    return sorted(found.values(), key=model_order)


def _is_under(delta: Projection, weighting: str) -> bool:
    return delta.derived is not None and delta.derived.weighting == weighting


def _is_of(delta: Projection, second: str) -> bool:
    """Whether B's matrix belongs to the model that a user names by Hub id, folder or file."""
    repo = delta.parents[1].source.repo
    return repo in (second.partition("@")[0], str(Path(second).expanduser().resolve()))


def _is_named(p: Projection, pattern: str) -> bool:
    return p.address == pattern or matches(p.address, pattern)


def _without_partner(ours: Sequence[Projection], theirs: Iterable[Projection]) -> Iterator[WithoutDifference]:
    """Projections whose address exists in one model only. If exactly one tensor in the other model has the same shape,
    layer and last words of the name, it may be the same one renamed."""
    by_end: dict[tuple[object, ...], list[Projection]] = defaultdict(list)
    for p in theirs:
        by_end[_end(p)].append(p)
    claims = Counter(map(_end, ours))
    for p in ours:
        found = by_end.get(_end(p), [])
        if len(found) == claims[_end(p)] == 1:
            yield WithoutDifference(Apart.RENAMED, p, by_end.pop(_end(p))[0])
        else:
            yield WithoutDifference(Apart.ONLY_A, p, None)
    yield from (WithoutDifference(Apart.ONLY_B, None, p) for found in by_end.values() for p in found)


def _end(p: Projection) -> tuple[object, ...]:
    """The part of a tensor that survives renaming: shape, place in the layers, and the last words of its name."""
    last = tuple(p.tensor.split(".")[-3:]) if p.layer is None or p.block == "other" else (p.block, p.role, p.expert)
    return p.rows, p.cols, p.layer, str(p.slice), last


def _shape(p: Projection) -> str:
    return f"{p.rows} x {p.cols}" if p.rows else "no matrix"


def _nothing(first: Model, second: Model, pattern: str | None, apart: Sequence[WithoutDifference]) -> str:
    named = f" matches {printable(pattern)!r} and" if pattern else ""
    why = f": {apart[0].why}: {printable(apart[0].text)}" if apart else ""
    if apart and apart[0].why is Apart.FACTORS:
        why = f": {printable(apart[0].text)} is stored as two factors, whose difference is not computed"
    both = f"{printable(first.name)} and {printable(second.name)}"
    return f"no matrix{named} is in both {both}, in one shape{why}; name two checkpoints of one model"

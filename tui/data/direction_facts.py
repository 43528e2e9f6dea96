"""The composition of the first direction of a projection: its leading singular triplets as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rankscope.engine.derive.directions import READS, WRITES, Directions, directions_of, unpacked
from rankscope.engine.derive.energy import energy
from rankscope.engine.derive.weighting import WEIGHED, can_be_made, is_weighted
from rankscope.engine.errors import InputError, WeightsError
from rankscope.engine.spectrum import Projection, Values

from .carriers import DirectionSide, is_plane, side_of
from .model import Model
from .session import Session

if TYPE_CHECKING:
    from rankscope.engine.checkpoint.open import Checkpoint
    from rankscope.engine.derive.fixing import Gauge
    from rankscope.engine.derive.norm_weighting import NormWeighting
    from rankscope.engine.derive.tokens import TokenEnds


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The same projection in the previous or next `layer`, and the cosine of the angle between the first directions (or
    planes) of both in the residual stream; random ones have about 1 / sqrt n."""

    address: str
    layer: int
    cosine: float
    chance: float


@dataclass(frozen=True, slots=True)
class Fixed:
    """The first direction in the fixed gauge: sigma_1 / sigma_2 there, None without a second direction, and the cosine
    of the angle to the unmodified first direction in the residual stream (None for roles outside it)."""

    ratio: float | None
    cosine: float | None
    chance: float


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about the first directions of a projection.

    `energies` are the shares sigma_i^2 v_i^T C v_i / tr(W C W^T) of the output energy, with C = I unless `weighting`
    names another; empty if tr(W C W^T) is unknown. Shares and participation are those of the first direction, or of
    both if they form a plane (`is_plane`). `fixed` is the first direction in the fixed gauge, None if that is unknown
    or the matrix is the same there.
    """

    projection: Projection
    values: tuple[float, ...]
    energies: tuple[float, ...]
    weighting: str
    is_plane: bool
    outputs: DirectionSide
    inputs: DirectionSide
    neighbours: tuple[Neighbour, ...] = ()
    fixed: Fixed | None = None

    @property
    def ratio_fixed(self) -> float | None:
        """sigma_1 / sigma_2 in the fixed gauge."""
        return None if self.fixed is None else self.fixed.ratio

    @property
    def survives(self) -> bool | None:
        """Whether the first value still stands out in the fixed gauge, by at least half as much as in the raw one; None
        if that is unknown, or for a plane."""
        if self.ratio is None or self.ratio_fixed is None or self.is_plane:
            return None
        return self.ratio_fixed - 1 >= (self.ratio - 1) / 2

    @property
    def ratio(self) -> float | None:
        """sigma_1 / sigma_2, None without a second direction."""
        return self.values[0] / self.values[1] if len(self.values) > 1 and self.values[1] else None


@dataclass(frozen=True, slots=True)
class DirectionContext:
    """What a model provides for the directions of its projections: the gains of its norms and its fixed gauge. Energies
    that needed its weights are cached."""

    checkpoint: Checkpoint
    gains: NormWeighting
    gauge: Gauge
    _energies: dict[str, float] = field(default_factory=dict)

    def fixed(self, projection: Projection) -> Projection | None:
        """The projection in the fixed gauge; None if that is unknown, or the projection does not change."""
        found = self.gauge.fixed(projection)
        return None if found.problem is not None or found.key == projection.key else found

    def output_energy(self, shown: Projection, form: str, numbers: Sequence[Values]) -> float | None:
        """tr(W C W^T) of a projection under a weighting with this moment; None if its weights are not on this machine
        or cannot be read. Reads files."""
        raw = shown.parents[0]
        if self.checkpoint.bytes_to_fetch((raw.tensor,)):
            return None
        if shown.key not in self._energies:
            from rankscope.engine.derive.energy import output_energy

            try:
                self._energies[shown.key] = output_energy(self.checkpoint, raw, form, numbers)
            except WeightsError:
                return None
        return self._energies[shown.key]


def context_of(model: Model) -> DirectionContext | None:
    """The context of a model; None if only stored spectra of it are known. Its methods read the gains of norms."""
    if model.checkpoint is None:
        return None
    from rankscope.engine.derive.fixing import Gauge
    from rankscope.engine.derive.norm_weighting import NormWeighting

    return DirectionContext(
        model.checkpoint, NormWeighting(model.checkpoint), Gauge(model.checkpoint, model.tree.projections)
    )


def neighbours_of(session: Session, projection: Projection) -> list[Projection]:
    """The same projection in the layers before and after, where it exists."""
    same = [p for p in session.raw.tree.projections if _kind(p) == _kind(projection) and p.problem is None]
    if projection.layer is None or projection.role not in READS + WRITES:
        return []
    layers = {p.layer: p for p in same}
    found = sorted(layer for layer in layers if layer is not None)
    at = found.index(projection.layer) if projection.layer in found else -1
    return [layers[layer] for layer in (*found[:at][-1:], *found[at + 1 :][:1])] if at >= 0 else []


def wanted_for(session: Session, projection: Projection, context: DirectionContext | None) -> list[Projection]:
    """What has to be stored for the facts of an unmodified projection: its own directions (first in the list), those of
    its neighbours, and those in the fixed gauge. Reads the gains of norms."""
    fixed = None if context is None else context.fixed(projection)
    return [*_rows(session, projection), *([] if fixed is None else [directions_of(fixed)])]


def known_of(session: Session, projections: Iterable[Projection]) -> list[Facts]:
    """The facts of those projections whose directions are stored, in their order. Reads files.

    Raises:
        InputError: none are stored.
    """
    context = context_of(session.raw)
    found = [facts(session, p, context) for p in projections]
    known = [each for each in found if each is not None]
    if not known:
        raise InputError("no directions are computed for these: run  rankscope inspect MODEL ADDRESS")
    return known


def tokens_of(session: Session, projection: Projection, context: DirectionContext | None) -> TokenEnds:
    """The tokens at the ends of the stored first direction of an unmodified projection. Reads files.

    Raises:
        WeightsError: it has none, or they cannot be read.
    """
    row = directions_of(projection)
    if context is None:
        raise WeightsError("the weights are not at hand: tokens cannot be named")
    numbers = session.read([row.key]).get(row.key)
    if numbers is None or not numbers[0]:
        raise WeightsError("a matrix of zeros has no first direction")
    from rankscope.engine.derive.tokens import token_ends

    return token_ends(context.checkpoint, context.gains, projection, unpacked(row, numbers))


def _rows(session: Session, projection: Projection) -> list[Projection]:
    return list(map(directions_of, (projection, *neighbours_of(session, projection))))


def facts(session: Session, shown: Projection, context: DirectionContext | None) -> Facts | None:
    """The facts of a projection in any state; None if its directions are not stored. Without a context there are no
    angles and no facts about the gauge. Reads files."""
    projection = shown.parents[0]
    if shown.is_product or not session.has(directions_of(projection)):
        return None
    rows = _rows(session, projection)
    read = session.read([row.key for row in rows if session.has(row)])
    own = read.get(rows[0].key)
    if own is None:
        return None
    found = unpacked(rows[0], own)
    size = 2 if is_plane(found) else 1
    angles = []
    for row in rows[1:]:
        if row.key in read and context is not None:
            near = _neighbour(context.gains, (projection, found), (row.parents[0], unpacked(row, read[row.key])))
            angles += [] if near is None else [near]
    return Facts(
        projection=projection,
        values=tuple(found.values.tolist()),
        energies=tuple(_energies(session, shown, found, context)),
        weighting=shown.derived.weighting if shown.derived is not None else "",
        is_plane=size == 2,
        outputs=side_of(found.left[:, :size], found.row_norms),
        inputs=side_of(found.right[:, :size], found.column_norms),
        neighbours=tuple(angles),
        fixed=None if context is None else _fixed(session, projection, found, context),
    )


def _fixed(session: Session, projection: Projection, found: Directions, context: DirectionContext) -> Fixed | None:
    """The stored first direction in the fixed gauge."""
    state = context.fixed(projection)
    row = None if state is None else directions_of(state)
    numbers = None if row is None or not session.has(row) else session.read([row.key]).get(row.key)
    if row is None or numbers is None:
        return None
    there = unpacked(row, numbers)
    ratio = float(there.values[0] / there.values[1]) if len(there.values) > 1 and there.values[1] else None
    if projection.role not in READS + WRITES:
        return Fixed(ratio, None, 0.0)
    try:
        before = _in_residual(projection, found, context.gains.folded)
        after = _in_residual(projection, there, context.gains.signed)
    except WeightsError:
        return Fixed(ratio, None, 0.0)
    return Fixed(ratio, _cosine(before, after), len(before) ** -0.5)


def _kind(p: Projection) -> tuple[object, ...]:
    return p.tower, p.block, p.role, p.expert


def _energies(
    session: Session, shown: Projection, found: Directions, context: DirectionContext | None
) -> Iterator[float]:
    """The energies of Facts, one by one."""
    squares = found.values**2
    total: float | None = float((found.row_norms**2).sum())
    if is_weighted(shown):
        moment = _moment(shown)
        if moment is None:
            return
        form, numbers = moment
        squares = squares * np.array([energy(form, numbers, v[None]) for v in found.right.T])
        entry = session.entry(shown)
        if form == "diagonal":
            total = float((found.column_norms**2) @ numbers[0])
        elif entry is not None:
            total = entry.provenance.frobenius_norm**2
        else:
            total = None if context is None else context.output_energy(shown, form, numbers)
    if total:
        yield from (squares / total).tolist()


def _moment(shown: Projection) -> tuple[str, list[Values]] | None:
    """Form and numbers of the second moment of the input of a projection under a weighting."""
    made = shown.derived
    if made is None or shown.problem is not None or not made.formula.startswith(WEIGHED) or not can_be_made(shown):
        return None
    numbers = [operand.load() for operand in made.operands if operand.load is not None]
    return made.formula.removeprefix(WEIGHED), numbers


def _neighbour(
    gains: NormWeighting, one: tuple[Projection, Directions], other: tuple[Projection, Directions]
) -> Neighbour | None:
    """Compare by the smallest angle between the two spans in the residual stream; None if it is unknown how they are
    mapped to it, or the stream has different widths."""
    try:
        spans = [_in_residual(projection, found, gains.folded) for projection, found in (one, other)]
    except WeightsError:
        return None
    if spans[0].shape[0] != spans[1].shape[0]:
        return None
    near = other[0]
    return Neighbour(near.address, near.layer or 0, _cosine(*spans), float(len(spans[0])) ** -0.5)


def _cosine(one: Values, other: Values) -> float:
    """The cosine of the smallest angle between the spans of columns."""
    product = np.linalg.qr(one)[0].T @ np.linalg.qr(other)[0]
    return min(1.0, float(np.linalg.svd(product, compute_uv=False)[0]))


def _in_residual(projection: Projection, found: Directions, folded: Callable[[Projection, Values], Values]) -> Values:
    """The first direction, or both of a plane, in the residual stream; `folded` maps directions among inputs to it."""
    size = 2 if is_plane(found) else 1
    if projection.role in WRITES:
        return found.left[:, :size]
    return folded(projection, found.right[:, :size])

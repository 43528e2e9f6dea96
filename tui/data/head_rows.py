"""Single heads of an open model: their rows, their places, and the numbers that are meaningful for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.catalogue.attention import Attention, attentions
from rankscope.engine.catalogue.tree import matches, model_order
from rankscope.engine.derive.derived import is_state
from rankscope.engine.derive.gauge import FIXED
from rankscope.engine.derive.head_matrices import GROUP_OV, KINDS, OV, QK, VALUE, Turned, head_of, heads_of, offset_of
from rankscope.engine.errors import InputError, WeightsError, printable
from rankscope.engine.spectrum import Projection

from .chosen_weighting import weighed
from .gauged_model import RAW, fixed
from .grid import Column, Grid, Row
from .lens import Lens
from .measures import BY_NAME, OF_SHAPES
from .model import Model
from .session import Session
from .stored_heads import stored_heads

if TYPE_CHECKING:
    from rankscope.engine.checkpoint.open import Checkpoint
    from rankscope.engine.moment import Weighting

_BLOCKS = ("attention", "cross_attention")


@dataclass(frozen=True, slots=True)
class HeadRows:
    """The rows of all layers by kind (derive.head_matrices.KINDS), in model order; `unknown` names the layers whose
    heads cannot be told apart, and why."""

    by_kind: Mapping[str, tuple[Projection, ...]]
    offset: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def every(self) -> tuple[Projection, ...]:
        """The rows of all kinds."""
        return tuple(p for rows in self.by_kind.values() for p in rows)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why some rows cannot be made, one sentence per reason."""
        return _by_reason((_attention_of(p), p.problem) for p in self.every if p.problem)

    def named(self, pattern: str | None) -> HeadRows:
        """The rows that a filter matches, by their address or that of a projection that they are made from."""
        if pattern is None:
            return self
        found = {
            kind: tuple(p for p in rows if any(matches(q.address, pattern) for q in (p, *p.parents)))
            for kind, rows in self.by_kind.items()
        }
        return replace(self, by_kind={kind: rows for kind, rows in found.items() if rows})


def head_rows(model: Model, offset: int = 0) -> HeadRows:
    """The heads of a model whose weights are at hand, in the state that is shown: unmodified, weighted or in the fixed
    gauge.

    In the fixed gauge there are no rows of values: any invertible matrix may stand between value and output, so only
    their product is meaningful. `offset`: how many tokens a query comes after its key.

    Raises:
        InputError: for no attention is it known how RoPE turns queries at this offset.
    """
    checkpoint = model.checkpoint
    assert checkpoint is not None
    shown = [p for p in (*model.tree.projections, *model.multiplied) if p.derived is None or is_state(p)]
    kinds = _kinds_in(next((p.derived.gauge for p in shown if p.derived and p.derived.gauge), RAW))
    states = {p.address: p for p in shown}
    found, unknown = attentions(checkpoint, [p.parents[0] if is_state(p) else p for p in shown])
    both = [_turned(checkpoint, a, offset) for a in found]
    by_kind = {
        kind: rows
        for kind in kinds
        if (rows := tuple(p for a, turned in both for p in heads_of(a, kind, states, turned)))
    }
    if offset and all(p.problem for p in by_kind.get(QK, ())):
        _check_turned(found, [a for a, _ in both], offset)
    return HeadRows(by_kind, offset, _by_reason(unknown.items()))


def _check_turned(found: Sequence[Attention], turned: Sequence[Attention], offset: int) -> None:
    """Raise InputError with the reason if turning queries by this offset has left an attention without QK."""
    for before, after in zip(found, turned, strict=True):
        if after.no_qk != before.no_qk:
            raise InputError(f"--offset {offset}: {after.no_qk}")


def _kinds_in(gauge: str) -> list[str]:
    """The kinds of rows that exist in a gauge."""
    return [kind for kind in KINDS if kind != VALUE or gauge == RAW]


def _turned(checkpoint: Checkpoint, a: Attention, offset: int) -> tuple[Attention, Turned | None]:
    """An attention with how its queries are turned. That is None without an offset; for latent attention, whose rotated
    rows are left out; if the keys come from another sequence; and if it is unknown, which then becomes the reason for
    having no QK."""
    if not offset or a.is_latent or a.no_qk or a.key.block != "attention":
        return a, None
    from rankscope.engine.catalogue.frequencies import rope_at

    try:
        rope, frequencies = rope_at(checkpoint, a.key, a.dim)
    except WeightsError as error:
        return replace(a, no_qk=f"{a.address}: {str(error).removeprefix(f'{a.key.address}: ')}"), None
    return a, Turned(offset, rope, frequencies)


def stored_rows(session: Session, offset: int = 0) -> HeadRows:
    """The heads of a model whose weights are not at hand: those stored in the state that is shown."""
    rows = stored_heads(session.store.stored(), session.weighting, session.gauge)
    found = {p.address: p for p in rows if offset_of(p) in (None, offset)}
    by_kind: dict[str, list[Projection]] = {}
    for p in sorted(found.values(), key=lambda p: (*model_order(p)[:4], _number(p))):
        by_kind.setdefault(p.role, []).append(p)
    kinds = _kinds_in(session.gauge or RAW)
    return HeadRows({kind: tuple(by_kind[kind]) for kind in kinds if kind in by_kind}, offset)


def rows_of_session(session: Session, offset: int = 0) -> HeadRows:
    """The heads of an open model in the state that is shown.

    Raises:
        InputError: see head_rows.
    """
    if session.model.parts:
        return HeadRows({}, offset, ("a series has no single heads: open one of its models alone",))
    if session.model.against:
        return HeadRows({}, offset, ("single heads are shown for one model: d leaves the delta",))
    return stored_rows(session, offset) if session.model.checkpoint is None else head_rows(session.model, offset)


def in_state(model: Model, root: Path, under: Weighting | None, gauge: str = RAW) -> Model:
    """A model reduced to its attention, under a weighting and in a gauge. Reads what these need.

    Raises:
        InputError: see chosen_weighting.weighed and gauged_model.fixed.
    """
    wanted = [p for p in model.tree.projections if p.block in _BLOCKS and p.rows]
    if not wanted:
        raise InputError(f"{printable(model.name)} has no attention, and so no heads")
    if gauge == FIXED:
        return fixed(model, root, under, wanted)
    alone = replace(model, tree=replace(model.tree, projections=tuple(wanted)))
    return alone if under is None else weighed(alone, under)


def head_grid(rows: Iterable[Projection]) -> Grid:
    """Layers x heads of the rows of one kind."""
    cells: dict[tuple[Row, Column], tuple[Projection, ...]] = {}
    for p in rows:
        assert p.layer is not None
        cells[Row(p.tower or "", p.layer), Column(p.block, str(_number(p)))] = (p,)
    columns = sorted(dict.fromkeys(column for _, column in cells), key=lambda c: (_BLOCKS.index(c.block), int(c.role)))
    return Grid(tuple(dict.fromkeys(row for row, _ in cells)), tuple(columns), cells)


def compares_with_noise(lens: Lens, kind: str) -> bool:
    """Whether these rows can be compared with noise of their shape: not if they are products, because noise is not a
    product, nor under a weighting, because heads have no weighted noise."""
    return kind not in (QK, OV, GROUP_OV) and not lens.pair.shown_as


def lens_for(lens: Lens, kind: str) -> Lens:
    """A lens with a number that is meaningful for rows of this kind. k replaces numbers at ranks wanted for whole
    projections, and comparisons with noise or factors of the same shape if the rows are products or weighted; k is then
    shaded by its share."""
    is_plain = compares_with_noise(lens, kind)
    name = lens.measure.name
    if is_plain and name != "k/kf" and not lens.measure.needs_ranks:
        return lens
    if name != "k" and name not in OF_SHAPES and not lens.measure.needs_ranks:
        return lens
    return replace(lens, measure=BY_NAME["k"] if is_plain else replace(BY_NAME["k"], shaded_by="percent"))


def label_of(rows: Sequence[Projection]) -> str:
    """The text for titles about the rows of one kind: `QK, offset 0, RoPE not applied`."""
    return "; ".join(dict.fromkeys(p.derived.label for p in rows if p.derived is not None))


def _by_reason(sentences: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Unite sentences about attentions that begin with their address and then give the same reason: `layers.0.attention
    and 29 more: ...`."""
    found: dict[str, list[str]] = {}
    for address, sentence in dict.fromkeys(sentences):
        found.setdefault(sentence.removeprefix(f"{address}: "), []).append(address)
    more = {reason: f" and {len(at) - 1} more" if len(at) > 1 else "" for reason, at in found.items()}
    return tuple(f"{at[0]}{more[reason]}: {reason}" for reason, at in found.items())


def _attention_of(p: Projection) -> str:
    found = head_of(p)
    assert found is not None
    return found.attention


def _number(p: Projection) -> int:
    found = head_of(p)
    assert found is not None
    return found.number

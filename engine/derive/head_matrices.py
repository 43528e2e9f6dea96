"""Projections for single heads of an attention: rows of query, key and value, and the products QK and OV.

A head's query, key and value are some rows of the projections. QK = W_q^T W_k gives its scores, OV = W_o W_v what it
writes; the rank of both is at most the head's dimension. Imports neither torch nor numpy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..catalogue.attention import Attention
from ..catalogue.rope import Rope
from ..spectrum import Derived, Operand, Projection
from .derived import derive
from .gauge import AS_IT_IS, CENTRED, IN_FIXED
from .latent import PRODUCT
from .weighting import REFUSED, WEIGHED

HEAD = "head_"
"""The beginning of the names of the formulas. ROWS, QK or OV follows; for projections in another state `_` and the
formula of that state come last."""
ROWS, QK, OV = "rows", "qk", "ov"
QUERY, KEY, VALUE, GROUP_OV = "query", "key", "value", "kv_ov"
KINDS = (QUERY, KEY, VALUE, QK, OV, GROUP_OV)
"""The kinds of matrices of a head: rows of the projections; QK and OV by query head; the OVs that share a KV head."""
NAMES = {QUERY: "query", KEY: "key", VALUE: "value", QK: "QK", OV: "OV", GROUP_OV: "OV by KV head"}
BY_KV_HEAD = (KEY, VALUE, GROUP_OV)
_VERSION = 1
_ADDRESS = re.compile(r"(.+)\.(head|kv_head)\.(\d+)\.(\w+)$")
_OFFSET = re.compile(r"offset (\d+), RoPE")


@dataclass(frozen=True, slots=True)
class Head:
    """The head that a row belongs to: the address of its attention, its number, and the row's kind (see KINDS)."""

    attention: str
    number: int
    kind: str


def head_of(projection: Projection) -> Head | None:
    """The head that a row belongs to, read from its address; None if it belongs to no head."""
    found = _ADDRESS.match(projection.address)
    made = projection.derived
    if (
        found is None
        or made is None
        or not made.is_further
        or not (made.formula.startswith(HEAD) or projection.problem)
    ):
        return None
    kind = GROUP_OV if (found[2], found[4]) == ("kv_head", OV) else found[4]
    return Head(found[1], int(found[3]), kind)


def is_kv_ov(projection: Projection) -> bool:
    """Return whether it is the OV of the heads that share a KV head, shown in the fixed gauge for value and output."""
    made = projection.derived
    return made is not None and made.formula.startswith(HEAD + OV) and projection.role == GROUP_OV


def is_as_it_is(projection: Projection) -> bool:
    """Return whether a head's row is made of projections as stored: no weighting, and nothing folded."""
    return projection.derived is not None and projection.derived.formula in [HEAD + kind for kind in (ROWS, QK, OV)]


def is_like_noise(projection: Projection) -> bool:
    """Return whether a row can be compared with iid noise of its shape.

    Products (of heads, or of latent attention's factors) cannot, as iid noise is no product; nor can heads under a
    weighting or in a gauge. All else can, including rows that belong to no head.
    """
    made = projection.derived
    if made is None or not made.formula.startswith((HEAD, PRODUCT)):
        return True
    return made.formula == HEAD + ROWS


def offset_of(projection: Projection) -> int | None:
    """The distance of the two tokens for which a QK is made; None if the row is no QK with RoPE."""
    found = _OFFSET.search(projection.derived.label if projection.derived is not None else "")
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Turned:
    """A query `offset` tokens behind its key: `rope` tells how rows are paired, `frequencies` are radians a token."""

    offset: int
    rope: Rope
    frequencies: tuple[float, ...]


def heads_of(
    attention: Attention, kind: str, states: Mapping[str, Projection] | None = None, turned: Turned | None = None
) -> list[Projection]:
    """The rows of one kind, in the order of the heads.

    `states` maps addresses to projections under a weighting or in the fixed gauge, from which the heads are made; None
    for projections as stored. Without `turned`, query and key belong to one token, where RoPE changes nothing. If a row
    cannot be made, its `problem` says why.
    """
    shown = states or {}
    count = attention.kv_count if kind in BY_KV_HEAD else attention.count
    return [_row(attention, kind, number, shown, turned) for number in range(count)]


@dataclass(frozen=True, slots=True)
class _RowRecipe:
    """What a row is made of: its shape, its parents, numbers for the formula, and the parents' states (`shown`)."""

    formula: str
    shape: tuple[int, int]
    parents: tuple[Projection, ...]
    numbers: tuple[int, ...]
    shown: tuple[Projection, ...]
    refused: str = ""


def _row(a: Attention, kind: str, number: int, states: Mapping[str, Projection], turned: Turned | None) -> Projection:
    turns = turned is not None and turned.offset > 0 and turned.rope.dims > 0 and not a.is_latent
    plan = _plan(a, kind, number, states, turns)
    by = "kv_head" if kind in BY_KV_HEAD else "head"
    what = OV if kind == GROUP_OV else kind
    rows, cols = plan.shape
    address = f"{a.address}.{by}.{number}.{what}"
    beside = replace(
        plan.parents[0], address=address, tensor="", slice=None, role=kind, rows=rows, cols=cols, note="", problem=None
    )
    operands = [_operand(plan.numbers)]
    if kind == QK and turned is not None and turns:
        angles = (turned.offset * f for f in turned.frequencies)
        operands.append(_operand((turned.rope.dims, turned.rope.is_interleaved, *angles)))
    label = NAMES[kind] + (_positions_label(a, turned) if kind == QK else "")
    return _made(beside, plan, tuple(operands), label)


def _plan(a: Attention, kind: str, number: int, states: Mapping[str, Projection], is_turned: bool) -> _RowRecipe:
    def shown(p: Projection) -> Projection:
        return states.get(p.address, p)

    if kind in (QUERY, KEY, VALUE):
        parent, dim = {QUERY: (a.query, a.query_dim), KEY: (a.key, a.dim), VALUE: (a.value, a.value_dim)}[kind]
        return _RowRecipe(ROWS, (dim, parent.cols), (parent,), (number * dim, dim), (shown(parent),))
    if kind == QK:
        # In latent attention, the rows of a query head after the first `dim` are multiplied with the rotated key.
        numbers = (number * a.query_dim, number // a.group * a.dim, a.dim, int(is_turned))
        shape = min(a.dim, a.query.cols), min(a.dim, a.key.cols)
        return _RowRecipe(QK, shape, (a.query, a.key), numbers, (shown(a.query), shown(a.key)), a.no_qk)
    heads = a.group if kind == GROUP_OV else 1
    first = number * heads
    numbers = (first // a.group * a.value_dim, first * a.value_dim, a.value_dim, heads)
    shape = min(a.value_dim, heads * a.output.rows), min(a.value_dim, a.value.cols)
    return _RowRecipe(OV, shape, (a.value, a.output), numbers, (shown(a.value),), a.no_ov)


def _positions_label(a: Attention, turned: Turned | None) -> str:
    if a.key.block == "cross_attention":
        return ", queries and keys of two streams"
    if a.is_latent:
        return ", without the rotated rows"
    if turned is None or not turned.offset:
        return ", offset 0, RoPE not applied"
    return f", offset {turned.offset}, RoPE {'applied' if turned.rope.dims else 'is none here'}"


def _made(beside: Projection, plan: _RowRecipe, operands: tuple[Operand, ...], label: str) -> Projection:
    first = plan.shown[0].derived
    weighting, gauge = (first.weighting, first.gauge) if first is not None else ("", "")
    label = f"{label} under {first.label}" if first is not None and weighting else label
    label = f"{label}{IN_FIXED}" if gauge else label
    formulas = {p.derived.formula if p.derived is not None else AS_IT_IS for p in plan.shown}
    problem = plan.refused or next((p.problem for p in plan.shown if p.problem), "")
    if not problem and len(formulas) > 1:
        problem = f"{beside.address}: queries and keys have moments of different kinds"
    if problem:
        made = Derived(REFUSED, _VERSION, label, True, plan.parents, operands, weighting, gauge)
        return replace(derive(beside, made), problem=problem)
    (state,) = formulas
    formula = HEAD + plan.formula
    if state != AS_IT_IS:
        assert state.startswith(WEIGHED) or state == CENTRED
        formula = f"{formula}_{state}"
        operands += tuple(o for p in plan.shown if p.derived is not None for o in p.derived.operands)
    return derive(beside, Derived(formula, _VERSION, label, True, plan.parents, operands, weighting, gauge))


def _operand(numbers: tuple[float, ...]) -> Operand:
    from ..moment import travelling  # numpy

    return travelling(numbers)

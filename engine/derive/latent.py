"""Latent attention (MLA) made of a layer's keys and values: the projection whose rank is the kv_lora_rank.

With rank k, the cache keeps k numbers of each token, from which keys and values are expanded. Keys are rotated by
position: either all of them once they are expanded, or some of their rows keep RoPE and are cached in addition to the k
numbers. Imports neither torch nor numpy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..catalogue.caches import Cache, Heads
from ..errors import InputError, WeightsError, printable
from ..spectrum import Derived, Operand, Projection, Values
from .derived import derive
from .weighting import REFUSED, WEIGHED

if TYPE_CHECKING:
    from ..moment import Moment, Weighting

GainOf: TypeAlias = Callable[[Projection], Operand]
LATENT, PRODUCT = "latent_", "product_"
"""The beginnings of the names of the formulas. LATENT is followed by Way.stem, PRODUCT by the role of the product; for
a matrix under a weighting `_`, WEIGHED and the form of the moment come last."""
RECOMPUTE, DECOUPLED, PER_HEAD = "recompute", "decoupled", "per-head"
CHOICES = ("norm", "high", "low", "uniform")
BALANCES = ("whole", "own", "none")
KEY_VALUE, QUERY_PRODUCT = "key_value", "query_product"
PRODUCTS = {KEY_VALUE: f"{PRODUCT}key_value", QUERY_PRODUCT: f"{PRODUCT}query"}
"""The formulas for products of latent attention's factors, by role."""
_VERSION = 1
_ROPE = re.compile(rf"({DECOUPLED}|{PER_HEAD}):(\d{{1,9}})(?::(\w+))?")
_NORMS = re.compile(r"\|K\| (\S+), rest (\S+), \|V\| (\S+)$")


@dataclass(frozen=True, slots=True)
class Way:
    """How a layer would be made latent.

    `rope`: with RECOMPUTE no rows of the key keep RoPE. With DECOUPLED `dims` rows do, as one key that all heads share,
    made by a rotation over the KV heads that is complex, or real if `is_real`. With PER_HEAD `dims` rows of each head
    do, by `choice`: the pairs of largest norm, of the highest or lowest frequencies, or evenly spread over these.
    `balance`: keys and values are divided by their norms before they are stacked: `whole` takes the norm of all keys,
    `own` that of the keys without RoPE, `none` does not divide. `bias`: the biases are one more column, for an input
    feature that is always 1.
    """

    rope: str = RECOMPUTE
    dims: int = 0
    choice: str = ""
    is_real: bool = False
    balance: str = "whole"
    bias: bool = False

    @property
    def text(self) -> str:
        """The options as a user writes them: `decoupled:64 --real`, `per-head:16:high`, `recompute --balance own`."""
        parts = [self.rope, *([str(self.dims)] if self.dims else []), *([self.choice] if self.choice else [])]
        options = " --real" * self.is_real + (f" --balance {self.balance}" if self.balance != "whole" else "")
        options += " --bias append" * self.bias
        return ":".join(parts) + options

    @property
    def stem(self) -> str:
        """The part of the formula's name that tells ways apart, without `dims`."""
        return "_".join(filter(None, (self.rope, self.choice, "real" * self.is_real, self.balance, "bias" * self.bias)))


def ways() -> list[Way]:
    """All ways with different stems, with `dims` 0."""
    ropes = [(RECOMPUTE, "", False), (DECOUPLED, "", False), (DECOUPLED, "", True)]
    ropes += [(PER_HEAD, choice, False) for choice in CHOICES]
    plain = [Way(rope, 0, choice, real, balance) for rope, choice, real in ropes for balance in BALANCES]
    return [replace(each, bias=bias) for each in plain for bias in (False, True)]


def way(text: str, is_real: bool = False, balance: str = "whole", bias: bool = False) -> Way:
    """Read --rope as a user writes it: `recompute`, `decoupled:64`, `per-head:16`, `per-head:16:high`.

    Raises:
        InputError: it has another form, an odd number of rows, or --real without `decoupled`.
    """
    if text == RECOMPUTE:
        if is_real:
            raise InputError(f"--real goes with --rope {DECOUPLED}:D: only there are heads rotated")
        return Way(balance=balance, bias=bias)
    found = _ROPE.fullmatch(text)
    if found is None or (found[3] and (found[1] == DECOUPLED or found[3] not in CHOICES)):
        names = f"{RECOMPUTE}, {DECOUPLED}:D or {PER_HEAD}:D[:{'|'.join(CHOICES)}]"
        raise InputError(f"--rope must be {names}, not {printable(text)}")
    dims = int(found[2])
    if dims < 2 or dims % 2:
        raise InputError(f"--rope {printable(text)}: RoPE turns pairs of rows: name an even number above 0")
    if is_real and found[1] != DECOUPLED:
        raise InputError(f"--real goes with --rope {DECOUPLED}:D: only there are heads rotated")
    choice = (found[3] or CHOICES[0]) if found[1] == PER_HEAD else ""
    return Way(found[1], dims, choice, is_real, balance, bias)


def latent_of(
    cache: Cache,
    chosen: Way,
    heads: Heads | None,
    under: Weighting | None = None,
    biases: tuple[Operand, ...] = (),
) -> Projection:
    """The further row whose spectrum gives the kv_lora_rank that a layer with keys and values would need.

    `heads` describes the heads of the key and is needed if some rows keep RoPE; in a layer without RoPE none do.
    `biases` are those of key and value if they are one more column; `under` then belongs to inputs with a last feature
    that is always 1. If `under` has no moment for key or value, or different ones, the row's `problem` says so.

    Raises:
        InputError: RoPE rotates fewer rows than are to keep it.
    """
    key, value = cache.roles["key"], cache.roles["value"]
    kept = 0 if heads is None else _kept(cache, chosen, heads)
    beside = replace(
        key,
        address=f"{cache.address}.{KEY_VALUE}",
        tensor="",
        slice=None,
        role=KEY_VALUE,
        rows=key.rows + value.rows - kept,
        cols=key.cols + bool(biases),
        note="",
    )
    layout: tuple[Operand, ...] = ()
    if kept and heads is not None:
        from ..moment import travelling  # numpy

        layout = (travelling(_numbers(heads, chosen.dims)),)
    elif chosen.rope != RECOMPUTE:
        chosen = Way(balance=chosen.balance, bias=chosen.bias)  # nothing is rotated, and nothing has to keep RoPE
    label = f"[K; V] {chosen.text}"
    return _made(beside, f"{LATENT}{chosen.stem}", label, (key, value), (*layout, *biases), under)


def products_of(cache: Cache, gain: GainOf, under: Weighting | None = None) -> tuple[Projection, ...]:
    """The products of a latent attention's factors as further rows: kv_b diag(gain) kv_a for KEY_VALUE and, if queries
    have factors too, q_b diag(gain) q_a for QUERY_PRODUCT. `gain` returns the gain of the norm before a second factor,
    see Gains.before.

    Under a weighting they are the second factors under the moments of the latent after that norm. The shape of each row
    is that of a smaller matrix with the same singular values: no side is larger than the latent. If the gain or the
    moments are not known, the row's `problem` says so.
    """
    found = [_product(cache, KEY_VALUE, gain, under)]
    if {"query_a", "query_b"} <= cache.roles.keys():
        found.append(_product(cache, QUERY_PRODUCT, gain, under))
    return tuple(found)


def _product(cache: Cache, role: str, gain: GainOf, under: Weighting | None) -> Projection:
    is_query = role == QUERY_PRODUCT
    second = tuple(cache.roles[name] for name in (("query_b",) if is_query else ("key_b", "value_b")))
    first = cache.roles["query_a" if is_query else "kv_a"]
    rows, width = sum(p.rows for p in second), second[0].cols
    beside = replace(second[0], address=f"{cache.address}.{role}", tensor="", slice=None, role=role, note="")
    name, formula = "q" if is_query else "kv", PRODUCTS[role]
    if under is not None:
        return _made(replace(beside, rows=rows), formula, f"{name}_b behind its norm", second, (), under)
    beside = replace(beside, rows=min(rows, width), cols=min(width, first.cols))
    label = f"{name}_b diag(gain) {name}_a, {rows} x {first.cols}"
    try:
        numbers = gain(second[0])
    except WeightsError as error:
        return _refused(beside, Derived(REFUSED, _VERSION, label, True, (*second, first)), error)
    return _made(beside, formula, label, (*second, first), (numbers,), None)


class KeyValueNorms(NamedTuple):
    """The norms of a layer's keys, of the `rest` of the keys that does not keep RoPE, and of the values."""

    keys: float
    rest: float
    values: float


def norms_of(label: str) -> KeyValueNorms | None:
    """The norms, under the weighting, in the label of a stored row of latent_of; None for any other row."""
    found = _NORMS.search(label)
    return KeyValueNorms(float(found[1]), float(found[2]), float(found[3])) if found else None


def norms_note(keys: float, rest: float, values: float) -> str:
    """The norms as text at the end of a label, from which norms_of reads them."""
    return f"|K| {keys!r}, rest {rest!r}, |V| {values!r}"


def is_latent(projection: Projection) -> bool:
    """Return whether it is a row of latent_of."""
    return projection.derived is not None and projection.derived.formula.startswith(LATENT)


def _kept(cache: Cache, chosen: Way, heads: Heads) -> int:
    """The number of rows of the key that keep RoPE.

    Raises:
        InputError: RoPE rotates fewer rows.
    """
    each, count = heads.rope.dims, heads.count
    if not each:
        return 0
    most = each if chosen.rope == PER_HEAD else each * count
    if chosen.dims > most:
        raise InputError(
            f"{cache.address}: {most} rows are rotated, fewer than --rope {chosen.text} keeps: name at most {most}"
        )
    return chosen.dims * (count if chosen.rope == PER_HEAD else 1)


def _numbers(heads: Heads, dims: int) -> Values:
    import numpy as np

    rope = heads.rope
    return np.array([heads.count, heads.head_dim, rope.dims, rope.is_interleaved, dims], np.float64)


def _made(
    beside: Projection,
    formula: str,
    label: str,
    parents: tuple[Projection, ...],
    operands: tuple[Operand, ...],
    under: Weighting | None,
) -> Projection:
    if under is None:
        return derive(beside, Derived(formula, _VERSION, label, True, parents, operands))
    try:
        moment = shared_moment(parents, beside.cols, under)
    except WeightsError as error:
        return _refused(beside, Derived(REFUSED, _VERSION, label, True, parents, operands, under.name), error)
    formula, label = f"{formula}_{WEIGHED}{moment.form}", f"{label} under {under.label}"
    made = Derived(formula, _VERSION, label, True, parents, (*operands, *moment.operands), under.name)
    return derive(beside, made)


def _refused(beside: Projection, made: Derived, error: WeightsError) -> Projection:
    refused = derive(beside, made)
    return replace(refused, problem=refused.problem or str(error))


def shared_moment(parents: Sequence[Projection], cols: int, under: Weighting) -> Moment:
    """The second moment of the input that several projections share, which has `cols` features.

    Raises:
        WeightsError: it is not known, or differs between them.
    """
    found = [under.moment(p) for p in parents]
    for p, moment in zip(parents, found, strict=True):
        if moment.cols != cols:
            raise WeightsError(f"the second moments have {moment.cols} inputs, {p.address} has {cols}")
        if moment.digest != found[0].digest:
            raise WeightsError(f"{parents[0].address} and {p.address} have different second moments of their input")
    return found[0]

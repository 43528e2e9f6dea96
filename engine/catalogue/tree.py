"""Checkpoint + catalogue -> the projections in model order, where every tensor appears."""

from __future__ import annotations

import gc
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

from ..errors import printable
from ..formats.format import Format
from ..formats.tensor import Tensor
from ..spectrum import FACTORS, FACTORS_ALPHA, Derived, Operand, Projection, Slice, derive, framed
from ..weights import TORCH_NAMES, why_no_weights
from .factored import Factored, FactorPair, factored
from .names import locate, numbered
from .places import placed
from .roles import CheckpointLayers, FoundProjection
from .rules import BLOCKS, KNOWN_FAMILIES, NOT_PROJECTIONS, ROLES, cut_shape
from .whole_factors import with_notes

_WORDS = re.compile(r"[0-9]+|[^0-9]+")
_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_SAFE = re.compile(r"[A-Za-z0-9_.+-]*")
_PACKED = re.compile(r"weight|packed|blocks|zeros|scales")
_BLOCK_ORDER = {block: number for number, block in enumerate(BLOCKS)}
_ROLE_ORDER = {role: number for number, role in enumerate(ROLES)}


class ListedCheckpoint(Protocol):
    """The input of a tree: the names and shapes of a Checkpoint's tensors, and its config.json."""

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json, {} if there is none."""
        ...

    @property
    def adapter(self) -> Mapping[str, Any]:
        """The configuration of an adapter, {} if it is none."""
        ...

    @property
    def format(self) -> Format:
        """The format of its files."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors in the order of the files."""
        ...


@dataclass(frozen=True, slots=True)
class Tree:
    """Every tensor of a checkpoint as projections, in model order, then block `other`.

    `known` is False if layers hold matrices that no rule of the catalogue names: a scan then computes every
    matrix in the layers, under its tensor's name if it has no role; or, if no matrix is in a layer, all matrices.
    `by_shape` names the fused tensors of a model of unknown type that were split as the output matrix and the heads
    prove. `lines` are what a user should know about matrices that are stored as factors.
    """

    projections: tuple[Projection, ...]
    known: bool
    by_shape: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    def scanned(self, pattern: str | None = None) -> list[Projection]:
        """The matrices that a scan computes: the projections, or whatever the address filter names.

        `pattern` is an address, a glob on addresses, or dotted parts of one (`layers.3`, `key`).
        """
        if pattern:
            exact = [p for p in self.projections if p.rows and p.address == pattern]
            return exact or [p for p in self.projections if p.rows and is_named(p, pattern)]
        inside = any(_is_readable_matrix(p) and p.layer is not None for p in self.projections)
        factors = {q.key for p in self.projections if p.is_product for q in p.parents}
        return [
            p
            for p in self.projections
            if p.rows and (p.block != "other" or p.key in factors or p.is_product or self._is_taken(p, inside))
        ]

    def left_out(self) -> list[Projection]:
        """The matrices that an unfiltered scan does not compute, without tables of integers."""
        taken = {p.address for p in self.scanned()}
        return [p for p in self.projections if _is_readable_matrix(p) and p.address not in taken]

    def _is_taken(self, p: Projection, inside: bool) -> bool:
        """True if a scan computes a matrix without a role; `inside`: some matrices are in layers."""
        # A fused tensor that could not be split still belongs to a scan, as a whole.
        if p.note:
            return True
        # In an unknown family any matrix of a layer may be a projection; embeddings and heads are not.
        return not self.known and _is_readable_matrix(p) and (p.layer is not None or not inside)


def _is_readable_matrix(p: Projection) -> bool:
    return p.rows > 0 and p.problem is None


def kinds_of(projections: Iterable[Projection], limit: int = 4) -> str:
    """The kinds of these matrices in a few words, the most frequent first: `mlp.gate, lm_head`, or `r_layers, ...`."""
    found = Counter(_kind(p) for p in projections)
    words = [word for word, _ in found.most_common(limit)]
    return ", ".join(words + ["..."] * (len(found) > limit))


def _kind(p: Projection) -> str:
    """The kind of a matrix: its path in a layer, else the list that holds it (`r_layers`), else its last word."""
    place = locate(p.tensor)
    if place and p.layer is not None:
        return printable(_NUMBER.sub("", place.path))
    lists = numbered(p.tensor)
    name = _NUMBER.sub("", p.tensor.removesuffix(".weight")).removesuffix(".layers")  # a step of a head by the head
    return printable(f"{lists[0].rpartition('.')[2]} ..." if lists else name.rpartition(".")[2] or name)


def matches(address: str, pattern: str) -> bool:
    """True if a filter names an address: as a glob on all of it, or as some of its dotted parts in a row."""
    if any(c in pattern for c in "*?["):
        return fnmatchcase(address, pattern)
    return f".{pattern}." in f".{address}."


def is_named(projection: Projection, pattern: str) -> bool:
    """True if a filter names a projection, as in `matches`. A row that replaces several in a gauge is also named by
    each of them."""
    made = projection.derived
    replaced = made.parents if made is not None and made.is_further and made.gauge else ()
    return any(matches(p.address, pattern) for p in (projection, *replaced))


def build_tree(checkpoint: ListedCheckpoint) -> Tree:
    """All projections of a checkpoint, from names and shapes only.

    The garbage collector is paused: it would walk the growing tree again and again, a third of the time for 91,000
    tensors.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _build(checkpoint)
    finally:
        if collecting:
            gc.enable()


def _build(checkpoint: ListedCheckpoint) -> Tree:
    kind = checkpoint.format
    factors = factored(checkpoint.tensors, checkpoint.adapter, is_gguf=kind.stands_alone)
    layers = CheckpointLayers(checkpoint.config, factors.tensors)
    found = layers.found() if not factors.pairs and not factors.originals else placed(layers, factors)
    named = with_notes(
        sorted(_with_unique_addresses([f for f in found if f.block != "other"], kind), key=model_order),
        checkpoint.config,
    )
    held = {p.tensor for p in named}
    others = [f if f.block == "other" else f.as_other() for f in found if f.tensor.name not in held]
    rest = sorted(_others_by_address(others, kind).values(), key=model_order)
    known = bool(named) and _is_known(checkpoint, layers, others)
    every = _with_products((*named, *rest), factors) if factors.pairs else (*named, *rest)
    return Tree(every, known, tuple(layers.proven), tuple(factors.lines))


def _with_products(every: Sequence[Projection], factors: Factored) -> tuple[Projection, ...]:
    """The projections, with the products of factors instead of their stand-ins."""
    held = {(p.tensor, _plane(p)): p for p in every}
    return tuple(p if (pair := factors.pairs.get(p.tensor)) is None else _product(p, pair, held) for p in every)


def _plane(p: Projection) -> int | None:
    return None if p.slice is None else p.slice.index


def _product(p: Projection, pair: FactorPair, held: Mapping[tuple[str, int | None], Projection]) -> Projection:
    """The product of two factors, named and placed like its stand-in, which may be some of its outputs."""
    plane = _plane(p) if pair.planes else None
    if any((tensor.name, plane) not in held for tensor in (pair.a, *pair.blocks)):
        return replace(p, problem="its factors have the place of other tensors")
    blocks = [held[tensor.name, plane] for tensor in pair.blocks]
    rows = pair.shape[0]
    if p.slice is not None and p.slice.groups * p.slice.width != rows:
        rows, part = p.slice.groups * p.slice.width, replace(p.slice, axis=int(pair.is_turned))
        cut = replace(blocks[0], slice=part, rows=rows)
        blocks = [replace(cut, key=content_key(pair.blocks[0], part, cut.dequantisation))]
    parents = (*blocks, held[pair.a.name, plane])
    label, formula = f"B A, r {pair.inner}", FACTORS
    if pair.alpha is not None:
        label, formula = f"alpha / {1 / pair.scale:.4g} {label}", FACTORS_ALPHA
        number = held[pair.alpha.name, None]
        is_number = number.dtype in TORCH_NAMES  # it has no rows, so the tree counts it as no matrix
        parents = (*parents, replace(number, problem=None) if is_number else number)
    elif pair.scale != 1:
        label = f"{pair.scale:.4g} {label}"
    stand_in = replace(p, tensor="", slice=None, rows=rows, cols=pair.shape[1], dequantisation="")
    return derive(stand_in, Derived(formula, 1, label, True, parents, (Operand(repr(pair.scale)),)))


def _with_unique_addresses(found: Sequence[FoundProjection], kind: Format) -> list[Projection]:
    """Projections with unique addresses; those whose address stays ambiguous are left out."""
    groups: dict[str, list[FoundProjection]] = defaultdict(list)
    for item in found:
        groups[_address(item, "")].append(item)
    named: list[Projection] = []
    for address, items in groups.items():
        if len(items) == 1:
            named.append(_projection(items[0], address, kind))
            continue
        paths = [item.place.path.split(".") if item.place else [] for item in items]
        shared = set(paths[0]).intersection(*paths[1:])
        subs = ["_".join(word for word in path if word not in shared) for path in paths]
        plain = min(subs, key=len)
        if all(sub == plain or sub.endswith(f"_{plain}") for sub in subs):  # the mlp beside an audio_mlp
            subs = ["" if sub == plain else sub for sub in subs]
        counts = Counter(subs)
        named += [
            _projection(item, _address(item, sub), kind)
            for item, sub in zip(items, subs, strict=True)
            if counts[sub] == 1
        ]
    return named


def _others_by_address(others: Iterable[FoundProjection], kind: Format) -> dict[str, Projection]:
    """Tensors that are no projections, by address."""
    addresses = ((item, f"other.{escape(item.tensor.name)}") for item in others)
    return {address: _projection(item, address, kind) for item, address in addresses}


def _address(item: FoundProjection, sub: str) -> str:
    assert item.place is not None
    expert = "" if item.expert is None else str(item.expert)
    words = (_word(item.tower), "layers", str(item.place.layer), escape(sub), item.block, expert, _word(item.role))
    return ".".join(filter(None, words))


def _projection(item: FoundProjection, address: str, kind: Format) -> Projection:
    tensor, part = item.tensor, item.part
    rows, cols = cut_shape(tensor.shape, part)
    if item.transposed:
        rows, cols = cols, rows
    dequantisation = _dequantisation(tensor, kind)
    return Projection(
        address=address,
        tensor=tensor.name,
        slice=part,
        tower=_word(item.tower) or None,
        layer=item.place.layer if item.place else None,
        block=item.block,
        role=item.role,
        expert=item.expert,
        rows=rows,
        cols=cols,
        dtype=tensor.dtype,
        dequantisation=dequantisation,
        transposed=item.transposed,
        source=tensor.source,
        key=content_key(tensor, part, dequantisation),
        problem=_problem(tensor, rows, dequantisation),
        note=item.note,
    )


def _dequantisation(tensor: Tensor, kind: Format) -> str:
    return kind.dequantisation(tensor.dtype) if tensor.scheme is None else tensor.scheme.text


def content_key(tensor: Tensor, part: Slice | None = None, dequantisation: str = "") -> str:
    """The content key: digest(identity, begin, end, dtype, shape, slice, dequantisation) of the tensor.

    The strides of a view follow, and all parts of a quantised or joined matrix; other tensors have neither in the key.
    """
    pieces = [_framed(tensor.source.identity), framed(tensor.begin, tensor.end)]
    pieces.append(_framed(tensor.dtype, tensor.shape, part, dequantisation))
    if tensor.strides:
        pieces.append(_framed(tensor.strides))
    for name, held in tensor.parts:
        pieces.append(_framed(name, held.source.identity, held.dtype, held.shape))
        pieces.append(b"%d-%d;" % (held.begin, held.end))
        if held.strides:
            pieces.append(_framed(held.strides))
    return blake2b(b"".join(pieces), digest_size=16).hexdigest()


# A model of 91,000 tensors has a few dozen shapes: caching halves the time for its keys.
_framed = lru_cache(maxsize=4096)(framed)


def _problem(tensor: Tensor, rows: int, dequantisation: str) -> str | None:
    if tensor.problem:
        return tensor.problem
    if not rows:
        return f"not a matrix ({' x '.join(map(str, tensor.shape)) or 'scalar'})"
    if not dequantisation and tensor.dtype not in TORCH_NAMES:
        return why_no_weights(tensor.dtype, _PACKED.search(tensor.name) is not None)
    return None


def _is_known(checkpoint: ListedCheckpoint, layers: CheckpointLayers, others: Iterable[FoundProjection]) -> bool:
    """True if the catalogue names every projection: because of the family, or as every matrix of the layers has a
    rule."""
    # The types of its towers do not tell the type of a model: a new type may hold a tower without a separate config.
    by_family = not checkpoint.format.stands_alone and str(checkpoint.config.get("model_type")) in KNOWN_FAMILIES
    inside = [f.place for f in others if f.place and len(f.tensor.shape) == 2]
    return all(
        # GGUF's `proj` is no projection; elsewhere it is one of its block (SAM 2).
        (_is_no_projection(place.path) and (checkpoint.format.stands_alone or place.path != "proj"))
        or layers.is_router(place)
        or (by_family and layers.family(place.prefix) in KNOWN_FAMILIES)
        for place in inside
    )


@lru_cache(maxsize=4096)
def _is_no_projection(path: str) -> bool:
    return NOT_PROJECTIONS.search(path) is not None


def escape(name: str) -> str:
    """A tensor's name as part of an address, without characters of globs, spaces or control characters."""
    if _SAFE.fullmatch(name):  # true for nearly every name, and takes 0.3 us instead of 4
        return name
    return "".join(c if c.isprintable() and c not in "%*?[] \\/" else _percent(c) for c in name)


_word = lru_cache(maxsize=4096)(escape)  # towers and roles are few


def _percent(c: str) -> str:
    return "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogatepass"))


def model_order(p: Projection) -> tuple[Any, ...]:
    """Sort key: towers, layers and experts by number, blocks and roles as on screen; `other` last, by name."""
    if p.block == "other":
        return (True, _natural(p.tensor or p.address.removeprefix("other.")))
    role = _ROLE_ORDER.get(p.role, len(ROLES))
    return (False, p.tower or "", p.layer, _BLOCK_ORDER[p.block], -1 if p.expert is None else p.expert, role, p.address)


def _natural(name: str) -> list[Any]:
    """A name for sorting, with numbers by their value, unless they have more than 18 digits: those are no layers."""
    words = _WORDS.findall(name)
    return [(0, int(word), "") if word[0] in "0123456789" and len(word) < 19 else (1, 0, word) for word in words]

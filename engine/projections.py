"""Checkpoint + catalogue -> the projections, in model order, every tensor accounted for."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from .catalogue import BLOCKS, KNOWN_FAMILIES, NOT_PROJECTIONS, ROLES, Layout, Rule, find_rule, sizes, split
from .checkpoint import Checkpoint
from .errors import printable
from .formats import gguf, safetensors
from .formats.tensor import Tensor
from .spectrum import Projection, Slice, digest

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|resblocks|decoder_layer|blk)\.([0-9]{1,9})\.")
_EXPERT = re.compile(r"(?<=experts\.)(?:expert_)?([0-9]{1,9})\.")
_TOWERS = (("vision", re.compile("vision|visual|image")), ("audio", re.compile("audio|speech")))
_WORDS = re.compile(r"[0-9]+|[^0-9]+")
_PACKED = re.compile(r"weight|packed|blocks|zeros|scales")
_PLAIN_FLOATS = frozenset(safetensors.TORCH_NAMES) | gguf.PLAIN


class _Place(NamedTuple):
    """Where a tensor's name says it stands: `prefix` before the layer list, `path` inside the layer."""

    prefix: str
    layer: int
    expert: int | None
    path: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A projection before it has an address."""

    tensor: Tensor
    place: _Place | None
    tower: str
    block: str
    role: str
    part: Slice | None = None
    transposed: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """Every tensor of a checkpoint as projections, in model order, then block `other`.

    `known` is False where layers hold matrices that no rule of the catalogue names: a scan then
    computes every matrix, under its own name where it has no role.
    """

    projections: tuple[Projection, ...]
    known: bool

    def scanned(self, pattern: str | None = None) -> list[Projection]:
        """What a scan computes: the projections, or whatever the address filter names.

        `pattern` is an address, a glob on addresses, or dotted parts of one (`layers.3`, `key`).
        """
        if pattern:
            exact = [p for p in self.projections if p.rows and p.address == pattern]
            return exact or [p for p in self.projections if p.rows and matches(p.address, pattern)]
        # A note says that a fused tensor could not be split: whole, it still belongs to a scan.
        return [p for p in self.projections if p.rows and (p.block != "other" or p.note or self._stands_in(p))]

    def left_out(self) -> list[Projection]:
        """Matrices in layers that have no rule and that an unfiltered scan does not compute."""
        inside = [p for p in self.projections if p.block == "other" and p.layer is not None and p.rows]
        scanned = {p.address for p in self.scanned()}
        return [p for p in inside if p.address not in scanned and not NOT_PROJECTIONS.search(p.role)]

    def _stands_in(self, p: Projection) -> bool:
        """In an unknown family any matrix may be a projection; a table of integers is none."""
        return not self.known and p.problem is None


def matches(address: str, pattern: str) -> bool:
    """Whether a filter names an address: a glob on the whole of it, else some of its dotted parts in a row."""
    if any(c in pattern for c in "*?["):
        return fnmatchcase(address, pattern)
    return f".{pattern}." in f".{address}."


def build_tree(checkpoint: Checkpoint) -> Tree:
    """All projections of a checkpoint: names and shapes alone, no weights."""
    config = checkpoint.config
    places = [(tensor, _locate(tensor.name)) for tensor in checkpoint.tensors]
    towers = _towers(config, places)
    found: list[_Found] = []
    for tensor, place in places:
        rule = _rule(config, tensor, place)
        if place is None or rule is None:
            found.append(_other(tensor, place))
            continue
        try:
            found += _parts(tensor, place, _tower(towers, place, config), rule, sizes(_inner(config, place.prefix)))
        except ValueError as error:
            found.append(_other(tensor, place, str(error)))
    named = sorted(_addressed([f for f in found if f.block != "other"]), key=model_order)
    held = {p.tensor for p in named}
    others = [f if f.block == "other" else _other(f.tensor, f.place) for f in found if f.tensor.name not in held]
    rest = sorted({p.address: p for p in map(_projection_of_other, others)}.values(), key=model_order)
    scaled = _scaled(checkpoint.tensors)
    everything = tuple(
        replace(p, problem=f"{p.dtype} with scales: unsupported quantisation") if p.tensor in scaled else p
        for p in (*named, *rest)
    )
    return Tree(everything, bool(named) and _is_known(checkpoint, others))


def _scaled(tensors: Sequence[Tensor]) -> set[str]:
    """float8 weights that are nothing without the scale stored beside them."""
    names = {tensor.name for tensor in tensors}
    scales = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
    stems = ((t.name, t.name.removesuffix("weight")) for t in tensors if t.dtype.startswith("F8"))
    return {name for name, stem in stems if any(stem + scale in names for scale in scales)}


def _locate(name: str) -> _Place | None:
    bare = name.replace(".base_layer.", ".")
    anchor = _LAYER.search(bare)
    if anchor is None or not bare.endswith(".weight"):
        return None
    path = bare[anchor.end() : -len(".weight")]
    expert = _EXPERT.search(path)
    prefix = bare[: anchor.start()]
    return _Place(prefix, int(anchor[1]), int(expert[1]) if expert else None, _EXPERT.sub("", path))


def _inner(config: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """The part of a nested config that describes the tower a prefix belongs to."""
    tower = _modality(prefix)
    keys = (f"{tower}_config",) if tower else ("text_config", "llm_config", "language_config")
    for key in keys:
        if isinstance(config.get(key), Mapping):
            return {**config, **config[key]} if not tower else dict(config[key])
    return config


def _family(config: Mapping[str, Any], prefix: str) -> str:
    return str(_inner(config, prefix).get("model_type", ""))


def _modality(prefix: str) -> str:
    return next((name for name, pattern in _TOWERS if pattern.search(prefix)), "")


def _rule(config: Mapping[str, Any], tensor: Tensor, place: _Place | None) -> Rule | None:
    if place is None or len(tensor.shape) != 2 or 0 in tensor.shape:
        return None
    return find_rule(place.path, _family(config, place.prefix))


def _towers(config: Mapping[str, Any], places: Iterable[tuple[Tensor, _Place | None]]) -> dict[str, str]:
    """A label for every layer list that holds projections: "" for the only one, else what tells it apart."""
    prefixes = sorted({place.prefix for tensor, place in places if place and _rule(config, tensor, place)})
    labels: dict[str, str] = {}
    for modality in {_modality(p) for p in prefixes}:
        group = [p for p in prefixes if _modality(p) == modality]
        words = [p.split(".") if p else [] for p in group]
        shared = set(words[0]).intersection(*words[1:])
        for prefix, names in zip(group, words, strict=True):
            own = [w for w in names if w not in shared] if len(group) > 1 else []
            label = "_".join(filter(None, [modality, *own]))
            labels[prefix] = "other_tower" if label == "other" else label  # addresses in `other.` are tensors
    return labels


def _tower(towers: Mapping[str, str], place: _Place, config: Mapping[str, Any]) -> str:
    tower = towers[place.prefix]
    known = sizes(_inner(config, place.prefix))
    # Multi-token-prediction layers stand behind the last ordinary one (DeepSeek-V3, GLM-4.5). Of an encoder
    # and a decoder, config.json may count only one.
    return "mtp" if not tower and place.layer >= known.get("layers", place.layer + 1) else tower


def _parts(tensor: Tensor, place: _Place, tower: str, rule: Rule, known: Mapping[str, int]) -> list[_Found]:
    """The projections that a tensor holds.

    Raises:
        ValueError: it is fused, and config or shape do not allow the split.
    """
    block = _block(rule.block, place)
    if rule.layout is None:
        return [_Found(tensor, place, tower, block, rule.role, None, rule.transposed)]
    layout: Layout = rule.layout
    return [
        _Found(tensor, place, tower, block, role, part, rule.transposed)
        for role, part in split((tensor.shape[0], tensor.shape[1]), layout, known)
    ]


def _block(block: str, place: _Place) -> str:
    if block != "mlp":
        return block
    if place.expert is not None:
        return "expert"
    return "shared_expert" if re.search(r"shared_(?:experts?|mlp)\.", place.path) else "mlp"


def _addressed(found: Sequence[_Found]) -> list[Projection]:
    """Projections with unique addresses; one whose address stays shared with another's is left out."""
    groups: dict[str, list[_Found]] = defaultdict(list)
    for item in found:
        groups[_address(item, "")].append(item)
    named: list[Projection] = []
    for address, items in groups.items():
        if len(items) == 1:
            named.append(_projection(items[0], address))
            continue
        paths = [item.place.path.split(".") if item.place else [] for item in items]
        shared = set(paths[0]).intersection(*paths[1:])
        subs = ["_".join(word for word in path if word not in shared) for path in paths]
        counts = Counter(subs)
        named += [
            _projection(item, _address(item, sub))
            for item, sub in zip(items, subs, strict=True)
            if sub and counts[sub] == 1
        ]
    return named


def _address(item: _Found, sub: str) -> str:
    assert item.place is not None
    expert = "" if item.place.expert is None else str(item.place.expert)
    return ".".join(
        filter(None, [escape(item.tower), "layers", str(item.place.layer), escape(sub), item.block, expert, item.role])
    )


def _other(tensor: Tensor, place: _Place | None, note: str = "") -> _Found:
    """A tensor that is no projection: its role is its own name."""
    role = place.path if place and place.expert is None else tensor.name
    return _Found(tensor, place, "", "other", printable(role), note=note)


def _projection_of_other(item: _Found) -> Projection:
    return _projection(item, f"other.{escape(item.tensor.name)}")


def _projection(item: _Found, address: str) -> Projection:
    tensor, place, part = item.tensor, item.place, item.part
    rows, cols = tensor.shape if len(tensor.shape) == 2 and 0 not in tensor.shape else (0, 0)
    if part is not None:
        kept = part.groups * part.width
        rows, cols = (kept, cols) if part.axis == 0 else (rows, kept)
    if item.transposed:
        rows, cols = cols, rows
    dequantisation = f"gguf {tensor.dtype}" if tensor.file.suffix == ".gguf" and tensor.dtype not in gguf.PLAIN else ""
    return Projection(
        address=address,
        tensor=tensor.name,
        slice=part,
        tower=escape(item.tower) or None,
        layer=place.layer if place else None,
        block=item.block,
        role=item.role,
        expert=place.expert if place else None,
        rows=rows,
        cols=cols,
        dtype=tensor.dtype,
        dequantisation=dequantisation,
        transposed=item.transposed,
        source=tensor.source,
        key=_key(tensor, part, dequantisation),
        problem=_problem(tensor, rows, dequantisation),
        note=item.note,
    )


def _key(tensor: Tensor, part: Slice | None, dequantisation: str) -> str:
    view = (tensor.strides,) if tensor.strides else ()  # not for all: keys of what is stored already have none
    identity = tensor.source.identity
    return digest(identity, tensor.begin, tensor.end, tensor.dtype, tensor.shape, part, dequantisation, *view)


def _problem(tensor: Tensor, rows: int, dequantisation: str) -> str | None:
    if not rows:
        return f"not a matrix ({' x '.join(map(str, tensor.shape)) or 'scalar'})"
    if not dequantisation and tensor.dtype not in _PLAIN_FLOATS:
        if _PACKED.search(tensor.name):
            return f"{tensor.dtype} holds packed integers, not weights: unsupported quantisation"
        return f"{tensor.dtype} is no floating-point type"
    return None


def _is_known(checkpoint: Checkpoint, others: Iterable[_Found]) -> bool:
    """Whether the catalogue names every projection: of the family, or as it turns out every matrix of a layer."""
    is_gguf = any(tensor.file.suffix == ".gguf" for tensor in checkpoint.tensors[:1])
    if not is_gguf and _family(checkpoint.config, "") in KNOWN_FAMILIES:
        return True
    inside = [f.tensor.name for f in others if len(f.tensor.shape) == 2 and _LAYER.search(f.tensor.name)]
    return all(NOT_PROJECTIONS.search(name.removesuffix(".weight")) for name in inside)


def escape(name: str) -> str:
    """A tensor's name as part of an address: nothing in it can be a glob, a space or a control character."""
    return "".join(c if c.isprintable() and c not in "%*?[] \\/" else _percent(c) for c in name)


def _percent(c: str) -> str:
    return "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogatepass"))


def model_order(p: Projection) -> tuple[Any, ...]:
    """Sort key: towers, layers and experts by number, blocks and roles as on screen; `other` last, by name."""
    if p.block == "other":
        return (True, _natural(p.tensor))
    return (False, p.tower or "", p.layer, BLOCKS.index(p.block), p.expert or 0, ROLES.index(p.role), p.address)


def _natural(name: str) -> list[Any]:
    """Numbers in a name by their value; digits beyond 18 would be no layer, and cost more than they tell."""
    words = _WORDS.findall(name)
    return [(0, int(word), "") if word[0] in "0123456789" and len(word) < 19 else (1, 0, word) for word in words]

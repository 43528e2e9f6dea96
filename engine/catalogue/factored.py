"""Matrices that a checkpoint holds as two factors B A: adapters (LoRA), and checkpoints of low rank.

For each a tensor stands in under the name that the matrix has in its model, so that the catalogue says what it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ..errors import printable
from ..formats.tensor import Tensor
from .adapter_scale import WRAPPER, Scales
from .factor_names import APPLY, LORA, NESTED, OTHER, Named, may_be_factor, named
from .names import locate
from .rules import find_rules

_FactorGroup = tuple[str, str, str]
"""Kind, module, and name of the adapter."""
_NamedTensor = tuple[Named, Tensor]


@dataclass(frozen=True, slots=True)
class FactorPair:
    """The factors of a matrix of `shape` (outputs, inputs): the blocks of B in their order, and A, which share the size
    `inner`. The product is times `scale`, and times the number in `alpha` where there is such a tensor. `is_turned`:
    both factors are stored as (inputs, outputs); `stands_turned` that of the stand-in. Of a stack of experts all
    of this is said of each of its `planes`, 0 for one pair alone.
    """

    kind: str
    module: str
    blocks: tuple[Tensor, ...]
    a: Tensor
    shape: tuple[int, int]
    inner: int
    is_turned: bool
    planes: int = 0
    scale: float = 1.0
    alpha: Tensor | None = None
    stands_turned: bool = False


@dataclass(slots=True)
class Factored:
    """`tensors` are those of a checkpoint with the stand-ins, the factors of adapters under the names that PEFT would
    give them; `pairs` by the name of their stand-in, `originals` by such a name. `lines` are what a user should know.
    """

    tensors: list[Tensor]
    pairs: dict[str, FactorPair] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    turned: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)


def factored(tensors: Sequence[Tensor], adapter: Mapping[str, Any], *, is_gguf: bool) -> Factored:
    """What of these tensors are factors; `adapter` is adapter_config.json, {} where there is none. Names and shapes
    alone."""
    groups, beside = _groups(tensors, is_gguf)
    found = Factored(list(tensors))
    if not groups and not beside:
        return found
    scales = Scales(adapter)
    failed = _take_pairs(found, groups, beside, scales)
    _rename(found, groups)
    found.tensors += [_stand_in(name, pair) for name, pair in found.pairs.items()]
    found.lines += [*scales.lines, *_lines(failed, beside)]
    return found


def _take_pairs(
    found: Factored,
    groups: Mapping[_FactorGroup, Sequence[_NamedTensor]],
    beside: Mapping[str, Sequence[_NamedTensor]],
    scales: Scales,
) -> dict[str, list[str]]:
    """Take what has a product; by the reason which factors of adapters have none."""
    names = {tensor.name for tensor in found.tensors}
    adapters = Counter(module for kind, module, _ in groups if kind == LORA)
    failed: dict[str, list[str]] = defaultdict(list)
    for (kind, module, name), held in groups.items():
        pair = _pair(kind, module, held)
        if kind != LORA:
            if isinstance(pair, FactorPair) and _place_of(pair) not in names:
                found.pairs[_place_of(pair)] = pair
            continue
        if any(said.side in OTHER for said, _ in beside.get(module, ())):
            pair = "A and B of a module with a third factor, which are not multiplied"
        if isinstance(pair, str):
            failed[pair].append(held[0][1].name)
            continue
        stand_in = f"{module.removeprefix(WRAPPER)}.weight"
        if names & {stand_in, f"{module}.weight", f"{module}.base_layer.weight"} or adapters[module] > 1:
            stand_in = f"{module}.lora_BA{_suffix(name)}.weight"
        names.add(stand_in)
        found.pairs[stand_in] = _scaled(pair, scales, beside)
    return failed


def _suffix(adapter: str) -> str:
    return f".{adapter}" if adapter else ""


def _groups(
    tensors: Iterable[Tensor], is_gguf: bool
) -> tuple[dict[_FactorGroup, list[_NamedTensor]], dict[str, list[_NamedTensor]]]:
    """The factors by the matrix that they make, and by module what lies beside those of adapters."""
    groups: dict[_FactorGroup, list[_NamedTensor]] = defaultdict(list)
    beside: dict[str, list[_NamedTensor]] = defaultdict(list)
    held = list(tensors)
    for tensor in held:
        for said in named(tensor.name) if may_be_factor(tensor.name) else ():
            if said.side in ("A", "B") and not (is_gguf and said.kind != LORA):
                groups[said.kind, said.module, said.adapter].append((said, tensor))
            elif said.side in OTHER:
                beside[said.module].append((said, tensor))
    modules = {module for kind, module, _ in groups if kind == LORA}
    for tensor in held if modules else ():
        for said in named(tensor.name):
            if said.side in ("alpha", "magnitude") and said.module in modules:
                beside[said.module].append((said, tensor))
    return groups, beside


def _pair(kind: str, module: str, held: Sequence[_NamedTensor]) -> FactorPair | str:
    """The factors of a matrix, or why these tensors are none."""
    right = [tensor for said, tensor in held if said.side == "A"]
    left = sorted((said.block, tensor) for said, tensor in held if said.side == "B")
    blocks = tuple(tensor for _, tensor in left)
    if len(right) != 1 or not left or [number for number, _ in left] != list(range(len(left))):
        return "A without B" if not left else "B without A" if not right else "several factors of one name"
    (a,) = right
    planes = a.shape[0] if kind == LORA and len(a.shape) == 3 and blocks[0].shape[2:] != (1,) else 0
    if planes and (len(blocks[0].shape) != 3 or blocks[0].shape[0] != planes):
        return "stacks of factors that do not fit"
    if kind == LORA and module.removesuffix(".base_layer").rpartition(".")[2] == "experts":
        return "factors of a stack of experts, which are not multiplied"
    if not all(len(t.shape) == 2 or (kind == LORA and len(t.shape) > 2) for t in (a, *blocks)):
        return "factors that are not matrices"
    turned = held[0][0].is_turned and not planes  # MLX has stacks as PEFT has single factors
    for is_turned in (turned, not turned) if kind == LORA else (False,):
        a_shape, *shapes = (_matrix(t.shape[1:] if planes else t.shape, is_turned) for t in (a, *blocks))
        rows, inner = sum(m for m, _ in shapes), sum(r for _, r in shapes)
        if inner == a_shape[0] and rows and inner and a_shape[1]:
            pair = FactorPair(kind, module, blocks, a, (rows, a_shape[1]), inner, is_turned, planes)
            return "no product" if kind == NESTED and not _is_nested(pair) else pair
    return "an A and a B whose shapes do not fit"


def _matrix(shape: Sequence[int], is_turned: bool) -> tuple[int, int]:
    """A shape as that of a matrix (outputs, inputs): of a convolution one row for each output."""
    rows, cols = shape[0], prod(shape[1:])
    return (cols, rows) if is_turned else (rows, cols)


def _is_nested(pair: FactorPair) -> bool:
    """Whether two linears in a row are one projection of low rank, and not two layers of a small network."""
    place = locate(f"{pair.module}.weight")
    return pair.inner < min(pair.shape) and place is not None and bool(find_rules(place.path, "", 2))


def _scaled(pair: FactorPair, scales: Scales, beside: Mapping[str, Sequence[_NamedTensor]]) -> FactorPair:
    """With its scale: kohya's scripts store alpha beside the factors."""
    alpha = next((t for said, t in beside.get(pair.module, ()) if said.side == "alpha" and prod(t.shape) == 1), None)
    scale = scales.of(pair.module, pair.inner) if alpha is None else 1 / scales.divisor(pair.inner)
    return replace(pair, scale=scale, alpha=alpha, stands_turned=scales.is_turned and not pair.planes)


def _place_of(pair: FactorPair) -> str:
    """The name of the matrix that a checkpoint of low rank has factors of."""
    return pair.module if pair.kind == APPLY else f"{pair.module}.weight"


def _rename(found: Factored, groups: Mapping[_FactorGroup, Sequence[_NamedTensor]]) -> None:
    """The factors of adapters under PEFT's names, as far as these are free."""
    turned = {t.name: pair.is_turned for pair in found.pairs.values() for t in (pair.a, *pair.blocks)}
    renamed: dict[str, str] = {}
    for (kind, module, adapter), held in groups.items():
        for said, tensor in held if kind == LORA else ():
            renamed[tensor.name] = name = f"{module}.lora_{said.side}{_suffix(adapter)}.weight"
            if turned.get(tensor.name, said.is_turned):
                found.turned.add(name)
    taken = {tensor.name for tensor in found.tensors}
    for index, tensor in enumerate(found.tensors):
        new = renamed.get(tensor.name)
        if new is not None and (new == tensor.name or new not in taken):
            taken.add(new)
            found.tensors[index] = tensor._replace(name=new)
            found.originals[new] = tensor


def _stand_in(name: str, pair: FactorPair) -> Tensor:
    shape = pair.shape[::-1] if pair.stands_turned else pair.shape
    stack = (pair.planes, *shape) if pair.planes else shape
    return Tensor(name, pair.a.dtype, stack, pair.a.file, pair.a.begin, pair.a.end, pair.a.source)


def _lines(failed: Mapping[str, Sequence[str]], beside: Mapping[str, Sequence[_NamedTensor]]) -> list[str]:
    lines = [f"{_counted(names)}: {why}, e.g. {printable(names[0])}" for why, names in failed.items()]
    sides: dict[str, list[str]] = defaultdict(list)
    for held in beside.values():
        for said, tensor in held:
            sides[said.side].append(tensor.name)
    if names := sides["magnitude"]:
        lines.append(
            f"DoRA: {_counted(names)} of magnitudes not applied, e.g. {printable(names[0])}: "
            "the spectra are those of scale x B A"
        )
    lines += [
        f"{_counted(names)} of {what}, which is not a product of two factors: what they change is not computed, "
        f"e.g. {printable(names[0])}"
        for side, what in OTHER.items()
        if (names := sides[side])
    ]
    return lines


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"

"""Matrices that a checkpoint holds as two factors B A: adapters (LoRA), and checkpoints of low rank.

For each matrix a stand-in tensor is added under the matrix's name in its model, so that the catalogue can place it.
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
"""Kind, module, and the adapter's name."""
_NamedTensor = tuple[Named, Tensor]


@dataclass(frozen=True, slots=True)
class FactorPair:
    """The factors of a matrix of `shape` (outputs, inputs): the blocks of B in order, and A; they share the size
    `inner`.

    The product is multiplied by `scale`, and by the number in `alpha` if there is such a tensor. `is_turned`: both
    factors are stored as (inputs, outputs); `stands_turned`: the stand-in is. For a stack of experts all of this
    holds for each of its `planes`; 0 for a single pair.
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
    """`tensors` are a checkpoint's tensors with the stand-ins, and with factors of adapters under PEFT's names. `pairs`
    are by the name of their stand-in, `originals` by PEFT's name. `lines` are what a user should know.
    """

    tensors: list[Tensor]
    pairs: dict[str, FactorPair] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    turned: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)


def factored(tensors: Sequence[Tensor], adapter: Mapping[str, Any], *, is_gguf: bool) -> Factored:
    """Find the factors among tensors, by names and shapes; `adapter` is adapter_config.json, {} if there is none."""
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
    """Take the pairs that have a product; return the factors of adapters without one, by the reason."""
    names = {tensor.name for tensor in found.tensors}
    adapters = Counter(module for kind, module, _ in groups if kind == LORA)
    failed: dict[str, list[str]] = defaultdict(list)
    for (kind, module, name), held in groups.items():
        pair = _pair(kind, module, held)
        if kind != LORA:
            if isinstance(pair, FactorPair) and _matrix_name(pair) not in names:
                found.pairs[_matrix_name(pair)] = pair
            continue
        if any(part.side in OTHER for part, _ in beside.get(module, ())):
            pair = "A and B of a module with a third factor, which are not multiplied"
        if isinstance(pair, str):
            failed[pair].append(held[0][1].name)
            continue
        stand_in = f"{module.removeprefix(WRAPPER)}.weight"
        if names & {stand_in, f"{module}.weight", f"{module}.base_layer.weight"} or adapters[module] > 1:
            stand_in = f"{module}.lora_BA{_suffix(name)}.weight"
        names.add(stand_in)
        found.pairs[stand_in] = _with_scale(pair, scales, beside)
    return failed


def _suffix(adapter: str) -> str:
    return f".{adapter}" if adapter else ""


def _groups(
    tensors: Iterable[Tensor], is_gguf: bool
) -> tuple[dict[_FactorGroup, list[_NamedTensor]], dict[str, list[_NamedTensor]]]:
    """The factors, by the matrix that they form; and the other tensors of adapters, by module."""
    groups: dict[_FactorGroup, list[_NamedTensor]] = defaultdict(list)
    beside: dict[str, list[_NamedTensor]] = defaultdict(list)
    held = list(tensors)
    for tensor in held:
        for part in named(tensor.name) if may_be_factor(tensor.name) else ():
            if part.side in ("A", "B") and not (is_gguf and part.kind != LORA):
                groups[part.kind, part.module, part.adapter].append((part, tensor))
            elif part.side in OTHER:
                beside[part.module].append((part, tensor))
    modules = {module for kind, module, _ in groups if kind == LORA}
    for tensor in held if modules else ():
        for part in named(tensor.name):
            if part.side in ("alpha", "magnitude") and part.module in modules:
                beside[part.module].append((part, tensor))
    return groups, beside


def _pair(kind: str, module: str, held: Sequence[_NamedTensor]) -> FactorPair | str:
    """The factors of a matrix, or the reason why these tensors form none."""
    sides = _sides(held)
    if isinstance(sides, str):
        return sides
    a, blocks = sides
    planes = a.shape[0] if kind == LORA and len(a.shape) == 3 and blocks[0].shape[2:] != (1,) else 0
    if reason := _why_no_factors(kind, module, (a, *blocks), planes):
        return reason
    turned = held[0][0].is_turned and not planes  # MLX stores stacks as PEFT stores single factors
    for is_turned in (turned, not turned) if kind == LORA else (False,):
        a_shape, *shapes = (_matrix(t.shape[1:] if planes else t.shape, is_turned) for t in (a, *blocks))
        rows, inner = sum(m for m, _ in shapes), sum(r for _, r in shapes)
        if inner == a_shape[0] and rows and inner and a_shape[1]:
            pair = FactorPair(kind, module, blocks, a, (rows, a_shape[1]), inner, is_turned, planes)
            return "no product" if kind == NESTED and not _is_nested(pair) else pair
    return "an A and a B whose shapes do not fit"


def _sides(held: Sequence[_NamedTensor]) -> tuple[Tensor, tuple[Tensor, ...]] | str:
    """A and the blocks of B in their order, or what is missing or too much."""
    right = [tensor for part, tensor in held if part.side == "A"]
    left = sorted((part.block, tensor) for part, tensor in held if part.side == "B")
    if len(right) == 1 and left and [number for number, _ in left] == list(range(len(left))):
        return right[0], tuple(tensor for _, tensor in left)
    return "A without B" if not left else "B without A" if not right else "several factors of one name"


def _why_no_factors(kind: str, module: str, factors: Sequence[Tensor], planes: int) -> str:
    """The reason why A and the blocks of B, in this order, are no factors of matrices, "" if they may be."""
    first = factors[1]
    if planes and (len(first.shape) != 3 or first.shape[0] != planes):
        return "stacks of factors that do not fit"
    if kind == LORA and module.removesuffix(".base_layer").rpartition(".")[2] == "experts":
        return "factors of a stack of experts, which are not multiplied"
    if not all(len(t.shape) == 2 or (kind == LORA and len(t.shape) > 2) for t in factors):
        return "factors that are not matrices"
    return ""


def _matrix(shape: Sequence[int], is_turned: bool) -> tuple[int, int]:
    """A shape as that of a matrix (outputs, inputs); a convolution has one row for each output."""
    rows, cols = shape[0], prod(shape[1:])
    return (cols, rows) if is_turned else (rows, cols)


def _is_nested(pair: FactorPair) -> bool:
    """True if two linears in a row are one projection of low rank, not two layers of a small network."""
    place = locate(f"{pair.module}.weight")
    return pair.inner < min(pair.shape) and place is not None and bool(find_rules(place.path, "", 2))


def _with_scale(pair: FactorPair, scales: Scales, beside: Mapping[str, Sequence[_NamedTensor]]) -> FactorPair:
    """The pair with its scale; kohya's scripts store alpha beside the factors."""
    alpha = next((t for part, t in beside.get(pair.module, ()) if part.side == "alpha" and prod(t.shape) == 1), None)
    scale = scales.of(pair.module, pair.inner) if alpha is None else 1 / scales.divisor(pair.inner)
    return replace(pair, scale=scale, alpha=alpha, stands_turned=scales.is_turned and not pair.planes)


def _matrix_name(pair: FactorPair) -> str:
    """The name of the matrix whose factors a checkpoint of low rank holds."""
    return pair.module if pair.kind == APPLY else f"{pair.module}.weight"


def _rename(found: Factored, groups: Mapping[_FactorGroup, Sequence[_NamedTensor]]) -> None:
    """Give the factors of adapters PEFT's names, unless these are taken."""
    turned = {t.name: pair.is_turned for pair in found.pairs.values() for t in (pair.a, *pair.blocks)}
    renamed: dict[str, str] = {}
    for (kind, module, adapter), held in groups.items():
        for part, tensor in held if kind == LORA else ():
            renamed[tensor.name] = name = f"{module}.lora_{part.side}{_suffix(adapter)}.weight"
            if turned.get(tensor.name, part.is_turned):
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
    lines = [f"{_how_many(names)}: {why}, e.g. {printable(names[0])}" for why, names in failed.items()]
    sides: dict[str, list[str]] = defaultdict(list)
    for held in beside.values():
        for part, tensor in held:
            sides[part.side].append(tensor.name)
    if names := sides["magnitude"]:
        lines.append(
            f"DoRA: {_how_many(names)} of magnitudes not applied, e.g. {printable(names[0])}: "
            "the spectra are those of scale x B A"
        )
    lines += [
        f"{_how_many(names)} of {what}, which is not a product of two factors: what they change is not computed, "
        f"e.g. {printable(names[0])}"
        for side, what in OTHER.items()
        if (names := sides[side])
    ]
    return lines


def _how_many(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"

"""Quantised safetensors: the tensors that make up one matrix -> that matrix, listed as a single tensor.

Whether a module is quantised is decided by its tensors, not by config.json's lists of quantised or unquantised
modules, which use the names of one library.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import WeightsError, printable
from ..formats.safetensors import read_part
from ..formats.tensor import FileAccess, Scheme, Tensor
from ..landing import Landing
from ..spectrum import digest
from ..weights import host_array, settled
from . import effective, schemes
from .checked_parts import FLOATS, Parts, QuantisedMatrix
from .packed import PackedMatrix, is_by_expert, stays_packed
from .schemes import BNB4, FP8, FP8_SCALES
from .settings import QuantisationSettings

if TYPE_CHECKING:
    from ..weights import Packed, Weights


_Reader: TypeAlias = Callable[[Parts, QuantisationSettings], QuantisedMatrix]


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Names of a module's tensors, behind the module's name, in the formats that are read and in those that are only named.
_PARTS = _words(
    "weight qweight qzeros scales g_idx weight_packed weight_shape weight_scale weight_scale_inv weight_scale_2 "
    "weight_global_scale weight_zero_point weight_g_idx scale qscale_weight scale_weight pre_quant_scale SCB "
    "weight_format W_q zero meta codes codebooks Qidxs SU SV Wscale trellis suh svh indices centroids res_centroids "
    "dense_weights q_weight q_scale q_scale_max q_groups q_group_map q_invperm q_perm B s workspace compressed bitmask "
    "scale_packed tables tables2 biases qbiases weight_scales dqweight _weight_qdata _weight_scale _weight_zero_point "
    "row_offsets col_vals col_ptr in_perm perm weight_bias"
)
_BEHIND_WEIGHT = re.compile(
    r"\.(weight[.:](?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__(?:nf4|fp4)|_data|_scale|_shift|_packed))$"
)
_BEHIND_STACK = re.compile(r"(?<=[^._])(_blocks|_scales|_scale_inv|_weight_scale|_weight_scale_2|_scale)$")

# For each format that is not read, the part by which it is recognised.
_UNSUPPORTED = {
    "W_q": "HQQ", "codes": "AQLM", "Qidxs": "QuIP#", "trellis": "EXL3", "indices": "VPTQ", "dense_weights": "SpQR",
    "q_weight": "EXL2", "B": "Marlin", "scale_packed": "Marlin 2:4", "compressed": "sparse bitmask",
    "tables": "HIGGS", "weight_scales": "EETQ", "biases": "MLX", "qbiases": "MLX", "dqweight": "FP-Quant",
    "weight._data": "quanto", "weight:_data": "torchao", "_weight_qdata": "torchao",
}  # fmt: skip
_READ = _words("compressed-tensors modelopt fp8 mxfp8 fbgemm_fp8 mxfp4 bitsandbytes gptq awq")
_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}
_INTEGERS = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})


def assemble(tensors: Iterable[Tensor], config: Mapping[str, Any]) -> list[Tensor]:
    """The tensors, where each quantised matrix is one tensor under its unquantised name and replaces its parts.

    A matrix that cannot be read is listed too, with the reason as its `problem`.
    """
    listed = effective.effective(tensors)
    settings = QuantisationSettings.of(config)
    found: dict[str, Tensor] = {}
    taken: set[str] = set()
    plans: dict[object, _ModuleKind | str | None] = {}
    for stem, parts in _modules([t for t in listed if not t.parts]).items():
        if (tensor := _matrix(stem, parts, settings, plans)) is not None:
            names = [part.name for part in parts.values()]
            taken.update(names)
            found[names[0]] = tensor
    return [found.get(t.name, t) for t in listed if t.name in found or t.name not in taken]


def quantisation(tensors: Iterable[Tensor]) -> str:
    """The format of most quantised weights, "" if there are none."""
    names: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.scheme is not None and tensor.scheme.formula not in effective.FORMULAS:
            names[tensor.scheme.name] += math.prod(tensor.shape)
    return max(names, key=names.__getitem__) if names else ""


def read_matrix(tensor: Tensor, stored: Mapping[Path, FileAccess], landing: Landing) -> tuple[Weights | Packed, str]:
    """Read a quantised matrix as floats to where its parts land, with the digest of all their bytes.

    Raises:
        WeightsError: a file changed or cannot be read, or the parts contradict one another.
    """
    from .dequantisation import dequantise

    if tensor.scheme is None:
        raise WeightsError(tensor.problem)
    read = {name: read_part(part, stored[part.file], landing) for name, part in tensor.parts}
    parts = {name: part for name, (part, _) in read.items()}
    digests = [digest_of for _, digest_of in read.values()]
    seen = digest(*digests) if any(digests) else ""
    if stays_packed(tensor, is_on_gpu=any(part.is_cuda for part in parts.values())):
        return PackedMatrix(tensor.scheme, tensor.shape, parts), seen
    weights = dequantise(tensor.scheme, tensor.shape, parts)
    return settled(weights) if weights.is_cuda else host_array(weights), seen


def bytes_on(device: str, tensor: Tensor) -> int:
    """Memory that a quantised matrix takes on a device until it is solved: its parts, and unless it stays packed its
    floats (for experts on the CPU those of one). numpy has no bfloat16, so on the CPU that becomes float32."""
    assert tensor.scheme is not None
    if device != "cpu" and stays_packed(tensor, is_on_gpu=True):
        return tensor.stored_bytes
    floats = "float32" if device == "cpu" and tensor.scheme.floats == "bfloat16" else tensor.scheme.floats
    return tensor.stored_bytes + _BYTES[floats] * math.prod(tensor.shape[1:] if is_by_expert(tensor) else tensor.shape)


def _modules(tensors: list[Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group tensors by name: module -> part -> tensor. Experts stacked in one tensor are a module too."""
    modules: dict[str, dict[str, Tensor]] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        name = tensor.name
        stem, dot, leaf = name.rpartition(".")
        if leaf in _PARTS:
            if leaf != "weight" or tensor.dtype not in FLOATS:  # skips plain weights, of which there may be 91,000
                modules.setdefault(stem + dot, {})[leaf] = tensor
        elif match := _BEHIND_WEIGHT.search("." + name):
            modules.setdefault(name[: match.start()], {})[match[1]] = tensor
        elif match := _BEHIND_STACK.search(name):
            stacks.setdefault(name[: match.start()], {})[match[1]] = tensor
        elif tensor.dtype in FP8 or tensor.dtype == "F4":
            stacks.setdefault(name, {})
    for tensor in tensors:
        if tensor.name in stacks:
            stacks[tensor.name][""] = tensor
        elif tensor.dtype in FLOATS and (module := modules.get(tensor.name.removesuffix("weight"))) is not None:
            module["weight"] = tensor
    return modules | stacks


@dataclass(frozen=True, slots=True)
class _ModuleKind:
    """Shape, scheme and parts' roles of every module whose parts have the same names, types and shapes."""

    shape: tuple[int, ...]
    scheme: Scheme
    roles: tuple[tuple[str, str], ...]


def _matrix(
    stem: str, parts: Parts, settings: QuantisationSettings, plans: dict[object, _ModuleKind | str | None]
) -> Tensor | None:
    """The quantised matrix of a module, None if the module is not quantised.

    `plans` is a cache (46,000 experts are of two kinds); plans that depended on stored bytes are not kept in it.
    """
    kind = tuple([(name, part.dtype, part.shape) for name, part in parts.items()])
    plan = plans.get(kind)
    if kind not in plans:
        plan, is_general = _plan_module(parts, settings)
        if is_general:
            plans[kind] = plan
    if plan is None:
        return None
    name = f"{stem}weight" if stem.endswith(".") or not stem else stem
    if isinstance(plan, str):
        return _unreadable(name, parts, plan)
    held = tuple([(role, parts[part]) for role, part in plan.roles])
    _, carrier = held[0]
    return Tensor(
        name, carrier.dtype, plan.shape, carrier.file, carrier.begin, carrier.end, carrier.source, held, plan.scheme
    )


def _plan_module(parts: Parts, settings: QuantisationSettings) -> tuple[_ModuleKind | str | None, bool]:
    """The way to read a module, or the reason why it cannot be read; and True if that holds for all such modules."""
    build = _reader_of(parts, settings)
    if build is None or isinstance(build, str):
        return build, True
    try:
        found: QuantisedMatrix = build(parts, settings)
    except ValueError as error:
        return str(error), not parts.keys() & {*BNB4, "weight_shape"}
    names = {id(part): name for name, part in parts.items()}
    return _ModuleKind(
        found.shape, found.scheme, tuple((r, names[id(t)]) for r, t in found.parts.items())
    ), not found.peeked


def _unreadable(name: str, parts: Parts, problem: str) -> Tensor:
    """A matrix without a scheme. It gets the shape of its largest part, which need not be that of the matrix."""
    carrier = max(parts.values(), key=lambda t: t.end - t.begin)
    shape = carrier.shape
    if name.endswith("weight") and len(shape) != 2:
        shape = (shape[0], math.prod(shape[1:])) if shape else ()
    return carrier._replace(name=name, shape=shape[:3], parts=tuple(parts.items()), problem=problem)


def _reader_of(parts: Parts, settings: QuantisationSettings) -> _Reader | str | None:
    """The function that reads a module's parts, or the reason why none does; None for a module of plain weights."""
    if name := _unsupported(parts):
        return f"{name} quantisation is not supported"
    return _by_names(parts) or _by_weight(parts, settings)


def _by_names(parts: Parts) -> _Reader | None:
    """The function for parts of these names, None if the names do not tell."""
    from . import packed_words  # not needed for the first screen

    if "weight_packed" in parts:
        return packed_words.packed if parts["weight_packed"].dtype == "I32" else schemes.fp4
    if parts.keys() & {"qweight", "qzeros"}:
        return packed_words.gptq_or_awq
    if parts.keys() & {*BNB4, "weight.absmax"}:
        return schemes.bitsandbytes4
    if "SCB" in parts:
        return schemes.bitsandbytes8
    if "_blocks" in parts or ("_scales" in parts and parts["_scales"].dtype in schemes.EXPONENTS):
        return schemes.mxfp4_blocks
    return None


def _by_weight(parts: Parts, settings: QuantisationSettings) -> _Reader | str | None:
    """_reader_of for a module whose `weight`, or stack, decides by its type."""
    weight = parts.get("weight", parts.get(""))
    dtype = weight.dtype if weight is not None else ""
    scaled = [name for name in FP8_SCALES if name in parts]
    if dtype in FP8:
        return schemes.fp8 if scaled or settings.method else None
    if dtype in _INTEGERS or dtype == "F4":
        return _integers(parts, dtype, scaled, settings)
    if dtype == "F8_E8M0":
        return None if len(parts) > 1 else schemes.plain
    marks = parts.keys() & {"weight_scale_inv", "weight_scale_2", "weight_global_scale", "weight_shape", "weight_scale"}
    if marks and weight is None:
        return f"the weight that {', '.join(sorted(marks))} belongs to is missing"
    return None


def _integers(parts: Parts, dtype: str, scaled: list[str], settings: QuantisationSettings) -> _Reader | str | None:
    """_reader_of for a `weight` of integers: a table of numbers, or packed."""
    method = settings.method
    scale = parts[scaled[0]].dtype if scaled else ""
    if dtype == "F4" and not scaled:
        return schemes.plain
    if "_weight_scale" in parts:
        return "experts of modelopt in one stack are not supported"
    if "weight_scale_2" in parts or dtype == "F4":
        return schemes.fp4
    if method == "bitnet":
        return schemes.bitnet
    if dtype in ("I8", "U8") and scale in schemes.EXPONENTS and method in ("fp8", "mxfp8", "modelopt"):
        return schemes.fp4
    if dtype == "I8" and "weight_scale" in scaled and method in ("compressed-tensors", "modelopt"):
        return schemes.int8
    if method in _READ:
        return f"{dtype} holds packed integers, and the scale that {method} stores beside them is missing"
    if method:
        return f"{printable(method, 40)} quantisation is not supported"
    if "scales" in parts or scaled:
        return f"{dtype} holds packed integers, and config.json has no quantization_config that says how"
    return None


def _unsupported(parts: Parts) -> str:
    """The name of the unsupported format that the parts belong to, "" if it may be one that is read."""
    if not any(len(part.shape) > 1 and part.dtype in _INTEGERS | FP8 for part in parts.values()):
        return ""
    return next((name for part, name in _UNSUPPORTED.items() if part in parts), "")

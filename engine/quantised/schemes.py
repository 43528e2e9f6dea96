"""The scheme of a quantised matrix, from the names, types and shapes of its parts.

Shapes decide wherever they can. config.json supplies what they cannot tell: the block of a scale, the bits of a packed
integer, which of two conventions. Stored bytes are read only for a shape or a description. Parts that contradict one
another raise ValueError, whose sentence becomes the projection's `problem`. Sources of the layouts:
engine/quantised/dequantisation.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import printable
from ..formats.tensor import Scheme, Tensor, peek
from .settings import QuantisationSettings, positive

Parts = Mapping[str, Tensor]
Shape = tuple[int, ...]

FP8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
EXPONENTS = frozenset({"U8", "F8_E8M0"})
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
FP8_SCALES = (
    "weight_scale_inv", "weight_scale", "scale", "qscale_weight", "scale_weight",
    "_scale_inv", "_scale", "_weight_scale",
)  # fmt: skip
BNB4 = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
_DESCRIPTIONS = (*(name.removeprefix("weight.") for name in BNB4), "weight_shape")


def describes(name: str) -> bool:
    """True if a tensor of this name describes how others are packed, so that listing those needs its bytes."""
    return name.endswith(_DESCRIPTIONS)


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """A matrix of shape (out, in) or (experts, out, in), and the parts that its scheme reads, the packed numbers first.

    `peeked`: stored bytes had to be read, so another module with the same parts may be another matrix.
    """

    shape: Shape
    scheme: Scheme
    parts: dict[str, Tensor]
    peeked: bool = False


def fp8(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """float8 with a scale for each block, row or tensor."""
    weight = _carrier(parts, "weight", "")
    name = next((n for n in FP8_SCALES if n in parts), "")
    if not name:
        raise ValueError(
            f"{weight.dtype} under {printable(settings.method, 40)} quantisation, but its scale is missing"
        )
    if unread := parts.keys() & {"weight_zero_point", "pre_quant_scale"}:
        raise ValueError(f"float8 with {min(unread)} is not supported")
    scale = _typed(parts, name, FLOATS | EXPONENTS)
    by_exponents = scale.dtype in EXPONENTS
    if len(weight.shape) > 3:
        raise ValueError(f"not a matrix ({_show(weight.shape)})")
    block, words = _shared(weight.shape, scale, settings.blocks(), by_exponents)
    scheme = Scheme("mxfp8" if by_exponents and block == (1, 32) else "fp8", words, "scaled", _exact([scale]), block)
    return QuantisedMatrix(weight.shape, scheme, {"weight": weight, "scale": scale})


def int8(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """int8 with scales and perhaps zero points (compressed-tensors int-quantized, modelopt int8)."""
    weight = _carrier(parts, "weight")
    scale = _typed(parts, "weight_scale", FLOATS)
    block, words = _shared(weight.shape, scale, settings.blocks(), by_exponents=False)
    found = {"weight": weight, "scale": scale}
    if _with_zeros(parts, settings):
        zero = found["zero"] = _typed(parts, "weight_zero_point", {"I8", "I32"})
        _sized("weight_zero_point", zero, scale.shape)
        words += " with zero points"
    return QuantisedMatrix(weight.shape, Scheme("int8", words, "scaled", _exact([scale]), block), found)


def fp4(parts: Parts, _: QuantisationSettings) -> QuantisedMatrix:
    """E2M1, two a byte: MXFP4 with an exponent for 32 columns, NVFP4 with a float8 for 16 and one number for all."""
    weight = _carrier(parts, "weight_packed", "weight", "")
    if weight.dtype not in ("U8", "I8", "F4"):
        raise ValueError(f"two 4-bit floats a byte cannot be {weight.dtype}")
    columns = weight.shape[-1] * (1 if weight.dtype == "F4" else 2)
    shape = (*weight.shape[:-1], columns)
    name = next((n for n in FP8_SCALES if n in parts), "weight_scale")
    scale = _typed(parts, name, EXPONENTS | {"F8_E4M3"})
    if unread := parts.keys() & {"weight_zero_point", "pre_quant_scale"}:
        raise ValueError(f"4-bit floats with {min(unread)} are not supported")
    found = {"weight": weight, "scale": scale}
    if scale.dtype in EXPONENTS:
        _sized(name, scale, (*shape[:-1], -(-columns // 32)))
        return QuantisedMatrix(shape, Scheme("mxfp4", "", "fp4", "bfloat16", (1, 32)), found)
    _sized(name, scale, (*shape[:-1], -(-columns // 16)))
    # modelopt multiplies by its second scale, compressed-tensors divides by its global one.
    role, second = ("global", "weight_scale_2") if "weight_scale_2" in parts else ("divisor", "weight_global_scale")
    found[role] = _typed(parts, second, {"F32"})
    if math.prod(found[role].shape) not in (1, math.prod(shape[:-2])):
        raise ValueError(f"{second} has shape {_show(found[role].shape)}, not one number")
    of = "modelopt" if role == "global" else "compressed-tensors"
    return QuantisedMatrix(shape, Scheme("nvfp4", of, "fp4", "float64", (1, 16)), found)


def mxfp4_blocks(parts: Parts, _: QuantisationSettings) -> QuantisedMatrix:
    """gpt-oss: `_blocks` uint8 (..., out, in / 32, 16), `_scales` uint8 (..., out, in / 32)."""
    blocks = _carrier(parts, "_blocks")
    scales = _typed(parts, "_scales", EXPONENTS)
    if blocks.dtype != "U8" or len(blocks.shape) not in (3, 4) or blocks.shape[-1] != 16:
        raise ValueError(f"_blocks is {blocks.dtype} {_show(blocks.shape)}, not U8 with blocks of 16 bytes")
    _sized("_scales", scales, blocks.shape[:-1])
    shape = (*blocks.shape[:-2], 32 * blocks.shape[-2])
    return QuantisedMatrix(shape, Scheme("mxfp4", "", "fp4", "bfloat16", (1, 32)), {"weight": blocks, "scale": scales})


def packed(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """compressed-tensors pack-quantized: integers of 1 to 8 bits in int32 words, scales by row or group of columns."""
    weight = _carrier(parts, "weight_packed")
    if weight.dtype != "I32" or len(weight.shape) not in (2, 3):
        raise ValueError(f"weight_packed is {weight.dtype} {_show(weight.shape)}, not a matrix of I32")
    scale = _typed(parts, "weight_scale", FLOATS)
    rows, words = weight.shape[-2:]
    if len(scale.shape) != len(weight.shape) or scale.shape[:-1] != weight.shape[:-1]:
        raise ValueError(f"weight_scale has shape {_show(scale.shape)} beside {rows} rows")
    bits, group, columns, peeked = _packing(parts, words, scale.shape[-1], settings)
    shape = (*weight.shape[:-1], columns)
    found = {"weight": weight, "scale": scale}
    detail = _per(group, columns)
    if _with_zeros(parts, settings):
        found["zero"] = _typed(parts, "weight_zero_point", {"I32"})
        _sized("weight_zero_point", found["zero"], (*shape[:-2], -(-rows * bits // 32), scale.shape[-1]))
        detail += " with zero points"
    if "weight_g_idx" in parts or any(w.get("actorder") == "group" for w in settings.weights()):
        found["g_idx"] = _typed(parts, "weight_g_idx", {"I32", "I64"})
        _sized("weight_g_idx", found["g_idx"], (columns,))
        detail += " by g_idx"
    if "weight_shape" in parts:
        found["shape"] = _typed(parts, "weight_shape", {"I64", "I32"})
    return QuantisedMatrix(
        shape, Scheme(f"int{bits}", detail, "packed", _exact([scale]), (1, group), bits), found, peeked
    )


def _with_zeros(parts: Parts, settings: QuantisationSettings) -> bool:
    stated = [w.get("symmetric") for w in settings.weights()]
    return "weight_zero_point" in parts or (bool(stated) and all(symmetric is False for symmetric in stated))


def _packing(parts: Parts, words: int, groups: int, settings: QuantisationSettings) -> tuple[int, int, int, bool]:
    """(bits, columns of a group, columns, peeked) of packed rows of `words` words that have `groups` scales.

    If the last word may be padded, only the stored weight_shape tells the number of columns.
    """
    named = [(w.get("num_bits"), w.get("group_size") or 0) for w in settings.weights()]
    stated = sorted({(b, g) for b, g in named if type(b) is int and 1 <= b <= 8 and type(g) is int})
    if not stated:
        raise ValueError("packed integers, but config.json names no config_groups with their bits")
    fitting = []
    for bits, group in stated:
        most = words * 32 // bits
        columns = most if group <= 0 else min(most, groups * group)
        if -(-columns * bits // 32) == words and -(-columns // (group if group > 0 else columns)) == groups:
            fitting.append((bits, group if group > 0 else columns, columns))
    exact = len(fitting) == 1 and fitting[0][2] == fitting[0][1] * groups == words * 32 // fitting[0][0]
    if exact and fitting[0][1] != fitting[0][2]:
        return *fitting[0], False
    if "weight_shape" in parts:
        columns = _peeked_shape(parts["weight_shape"])[-1]
        fitting = [
            (bits, group if group < most else columns, columns)
            for bits, group, most in fitting
            if -(-columns * bits // 32) == words and -(-columns // (group if group < most else columns)) == groups
        ]
    if len(fitting) != 1:
        sizes = " or ".join(
            f"{bits} bits in groups of {group}" if group > 0 else f"{bits} bits" for bits, group in stated
        )
        raise ValueError(f"rows of {words} words with {groups} scales are not {sizes}, as config.json says")
    return *fitting[0], "weight_shape" in parts


def _peeked_shape(tensor: Tensor) -> list[int]:
    size = {"I64": 8, "I32": 4}.get(tensor.dtype, 0)
    data = peek(tensor) if size else b""
    shape = [int.from_bytes(data[at : at + size], "little", signed=True) for at in range(0, len(data), size or 1)]
    if len(shape) not in (2, 3) or not all(map(positive, shape)):
        raise ValueError(f"weight_shape holds {shape}, no shape of a matrix")
    return shape


def gptq_or_awq(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """`qweight` is GPTQ's or AWQ's: config.json has to say which."""
    method = settings.method
    packing = settings.word("packing_format") if "auto-round" in method or "autoround" in method else method
    if "awq" in packing:
        return awq(parts, settings)
    if "gptq" in packing:
        return gptq(parts, settings)
    if method:
        raise ValueError(f"{printable(method, 40)} quantisation is not supported")
    raise ValueError("qweight may be GPTQ or AWQ: config.json names no quantization_config that tells which")


def gptq(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """`qweight` int32 (in * bits / 32, out), `qzeros` (groups, out * bits / 32), `scales` (groups, out), `g_idx`."""
    layout = settings.word("checkpoint_format", "format") or "gptq"
    if layout not in ("gptq", "gptq_v2"):
        raise ValueError(f"GPTQ in {printable(layout, 40)} format is not supported")
    weight, zeros = _carrier(parts, "qweight"), _typed(parts, "qzeros", {"I32"})
    scales = _typed(parts, "scales", FLOATS)
    if weight.dtype != "I32" or len(weight.shape) != 2 or len(scales.shape) != 2:
        raise ValueError(f"qweight is {weight.dtype} {_show(weight.shape)}, not a matrix of I32")
    words, rows = weight.shape
    groups = scales.shape[0]
    found = {"weight": weight, "zero": zeros, "scale": scales}
    stated = settings.number("bits", "w_bit")
    if "g_idx" in parts or settings.config.get("desc_act") is True:
        found["g_idx"] = _typed(parts, "g_idx", {"I32", "I64"})
        columns = math.prod(found["g_idx"].shape)
        bits = 32 * words // columns if columns else 0
    else:
        bits = stated or 0
        columns = 32 * words // bits if positive(bits) else 0
    if not bits:
        raise ValueError("GPTQ without g_idx, and config.json names no bits")
    if not 2 <= bits <= 8 or columns * bits != 32 * words:
        raise ValueError(f"qweight of {words} x {rows} words cannot hold {columns} columns of {stated or bits} bits")
    _sized("scales", scales, (groups, rows))
    _sized("qzeros", zeros, (groups, -(-rows * bits // 32)))
    group = settings.number("group_size", "q_group_size") or 0
    group = group if group > 0 else columns
    if "g_idx" not in found and -(-columns // group) != groups:
        raise ValueError(f"scales of {groups} groups, but {columns} columns in groups of {group} need others")
    detail = f"{_per(group, columns)} by g_idx" if "g_idx" in found else _per(group, columns)
    name = f"gptq int{bits}" if layout == "gptq" else f"gptq v2 int{bits}"
    offset = 1 if layout == "gptq" else 0
    return QuantisedMatrix(
        (rows, columns), Scheme(name, detail, "gptq", _exact([scales]), (1, group), bits, offset=offset), found
    )


def awq(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """GEMM: `qweight` int32 (in, out / 8), `qzeros` (groups, out / 8), `scales` (groups, out)."""
    version = settings.word("version", "checkpoint_format", "format") or "gemm"
    if version not in ("gemm", "awq"):
        raise ValueError(f"AWQ in {printable(version, 40)} format is not supported, only gemm")
    if (bits := settings.number("bits", "w_bit") or 4) != 4:
        raise ValueError(f"AWQ with {bits} bits is not supported, only 4")
    weight, zeros = _carrier(parts, "qweight"), _typed(parts, "qzeros", {"I32"})
    scales = _typed(parts, "scales", FLOATS)
    if weight.dtype != "I32" or len(weight.shape) != 2 or len(scales.shape) != 2:
        raise ValueError(f"qweight is {weight.dtype} {_show(weight.shape)}, not a matrix of I32")
    columns, words = weight.shape
    group = settings.number("group_size", "q_group_size") or 0
    group = group if group > 0 else columns
    groups = -(-columns // group)
    _sized("scales", scales, (groups, 8 * words))
    _sized("qzeros", zeros, (groups, words))
    scheme = Scheme("awq int4", _per(group, columns), "awq", _exact([scales]), (group, 1), 4)
    return QuantisedMatrix((8 * words, columns), scheme, {"weight": weight, "zero": zeros, "scale": scales})


def bitsandbytes4(parts: Parts, _: QuantisationSettings) -> QuantisedMatrix:
    """nf4 and fp4: half bytes of the flattened matrix; its shape and block size are in a JSON beside them."""
    weight = _carrier(parts, "weight")
    key = next((name for name in BNB4 if name in parts), "")
    if not key:
        raise ValueError("bitsandbytes' weight.quant_state, which holds the shape, is missing")
    shape, block, nested, offset = _quant_state(parts[key])
    numbers = math.prod(shape)
    if weight.dtype != "U8" or math.prod(weight.shape) != -(-numbers // 2):
        raise ValueError(f"{_show(weight.shape)} of {weight.dtype} cannot hold {_show(shape)} half bytes")
    blocks = -(-numbers // block)
    absmax = _typed(parts, "weight.absmax", {"U8"} if nested else {"F32"})
    _sized("weight.absmax", absmax, (blocks,))
    codes = _typed(parts, "weight.quant_map", FLOATS)
    _sized("weight.quant_map", codes, (16,))
    found = {"weight": weight, "absmax": absmax, "map": codes}
    if nested:
        found["nested_absmax"] = _typed(parts, "weight.nested_absmax", {"F32"})
        _sized("weight.nested_absmax", found["nested_absmax"], (-(-blocks // nested),))
        found["nested_map"] = _typed(parts, "weight.nested_quant_map", FLOATS)
        _sized("weight.nested_quant_map", found["nested_map"], (256,))
    found["state"] = parts[key]
    detail = f"blocks of {block}" + (", double quantised" if nested else "")
    name = f"bitsandbytes {key[-3:]}"
    return QuantisedMatrix(
        shape, Scheme(name, detail, "codebook", "float64", (1, block), 4, nested, offset), found, True
    )


def _quant_state(tensor: Tensor) -> tuple[Shape, int, int, float]:
    """(shape, block size, nested block size or 0, nested offset) of bitsandbytes' JSON."""
    stored = peek(tensor)
    try:
        state = json.loads(stored.decode())
        shape, block = tuple(state["shape"]), state["blocksize"]
        nested = state.get("nested_blocksize") or 0
        offset = float(state["nested_offset"]) if nested else 0.0
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("bitsandbytes' weight.quant_state holds no shape and block size") from None
    sizes = [*shape, block, nested or 1]
    if len(shape) not in (2, 3) or not all(map(positive, sizes)) or not math.isfinite(offset):
        raise ValueError("bitsandbytes' weight.quant_state holds no shape of a matrix")
    return shape, block, nested, offset


def bitsandbytes8(parts: Parts, _: QuantisationSettings) -> QuantisedMatrix:
    """LLM.int8(): `weight` int8 (out, in), `SCB` float32 (out)."""
    weight = _carrier(parts, "weight")
    scale = _typed(parts, "SCB", FLOATS)
    if weight.dtype != "I8" or len(weight.shape) != 2 or math.prod(scale.shape) != weight.shape[0]:
        raise ValueError(f"SCB of {_show(scale.shape)} beside {weight.dtype} weights of {_show(weight.shape)}")
    found = {"weight": weight, "scale": scale}
    if "weight_format" in parts:
        found["format"] = _typed(parts, "weight_format", {"U8", "I8", "I32", "I64"})
    return QuantisedMatrix(
        weight.shape, Scheme("bitsandbytes int8", "per row", "int8 rows", "float64", (1, weight.shape[1])), found
    )


def bitnet(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """`weight` uint8 (out / 4, in), four ternary numbers a byte; `weight_scale` one number."""
    weight = _carrier(parts, "weight")
    scale = _typed(parts, "weight_scale", FLOATS)
    if weight.dtype != "U8" or len(weight.shape) != 2:
        raise ValueError(f"weight is {weight.dtype} {_show(weight.shape)}, not a matrix of U8")
    if math.prod(scale.shape) != 1:
        raise ValueError(f"weight_scale has shape {_show(scale.shape)}, not one number")
    divided = settings.word("linear_class") != "autobitlinear"
    scheme = Scheme("bitnet", "scale divides" if divided else "", "ternary", "float64", offset=float(divided))
    return QuantisedMatrix((4 * weight.shape[0], weight.shape[1]), scheme, {"weight": weight, "scale": scale})


def plain(parts: Parts, _: QuantisationSettings) -> QuantisedMatrix:
    """E8M0 and E2M1 without other parts: numbers, but of types that torch cannot compute with."""
    weight = _carrier(parts, "weight", "")
    name, formula = ("e8m0", "exponents") if weight.dtype == "F8_E8M0" else ("e2m1", "fp4")
    return QuantisedMatrix(weight.shape, Scheme(name, "", formula, "float32"), {"weight": weight})


def _carrier(parts: Parts, *names: str) -> Tensor:
    """The part under the first of these names that holds the packed numbers."""
    found = next((parts[name] for name in names if name in parts), None)
    if found is None:
        raise ValueError(f"{names[0]} is missing beside {', '.join(sorted(parts))}")
    if 0 in found.shape or len(found.shape) < 2:
        raise ValueError(f"not a matrix ({_show(found.shape)})")
    return found


def _typed(parts: Parts, name: str, types: Iterable[str]) -> Tensor:
    if name not in parts:
        raise ValueError(f"{name} is missing")
    if parts[name].dtype not in types:
        raise ValueError(f"{name} is {parts[name].dtype}, not {' or '.join(sorted(types))}")
    if 0 in parts[name].shape:
        raise ValueError(f"{name} is empty")
    return parts[name]


def _sized(name: str, tensor: Tensor, shape: Shape) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {_show(tensor.shape)} where {_show(shape)} is needed")


def _show(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _per(group: int, columns: int) -> str:
    return f"groups of {group}" if group < columns else "per row"


def _exact(scales: Iterable[Tensor]) -> str:
    """float32 holds an integer or float8 times a scale of 11 significant bits exactly; scales of 24 need float64."""
    return "float64" if any(s.dtype in ("F32", "F64") for s in scales) else "float32"


def _shared(
    shape: Shape, scale: Tensor, blocks: Iterable[tuple[int, int]], by_exponents: bool
) -> tuple[tuple[int, int], str]:
    """The block of weights that shares a number of `scale`, and the words for it.

    A number for the whole tensor, an expert, a row or a column shows in the shape of the scale; a block is never
    guessed from the shape (576 rows with 5 scales are 4 blocks of 128 and one of 64, not 5 of 115.2).
    """
    rows, cols = shape[-2:]
    given = scale.shape
    if math.prod(given) == 1:
        return (rows, cols), "per tensor"
    if len(shape) == 2 and given == (rows,):
        return (1, cols), "per row"
    if given == shape[:-2]:
        return (rows, cols), "per expert"
    if len(given) == len(shape) and given[:-2] in (shape[:-2], (1,) * (len(shape) - 2)):
        if given[-2] in (1, rows) and given[-1] in (1, cols) and given[-2:] != (rows, cols):
            block = (1 if given[-2] == rows else rows, 1 if given[-1] == cols else cols)
            return block, "per row" if block[0] == 1 else "per column" if block[1] == 1 else "per expert"
        stated = {*blocks, (1, 32)} if by_exponents else set(blocks)
        fits = {b for b in stated if given[-2:] == (-(-rows // b[0]), -(-cols // b[1]))}
        clipped = {(min(b[0], rows), min(b[1], cols)) for b in fits}
        if len(clipped) == 1:
            block = min(fits)
            return block, f"{block[0]}x{block[1]} blocks"
        if not stated:
            raise ValueError(f"a scale of {_show(given)} for {_show(shape)}, but config.json names no block size")
    named = " or ".join(f"{a} x {b}" for a, b in sorted(blocks)) or "one block"
    raise ValueError(f"the scale has shape {_show(given)}, which {_show(shape)} in blocks of {named} does not need")

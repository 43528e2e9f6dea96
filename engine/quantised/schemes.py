"""The scheme of a quantised matrix, from the names, types and shapes of its parts.

Shapes decide wherever they can. config.json supplies what they cannot tell: the block of a scale, the bits of a packed
integer, which of two conventions. Stored bytes are read only for a shape or a description. Parts that contradict one
another raise ValueError, whose sentence becomes the projection's `problem`. Sources of the layouts:
engine/quantised/dequantisation.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from ..errors import printable
from ..formats.tensor import Scheme, Tensor, peek
from .checked_parts import FLOATS, Parts, QuantisedMatrix, Shape, carrier, check_size, exact_floats, show, typed
from .settings import QuantisationSettings, positive

FP8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
EXPONENTS = frozenset({"U8", "F8_E8M0"})
FP8_SCALES = (
    "weight_scale_inv", "weight_scale", "scale", "qscale_weight", "scale_weight",
    "_scale_inv", "_scale", "_weight_scale",
)  # fmt: skip
BNB4 = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
_DESCRIPTIONS = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4", "weight_shape")


def describes(name: str) -> bool:
    """True if a tensor of this name describes how others are packed, so that listing those needs its bytes."""
    return name.endswith(_DESCRIPTIONS)


def fp8(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """float8 with a scale for each block, row or tensor."""
    weight = carrier(parts, "weight", "")
    name = next((n for n in FP8_SCALES if n in parts), "")
    if not name:
        raise ValueError(
            f"{weight.dtype} under {printable(settings.method, 40)} quantisation, but its scale is missing"
        )
    if unread := parts.keys() & {"weight_zero_point", "pre_quant_scale"}:
        raise ValueError(f"float8 with {min(unread)} is not supported")
    scale = typed(parts, name, FLOATS | EXPONENTS)
    by_exponents = scale.dtype in EXPONENTS
    if len(weight.shape) > 3:
        raise ValueError(f"not a matrix ({show(weight.shape)})")
    block, words = _shared_block(weight.shape, scale, settings.blocks(), by_exponents)
    scheme = Scheme(
        "mxfp8" if by_exponents and block == (1, 32) else "fp8", words, "scaled", exact_floats([scale]), block
    )
    return QuantisedMatrix(weight.shape, scheme, {"weight": weight, "scale": scale})


def int8(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """int8 with scales and perhaps zero points (compressed-tensors int-quantized, modelopt int8)."""
    weight = carrier(parts, "weight")
    scale = typed(parts, "weight_scale", FLOATS)
    block, words = _shared_block(weight.shape, scale, settings.blocks(), by_exponents=False)
    found = {"weight": weight, "scale": scale}
    if settings.has_zero_points(parts):
        zero = found["zero"] = typed(parts, "weight_zero_point", {"I8", "I32"})
        check_size("weight_zero_point", zero, scale.shape)
        words += " with zero points"
    return QuantisedMatrix(weight.shape, Scheme("int8", words, "scaled", exact_floats([scale]), block), found)


def fp4(parts: Parts, _: QuantisationSettings) -> QuantisedMatrix:
    """E2M1, two a byte: MXFP4 with an exponent for 32 columns, NVFP4 with a float8 for 16 and one number for all."""
    weight = carrier(parts, "weight_packed", "weight", "")
    if weight.dtype not in ("U8", "I8", "F4"):
        raise ValueError(f"two 4-bit floats a byte cannot be {weight.dtype}")
    columns = weight.shape[-1] * (1 if weight.dtype == "F4" else 2)
    shape = (*weight.shape[:-1], columns)
    name = next((n for n in FP8_SCALES if n in parts), "weight_scale")
    scale = typed(parts, name, EXPONENTS | {"F8_E4M3"})
    if unread := parts.keys() & {"weight_zero_point", "pre_quant_scale"}:
        raise ValueError(f"4-bit floats with {min(unread)} are not supported")
    found = {"weight": weight, "scale": scale}
    if scale.dtype in EXPONENTS:
        check_size(name, scale, (*shape[:-1], -(-columns // 32)))
        return QuantisedMatrix(shape, Scheme("mxfp4", "", "fp4", "bfloat16", (1, 32)), found)
    check_size(name, scale, (*shape[:-1], -(-columns // 16)))
    # modelopt multiplies by its second scale, compressed-tensors divides by its global one.
    role, second = ("global", "weight_scale_2") if "weight_scale_2" in parts else ("divisor", "weight_global_scale")
    found[role] = typed(parts, second, {"F32"})
    if math.prod(found[role].shape) not in (1, math.prod(shape[:-2])):
        raise ValueError(f"{second} has shape {show(found[role].shape)}, not one number")
    of = "modelopt" if role == "global" else "compressed-tensors"
    return QuantisedMatrix(shape, Scheme("nvfp4", of, "fp4", "float64", (1, 16)), found)


def mxfp4_blocks(parts: Parts, _: QuantisationSettings) -> QuantisedMatrix:
    """gpt-oss: `_blocks` uint8 (..., out, in / 32, 16), `_scales` uint8 (..., out, in / 32)."""
    blocks = carrier(parts, "_blocks")
    scales = typed(parts, "_scales", EXPONENTS)
    if blocks.dtype != "U8" or len(blocks.shape) not in (3, 4) or blocks.shape[-1] != 16:
        raise ValueError(f"_blocks is {blocks.dtype} {show(blocks.shape)}, not U8 with blocks of 16 bytes")
    check_size("_scales", scales, blocks.shape[:-1])
    shape = (*blocks.shape[:-2], 32 * blocks.shape[-2])
    return QuantisedMatrix(shape, Scheme("mxfp4", "", "fp4", "bfloat16", (1, 32)), {"weight": blocks, "scale": scales})


def bitsandbytes4(parts: Parts, _: QuantisationSettings) -> QuantisedMatrix:
    """nf4 and fp4: half bytes of the flattened matrix; its shape and block size are in a JSON beside them."""
    weight = carrier(parts, "weight")
    key = next((name for name in BNB4 if name in parts), "")
    if not key:
        raise ValueError("bitsandbytes' weight.quant_state, which holds the shape, is missing")
    shape, block, nested, offset = _quant_state(parts[key])
    numbers = math.prod(shape)
    if weight.dtype != "U8" or math.prod(weight.shape) != -(-numbers // 2):
        raise ValueError(f"{show(weight.shape)} of {weight.dtype} cannot hold {show(shape)} half bytes")
    blocks = -(-numbers // block)
    absmax = typed(parts, "weight.absmax", {"U8"} if nested else {"F32"})
    check_size("weight.absmax", absmax, (blocks,))
    codes = typed(parts, "weight.quant_map", FLOATS)
    check_size("weight.quant_map", codes, (16,))
    found = {"weight": weight, "absmax": absmax, "map": codes}
    if nested:
        found["nested_absmax"] = typed(parts, "weight.nested_absmax", {"F32"})
        check_size("weight.nested_absmax", found["nested_absmax"], (-(-blocks // nested),))
        found["nested_map"] = typed(parts, "weight.nested_quant_map", FLOATS)
        check_size("weight.nested_quant_map", found["nested_map"], (256,))
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
    weight = carrier(parts, "weight")
    scale = typed(parts, "SCB", FLOATS)
    if weight.dtype != "I8" or len(weight.shape) != 2 or math.prod(scale.shape) != weight.shape[0]:
        raise ValueError(f"SCB of {show(scale.shape)} beside {weight.dtype} weights of {show(weight.shape)}")
    found = {"weight": weight, "scale": scale}
    if "weight_format" in parts:
        found["format"] = typed(parts, "weight_format", {"U8", "I8", "I32", "I64"})
    return QuantisedMatrix(
        weight.shape, Scheme("bitsandbytes int8", "per row", "int8 rows", "float64", (1, weight.shape[1])), found
    )


def bitnet(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """`weight` uint8 (out / 4, in), four ternary numbers a byte; `weight_scale` one number."""
    weight = carrier(parts, "weight")
    scale = typed(parts, "weight_scale", FLOATS)
    if weight.dtype != "U8" or len(weight.shape) != 2:
        raise ValueError(f"weight is {weight.dtype} {show(weight.shape)}, not a matrix of U8")
    if math.prod(scale.shape) != 1:
        raise ValueError(f"weight_scale has shape {show(scale.shape)}, not one number")
    divided = settings.word("linear_class") != "autobitlinear"
    scheme = Scheme("bitnet", "scale divides" if divided else "", "ternary", "float64", offset=float(divided))
    return QuantisedMatrix((4 * weight.shape[0], weight.shape[1]), scheme, {"weight": weight, "scale": scale})


def plain(parts: Parts, _: QuantisationSettings) -> QuantisedMatrix:
    """E8M0 and E2M1 without other parts: numbers, but of types that torch cannot compute with."""
    weight = carrier(parts, "weight", "")
    name, formula = ("e8m0", "exponents") if weight.dtype == "F8_E8M0" else ("e2m1", "fp4")
    return QuantisedMatrix(weight.shape, Scheme(name, "", formula, "float32"), {"weight": weight})


def _shared_block(
    shape: Shape, scale: Tensor, blocks: Iterable[tuple[int, int]], by_exponents: bool
) -> tuple[tuple[int, int], str]:
    """The block of weights that shares a number of `scale`, and the words for it.

    A number for the whole tensor, an expert, a row or a column shows in the shape of the scale; a block is never
    guessed from the shape (576 rows with 5 scales are 4 blocks of 128 and one of 64, not 5 of 115.2).
    """
    given = scale.shape
    if (found := _shown_by_shape(shape, given)) is not None:
        return found
    if _is_grid(shape, given):
        rows, cols = shape[-2:]
        stated = {*blocks, (1, 32)} if by_exponents else set(blocks)
        fits = {b for b in stated if given[-2:] == (-(-rows // b[0]), -(-cols // b[1]))}
        clipped = {(min(b[0], rows), min(b[1], cols)) for b in fits}
        if len(clipped) == 1:
            block = min(fits)
            return block, f"{block[0]}x{block[1]} blocks"
        if not stated:
            raise ValueError(f"a scale of {show(given)} for {show(shape)}, but config.json names no block size")
    named = " or ".join(f"{a} x {b}" for a, b in sorted(blocks)) or "one block"
    raise ValueError(f"the scale has shape {show(given)}, which {show(shape)} in blocks of {named} does not need")


def _shown_by_shape(shape: Shape, given: Shape) -> tuple[tuple[int, int], str] | None:
    """The block and its words if a scale of shape `given` can only be for a tensor, an expert, a row or a column."""
    rows, cols = shape[-2:]
    if math.prod(given) == 1:
        return (rows, cols), "per tensor"
    if len(shape) == 2 and given == (rows,):
        return (1, cols), "per row"
    if given == shape[:-2]:
        return (rows, cols), "per expert"
    if not _is_grid(shape, given) or given[-2:] == (rows, cols):
        return None
    if given[-2] not in (1, rows) or given[-1] not in (1, cols):
        return None
    block = (1 if given[-2] == rows else rows, 1 if given[-1] == cols else cols)
    return block, "per row" if block[0] == 1 else "per column" if block[1] == 1 else "per expert"


def _is_grid(shape: Shape, given: Shape) -> bool:
    """True if a scale has as many axes as its tensor, and a grid of numbers for each expert or for all of them."""
    return len(given) == len(shape) and given[:-2] in (shape[:-2], (1,) * (len(shape) - 2))

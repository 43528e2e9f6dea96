"""Integers packed in int32 words, by compressed-tensors, GPTQ and AWQ: parts -> the scheme of their matrix."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..errors import printable
from ..formats.tensor import Scheme, Tensor, peek
from .checked_parts import FLOATS, Parts, QuantisedMatrix, carrier, check_size, exact_floats, groups_of, show, typed
from .settings import QuantisationSettings, positive


def packed(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """compressed-tensors pack-quantized: integers of 1 to 8 bits in int32 words, scales by row or group of columns."""
    weight = carrier(parts, "weight_packed")
    if weight.dtype != "I32" or len(weight.shape) not in (2, 3):
        raise ValueError(f"weight_packed is {weight.dtype} {show(weight.shape)}, not a matrix of I32")
    scale = typed(parts, "weight_scale", FLOATS)
    rows, words = weight.shape[-2:]
    if len(scale.shape) != len(weight.shape) or scale.shape[:-1] != weight.shape[:-1]:
        raise ValueError(f"weight_scale has shape {show(scale.shape)} beside {rows} rows")
    (bits, group, columns), peeked = _packing(parts, words, scale.shape[-1], settings)
    shape = (*weight.shape[:-1], columns)
    found = {"weight": weight, "scale": scale}
    detail = groups_of(group, columns)
    if settings.has_zero_points(parts):
        found["zero"] = typed(parts, "weight_zero_point", {"I32"})
        check_size("weight_zero_point", found["zero"], (*shape[:-2], -(-rows * bits // 32), scale.shape[-1]))
        detail += " with zero points"
    if "weight_g_idx" in parts or any(w.get("actorder") == "group" for w in settings.weights()):
        found["g_idx"] = typed(parts, "weight_g_idx", {"I32", "I64"})
        check_size("weight_g_idx", found["g_idx"], (columns,))
        detail += " by g_idx"
    if "weight_shape" in parts:
        found["shape"] = typed(parts, "weight_shape", {"I64", "I32"})
    return QuantisedMatrix(
        shape, Scheme(f"int{bits}", detail, "packed", exact_floats([scale]), (1, group), bits), found, peeked
    )


class _Packing(NamedTuple):
    """The bits of an integer, the columns that share a scale, and all columns of a row."""

    bits: int
    group: int
    columns: int

    def fits(self, words: int, groups: int) -> bool:
        """True if a row takes that many words and scales; the last word may be padded."""
        return -(-self.columns * self.bits // 32) == words and -(-self.columns // self.group) == groups

    def is_exact(self, words: int, groups: int) -> bool:
        """True if a row fills its words and its several groups."""
        return self.columns == self.group * groups == words * 32 // self.bits and self.group != self.columns


def _packing(parts: Parts, words: int, groups: int, settings: QuantisationSettings) -> tuple[_Packing, bool]:
    """The packing of rows of `words` words that have `groups` scales, and whether stored bytes had to be read for it.

    If the last word may be padded, only the stored weight_shape tells the number of columns.
    """
    stated = _stated(settings)
    fitting = [found for bits, group in stated if (found := _widest(bits, group, words, groups)).fits(words, groups)]
    if len(fitting) == 1 and fitting[0].is_exact(words, groups):
        return fitting[0], False
    if "weight_shape" in parts:
        columns = _peeked_shape(parts["weight_shape"])[-1]
        resized = [_Packing(p.bits, p.group if p.group < p.columns else columns, columns) for p in fitting]
        fitting = [packing for packing in resized if packing.fits(words, groups)]
    if len(fitting) != 1:
        sizes = " or ".join(
            f"{bits} bits in groups of {group}" if group > 0 else f"{bits} bits" for bits, group in stated
        )
        raise ValueError(f"rows of {words} words with {groups} scales are not {sizes}, as config.json says")
    return fitting[0], "weight_shape" in parts


def _stated(settings: QuantisationSettings) -> list[tuple[int, int]]:
    """Bits and columns of a group, not positive for whole rows, of each config_group, sorted."""
    named = [(w.get("num_bits"), w.get("group_size") or 0) for w in settings.weights()]
    stated = sorted({(b, g) for b, g in named if type(b) is int and 1 <= b <= 8 and type(g) is int})
    if not stated:
        raise ValueError("packed integers, but config.json names no config_groups with their bits")
    return stated


def _widest(bits: int, group: int, words: int, groups: int) -> _Packing:
    """The packing with as many columns as the words and the groups can hold."""
    most = words * 32 // bits
    columns = most if group <= 0 else min(most, groups * group)
    return _Packing(bits, group if group > 0 else columns, columns)


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
    found = _words_and_scales(parts)
    words, rows = found["weight"].shape
    groups = found["scale"].shape[0]
    if "g_idx" in parts or settings.config.get("desc_act") is True:
        found["g_idx"] = typed(parts, "g_idx", {"I32", "I64"})
    bits, columns = _gptq_width(found.get("g_idx"), words, rows, settings.number("bits", "w_bit"))
    check_size("scales", found["scale"], (groups, rows))
    check_size("qzeros", found["zero"], (groups, -(-rows * bits // 32)))
    group = settings.number("group_size", "q_group_size") or 0
    group = group if group > 0 else columns
    if "g_idx" not in found and -(-columns // group) != groups:
        raise ValueError(f"scales of {groups} groups, but {columns} columns in groups of {group} need others")
    detail = f"{groups_of(group, columns)} by g_idx" if "g_idx" in found else groups_of(group, columns)
    name = f"gptq int{bits}" if layout == "gptq" else f"gptq v2 int{bits}"
    offset = 1 if layout == "gptq" else 0
    floats = exact_floats([found["scale"]])
    return QuantisedMatrix(
        (rows, columns), Scheme(name, detail, "gptq", floats, (1, group), bits, offset=offset), found
    )


def _gptq_width(g_idx: Tensor | None, words: int, rows: int, stated: int | None) -> tuple[int, int]:
    """(bits, columns) of `words` x `rows` words: the columns from g_idx, else the bits from config.json (`stated`)."""
    if g_idx is not None:
        columns = math.prod(g_idx.shape)
        bits = 32 * words // columns if columns else 0
    else:
        bits = stated or 0
        columns = 32 * words // bits if positive(bits) else 0
    if not bits:
        raise ValueError("GPTQ without g_idx, and config.json names no bits")
    if not 2 <= bits <= 8 or columns * bits != 32 * words:
        raise ValueError(f"qweight of {words} x {rows} words cannot hold {columns} columns of {stated or bits} bits")
    return bits, columns


def _words_and_scales(parts: Parts) -> dict[str, Tensor]:
    """The `weight`, `zero` and `scale` of GPTQ and AWQ."""
    weight, zeros = carrier(parts, "qweight"), typed(parts, "qzeros", {"I32"})
    scales = typed(parts, "scales", FLOATS)
    if weight.dtype != "I32" or len(weight.shape) != 2 or len(scales.shape) != 2:
        raise ValueError(f"qweight is {weight.dtype} {show(weight.shape)}, not a matrix of I32")
    return {"weight": weight, "zero": zeros, "scale": scales}


def awq(parts: Parts, settings: QuantisationSettings) -> QuantisedMatrix:
    """GEMM: `qweight` int32 (in, out / 8), `qzeros` (groups, out / 8), `scales` (groups, out)."""
    version = settings.word("version", "checkpoint_format", "format") or "gemm"
    if version not in ("gemm", "awq"):
        raise ValueError(f"AWQ in {printable(version, 40)} format is not supported, only gemm")
    if (bits := settings.number("bits", "w_bit") or 4) != 4:
        raise ValueError(f"AWQ with {bits} bits is not supported, only 4")
    found = _words_and_scales(parts)
    zeros, scales = found["zero"], found["scale"]
    columns, words = found["weight"].shape
    group = settings.number("group_size", "q_group_size") or 0
    group = group if group > 0 else columns
    groups = -(-columns // group)
    check_size("scales", scales, (groups, 8 * words))
    check_size("qzeros", zeros, (groups, words))
    scheme = Scheme("awq int4", groups_of(group, columns), "awq", exact_floats([scales]), (group, 1), 4)
    return QuantisedMatrix((8 * words, columns), scheme, found)

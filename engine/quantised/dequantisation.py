"""Packed numbers and scales -> float matrix, in torch, on whatever device the parts are.

One function per format. Each takes the scheme, the shape of the matrix, (out, in) or (experts, out, in), and
the parts by name, and returns floats of the scheme's type. Scales are multiplied in place, over views of
the result: beside parts and result only the unpacked integers take memory, about two bytes a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..errors import WeightsError
from ..formats.tensor import Scheme
from .checked_parts import Shape

LoadedParts = Mapping[str, Tensor]

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The sixteen values of E2M1 (OCP Microscaling Formats, 5.3.3)."""

AWQ_COLUMNS = (0, 4, 1, 5, 2, 6, 3, 7)
"""The field of a word that holds each of its columns 0 to 7 (autoawq, packing_utils.AWQ_REVERSE_ORDER)."""

_SLAB = 1 << 22  # weights or bytes at a time, where a table look-up makes a copy


def dequantise(scheme: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """The matrix of shape `shape` that the parts encode, in the type `scheme.floats`, on the parts' device.

    Raises:
        WeightsError: the parts contradict one another.
    """
    return _FORMULAS[scheme.formula](scheme, shape, parts)


def _scaled(scheme: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """W = (w - zero) * scale, where blocks of rows and columns share zero and scale; compressed-tensors and FP8."""
    rows, cols = (-(-size // step) for size, step in zip(shape[-2:], scheme.block, strict=True))
    grid = (rows, cols) if len(shape) == 2 else (-1, rows, cols)
    return _scale_and_shift(
        parts["weight"], {name: part.reshape(grid) for name, part in parts.items() if name != "weight"}, scheme
    )


def _int8_rows(scheme: Scheme, _: Shape, parts: LoadedParts) -> Tensor:
    """W = w * SCB / 127 for each row; bitsandbytes LLM.int8(). `format` 0 means that rows are not interleaved."""
    if "format" in parts and int(parts["format"].reshape(-1)[0]) != 0:
        raise WeightsError("bitsandbytes int8 in an interleaved layout of a GPU: save it again with row layout")
    return _scale_and_shift(parts["weight"], {"scale": parts["scale"].reshape(-1, 1)}, scheme).div_(127)


def _fp4(scheme: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """W = E2M1 * scale for each group of columns, low nibble first.

    The scale is 2^(s - 127) (MXFP4), or float8 times `global` (modelopt) or divided by `divisor` (compressed-tensors).
    """
    floats = getattr(torch, scheme.floats)
    packed = parts["weight"].view(torch.uint8)
    out = _pairs(packed, torch.tensor(FP4, dtype=floats, device=packed.device)).view(shape)
    if "scale" in parts:
        scale = _numbers(parts["scale"], floats).reshape(*shape[:-1], -1)
        if "global" in parts:
            scale = scale * _per_matrix(parts["global"], floats)
        if "divisor" in parts:
            scale = scale / _per_matrix(parts["divisor"], floats)
        _by_blocks(out, scale, scheme.block, Tensor.mul_)
    return out


def _per_matrix(number: Tensor, floats: torch.dtype) -> Tensor:
    """One number, or one for each expert, in a shape that broadcasts over (experts, out, in)."""
    number = number.to(floats).reshape(-1)
    return number if len(number) == 1 else number.view(-1, 1, 1)


def _exponents(_: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """W = 2^(s - 127): a matrix stored as E8M0 without other parts."""
    return _numbers(parts["weight"], torch.float32).reshape(shape)


def _packed(scheme: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """W = (q - zero) * scale; compressed-tensors pack-quantized. `weight` int32 (out, in * bits / 32),
    `zero` int32 packed along the rows, (out * bits / 32, groups)."""
    if "shape" in parts and tuple(parts["shape"].tolist()) != shape:
        raise WeightsError(f"weight_shape says {parts['shape'].tolist()}, but the packed words hold {list(shape)}")
    values = _fields(parts["weight"], scheme.bits, shape[-1])
    found = dict(parts)
    if "zero" in parts:
        found["zero"] = _fields(parts["zero"].mT, scheme.bits, shape[-2]).mT
    return _scale_and_shift(values, found, scheme, middle=1 << (scheme.bits - 1))


def _gptq(scheme: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """W = scale * (q - zero); `weight` int32 (in * bits / 32, out), `zero` int32 (groups, out * bits / 32).

    `offset` is 1 for version 1, which stores zero - 1 in `bits` bits.
    """
    values = _fields(parts["weight"].mT, scheme.bits, shape[1])
    zero = (_fields(parts["zero"], scheme.bits, shape[0]) + int(scheme.offset)) & ((1 << scheme.bits) - 1)
    return _scale_and_shift(values, {**parts, "zero": zero.mT, "scale": parts["scale"].mT}, scheme)


def _awq(scheme: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """W = ((q - zero) * scale)^T; `weight` int32 (in, out / 8), `zero` int32 (groups, out / 8)."""
    order = torch.tensor(AWQ_COLUMNS, device=parts["weight"].device)
    values, zero = (
        _fields(words, 4, shape[0]).reshape(len(words), -1, 8).index_select(-1, order).flatten(-2)
        for words in (parts["weight"], parts["zero"])
    )
    return _scale_and_shift(values, {"zero": zero, "scale": parts["scale"]}, scheme).mT


def _codebook(scheme: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """W = map[q] * absmax over blocks of the flattened matrix, high nibble first; bitsandbytes nf4 and fp4."""
    absmax = unnested(scheme, parts)
    numbers = 1
    for size in shape:
        numbers *= size
    table = parts["map"].to(getattr(torch, scheme.floats))
    out = _pairs(parts["weight"], table, high_first=True).view(-1)[:numbers].view(1, -1)
    _by_blocks(out, absmax, scheme.block, Tensor.mul_)
    return out.view(shape)


def unnested(scheme: Scheme, parts: LoadedParts) -> Tensor:
    """absmax of bitsandbytes, shape (1, blocks). If it is quantised itself, it is nested_map[u8] * nested_absmax +
    `offset`, where blocks of `nested` share one nested_absmax.
    """
    absmax = parts["absmax"].reshape(1, -1)
    if scheme.nested:
        absmax = parts["nested_map"].double().index_select(0, absmax.reshape(-1).int()).view(1, -1)
        _by_blocks(absmax, parts["nested_absmax"].reshape(1, -1), (1, scheme.nested), Tensor.mul_)
        absmax += scheme.offset
    return absmax


def _ternary(scheme: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """W = (q - 1) * scale; row r of `weight` uint8 (out / 4, in) holds rows r, r + out/4, ... of the matrix.

    `offset` 1 means that W is divided by the scale, as in transformers' BitLinear; its AutoBitLinear multiplies.
    """
    rows = [(parts["weight"] >> shift) & 3 for shift in (0, 2, 4, 6)]
    out = torch.cat(rows).view(shape).to(getattr(torch, scheme.floats)).sub_(1)
    scale = parts["scale"].to(out.dtype).reshape(-1)
    return out.div_(scale) if scheme.offset else out.mul_(scale)


def _masked(_: Scheme, __: Shape, parts: LoadedParts) -> Tensor:
    """W = weight * mask; torch.nn.utils.prune."""
    return parts["weight"].double() * parts["mask"].double()


def _direction(_: Scheme, shape: Shape, parts: LoadedParts) -> Tensor:
    """W = g v / |v|, by rows, by columns or as a whole, depending on the shape of g; torch.nn.utils.weight_norm."""
    weight, length = parts["weight"].double(), parts["length"].double()
    if length.numel() == 1:
        norm: Tensor = torch.linalg.vector_norm(weight)
        return weight * (length.reshape(()) / norm)
    norm = torch.linalg.vector_norm(weight, dim=int(length.shape[0] == shape[0]), keepdim=True)
    return weight * (length / norm)


def _over_its_norm(_: Scheme, __: Shape, parts: LoadedParts) -> Tensor:
    """W = weight / (u weight v); torch.nn.utils.spectral_norm."""
    weight, u, v = (parts[name].double() for name in ("weight", "u", "v"))
    return weight / (u.reshape(-1) @ weight @ v.reshape(-1))


_FORMULAS: dict[str, Callable[[Scheme, Shape, LoadedParts], Tensor]] = {
    "scaled": _scaled,
    "int8 rows": _int8_rows,
    "fp4": _fp4,
    "exponents": _exponents,
    "packed": _packed,
    "gptq": _gptq,
    "awq": _awq,
    "codebook": _codebook,
    "ternary": _ternary,
    "masked": _masked,
    "direction": _direction,
    "over its norm": _over_its_norm,
}


def _scale_and_shift(values: Tensor, parts: LoadedParts, scheme: Scheme, middle: int = 0) -> Tensor:
    """(values - zero) * scale as floats; `middle` is the zero point if none is stored.

    The columns of a block are neighbours, unless `g_idx`, int32 (in,), gives the group of each.
    """
    out = values.to(getattr(torch, scheme.floats))
    scale = _numbers(parts["scale"], out.dtype)
    zero = parts["zero"].to(out.dtype) if "zero" in parts else None
    if zero is None and middle:
        out.sub_(middle)
    if "g_idx" not in parts:
        if zero is not None:
            _by_blocks(out, zero, scheme.block, Tensor.sub_)
        return _by_blocks(out, scale, scheme.block, Tensor.mul_)
    groups = _groups(parts["g_idx"], scale.shape[-1])
    step = max(1, _SLAB // out.shape[-1])
    for start in range(0, out.shape[-2], step):
        rows = slice(start, start + step)
        if zero is not None:
            out[..., rows, :].sub_(zero[..., rows, :].index_select(-1, groups))
        out[..., rows, :].mul_(scale[..., rows, :].index_select(-1, groups))
    return out


def _groups(g_idx: Tensor, count: int) -> Tensor:
    """The group of each column, checked because an index of 2^31 would read memory outside the scales."""
    low, high = (int(x) for x in torch.aminmax(g_idx))
    if low < 0 or high >= count:
        raise WeightsError(f"g_idx names groups {low} to {high}, but there are scales for {count}")
    return g_idx.int()


def _by_blocks(
    out: Tensor, factors: Tensor, block: tuple[int, int], apply: Callable[[Tensor, Tensor], object]
) -> Tensor:
    """Apply `apply` in place to every block of rows and columns of `out` with its factor, and return `out`.

    `factors` has one number for each block; the last block along an axis may be smaller.
    """
    for rows, row_factors, height in _pieces(out.shape[-2], block[0]):
        for cols, col_factors, width in _pieces(out.shape[-1], block[1]):
            piece = out[..., rows, cols]
            blocks = piece.view(*piece.shape[:-2], -1, height, piece.shape[-1] // width, width)
            apply(blocks, factors[..., row_factors, col_factors][..., :, None, :, None])
    return out


def _pieces(size: int, step: int) -> Iterator[tuple[slice, slice, int]]:
    """The whole blocks of an axis, then the smaller last one: slice of entries, slice of factors, entries of a
    block."""
    whole = size // step
    if whole:
        yield slice(0, whole * step), slice(0, whole), step
    if size % step:
        yield slice(whole * step, size), slice(whole, whole + 1), size % step


def _numbers(scale: Tensor, floats: torch.dtype) -> Tensor:
    """A scale as floats. Bytes are exponents: 2^(s - 127), and NaN for 255 (E8M0).

    They go through a table, because exp2 of a float32 flushes 2^-127 to zero on some devices.
    """
    if scale.dtype != torch.uint8:
        return scale.to(floats)
    powers = torch.tensor([2.0 ** (s - 127) for s in range(255)] + [float("nan")], dtype=floats, device=scale.device)
    return powers.index_select(0, scale.reshape(-1).int()).view(scale.shape)


def _pairs(packed: Tensor, table: Tensor, *, high_first: bool = False) -> Tensor:
    """The table's number for both nibbles of each byte, shape (..., 2); `high_first`: the high nibble comes first."""
    byte = torch.arange(256, device=packed.device)
    first, second = (byte >> 4, byte & 15) if high_first else (byte & 15, byte >> 4)
    pairs = torch.stack((table[first], table[second]), -1)
    flat = packed.reshape(-1)
    out = torch.empty((len(flat), 2), dtype=table.dtype, device=packed.device)
    for start in range(0, len(flat), _SLAB):  # an int32 index takes four times the memory of its byte
        torch.index_select(pairs, 0, flat[start : start + _SLAB].int(), out=out[start : start + _SLAB])
    return out.view(*packed.shape, 2)


def _fields(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` fields of `bits` bits in each row of int32 words, lowest bit first, as uint8 (..., count)."""
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        data = words.contiguous().view(torch.uint8)
        return torch.stack([(data >> shift) & mask for shift in range(0, 8, bits)], -1).flatten(-2)[..., :count]
    at = torch.arange(count, device=words.device) * bits
    first, shift = at // 32, at % 32
    flat = words.reshape(-1, words.shape[-1])
    out = torch.empty((len(flat), count), dtype=torch.uint8, device=words.device)
    step = max(1, _SLAB // count)
    for start in range(0, len(flat), step):  # a field may lie across two words, so both are joined in 64 bits
        wide = torch.nn.functional.pad(flat[start : start + step].long() & 0xFFFFFFFF, (0, 1))
        both = wide.index_select(-1, first) | (wide.index_select(-1, first + 1) << 32)
        out[start : start + step] = (both >> shift) & mask
    return out.view(*words.shape[:-1], count)

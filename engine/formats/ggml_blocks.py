"""ggml's blocks -> float32, written once for numpy on the CPU and for torch on a GPU.

The layouts are those of `gguf.quants`. All products and sums are formed in float32 in the same order as there, so
results are equal bit for bit. Bytes stay bytes up to the last step, and scales are multiplied in place over views of
the result: on one core that is 1.6 to 3.5 times as fast as the package, which works on 16 rows at a time
(tests/benchmarks/dequantise.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..weights import settled

if TYPE_CHECKING:
    import torch

Array: TypeAlias = Any
"""A numpy array or a torch tensor: the formulas only use what both have."""

_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The sixteen values of E2M1, doubled."""
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen values of IQ4_NL and IQ4_XS (kvalues_iq4nl of ggml)."""


class Arrays(Protocol):
    """Operations that numpy and torch call by different names."""

    def halves(self, pairs: Array) -> Array:
        """float32 of the float16 numbers in these bytes; the last axis gets half as long."""
        ...

    def signed(self, numbers: Array) -> Array:
        """Bytes as int8."""
        ...

    def wide(self, numbers: Array) -> Array:
        """Bytes as int16."""
        ...

    def floats(self, numbers: Array) -> Array:
        """Numbers as float32."""
        ...

    def bytes_of(self, numbers: Sequence[int]) -> Array:
        """The numbers as uint8, shape (len(numbers),)."""
        ...

    def look_up(self, table: tuple[float, ...], index: Array) -> Array:
        """The float32 numbers of the table at the positions in `index` (bytes), in its shape."""
        ...


class _Host:
    """Arrays for numpy."""

    def __init__(self) -> None:
        import numpy

        self._np = numpy

    def halves(self, pairs: Array) -> Array:
        return pairs.view(self._np.float16).astype(self._np.float32)

    def signed(self, numbers: Array) -> Array:
        return numbers.view(self._np.int8)

    def wide(self, numbers: Array) -> Array:
        return numbers.astype(self._np.int16)

    def floats(self, numbers: Array) -> Array:
        return numbers.astype(self._np.float32)

    def bytes_of(self, numbers: Sequence[int]) -> Array:
        return self._np.array(numbers, self._np.uint8)

    def look_up(self, table: tuple[float, ...], index: Array) -> Array:
        return self._np.array(table, self._np.float32).take(index)


class _OnDevice:
    """Arrays for torch on one device. Constants are copied there once, because a copy from ordinary memory waits until
    the device has done all earlier work of its stream."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._torch, self._device = torch, device
        self._constants: dict[object, torch.Tensor] = {}

    def halves(self, pairs: Array) -> Array:
        return pairs.view(self._torch.float16).float()

    def signed(self, numbers: Array) -> Array:
        return numbers.view(self._torch.int8)

    def wide(self, numbers: Array) -> Array:
        return numbers.short()

    def floats(self, numbers: Array) -> Array:
        return numbers.float()

    def bytes_of(self, numbers: Sequence[int]) -> Array:
        return self._constant(tuple(numbers), self._torch.uint8)

    def look_up(self, table: tuple[float, ...], index: Array) -> Array:
        numbers = self._constant(table, self._torch.float32)
        return numbers.index_select(0, index.reshape(-1).int()).reshape(index.shape)

    def _constant(self, numbers: tuple[float, ...], dtype: torch.dtype) -> torch.Tensor:
        if (numbers, dtype) not in self._constants:
            made = self._constants[numbers, dtype] = self._torch.tensor(numbers, dtype=dtype, device=self._device)
            settled(made)
        return self._constants[numbers, dtype]


on_host, on_device = cache(_Host), cache(_OnDevice)
"""The operations for numpy, and for torch on a device."""


def _q4_0(ops: Arrays, blocks: Array, out: Array) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= ops.halves(blocks[:, :2])


def _q4_1(ops: Arrays, blocks: Array, out: Array) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= ops.halves(blocks[:, :2])
    out += ops.halves(blocks[:, 2:4])


def _q5_0(ops: Arrays, blocks: Array, out: Array) -> None:
    _five_bits(ops, blocks[:, 2:6], blocks[:, 6:], out)
    out -= 16
    out *= ops.halves(blocks[:, :2])


def _q5_1(ops: Arrays, blocks: Array, out: Array) -> None:
    _five_bits(ops, blocks[:, 4:8], blocks[:, 8:], out)
    out *= ops.halves(blocks[:, :2])
    out += ops.halves(blocks[:, 2:4])


def _q8_0(ops: Arrays, blocks: Array, out: Array) -> None:
    out[:] = ops.signed(blocks[:, 2:])
    out *= ops.halves(blocks[:, :2])


def _q2_k(ops: Arrays, blocks: Array, out: Array) -> None:
    count, scales = len(blocks), blocks[:, :16]
    out.reshape(count, 2, 4, 32)[:] = (_spread(ops, blocks[:, 16:80].reshape(count, 2, 32), (0, 2, 4, 6))) & 3
    groups = out.reshape(count, 16, 16)
    groups *= (ops.halves(blocks[:, 80:82]) * ops.floats(scales & 15))[..., None]
    groups -= (ops.halves(blocks[:, 82:84]) * ops.floats(scales >> 4))[..., None]


def _q3_k(ops: Arrays, blocks: Array, out: Array) -> None:
    """A set third bit means that 4 is not subtracted. Scales have four bits in bytes 0 to 7 and two in 8 to 11."""
    count = len(blocks)
    low = _spread(ops, blocks[:, 32:96].reshape(count, 2, 32), (0, 2, 4, 6)) & 3
    high = (_spread(ops, blocks[:, None, :32], range(8)) & 1).reshape(count, 2, 4, 32)
    out.reshape(count, 2, 4, 32)[:] = low | (high << 2)
    scales = _spread(ops, blocks[:, None, 96:104], (0, 4)).reshape(count, 16) & 15
    scales = scales | ((_spread(ops, blocks[:, None, 104:108], (0, 2, 4, 6)).reshape(count, 16) & 3) << 4)
    groups = out.reshape(count, 16, 16)
    groups -= 4
    groups *= (ops.halves(blocks[:, 108:110]) * (ops.floats(scales) - 32))[..., None]


def _q4_k(ops: Arrays, blocks: Array, out: Array) -> None:
    _nibbles(blocks[:, 16:].reshape(-1, 32), out.reshape(-1, 64))
    _scales_and_minima(ops, blocks, out)


def _q5_k(ops: Arrays, blocks: Array, out: Array) -> None:
    count = len(blocks)
    low = _spread(ops, blocks[:, 48:].reshape(count, 4, 32), (0, 4)).reshape(count, 8, 32) & 15
    high = _spread(ops, blocks[:, None, 16:48], range(8)).reshape(count, 8, 32) & 1
    out.reshape(count, 8, 32)[:] = low | (high << 4)
    _scales_and_minima(ops, blocks, out)


def _q6_k(ops: Arrays, blocks: Array, out: Array) -> None:
    count = len(blocks)
    low = _spread(ops, blocks[:, :128].reshape(count, 2, 64), (0, 4)).reshape(count, 8, 32) & 15
    high = _spread(ops, blocks[:, 128:192].reshape(count, 2, 32), (0, 2, 4, 6)).reshape(count, 8, 32) & 3
    out.reshape(count, 8, 32)[:] = low | (high << 4)
    groups = out.reshape(count, 16, 16)
    groups -= 32
    groups *= (ops.halves(blocks[:, 208:210]) * ops.floats(ops.signed(blocks[:, 192:208])))[..., None]


def _tq1_0(ops: Arrays, blocks: Array, out: Array) -> None:
    """A byte holds five digits to base 3, the highest first, as a fraction of 256."""
    at = 0
    for begin, end, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        powers = ops.bytes_of([3**digit for digit in range(digits)]).reshape(digits, 1)
        size = (end - begin) * digits
        digit = (ops.wide(blocks[:, None, begin:end] * powers) * 3) >> 8
        out[:, at : at + size] = digit.reshape(len(blocks), size)
        at += size
    out -= 1
    out *= ops.halves(blocks[:, 52:54])


def _tq2_0(ops: Arrays, blocks: Array, out: Array) -> None:
    count = len(blocks)
    out.reshape(count, 2, 4, 32)[:] = _spread(ops, blocks[:, :64].reshape(count, 2, 32), (0, 2, 4, 6)) & 3
    out -= 1
    out *= ops.halves(blocks[:, 64:66])


def _iq4_nl(ops: Arrays, blocks: Array, out: Array) -> None:
    out.reshape(-1, 2, 16)[:] = ops.look_up(_IQ4, _spread(ops, blocks[:, None, 2:], (0, 4)) & 15).reshape(-1, 2, 16)
    out *= ops.halves(blocks[:, :2])


def _iq4_xs(ops: Arrays, blocks: Array, out: Array) -> None:
    """Scales have four bits in bytes 4 to 7 and two in bytes 2 and 3."""
    count = len(blocks)
    low = _spread(ops, blocks[:, 4:8].reshape(count, 4, 1), (0, 4)).reshape(count, 8) & 15
    high = _spread(ops, blocks[:, 2:4].reshape(count, 2, 1), (0, 2, 4, 6)).reshape(count, 8) & 3
    packed = _spread(ops, blocks[:, 8:].reshape(count, 8, 16), (0, 4)) & 15
    out.reshape(count, 8, 2, 16)[:] = ops.look_up(_IQ4, packed)
    groups = out.reshape(count, 8, 32)
    groups *= (ops.halves(blocks[:, :2]) * (ops.floats(low | (high << 4)) - 32))[..., None]


def _mxfp4(ops: Arrays, blocks: Array, out: Array) -> None:
    out.reshape(-1, 2, 16)[:] = ops.look_up(_E2M1, _spread(ops, blocks[:, None, 1:], (0, 4)) & 15).reshape(-1, 2, 16)
    out *= ops.look_up(_halved_e8m0(), blocks[:, :1])


def _nvfp4(ops: Arrays, blocks: Array, out: Array) -> None:
    count = len(blocks)
    packed = _spread(ops, blocks[:, 4:].reshape(count, 4, 8), (0, 4)) & 15
    out.reshape(count, 4, 2, 8)[:] = ops.look_up(_E2M1, packed)
    groups = out.reshape(count, 4, 16)
    groups *= ops.look_up(_halved_ue4m3(), blocks[:, :4])[..., None]


FORMULAS: dict[str, Callable[[Arrays, Array, Array], None]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "TQ1_0": _tq1_0, "TQ2_0": _tq2_0, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4, "NVFP4": _nvfp4,
}  # fmt: skip
"""For each type the function that converts blocks, uint8 (blocks, bytes of a block), into float32 `out` of shape
(blocks, weights of a block)."""


def _spread(ops: Arrays, packed: Array, shifts: Sequence[int]) -> Array:
    """The bytes shifted right by each of `shifts`, along a new axis before the last."""
    return packed[..., None, :] >> ops.bytes_of(shifts).reshape(-1, 1)


def _nibbles(packed: Array, out: Array) -> None:
    """Write the low nibbles of all bytes, then the high ones."""
    half = packed.shape[1]
    out[:, :half] = packed & 15
    out[:, half:] = packed >> 4


def _five_bits(ops: Arrays, fifth: Array, packed: Array, out: Array) -> None:
    """Write nibbles as _nibbles does, each with its fifth bit; the fifth bits are stored in order, lowest first."""
    count = len(packed)
    high = (fifth[:, :, None] >> ops.bytes_of(range(8))).reshape(count, 2, 16) & 1
    out.reshape(count, 2, 16)[:] = (_spread(ops, packed[:, None], (0, 4)).reshape(count, 2, 16) & 15) | (high << 4)


def _scales_and_minima(ops: Arrays, blocks: Array, out: Array) -> None:
    """Apply the eight scales and minima of Q4_K and Q5_K, 6 bits each in bytes 4 to 15; the last four are in pieces."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    groups = out.reshape(len(blocks), 2, 4, 32)
    d, least = ops.halves(blocks[:, :2]), ops.halves(blocks[:, 2:4])
    groups[:, 0] *= (d * ops.floats(first & 63))[..., None]
    groups[:, 1] *= (d * ops.floats((third & 15) | ((first >> 2) & 48)))[..., None]
    groups[:, 0] -= (least * ops.floats(second & 63))[..., None]
    groups[:, 1] -= (least * ops.floats((third >> 4) | ((second >> 2) & 48)))[..., None]


@cache
def _halved_e8m0() -> tuple[float, ...]:
    """2^(e - 127) / 2 for each byte; 255 is no NaN (ggml_e8m0_to_fp32_half)."""
    return tuple(2.0 ** (e - 128) for e in range(256))


@cache
def _halved_ue4m3() -> tuple[float, ...]:
    """E4M3 / 2 for each byte, ignoring the sign, and 0 for 127 (gguf.quants.NVFP4)."""

    def number(byte: int) -> float:
        exponent, mantissa = (byte >> 3) & 15, byte & 7
        if byte == 127:
            return 0.0
        return mantissa * 2.0**-10 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 8)

    return tuple(map(number, range(256)))

"""Quantised matrices packed by hand: random stored numbers, and the value of each element.

Each packer returns the tensors of a module by their names behind the module's, the matrix in float64, and the
quantization_config that goes with them. The packing follows the published layouts with Python's whole numbers and
loops, as plainly as possible, and shares nothing with engine/quantised/dequantisation.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
RNG = np.random.default_rng(17)

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that nibble 0, 1, ... of a word holds


def _e2m1(code: int) -> float:
    """Sign, two bits of exponent with bias 1, one of mantissa."""
    exponent, mantissa = code // 2 % 4, code % 2
    size = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return -size if code >= 8 else size


@dataclass
class Packed:
    parts: dict[str, torch.Tensor]
    matrix: Array
    config: dict[str, Any] = field(default_factory=dict)
    text: str = ""


def _filled(rows: int, cols: int, entry: Callable[[int, int], float]) -> Array:
    return np.array([[entry(i, j) for j in range(cols)] for i in range(rows)], np.float64)


def _integers(low: int, high: int, *shape: int) -> list[Any]:
    return list(RNG.integers(low, high, shape).tolist())


def _words(values: Iterable[int], bits: int) -> list[int]:
    """Pack values into one long number, from the lowest bit on, and cut it into signed words of 32 bits."""
    taken = list(values)
    total = sum(value << (bits * at) for at, value in enumerate(taken))
    words = [(total >> (32 * at)) & 0xFFFFFFFF for at in range(-(-bits * len(taken) // 32))]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


def _int32(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def _scales(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(RNG.uniform(0.01, 0.05, shape)).to(dtype)


def _columns(table: list[list[int]]) -> list[list[int]]:
    return [list(column) for column in zip(*table, strict=True)]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


# --- float8 ----------------------------------------------------------------------------------------------------


def _float8(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    return torch.tensor(RNG.standard_normal(shape) * 3).to(dtype)


def fp8_block(rows: int, cols: int, block: int = 16, scale_dtype: torch.dtype = torch.float32) -> Packed:
    weight = _float8(rows, cols)
    scale = _scales(_ceil(rows, block), _ceil(cols, block), dtype=scale_dtype)
    w, s = weight.double().tolist(), scale.double().tolist()
    matrix = _filled(rows, cols, lambda i, j: w[i][j] * s[i // block][j // block])
    config = {"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"}
    text = "fp8, per tensor" if scale.numel() == 1 else f"fp8, {block}x{block} blocks"
    return Packed({"weight": weight, "weight_scale_inv": scale}, matrix, config, text)


def fp8_exponents(rows: int, cols: int, *, as_bytes: bool = False, name: str = "scale") -> Packed:
    """DeepSeek-V4's names with float8_e8m0fnu, or MXFP8's bytes: one power of two for 32 columns."""
    weight = _float8(rows, cols, dtype=torch.float8_e5m2)
    powers = _integers(118, 131, rows, _ceil(cols, 32))
    w = weight.double().tolist()
    matrix = _filled(rows, cols, lambda i, j: w[i][j] * 2.0 ** (powers[i][j // 32] - 127))
    stored = torch.tensor(powers, dtype=torch.uint8)
    scale = stored if as_bytes else stored.view(torch.float8_e8m0fnu)
    config = {"quant_method": "fp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}
    return Packed({"weight": weight, name: scale}, matrix, config, "mxfp8, 1x32 blocks")


def fp8_channel(rows: int, cols: int, shape: tuple[int, ...] = (), name: str = "weight_scale") -> Packed:
    weight = _float8(rows, cols)
    scale = _scales(*(shape or (rows, 1)))
    w, s = weight.double().tolist(), scale.double().flatten().tolist()
    matrix = _filled(rows, cols, lambda i, j: w[i][j] * s[i])
    config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    return Packed({"weight": weight, name: scale, "input_scale": torch.ones(1)}, matrix, config, "fp8, per row")


def fp8_tensor(rows: int, cols: int, shape: tuple[int, ...] = (), name: str = "weight_scale") -> Packed:
    weight = _float8(rows, cols)
    scale = _scales(*shape)
    w, s = weight.double().tolist(), float(scale.double().sum())
    config = {"quant_method": "modelopt", "quant_algo": "FP8"}
    matrix = _filled(rows, cols, lambda i, j: w[i][j] * s)
    return Packed({"weight": weight, name: scale, "k_scale": torch.ones(1)}, matrix, config, "fp8, per tensor")


# --- four-bit floats -------------------------------------------------------------------------------------------


def _nibbles(codes: list[list[int]], *, high_first: bool = False) -> torch.Tensor:
    rows = []
    for row in codes:
        pairs = [(row[at], row[at + 1]) for at in range(0, len(row), 2)]
        rows.append([a * 16 + b if high_first else a + 16 * b for a, b in pairs])
    return torch.tensor(rows, dtype=torch.uint8)


def mxfp4(rows: int, cols: int) -> Packed:
    codes, powers = _integers(0, 16, rows, cols), _integers(110, 130, rows, _ceil(cols, 32))
    matrix = _filled(rows, cols, lambda i, j: _e2m1(codes[i][j]) * 2.0 ** (powers[i][j // 32] - 127))
    parts = {"weight_packed": _nibbles(codes), "weight_scale": torch.tensor(powers, dtype=torch.uint8)}
    return Packed(parts, matrix, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}, "mxfp4")


def mxfp4_in_int8(rows: int, cols: int) -> Packed:
    """DeepSeek-V4's experts: the nibbles in int8 beside float8_e8m0fnu, under the blocks of its float8 layers."""
    packed = mxfp4(rows, cols)
    parts = {
        "weight": packed.parts["weight_packed"].view(torch.int8),
        "scale": packed.parts["weight_scale"].view(torch.float8_e8m0fnu),
    }
    return Packed(parts, packed.matrix, {"quant_method": "fp8", "weight_block_size": [128, 128]}, "mxfp4")


def gpt_oss(experts: int, rows: int, cols: int) -> tuple[dict[str, torch.Tensor], NDArray[np.float64]]:
    """`_blocks` and `_scales` of a stack, and the matrices (experts, rows, cols)."""
    codes, powers = _integers(0, 16, experts, rows, cols), _integers(110, 130, experts, rows, cols // 32)
    matrices = [
        _filled(rows, cols, lambda i, j: _e2m1(codes[e][i][j]) * 2.0 ** (powers[e][i][j // 32] - 127))  # noqa: B023
        for e in range(experts)
    ]
    blocks = torch.stack([_nibbles(expert) for expert in codes]).view(experts, rows, cols // 32, 16)
    return {"_blocks": blocks, "_scales": torch.tensor(powers, dtype=torch.uint8)}, np.stack(matrices)


def nvfp4(rows: int, cols: int, *, modelopt: bool = False) -> Packed:
    codes = _integers(0, 16, rows, cols)
    scale = torch.tensor(RNG.uniform(1, 400, (rows, _ceil(cols, 16)))).to(torch.float8_e4m3fn)
    whole = torch.tensor([0.0007 if modelopt else 1300.5])
    s, g = scale.double().tolist(), float(whole.double())
    if modelopt:
        matrix = _filled(rows, cols, lambda i, j: _e2m1(codes[i][j]) * (s[i][j // 16] * g))
        parts = {"weight": _nibbles(codes), "weight_scale": scale, "weight_scale_2": whole[0]}
        return Packed(parts, matrix, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4, modelopt")
    matrix = _filled(rows, cols, lambda i, j: _e2m1(codes[i][j]) * (s[i][j // 16] / g))
    parts = {"weight_packed": _nibbles(codes), "weight_scale": scale, "weight_global_scale": whole}
    config = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    return Packed(parts, matrix, config, "nvfp4, compressed-tensors")


# --- integers --------------------------------------------------------------------------------------------------


def _groups_config(bits: int, group: int | None, *, symmetric: bool, form: str = "pack-quantized") -> dict[str, Any]:
    by = "group" if group else "channel"
    weights = {"num_bits": bits, "type": "int", "group_size": group, "strategy": by, "symmetric": symmetric}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def packed(
    rows: int, cols: int, bits: int = 4, group: int | None = 32, *, zeros: bool = False, g_idx: bool = False
) -> Packed:
    groups = _ceil(cols, group) if group else 1
    values = _integers(0, 1 << bits, rows, cols)
    scale = _scales(rows, groups, dtype=torch.bfloat16)
    middle = 1 << (bits - 1)
    zero = _integers(0, 1 << bits, rows, groups) if zeros else [[middle] * groups for _ in range(rows)]
    group_of = [j // (group or cols) for j in range(cols)]
    if g_idx:
        RNG.shuffle(group_of)
    s = scale.double().tolist()
    matrix = _filled(rows, cols, lambda i, j: (values[i][j] - zero[i][group_of[j]]) * s[i][group_of[j]])
    parts = {
        "weight_packed": _int32([_words(row, bits) for row in values]),
        "weight_scale": scale,
        "weight_shape": torch.tensor([rows, cols]),
    }
    if zeros:
        parts["weight_zero_point"] = _int32(_columns([_words(column, bits) for column in _columns(zero)]))
    if g_idx:
        parts["weight_g_idx"] = _int32([group_of])[0]
    config = _groups_config(bits, group, symmetric=not zeros)
    config["config_groups"]["group_0"]["weights"]["actorder"] = "group" if g_idx else None
    text = f"int{bits}, " + (f"groups of {group}" if group and group < cols else "per row")
    text += (" with zero points" if zeros else "") + (" by g_idx" if g_idx else "")
    return Packed(parts, matrix, config, text)


def int8(rows: int, cols: int, *, zeros: bool = False) -> Packed:
    values, zero = _integers(-128, 128, rows, cols), _integers(-20, 20, rows, 1)
    scale = _scales(rows, 1)
    s = scale.double().tolist()
    matrix = _filled(rows, cols, lambda i, j: (values[i][j] - (zero[i][0] if zeros else 0)) * s[i][0])
    parts = {"weight": torch.tensor(values, dtype=torch.int8), "weight_scale": scale}
    if zeros:
        parts["weight_zero_point"] = torch.tensor(zero, dtype=torch.int8)
    config = _groups_config(8, None, symmetric=not zeros, form="int-quantized")
    return Packed(parts, matrix, config, "int8, per row" + (" with zero points" if zeros else ""))


def gptq(
    rows: int,
    cols: int,
    bits: int = 4,
    group: int = 16,
    *,
    v2: bool = False,
    act_order: bool = False,
    g_idx: bool = True,
) -> Packed:
    groups = _ceil(cols, group)
    values, zero = _integers(0, 1 << bits, rows, cols), _integers(0, 1 << bits, groups, rows)
    scale = _scales(groups, rows, dtype=torch.float16)
    group_of = [j // group for j in range(cols)]
    if act_order:
        RNG.shuffle(group_of)
    s = scale.double().tolist()
    matrix = _filled(rows, cols, lambda i, j: s[group_of[j]][i] * (values[i][j] - zero[group_of[j]][i]))
    stored = zero if v2 else [[(z - 1) % (1 << bits) for z in row] for row in zero]
    parts = {
        "qweight": _int32(_columns([_words(row, bits) for row in values])),
        "qzeros": _int32([_words(row, bits) for row in stored]),
        "scales": scale,
    }
    if g_idx:
        parts["g_idx"] = _int32([group_of])[0]
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order}
    config |= {"checkpoint_format": "gptq_v2"} if v2 else {}
    text = f"gptq {'v2 ' if v2 else ''}int{bits}, " + (f"groups of {group}" if group < cols else "per row")
    return Packed(parts, matrix, config, text + (" by g_idx" if g_idx else ""))


def awq(rows: int, cols: int, group: int = 16) -> Packed:
    groups = _ceil(cols, group)
    values, zero = _integers(0, 16, cols, rows), _integers(0, 16, groups, rows)
    scale = _scales(groups, rows, dtype=torch.float16)
    s = scale.double().tolist()
    matrix = _filled(rows, cols, lambda i, j: (values[j][i] - zero[j // group][i]) * s[j // group][i])

    def words(row: list[int]) -> list[int]:
        return _words([row[at + column] for at in range(0, len(row), 8) for column in AWQ_ORDER], 4)

    parts = {"qweight": _int32([words(r) for r in values]), "qzeros": _int32([words(r) for r in zero]), "scales": scale}
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return Packed(parts, matrix, config, f"awq int4, groups of {group}")


def bitsandbytes4(rows: int, cols: int, kind: str = "nf4", block: int = 64, *, double: bool = False) -> Packed:
    """Blocks run over the flattened matrix, across its rows."""
    numbers, nested = rows * cols, 256
    codes = _integers(0, 16, numbers)
    table = torch.tensor(sorted(RNG.uniform(-1, 1, 16)), dtype=torch.float32)
    blocks = _ceil(numbers, block)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [rows, cols]}
    padded = [*codes, 0] if numbers % 2 else codes
    parts = {
        "weight": _nibbles([padded], high_first=True).view(-1, 1),
        "weight.quant_map": table,
    }
    if double:
        stored = _integers(0, 256, blocks)
        nested_map = torch.tensor(RNG.uniform(-1, 1, 256), dtype=torch.float32)
        nested_absmax = _scales(_ceil(blocks, nested))
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": 0.0625}
        m, a = nested_map.double().tolist(), nested_absmax.double().tolist()
        absmax = [m[code] * a[at // nested] + 0.0625 for at, code in enumerate(stored)]
        parts |= {"weight.nested_absmax": nested_absmax, "weight.nested_quant_map": nested_map}
        parts["weight.absmax"] = torch.tensor(stored, dtype=torch.uint8)
    else:
        parts["weight.absmax"] = _scales(blocks)
        absmax = parts["weight.absmax"].double().tolist()
    t = table.double().tolist()
    matrix = _filled(rows, cols, lambda i, j: t[codes[i * cols + j]] * absmax[(i * cols + j) // block])
    text = json.dumps(state).encode()
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    named = f"bitsandbytes {kind}, blocks of {block}" + (", double quantised" if double else "")
    return Packed(parts, matrix, config, named)


def bitsandbytes8(rows: int, cols: int) -> Packed:
    values, scale = _integers(-127, 128, rows, cols), _scales(rows)
    s = scale.double().tolist()
    matrix = _filled(rows, cols, lambda i, j: values[i][j] * s[i] / 127)
    parts = {
        "weight": torch.tensor(values, dtype=torch.int8),
        "SCB": scale,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return Packed(parts, matrix, config, "bitsandbytes int8, per row")


def bitnet(rows: int, cols: int, *, auto: bool = False) -> Packed:
    """Byte (r, j) holds the rows r, r + n, r + 2n, r + 3n of column j, n being a quarter of the rows."""
    values, quarter = _integers(-1, 2, rows, cols), rows // 4
    scale = _scales(1, dtype=torch.bfloat16) * 40
    s = float(scale.double())
    matrix = _filled(rows, cols, lambda i, j: values[i][j] * s if auto else values[i][j] / s)
    stored = [
        [sum((values[r + k * quarter][j] + 1) << (2 * k) for k in range(4)) for j in range(cols)]
        for r in range(quarter)
    ]
    config = {"quant_method": "bitnet", "linear_class": "autobitlinear" if auto else "bitlinear"}
    parts = {"weight": torch.tensor(stored, dtype=torch.uint8), "weight_scale": scale}
    return Packed(parts, matrix, config, "bitnet" + ("" if auto else ", scale divides"))

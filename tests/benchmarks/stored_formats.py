"""Scans of one model in several formats, in one run: the table that `gpu_scan.py --formats bf16,gguf-q4k,...` prints.

Each model holds the same matrices, quantised here from bfloat16 by rounding to the nearest number of the format. The
fastest of the scans counts, after one that is not counted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from whole_scan import scan

from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.quantised.dequantisation import FP4

_LLAMA = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def compare_formats(folder: Path, wanted: Sequence[str], device: str, repeats: int) -> None:
    """Write the bfloat16 model of a folder in each format beside it, scan each, and print the table."""
    print("| format | stored | scan | all scans | times bf16 |\n|---|---|---|---|---|")
    first = 0.0
    for name in wanted:
        place = folder if name == "bf16" else folder / name
        if name != "bf16":
            FORMATS[name](folder, place, device)
        size = sum(tensor.stored_bytes for tensor in open_checkpoint(str(place)).tensors) / 1e9
        scan(place, device)
        seconds = sorted(scan(place, device).seconds for _ in range(repeats))
        first = first or seconds[0]
        told = ", ".join(f"{s:.2f}" for s in seconds)
        print(f"| {name} | {size:.1f} GB | {seconds[0]:.2f} s | {told} s | {seconds[0] / first:.2f} |", flush=True)
        if name != "bf16":
            shutil.rmtree(place)


def _written_gguf(block: Callable[[torch.Tensor], torch.Tensor], kind: str) -> Callable[[Path, Path, str], None]:
    def write(source: Path, place: Path, device: str) -> None:
        import gguf

        place.mkdir(parents=True)
        writer = gguf.GGUFWriter(str(place / "model.gguf"), "llama")
        config = json.loads((source / "config.json").read_text())
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_embedding_length(config["hidden_size"])
        for file in sorted(source.glob("*.safetensors")):
            for name, matrix in load_file(file).items():
                _, _, layer, module = name.removesuffix(".weight").split(".", 3)
                packed = block(matrix.to(device).float()).cpu().numpy()
                raw = gguf.GGMLQuantizationType[kind]
                writer.add_tensor(f"blk.{layer}.{_LLAMA[module]}.weight", packed, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


def _written_parts(
    parts: Callable[[torch.Tensor], dict[str, torch.Tensor]], config: dict[str, object]
) -> Callable[[Path, Path, str], None]:
    def write(source: Path, place: Path, device: str) -> None:
        place.mkdir(parents=True)
        said = json.loads((source / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(said | {"quantization_config": config}))
        for file in sorted(source.glob("*.safetensors")):
            made = {}
            for name, matrix in load_file(file).items():
                stem = name.removesuffix("weight")
                made |= {stem + part: t.cpu() for part, t in parts(matrix.to(device).float()).items()}
            save_file(made, place / file.name)

    return write


def _q8_0(matrix: torch.Tensor) -> torch.Tensor:
    blocks = matrix.reshape(-1, 32)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
    numbers = (blocks / scale.float()).round().nan_to_num().to(torch.int8)
    return torch.cat((scale.view(torch.uint8), numbers.view(torch.uint8)), 1).reshape(len(matrix), -1)


def _q4_k(matrix: torch.Tensor) -> torch.Tensor:
    """Scales and minima of 6 bits for 32 weights, within those of 256 (ggml's block_q4_K)."""
    groups = matrix.reshape(-1, 8, 32)
    least = -groups.amin(2).clamp(max=0)
    step = (groups.amax(2) + least) / 15
    d, dmin = ((of.amax(1, keepdim=True) / 63).half() for of in (step, least))
    scales, minima = ((of / by.float()).round().nan_to_num().clamp(0, 63) for of, by in ((step, d), (least, dmin)))
    own, low = ((by.float() * of)[..., None] for by, of in ((d, scales), (dmin, minima)))
    numbers = ((groups + low) / own).round().nan_to_num().clamp(0, 15).to(torch.uint8).reshape(-1, 4, 2, 32)
    s, m = scales.to(torch.uint8), minima.to(torch.uint8)
    first = torch.cat((s[:, :4] | (s[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6)), 1)
    packed = torch.cat((first, (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4), 1)
    nibbles = (numbers[:, :, 0] | numbers[:, :, 1] << 4).flatten(1)
    return torch.cat((d.view(torch.uint8), dmin.view(torch.uint8), packed, nibbles), 1).reshape(len(matrix), -1)


def _fp8(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """float8 with a scale for 128 by 128, as DeepSeek-V3 stores it."""
    rows, cols = matrix.shape
    blocks = matrix.reshape(rows // 128, 128, cols // 128, 128)
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448
    numbers = (blocks / scale).reshape(rows, cols).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale_inv": scale.reshape(rows // 128, cols // 128)}


def _mxfp4(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """E2M1 with a power of two for 32 columns (OCP Microscaling Formats)."""
    rows = len(matrix)
    groups = matrix.reshape(rows, -1, 32)
    exponent = groups.abs().amax(2, keepdim=True).clamp(min=2.0**-100).log2().floor() - 2
    table = torch.tensor(FP4[:8], device=matrix.device)
    scaled = groups / exponent.exp2()
    between = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(scaled.abs(), between).to(torch.uint8) | ((scaled < 0).to(torch.uint8) << 3)
    codes = codes.reshape(rows, -1, 2)
    scale = (exponent + 127).to(torch.uint8).reshape(rows, -1)
    return {"weight_packed": codes[..., 0] | codes[..., 1] << 4, "weight_scale": scale}


FORMATS: dict[str, Callable[[Path, Path, str], None]] = {
    "gguf-q8": _written_gguf(_q8_0, "Q8_0"),
    "gguf-q4k": _written_gguf(_q4_k, "Q4_K"),
    "fp8": _written_parts(_fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "mxfp4": _written_parts(_mxfp4, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}),
}

"""Adapters and checkpoints of low rank as programs write them, each with the products of its factors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[Any]
M, N, R = 24, 20, 3
PEFT = "base_model.model.model.layers"
CONFIG = {"peft_type": "LORA", "r": R, "lora_alpha": 12}


@dataclass
class Files:
    """The tensors of a file, the files beside it, and the intended matrices by address."""

    tensors: dict[str, Array] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    meant: dict[str, Array] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, folder / "adapter_model.safetensors")
        for name, said in (("adapter_config", self.adapter), ("config", self.config)):
            if said is not None:
                (folder / f"{name}.json").write_text(json.dumps(said))
        return folder


def two(seed: int, rows: int = M, cols: int = N, rank: int = R) -> tuple[Array, Array, Array]:
    """B, A and B A in float64, from factors in float32."""
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((rows, rank)).astype("f4"), rng.standard_normal((rank, cols)).astype("f4")
    return b, a, b.astype("f8") @ a.astype("f8")


def put(files: Files, module: str, address: str, scale: float, seed: int, rank: int = R) -> None:
    """Add one module under PEFT's names."""
    b, a, product = two(seed, rank=rank)
    files.tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    files.meant[address] = scale * product


def peft() -> Files:
    """Patterns of rank and alpha, rsLoRA, experts, a module that no rule knows."""
    patterns = {"alpha_pattern": {"^model.layers.1.self_attn.q_proj": 5, "v_proj": 7}, "rank_pattern": {"v_proj": 4}}
    files = Files(adapter={**CONFIG, "use_rslora": True, **patterns})
    put(files, f"{PEFT}.0.self_attn.q_proj", "layers.0.attention.query", 12 / R**0.5, 1)
    put(files, f"{PEFT}.1.self_attn.q_proj", "layers.1.attention.query", 5 / R**0.5, 2)
    put(files, f"{PEFT}.1.self_attn.v_proj", "layers.1.attention.value", 7 / 2, 3, rank=4)
    put(files, f"{PEFT}.1.mlp.experts.7.gate_proj", "layers.1.expert.7.gate", 12 / R**0.5, 4)
    put(files, "base_model.model.lm_head", "other.lm_head.weight", 12 / R**0.5, 5)
    return files


def several() -> Files:
    """Two adapters of one module in one file, and one beside the weight of its module."""
    files = Files(adapter=CONFIG)
    for name, seed in (("one", 1), ("two", 2)):
        b, a, product = two(seed)
        files.tensors |= {f"{PEFT}.0.self_attn.q_proj.lora_{s}.{name}.weight": f for s, f in (("A", a), ("B", b))}
        files.meant[f"layers.0.lora.query_BA_{name}"] = 4 * product
    put(files, f"{PEFT}.0.self_attn.v_proj", "layers.0.lora.value_BA", 4, 3)
    whole = np.random.default_rng(9).standard_normal((M, N)).astype("f4")
    files.tensors[f"{PEFT}.0.self_attn.v_proj.base_layer.weight"] = whole
    files.meant["layers.0.attention.value"] = whole.astype("f8")
    return files


def fused() -> Files:
    """A qkv of Phi-3, with queries, keys and values as rows of B."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    files = Files(adapter=CONFIG, config={"model_type": "phi3", **heads})
    b, a, product = two(1, rows=64, cols=32)
    module = f"{PEFT}.0.self_attn.qkv_proj"
    files.tensors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    for role, part in (("query", slice(0, 32)), ("key", slice(32, 48)), ("value", slice(48, 64))):
        files.meant[f"layers.0.attention.{role}"] = 4 * product[part]
    return files


def conv1d() -> Files:
    """GPT-2, whose weights are stored as (inputs, outputs)."""
    files = Files(adapter={**CONFIG, "fan_in_fan_out": True}, config={"model_type": "gpt2", "n_embd": 32, "n_head": 4})
    b, a, product = two(1, rows=96, cols=32)
    module = "base_model.model.transformer.h.0.attn.c_attn"
    files.tensors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    parts = zip(("query", "key", "value"), np.split(4 * product, 3), strict=True)
    files.meant = {f"layers.0.attention.{role}": part for role, part in parts}
    return files


def mlx() -> Files:
    """Both factors transposed, square ones too, with the scale in lora_parameters."""
    files = Files(adapter={"lora_parameters": {"rank": R, "scale": 20.0}, "model_type": "llama"})
    for layer, (rows, cols) in enumerate(((M, N), (N, N))):
        b, a, product = two(layer, rows, cols)
        module = f"model.layers.{layer}.self_attn.q_proj"
        files.tensors |= {f"{module}.lora_a": a.T.copy(), f"{module}.lora_b": b.T.copy()}
        files.meant[f"layers.{layer}.attention.query"] = 20 * product
    return files


def mlx_experts() -> Files:
    """A stack of factors for all experts of a layer, which MLX does not transpose."""
    files = Files(adapter={"lora_parameters": {"rank": R, "scale": 2.0}, "model_type": "qwen3_moe"})
    made = [two(number, rank=R) for number in range(4)]
    module = "model.layers.0.mlp.switch_mlp.gate_proj"
    files.tensors[f"{module}.lora_a"] = np.stack([a for _, a, _ in made])
    files.tensors[f"{module}.lora_b"] = np.stack([b for b, _, _ in made])
    files.meant = {f"layers.0.expert.{number}.gate": 2 * product for number, (_, _, product) in enumerate(made)}
    return files


def kohya() -> Files:
    """Names with underscores, two text encoders, alpha beside the factors, convolutions of four dimensions."""
    files, rng = Files(), np.random.default_rng(2)
    for layer in range(2):
        b, a, product = two(layer)
        name = f"lora_te{layer + 1}_text_model_encoder_layers_{layer}_self_attn_q_proj"
        files.tensors |= {
            f"{name}.lora_down.weight": a,
            f"{name}.lora_up.weight": b,
            f"{name}.alpha": np.array(2, "f2"),
        }
        files.meant[f"te{layer + 1}.layers.{layer}.attention.query"] = 2 / R * product
    down, up = rng.standard_normal((R, 5, 3, 3)).astype("f4"), rng.standard_normal((7, R, 1, 1)).astype("f4")
    name = "lora_unet_down_blocks_0_resnets_1_conv1"
    files.tensors |= {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": np.array([6], "f4"),
    }
    product = 6 / R * up.reshape(7, R).astype("f8") @ down.reshape(R, 45).astype("f8")
    files.meant["other.down_blocks.0.resnets.1.conv1.weight"] = product
    return files


def diffusers() -> Files:
    """Old names of diffusers, with processors, and new ones."""
    files = Files()
    for layer in range(2):
        b, a, product = two(layer)
        module = f"unet.down_blocks.0.attentions.{layer}.transformer_blocks.0.attn1.processor.to_q_lora"
        files.tensors |= {f"{module}.down.weight": a, f"{module}.up.weight": b}
        files.meant[f"layers.{layer}.attention.query"] = product
    return files


def x_flux() -> Files:
    """Streams of images and of text, named by their numbers."""
    files = Files()
    for layer in range(2):
        for number, stream in ((1, "img"), (2, "txt")):
            b, a, product = two(2 * layer + number)
            module = f"double_blocks.{layer}.processor.proj_lora{number}"
            files.tensors |= {f"{module}.down.weight": a, f"{module}.up.weight": b}
            files.meant[f"layers.{layer}.{stream}_attn.attention.output"] = product
    return files


def low_rank(names: Callable[[str], tuple[str, str]]) -> Files:
    """A checkpoint with two factors instead of each matrix; `names` are the names of B and A in a module."""
    files = Files(config={"model_type": "llama"})
    for layer in range(2):
        b, a, product = two(layer)
        left, right = names(f"model.layers.{layer}.self_attn.q_proj")
        files.tensors |= {left: b, right: a}
        files.meant[f"layers.{layer}.attention.query"] = product
    return files


def palu() -> Files:
    """Blocks of B for more than ten groups of heads, whose names do not sort by number."""
    files, rng = Files(config={"model_type": "llama"}), np.random.default_rng(3)
    blocks = [rng.standard_normal((2, 1 + n % 2)).astype("f4") for n in range(12)]
    right = rng.standard_normal((18, N)).astype("f4")
    module = "model.layers.0.self_attn.k_proj"
    files.tensors = {f"{module}.VT.weight": right} | {f"{module}.U.{n}.weight": u for n, u in enumerate(blocks)}
    cuts = np.split(right.astype("f8"), np.cumsum([u.shape[1] for u in blocks])[:-1])
    files.meant["layers.0.attention.key"] = np.concatenate([u @ part for u, part in zip(blocks, cuts, strict=True)])
    return files


WAYS: dict[str, Callable[[], Files]] = {
    "peft": peft,
    "several": several,
    "fused": fused,
    "conv1d": conv1d,
    "mlx": mlx,
    "mlx experts": mlx_experts,
    "kohya": kohya,
    "diffusers": diffusers,
    "x-flux": x_flux,
    "svd-llm": lambda: low_rank(
        lambda m: (m.replace("q_proj", "q_u_proj.weight"), m.replace("q_proj", "q_v_proj.weight"))
    ),
    "asvd": lambda: low_rank(lambda m: (f"{m}.ALinear.weight", f"{m}.BLinear.weight")),
    "nested": lambda: low_rank(lambda m: (f"{m}.1.weight", f"{m}.0.weight")),
    "apply": lambda: low_rank(lambda m: (f"{m}.weight.A", f"{m}.weight.B")),
    "palu": palu,
}

"""A tiny llama as llama.cpp's converter writes it: with its names, and its order of rows in queries and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

WORDS = [*(chr(97 + n) for n in range(26)), "ab"]
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_llama(
    file: Path, model: Any, kind: gguf.GGMLQuantizationType, architecture: str = "llama"
) -> dict[str, np.ndarray[Any, Any]]:
    """Write a LlamaForCausalLM of transformers; its matrices stored as `kind`, norms in float32.

    Returns the numbers that the file holds, under the names and in the order of transformers.
    """
    config, held = model.config, {}
    writer = _begun(file, architecture, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*WORDS, *(f"<{n}>" for n in range(config.vocab_size - len(WORDS)))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(30)
    writer.add_eos_token_id(31)
    for name, tensor in model.state_dict().items():
        stored = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            stored = stored.reshape(heads, 2, -1, stored.shape[1]).swapaxes(1, 2).reshape(stored.shape)
        packed, made = kind if stored.ndim == 2 else gguf.GGMLQuantizationType.F32, _name(name)
        data = gguf.quantize(stored, packed)
        writer.add_tensor(made, data, raw_dtype=packed)
        numbers = gguf.dequantize(data, packed)
        if "q_proj" in name or "k_proj" in name:
            numbers = numbers.reshape(heads, -1, 2, numbers.shape[1]).swapaxes(1, 2).reshape(numbers.shape)
        held[name] = numbers
    _end(writer)
    return held


def _begun(file: Path, architecture: str, config: Any) -> gguf.GGUFWriter:
    """A writer that has the sizes of a configuration of transformers."""
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    return writer


def _end(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in whole:
        return f"{whole[name]}.weight"
    layer, rest = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def write_qwen3_moe(file: Path, model: Any) -> None:
    """Write a Qwen3MoeForCausalLM of transformers, whose experts are 768 wide, as transformers takes those of any GGUF
    file of this architecture: experts in float16 as stacks of gates, ups and downs, the rest in float32."""
    config = model.config
    writer = _begun(file, "qwen3moe", config)
    writer.add_key_length(config.head_dim)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stored = tensor.float().numpy()
        if stored.ndim < 3:
            writer.add_tensor(table.get_name(name, try_suffixes=(".weight",)), stored)
            continue
        layer = name.removeprefix("model.layers.").partition(".")[0]
        half = stored.shape[1] // 2
        stacks = {"down": stored} if "down" in name else {"gate": stored[:, :half], "up": stored[:, half:]}
        for part, stack in stacks.items():
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", np.ascontiguousarray(stack, np.float16))
    _end(writer)

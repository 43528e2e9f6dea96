"""Heads of models with two towers, with cross-attention, and in files whose rows are in another order: against
transformers' modules, which give the number of heads of each attention."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from lapack_reference import lapack
from test_attentions import values
from tiny_gguf import write_llama

from rankscope.engine.catalogue.attention import Attention, attentions
from rankscope.engine.catalogue.frequencies import rope_at
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.derive.head_matrices import GROUP_OV, KINDS, OV, QK, Turned, heads_of

SMALL: dict[str, dict[str, Any]] = {
    "whisper": {
        "d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 20,
        "num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 8, "pad_token_id": 0,
        "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1, "suppress_tokens": None,
        "begin_suppress_tokens": None,
    },
    "t5": {"d_model": 24, "d_kv": 5, "d_ff": 8, "num_layers": 1, "num_heads": 3, "vocab_size": 20},
    "clip": {
        "text_config": {
            "hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 3,
            "vocab_size": 20, "eos_token_id": 1, "bos_token_id": 0,
        },
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 6,
            "image_size": 4, "patch_size": 2,
        },
    },
}  # fmt: skip
NAMES = ({"q_proj", "q"}, {"k_proj", "k"}, {"v_proj", "v"}, {"out_proj", "o"})


def opened(folder: Path, model: Any) -> tuple[Checkpoint, list[Attention]]:
    model.save_pretrained(folder)
    return found_in(folder)


def found_in(path: Path) -> tuple[Checkpoint, list[Attention]]:
    checkpoint = open_checkpoint(str(path))
    found, unknown = attentions(checkpoint, build_tree(checkpoint).projections)
    assert unknown == {}
    return checkpoint, found


def modules_of(model: Any) -> Iterable[tuple[str, int, list[torch.Tensor]]]:
    """The name, the number of heads and the four matrices in float64 of each attention of a running model."""
    for name, module in model.named_modules():
        children = dict(module.named_children())
        found = [next((children[n] for n in children.keys() & names), None) for names in NAMES]
        if all(child is not None for child in found):
            count = getattr(module, "num_heads", None) or module.n_heads
            yield name, count, [child.weight.detach().double() for child in found if child is not None]


@pytest.mark.parametrize("name", SMALL)
def test_each_tower_has_its_own_heads(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **SMALL[name])
    model = transformers.AutoModel.from_config(config)
    checkpoint, found = opened(tmp_path / name, model)
    by_query = {a.query.tensor.rpartition(".")[0].rpartition(".")[0]: a for a in found}
    running = list(modules_of(model))
    assert len(running) == len(found) == len({a.address for a in found})
    for module, count, (q, k, v, o) in running:
        a = by_query[module]
        assert (a.count, a.kv_count) == (count, count), module
        dim, last = q.shape[0] // count, count - 1
        at = slice(last * dim, count * dim)
        for kind, wanted in ((QK, q[at].T @ k[at]), (OV, o[:, at] @ v[at]), (GROUP_OV, o[:, at] @ v[at])):
            row, sigma = heads_of(a, kind)[last], lapack(wanted)[:dim]
            assert abs(values(checkpoint, row) - sigma).max() < 1e-9 * sigma[0], (module, kind)
            assert row.derived is not None
            is_crossed = "encoder_attn" in module or "EncDec" in module
            assert ("two streams" in row.derived.label) == (is_crossed and kind == QK)


@cache
def tiny_llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=40, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("offset", [0, 5])
def test_a_gguf_file_has_the_heads_of_the_model_that_it_was_made_of(offset: int, tmp_path: Path) -> None:
    """llama.cpp's converter reorders rows of queries and keys: pairs of RoPE are side by side."""
    write_llama(tmp_path / "tiny.gguf", tiny_llama(), gguf.GGMLQuantizationType.F32)
    ours = opened(tmp_path / "llama", tiny_llama())
    theirs = found_in(tmp_path / "tiny.gguf")
    turned = []
    for checkpoint, (a,) in (ours, theirs):
        rope, frequencies = rope_at(checkpoint, a.key, a.dim)
        turned.append(Turned(offset, rope, frequencies) if offset else None)
    for kind in KINDS:
        rows = heads_of(ours[1][0], kind, {}, turned[0]), heads_of(theirs[1][0], kind, {}, turned[1])
        assert len(rows[0]) == len(rows[1])
        for mine, its in zip(*rows, strict=True):
            sigma = values(ours[0], mine)
            assert abs(sigma - values(theirs[0], its)).max() < 1e-9 * sigma[0], (mine.address, offset)

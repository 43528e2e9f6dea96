"""The matrices by which tokens enter and leave the residual stream, for towers, coders and other names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rankscope.engine.catalogue.embeddings import Embeddings
from rankscope.engine.catalogue.norms import Norms
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.errors import WeightsError

LLAVA = [
    "model.vision_tower.embeddings.patch_embedding.weight",
    "model.vision_tower.vision_model.encoder.layers.0.mlp.fc2.weight",
    "model.language_model.embed_tokens.weight",
    "model.language_model.layers.0.mlp.down_proj.weight",
    "model.language_model.norm.weight",
    "lm_head.weight",
]
T5 = [
    "shared.weight",
    "encoder.block.0.layer.1.DenseReluDense.wo.weight",
    "encoder.final_layer_norm.weight",
    "decoder.block.0.layer.2.DenseReluDense.wo.weight",
    "decoder.final_layer_norm.weight",
    "lm_head.weight",
]
BART = [
    "model.encoder.embed_tokens.weight",
    "model.encoder.layers.0.fc2.weight",
    "model.decoder.embed_tokens.weight",
    "model.decoder.layers.0.fc2.weight",
    "model.decoder.layer_norm.weight",
]
CHATGLM = [
    "transformer.embedding.word_embeddings.weight",
    "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight",
    "transformer.encoder.final_layernorm.weight",
    "transformer.output_layer.weight",
]
LLAMA = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
]
CASES = [
    ("llava text", "llava", {}, LLAVA, 3, LLAVA[2], LLAVA[5], LLAVA[4]),
    ("llava vision", "llava", {}, LLAVA, 1, "it is in the vision tower", "it is in the vision tower", ""),
    ("t5 encoder", "t5", {}, T5, 1, T5[0], "it is in an encoder", ""),
    ("t5 decoder", "t5", {"tie_word_embeddings": False}, T5, 3, T5[0], T5[5], T5[4]),
    ("mbart encoder", "mbart", {}, BART, 1, BART[0], "it is in an encoder", ""),
    ("mbart decoder", "mbart", {}, BART, 3, BART[2], BART[2], BART[4]),
    ("chatglm", "chatglm", {}, CHATGLM, 1, CHATGLM[0], CHATGLM[3], CHATGLM[2]),
    ("untied", "llama", {"tie_word_embeddings": False}, LLAMA, 1, LLAMA[0], LLAMA[4], LLAMA[3]),
    ("tied, stored twice", "llama", {"tie_word_embeddings": True}, LLAMA, 1, LLAMA[0], LLAMA[0], LLAMA[3]),
    ("cut off", "llama", {"tie_word_embeddings": False}, LLAMA[:4], 1, LLAMA[0], "the checkpoint has no", LLAMA[3]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "names", "at", "embedding", "unembedding", "norm"), [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)  # fmt: skip
def test_those_of_the_tower(
    tmp_path: Path, kind: str, config: dict[str, bool], names: list[str], at: int, embedding: str, unembedding: str,
    norm: str,
) -> None:  # fmt: skip
    nested = {"text_config": {"model_type": "llama"}, "vision_config": {}} if kind == "llava" else {}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **config, **nested}))
    shapes = {name: (4,) if "norm" in name.split(".")[-2] else (4, 4) for name in names}
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    (projection,) = (p for p in build_tree(checkpoint).projections if p.tensor == names[at])
    for find, wanted in ((Embeddings.embedding, embedding), (Embeddings.unembedding, unembedding)):
        try:
            said = find(Embeddings(checkpoint), projection).name
        except WeightsError as error:
            said = str(error)
        assert said.startswith(wanted)
    if norm:
        assert f"{Norms(checkpoint).final(projection).path}.weight" == norm

"""A model with one of each oddity: a second tower, a layer of another kind, experts with a part missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from app_models import Weights, matrix, save_model

LAYERS = 3
CONFIG = {
    "model_type": "qwen3_vl_moe",
    "text_config": {
        "model_type": "qwen3_next", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "vision_config": {"hidden_size": 16, "num_heads": 2},
}  # fmt: skip
_ATTENTION = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
              "self_attn.o_proj": (32, 32)}  # fmt: skip
_LINEAR = {"linear_attn.in_proj_qkvz": (64, 32), "linear_attn.in_proj_ba": (8, 32), "linear_attn.out_proj": (32, 16)}
_EXPERT = {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)}
_VISION = {"attn.qkv": (48, 16), "attn.proj": (16, 16), "mlp.linear_fc1": (40, 16), "mlp.linear_fc2": (16, 40)}
FAILING = "model.language_model.layers.0.mlp.experts.2.gate_proj.weight"
MISSING = "model.language_model.layers.2.mlp.experts.1.up_proj.weight"


def odd_weights() -> Weights:
    """Three layers of text with three experts each, the middle one of linear attention; two of vision; a head.

    Layer 0 has an expert whose gate holds a NaN, layer 2 one without `up`.
    """
    shapes = {"lm_head.weight": (50, 32)}
    for layer in range(LAYERS):
        inner = _LINEAR if layer == 1 else _ATTENTION
        inner = inner | {f"mlp.experts.{e}.{name}": shape for e in range(3) for name, shape in _EXPERT.items()}
        shapes |= {f"model.language_model.layers.{layer}.{name}.weight": shape for name, shape in inner.items()}
    for layer in range(2):
        shapes |= {f"model.visual.blocks.{layer}.{name}.weight": shape for name, shape in _VISION.items()}
    del shapes[MISSING]
    weights = {name: matrix(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    weights[FAILING][3, 5] = np.nan
    return weights


def save_odd_model(folder: Path) -> Path:
    """A checkpoint folder."""
    return save_model(folder, odd_weights(), CONFIG)

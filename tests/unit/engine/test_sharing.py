"""Weights that are used more than once are told in a line when the model is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rankscope.engine.checkpoint.open import open_checkpoint

KEY = "attention_k_eq_v: where a layer has no value projection, its key is also value"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma4_text", "attention_k_eq_v": True}, [KEY]),
        ({"model_type": "gemma4", "text_config": {"attention_k_eq_v": True}}, [KEY]),
        ({"model_type": "gemma4", "text_config": {"attention_k_eq_v": False}}, []),
        (
            {"model_type": "albert", "num_hidden_layers": 7, "num_hidden_groups": 1},
            ["albert: one layer is shared by all 7, so each of its matrices is listed once"],
        ),
        (
            {"model_type": "albert", "num_hidden_layers": 7, "num_hidden_groups": 3},
            ["albert: 3 layers are shared by all 7, so each of its matrices is listed once"],
        ),
        ({"model_type": "albert", "num_hidden_layers": 7, "num_hidden_groups": 7}, []),
        ({"model_type": "albert", "num_hidden_layers": "7", "num_hidden_groups": [1], "text_config": 3}, []),
    ],
)
def test_shared_weights_are_told(tmp_path: Path, config: dict[str, Any], said: list[str]) -> None:
    save_file({"model.layers.0.self_attn.k_proj.weight": np.ones((3, 5))}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert list(open_checkpoint(str(tmp_path)).warnings) == said

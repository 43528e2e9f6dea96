"""Weights that a model uses more than once, as config.json says: a line for each kind of sharing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lines(config: Mapping[str, Any]) -> list[str]:
    """Lines for the user of a model whose tree shows fewer matrices than it computes with; [] for most models."""
    found = []
    inner = [config, *(part for key in ("text_config", "llm_config") if isinstance(part := config.get(key), Mapping))]
    if any(part.get("attention_k_eq_v") is True for part in inner):
        found.append("attention_k_eq_v: where a layer has no value projection, its key is also value")
    groups, layers = config.get("num_hidden_groups"), config.get("num_hidden_layers")
    if config.get("model_type") == "albert" and type(groups) is int and type(layers) is int and 0 < groups < layers:
        shared = "one layer is shared by all" if groups == 1 else f"{groups} layers are shared by all"
        found.append(f"albert: {shared} {layers}, so each of its matrices is listed once")
    return found

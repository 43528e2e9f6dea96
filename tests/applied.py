"""Tiny models built by transformers, their matrices found by hand, and plans for them with energies by scipy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
import transformers

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.plan.matrices import Matrices
from rankscope.engine.plan.plan_file import Plan, PlanRow, parameters_of
from rankscope.engine.spectrum import Projection

Views = dict[str, torch.Tensor]
"""The matrices of a running model by address, (output, input features), as views of its parameters."""

_SHAPE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SHAPE | changes))


def phi3(**changes: Any) -> Any:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(pad_token_id=0, **_SHAPE | changes))


def mixtral(**changes: Any) -> Any:
    kind = {"num_local_experts": 3, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**_SHAPE | kind | changes))


def gpt2(**changes: Any) -> Any:
    shape = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape | changes))


def _attention(layer: Any) -> Views:
    held = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    return {f"attention.{role}": getattr(layer.self_attn, name).weight for role, name in held.items()}


def _llama_views(layer: Any) -> Views:
    mlp = {f"mlp.{role}": getattr(layer.mlp, f"{role}_proj").weight for role in ("gate", "up", "down")}
    return _attention(layer) | mlp


def _phi3_views(layer: Any) -> Views:
    query, key, value = layer.self_attn.qkv_proj.weight.split([32, 16, 16])
    gate, up = layer.mlp.gate_up_proj.weight.chunk(2)
    found = {"attention.query": query, "attention.key": key, "attention.value": value}
    found |= {"attention.output": layer.self_attn.o_proj.weight}
    return found | {"mlp.gate": gate, "mlp.up": up, "mlp.down": layer.mlp.down_proj.weight}


def _mixtral_views(layer: Any) -> Views:
    found = _attention(layer)
    experts = layer.mlp.experts
    for number in range(3):
        gate, up = experts.gate_up_proj[number].chunk(2)
        found |= {f"expert.{number}.gate": gate, f"expert.{number}.up": up}
        found |= {f"expert.{number}.down": experts.down_proj[number]}
    return found


def _gpt2_views(layer: Any) -> Views:
    parts = zip(("query", "key", "value"), layer.attn.c_attn.weight.T.chunk(3), strict=True)
    found = {f"attention.{role}": part for role, part in parts}
    found |= {"attention.output": layer.attn.c_proj.weight.T}
    return found | {"mlp.up": layer.mlp.c_fc.weight.T, "mlp.down": layer.mlp.c_proj.weight.T}


MODELS: dict[str, tuple[Callable[..., Any], Callable[[Any], Views]]] = {
    "llama": (llama, _llama_views),
    "phi3": (phi3, _phi3_views),
    "gpt2": (gpt2, _gpt2_views),
    "mixtral": (mixtral, _mixtral_views),
}


def views(family: str, model: Any) -> Views:
    """All matrices of all layers that a plan may name."""
    layers = model.transformer.h if family == "gpt2" else model.model.layers
    listed = (MODELS[family][1](layer).items() for layer in layers)
    return {f"layers.{n}.{name}": view for n, found in enumerate(listed) for name, view in found}


def saved(family: str, folder: Path, dtype: torch.dtype = torch.float32, shards: str = "1GB", **changes: Any) -> Path:
    """A model of random weights, with random norms and biases too, saved by transformers."""
    torch.manual_seed(0)
    model = MODELS[family][0](**changes).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder, max_shard_size=shards)
    return folder


def root_of(second: Any) -> Any:
    """The symmetric root of C."""
    values, vectors = scipy.linalg.eigh(second)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def truncated(matrix: Any, rank: int, second: Any = None) -> tuple[Any, float]:
    """U_r U_r^T W by scipy, with U_r from W C^1/2, and the share of the energy that it keeps."""
    wide = np.asarray(matrix, np.float64)
    left, values, _ = scipy.linalg.svd(wide if second is None else wide @ root_of(second))
    return left[:, :rank] @ left[:, :rank].T @ wide, float((values[:rank] ** 2).sum() / (values**2).sum())


def planned(model: Path, ranks: Mapping[str, int], second: Mapping[str, Any] | None = None, **changes: Any) -> Plan:
    """A plan that gives these addresses these ranks and keeps the rest; `C` by address where the plan is weighted."""
    checkpoint = open_checkpoint(str(model))
    own, rows = Matrices(checkpoint), []
    cost = changes.get("cost", "factors")
    for p in build_tree(checkpoint).scanned():
        rank = ranks.get(p.address)
        energy = 1.0
        if rank is not None:
            energy = truncated(own.matrix(p), rank, (second or {}).get(p.address))[1]
        rows.append(_row(p, rank, energy, cost))
    plan = Plan(
        checkpoint.name, None, None, "parameters", "factors", False, 0.2, "projections", 1, 1, 10**9, 0, 0, tuple(rows)
    )
    return replace(plan, **changes)


def _row(p: Projection, rank: int | None, energy: float, cost: Any) -> PlanRow:
    action = "keep" if rank is None else "factor"
    parameters = parameters_of(p.rows, p.cols, rank, cost)
    return PlanRow(p.address, p.key, p.tensor, p.slice, (p.rows, p.cols), action, rank, energy, parameters)  # type: ignore[arg-type]

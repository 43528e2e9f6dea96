"""The logical matrices of a running transformers module, from identity inputs and the module's own split."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

States = dict[str, torch.Tensor]
Running: TypeAlias = Any
"""A module of transformers, whose attributes torch types as Tensor | Module."""

_PROBE = "identity_probe"


def matrix_of(module: Running) -> torch.Tensor:
    """The matrix (out, in) of any affine module, Linear or Conv1D: its outputs for the identity, less the bias."""
    probe = copy.deepcopy(module).double()
    weight = probe.weight
    width = weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1]
    return _columns(probe(_identity(width)))


def _identity(width: int) -> torch.Tensor:
    """A batch of one: the unit vectors, then the zero vector, which gives the bias."""
    return torch.cat([torch.eye(width), torch.zeros(1, width)])[None].double()


def _columns(answers: torch.Tensor) -> torch.Tensor:
    """(1, inputs + 1, features), or (1, heads, inputs + 1, features) -> (all features, inputs)."""
    if answers.dim() == 3:
        answers = answers[:, None]
    centred = answers[0, :, :-1] - answers[0, :, -1:]
    return centred.permute(0, 2, 1).reshape(-1, centred.shape[1]).detach()


@contextmanager
def _captured(probe: Running) -> Iterator[States]:
    """A list that fills with the query, key and value states that reach the attention function."""
    seen: States = {}

    def capture(_module: Running, query: Any, key: Any, value: Any, *_rest: Any, **_named: Any) -> Any:
        seen.update(query=query, key=key, value=value)
        _, heads, length, _ = query.shape
        return torch.zeros(1, length, heads, value.shape[-1], dtype=query.dtype), None

    probe.config._attn_implementation = _PROBE
    ALL_ATTENTION_FUNCTIONS[_PROBE] = capture
    try:
        yield seen
    finally:
        ALL_ATTENTION_FUNCTIONS.pop(_PROBE)


def _no_rotation(length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embeddings that rotate nothing."""
    return torch.ones(1, length, width).double(), torch.zeros(1, length, width).double()


def phi3_layer(layer: Running) -> States:
    """Query, key and value by the attention's own split; gate and up by the MLP's own chunk."""
    probe = copy.deepcopy(layer.self_attn).double()
    width = probe.config.hidden_size
    with _captured(probe) as seen:
        probe(_identity(width), _no_rotation(width + 1, probe.head_dim), None)
    found = {f"attention.{role}": _columns(states) for role, states in seen.items()}
    return {**found, **_gated_mlp(copy.deepcopy(layer.mlp).double(), width)}


def _gated_mlp(mlp: Running, width: int) -> States:
    """Gate is the input of the activation; up is the input of down_proj once the activation returns one."""
    seen: States = {}

    class Ones(nn.Module):
        def forward(self, gate: torch.Tensor) -> torch.Tensor:
            seen["mlp.gate"] = _columns(gate)
            return torch.ones_like(gate)

    def before_down(_module: Running, args: tuple[torch.Tensor, ...]) -> None:
        seen["mlp.up"] = _columns(args[0])

    mlp.activation_fn = Ones()
    mlp.down_proj.register_forward_pre_hook(before_down)
    mlp(_identity(width))
    return seen


def gpt2_layer(layer: Running) -> States:
    """Query, key and value by the attention's own split of c_attn."""
    probe = copy.deepcopy(layer.attn).double()
    with _captured(probe) as seen:
        probe(_identity(probe.embed_dim))
    return {f"attention.{role}": _columns(states) for role, states in seen.items()}


def gpt_neox_layer(layer: Running) -> States:
    """Query, key and value by the attention's own per-head chunk of query_key_value."""
    probe = copy.deepcopy(layer.attention).double()
    width = probe.config.hidden_size
    with _captured(probe) as seen:
        probe(_identity(width), None, position_embeddings=_no_rotation(width + 1, probe.rotary_ndims))
    return {f"attention.{role}": _columns(states) for role, states in seen.items()}


def deepseek_v2_layer(layer: Running) -> States:
    """The latent parts; rotary embeddings are complex numbers in this family. The experts are stacked in memory."""
    probe = copy.deepcopy(layer.self_attn).double()
    length, half = probe.config.hidden_size + 1, probe.qk_rope_head_dim // 2
    rotation = torch.ones(1, length, half, dtype=torch.complex128)
    return {**_latent(probe, rotation), **_experts(layer.mlp)}


def deepseek_v3_layer(layer: Running) -> States:
    """The latent parts and the stacked experts."""
    probe = copy.deepcopy(layer.self_attn).double()
    return {
        **_latent(probe, _no_rotation(probe.config.hidden_size + 1, probe.qk_rope_head_dim)),
        **_experts(layer.mlp),
    }


def _latent(probe: Running, rotation: Any) -> States:
    """kv_a enters the latent's norm; key_rope is the tail of each head's key; key_b and value_b leave expand_kv."""
    seen: States = {}

    def before_norm(_module: Running, args: tuple[torch.Tensor, ...]) -> None:
        seen["attention.kv_a"] = _columns(args[0])

    probe.kv_a_layernorm.register_forward_pre_hook(before_norm)
    with _captured(probe) as states:
        probe(_identity(probe.config.hidden_size), position_embeddings=rotation, attention_mask=None)
    nope, rank = probe.qk_nope_head_dim, probe.kv_lora_rank
    seen["attention.key_rope"] = _columns(states["key"][:, :1, :, nope:])
    unrotated = torch.zeros(1, 1, rank + 1, probe.qk_rope_head_dim).double()
    keys, values = probe.expand_kv(_identity(rank)[None], unrotated)
    seen["attention.key_b"], seen["attention.value_b"] = _columns(keys[..., :nope]), _columns(values)
    return seen


def _experts(mlp: Running) -> States:
    if not hasattr(mlp, "experts"):
        return {}
    found: States = {}
    for number, (gate_up, down) in enumerate(zip(mlp.experts.gate_up_proj, mlp.experts.down_proj, strict=True)):
        gate, up = gate_up.chunk(2)
        found |= {f"expert.{number}.gate": gate, f"expert.{number}.up": up, f"expert.{number}.down": down}
    return found
